# client > [listener] > front
from tiltyard_router.model cimport ty_loop

# Serve on a socket that is bound and listening; the loop takes a duplicate. 0 or a libuv status.
cdef int listener_add(ty_loop *loop, int fd) noexcept nogil
# Takes what could not be taken when it came.
cdef void listener_tick(ty_loop *loop) noexcept nogil
cdef void listener_close_all(ty_loop *loop) noexcept nogil
