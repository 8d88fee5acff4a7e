# stream > [pool] > back
#
# Connections to model servers and services: resolving names, dialling, choosing the least loaded, calls that wait.
from libc.stdint cimport uint64_t

from tiltyard_router.model cimport ty_backend, ty_conn, ty_loop, ty_routes, ty_stream

# The backend of this address text, made (and dialled) at first use. Adds a reference. NULL: memory.
cdef ty_backend *backend_get(ty_loop *loop, const char *text) noexcept nogil
cdef void backend_release(ty_backend *b) noexcept nogil
# Gives a new table its backends, or takes them away. 0 or TY_ERR_NOMEM.
cdef int pool_open_table(ty_loop *loop, ty_routes *routes) noexcept nogil
cdef void pool_close_table(ty_loop *loop, ty_routes *routes) noexcept nogil
# Hands the call to a connection of its arm (or of the service it passes to), lets it wait for one, or fails it.
cdef void pool_send(ty_stream *st) noexcept nogil
# Takes a waiting call off its list; harmless when it is on none.
cdef void pool_forget(ty_stream *st) noexcept nogil
# The peer's SETTINGS came. The first of a connection make it one to be used: what it allows is known.
cdef void pool_ready(ty_conn *c) noexcept nogil
# A connection has room again: waiting calls may go.
cdef void pool_room(ty_conn *c) noexcept nogil
# A connection is closing: its endpoint forgets it. `rv` says why.
cdef void pool_conn_gone(ty_conn *c, int rv) noexcept nogil
# Ten times a second.
cdef void pool_tick(ty_loop *loop, uint64_t now) noexcept nogil
# The loop ends: every connection closes, every waiting call fails, no name is resolved any more.
cdef void pool_shutdown(ty_loop *loop) noexcept nogil
cdef void pool_free(ty_loop *loop) noexcept nogil
