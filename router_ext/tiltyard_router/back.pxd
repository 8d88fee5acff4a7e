# stream > pool > [back] > model server
from tiltyard_router.model cimport ty_conn, ty_loop, ty_stream

# Set up the HTTP/2 client session of a connection that was just made.
cdef int back_start(ty_conn *c) noexcept nogil
# Send a call's request on this connection.
cdef int back_send(ty_conn *c, ty_stream *st) noexcept nogil
# The connection is closing: each of its calls hears of it.
cdef void back_gone(ty_conn *c, int rv) noexcept nogil
# Callback tables, once a process; 0 or a status.
cdef int back_setup() noexcept nogil
