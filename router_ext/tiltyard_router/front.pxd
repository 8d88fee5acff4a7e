# client > listener > [front] > peek
from tiltyard_router.c_uv cimport uv_stream_t
from tiltyard_router.model cimport ty_conn, ty_loop

cdef int front_setup() noexcept nogil
# Takes a connection that is waiting on a listening socket. 0, or TY_ERR_NOMEM: it waits on, and libuv looks at the
# socket no more until somebody takes it.
cdef int front_accept(ty_loop *loop, uv_stream_t *server) noexcept nogil
cdef void front_gone(ty_conn *c, int rv) noexcept nogil
# First step of a goodbye: GOAWAY that still allows every stream; the second follows by front_tick.
cdef void front_drain_all(ty_loop *loop) noexcept nogil
cdef void front_tick(ty_loop *loop) noexcept nogil
# The time for calls in flight is over: each ends with UNAVAILABLE.
cdef void front_fail_all(ty_loop *loop) noexcept nogil
cdef void front_close_all(ty_loop *loop) noexcept nogil
