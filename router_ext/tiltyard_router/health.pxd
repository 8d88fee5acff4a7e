# front > [health]: grpc.health.v1, answered by the router itself
from tiltyard_router.headers cimport ty_text
from tiltyard_router.model cimport ty_loop, ty_stream

cdef enum:
    HEALTH_MAX_BYTES = 272         # no request names a service that long

# Whether the path is a health method; remembers which.
cdef int health_path(ty_stream *st, ty_text path) noexcept nogil
# Whether updates may follow: the stream stays open.
cdef int health_watches(const ty_stream *st) noexcept nogil
# The request is complete.
cdef void health_answer(ty_stream *st) noexcept nogil
# The stream is closing: it watches no more.
cdef void health_forget(ty_stream *st) noexcept nogil
# Serving began or ended: everybody who watches hears of it.
cdef void health_changed(ty_loop *loop) noexcept nogil
# The loop says goodbye: watches end, so that their connections can.
cdef void health_end(ty_loop *loop) noexcept nogil
