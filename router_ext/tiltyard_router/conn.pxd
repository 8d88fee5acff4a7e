# One socket with one nghttp2 session: reading, batched writing, closing. Knows nothing of calls.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from tiltyard_router.c_nghttp2 cimport (
    nghttp2_data_source, nghttp2_frame, nghttp2_session, nghttp2_session_consume_connection,
    nghttp2_session_consume_stream)
from tiltyard_router.c_uv cimport uv_buf_t, uv_handle_t, uv_stream_t
from tiltyard_router.model cimport TY_CREDIT_STEP, ty_conn, ty_loop

cdef ty_conn *conn_new(ty_loop *loop, uint8_t role, int is_pipe) noexcept nogil
# Begins to read; the session must be there.
cdef int conn_start(ty_conn *c) noexcept nogil
# To be flushed before the loop sleeps.
cdef void conn_mark(ty_conn *c) noexcept nogil
cdef void conn_flush_all(ty_loop *loop) noexcept nogil
# Ends the connection and tells the side it belongs to (hooks.front_gone or back_gone) why. Never from inside an
# nghttp2 callback: there, return an error. Harmless when it is closing already.
cdef void conn_close(ty_conn *c, int rv) noexcept nogil
# Gives the peer back credit for n received bytes of the connection's window, in steps.
cdef inline void conn_credit(ty_conn *c, size_t n) noexcept nogil:
    c.owed += n
    if c.owed >= TY_CREDIT_STEP:
        nghttp2_session_consume_connection(c.session, c.owed)
        c.owed = 0

# The same for one stream's window; `owed` is where the stream keeps count.
cdef inline void conn_stream_credit(ty_conn *c, int32_t id, size_t *owed, size_t n) noexcept nogil:
    owed[0] += n
    if owed[0] >= TY_CREDIT_STEP:
        nghttp2_session_consume_stream(c.session, id, owed[0])
        owed[0] = 0
        conn_mark(c)

# nghttp2 callback for DATA frames whose payload was not copied.
cdef int conn_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *framehd, size_t length,
                        nghttp2_data_source *source, void *user_data) noexcept nogil
