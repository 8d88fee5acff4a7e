# Every layer's status in one int: libuv -1..-4095, nghttp2 -501..-905 as they are, ours from -10000 down.
# (libuv's own values on Linux are -1..-133, the -3000s and -4095, so the ranges do not meet.)

cdef enum:
    TY_OK = 0
    TY_ERR_NOMEM = -10001          # an allocation failed
    TY_ERR_MALFORMED = -10002      # bytes that are no valid protobuf message
    TY_ERR_LIMIT = -10003          # a limit set in config was reached
    TY_ERR_NO_SPEC = -10004        # the request has no model_spec, or one without a name
    TY_ERR_KEY_DTYPE = -10005      # the key tensor is a float (or complex, or bool): no identity
    TY_ERR_KEY_SHAPE = -10006      # the key tensor has neither one element nor one per row, all equal
    TY_ERR_KEY_LONG = -10007       # the key is longer than 1,024 bytes
    TY_ERR_NOT_FOUND = -10008      # no pipeline of that name
    TY_ERR_CLOSED = -10009         # the connection or loop is going away
    TY_ERR_PROTOCOL = -10010       # the peer broke gRPC's framing
    TY_ERR_TIMEOUT = -10011        # the deadline passed

# gRPC's canonical status codes, as sent in the trailer grpc-status.
cdef enum:
    GRPC_OK = 0
    GRPC_CANCELLED = 1
    GRPC_UNKNOWN = 2
    GRPC_INVALID_ARGUMENT = 3
    GRPC_DEADLINE_EXCEEDED = 4
    GRPC_NOT_FOUND = 5
    GRPC_PERMISSION_DENIED = 7
    GRPC_RESOURCE_EXHAUSTED = 8
    GRPC_FAILED_PRECONDITION = 9
    GRPC_UNIMPLEMENTED = 12
    GRPC_INTERNAL = 13
    GRPC_UNAVAILABLE = 14
    GRPC_UNAUTHENTICATED = 16

cdef const char *status_text(int rv) noexcept nogil
