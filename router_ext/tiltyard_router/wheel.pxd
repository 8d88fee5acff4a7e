# Deadlines of calls: a hashed wheel of TY_WHEEL_TICK_MS ticks, O(1) to set and clear.
from libc.stdint cimport uint64_t

from tiltyard_router.model cimport ty_loop, ty_stream

cdef int wheel_init(ty_loop *loop) noexcept nogil
# By uv_now; an earlier deadline of the stream is replaced.
cdef void wheel_set(ty_stream *st, uint64_t deadline_ms) noexcept nogil
cdef void wheel_clear(ty_stream *st) noexcept nogil
