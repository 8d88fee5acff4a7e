# peek > routes > split > [stream] > pool > back, and back > [stream] > reply
#
# The life of one call, from its headers to its outcome. ARCHITECTURE.md draws the states.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint32_t

from tiltyard_router.model cimport ty_conn, ty_loop, ty_queue, ty_stream

# A client opened a stream. NULL: memory.
cdef ty_stream *stream_new(ty_conn *front, int32_t id) noexcept nogil
# Request headers are complete.
cdef void stream_head(ty_stream *st) noexcept nogil
# Request bytes; 0, or an HTTP/2 error code the stream must be reset with.
cdef void stream_data(ty_stream *st, const uint8_t *data, size_t n) noexcept nogil
# END_STREAM from the client.
cdef void stream_request_end(ty_stream *st) noexcept nogil
# The front stream is closed (answered, reset by the client, or its connection is gone).
cdef void stream_front_closed(ty_stream *st) noexcept nogil

# From the back side: answer headers are complete; answer bytes; END_STREAM; the back stream is closed.
cdef void stream_answer_head(ty_stream *st, int end_stream) noexcept nogil
cdef void stream_answer_data(ty_stream *st, const uint8_t *data, size_t n) noexcept nogil
cdef void stream_answer_end(ty_stream *st) noexcept nogil
cdef void stream_back_closed(ty_stream *st, uint32_t error_code, int connection_lost) noexcept nogil

# Ends the call with an error of ours: the client gets it as trailers, the backend's stream is reset. `msg` is copied;
# NULL: st.msg is set already.
cdef void stream_fail(ty_stream *st, int status, const char *msg) noexcept nogil
cdef void stream_expired(ty_stream *st) noexcept nogil
# Bytes of a queue were sent: credit goes back to the side they came from.
cdef void stream_drained(ty_queue *q, size_t n) noexcept nogil
