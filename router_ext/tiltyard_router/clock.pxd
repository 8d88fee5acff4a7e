# Unix time as the loop sees it: the wall clock at its start plus libuv's monotonic time, slewed towards the wall clock.
# A step of the wall clock (NTP, an operator) neither repeats nor skips assignment seconds, and leaves none open.
from libc.stdint cimport int64_t

from tiltyard_router.c_sys cimport wall_ms
from tiltyard_router.c_uv cimport uv_now
from tiltyard_router.model cimport ty_loop

cdef enum:
    SLEW_MS = 5                    # per tick of 100 ms at the most: time never stands still or runs backwards

cdef inline void clock_start(ty_loop *loop) noexcept nogil:
    loop.wall_offset_ms = wall_ms() - <int64_t>uv_now(&loop.uv)

cdef inline int64_t clock_second(const ty_loop *loop) noexcept nogil:
    return (loop.wall_offset_ms + <int64_t>uv_now(&loop.uv)) // 1000

cdef inline void clock_slew(ty_loop *loop) noexcept nogil:
    cdef int64_t off = wall_ms() - <int64_t>uv_now(&loop.uv) - loop.wall_offset_ms
    if off > SLEW_MS:
        off = SLEW_MS
    elif off < -SLEW_MS:
        off = -SLEW_MS
    loop.wall_offset_ms += off
