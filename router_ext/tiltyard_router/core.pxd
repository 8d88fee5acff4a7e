from tiltyard_router.model cimport ty_loop

cdef class Router:
    cdef ty_loop *_loop            # owned, from __cinit__ to __dealloc__
    cdef int _connect(self, control, outcomes) except -1
