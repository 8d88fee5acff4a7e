# back > stream > [reply] > client
#
# The client's side of an answer: its headers, its bytes as they come, its trailers.
from tiltyard_router.model cimport ty_stream

# The backend's answer headers, without what is not for clients and with the arm and the receipt.
cdef int reply_head(ty_stream *st) noexcept nogil
# The whole answer is one block of headers: the backend's (an error without a message), or our own (st.own_status).
cdef int reply_only_trailers(ty_stream *st) noexcept nogil
# There is more to send, or the answer has ended: the session asks for it again.
cdef void reply_resume(ty_stream *st) noexcept nogil
# Answers with a plain HTTP status, for what is no gRPC call at all.
cdef int reply_http(ty_stream *st, const char *status) noexcept nogil
# One complete message and OK, made here (health).
cdef int reply_own_head(ty_stream *st) noexcept nogil
