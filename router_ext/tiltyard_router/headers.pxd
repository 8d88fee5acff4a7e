# Header fields of one message, kept as references to nghttp2's own buffers.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from tiltyard_router.c_nghttp2 cimport nghttp2_nv, nghttp2_rcbuf
from tiltyard_router.mem cimport ty_mem
from tiltyard_router.model cimport ty_header, ty_headers

cdef enum:                         # what a field is to us
    TY_H_OTHER = 0
    TY_H_METHOD = 1
    TY_H_PATH = 2
    TY_H_SCHEME = 3
    TY_H_AUTHORITY = 4
    TY_H_STATUS = 5
    TY_H_CONTENT_TYPE = 6
    TY_H_CONTENT_LENGTH = 7
    TY_H_TE = 8
    TY_H_USER_AGENT = 9
    TY_H_GRPC_TIMEOUT = 10
    TY_H_GRPC_ENCODING = 11
    TY_H_GRPC_ACCEPT_ENCODING = 12
    TY_H_GRPC_STATUS = 13
    TY_H_GRPC_MESSAGE = 14
    TY_H_TILTYARD = 15             # begins with "tiltyard-": ours alone
    TY_H_PSEUDO = 16               # another one that begins with a colon

cdef struct ty_text:
    const char *p
    size_t n

# `own` is room for `cap` fields that lives as long as h.
cdef void headers_init(ty_headers *h, ty_header *own, uint32_t cap) noexcept nogil
cdef void headers_clear(ty_headers *h, ty_mem *mem) noexcept nogil
# Keeps a reference on both, unless nobody will look at the field again: of :method and :status only is_post and status
# are kept, of the other pseudo fields (but :path), te, content-length and tiltyard-* nothing. Beyond TY_HDR_MAX fields
# or TY_HDR_BYTES only `overflow` is set. 0 or TY_ERR_NOMEM.
cdef int headers_add(ty_headers *h, ty_mem *mem, nghttp2_rcbuf *name, nghttp2_rcbuf *value) noexcept nogil
# Value of the last field with this token; p NULL when there is none.
cdef ty_text headers_get(const ty_headers *h, uint8_t token) noexcept nogil
# An nv that refers to the field's own bytes; flags besides the NO_COPY ones.
cdef void header_nv(const ty_header *field, nghttp2_nv *nv, uint8_t flags) noexcept nogil
cdef void text_nv(nghttp2_nv *nv, const char *name, size_t name_len, const char *value, size_t value_len,
                  uint8_t flags) noexcept nogil

# Whether a field whose value differs in every message goes into HPACK's dynamic table: the first on a connection does,
# so that the others can refer to its name by a number; their values would only push better entries out. Names are told
# apart by 64 hash bits in `named`: two that collide cost some bytes, nothing else.
cdef uint8_t name_flags(uint64_t *named, const char *name, size_t n) noexcept nogil
# Decimal digits without a terminator; out has room for 20. Returns how many.
cdef size_t number_write(uint64_t value, char *out) noexcept nogil

# grpc-timeout's text as microseconds; -1 when it is malformed.
cdef long long timeout_us(ty_text text) noexcept nogil
# grpc-status' text as a number; -1 when it is malformed.
cdef int status_number(ty_text text) noexcept nogil
# Percent-encodes a message as gRPC wants it in grpc-message. Returns the length written, at most cap.
cdef size_t message_encode(const char *msg, char *out, size_t cap) noexcept nogil
