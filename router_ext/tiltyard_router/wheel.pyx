"""Deadlines of calls."""

from libc.stdint cimport uint32_t, uint64_t

from tiltyard_router.c_uv cimport uv_now, uv_timer_init, uv_timer_start, uv_timer_stop, uv_timer_t
from tiltyard_router.model cimport TY_WHEEL_SLOTS, TY_WHEEL_TICK_MS, ty_loop, ty_stream


cdef int wheel_init(ty_loop *loop) noexcept nogil:
    loop.wheel_timer.data = loop
    return uv_timer_init(&loop.uv, &loop.wheel_timer)


cdef void wheel_set(ty_stream *st, uint64_t deadline_ms) noexcept nogil:
    cdef ty_loop *loop = st.loop
    cdef uint64_t tick = deadline_ms // TY_WHEEL_TICK_MS + 1       # never early
    cdef uint32_t slot
    wheel_clear(st)
    if loop.wheel_n == 0:              # the timer slept: nothing between then and now is due
        loop.wheel_at = uv_now(&loop.uv) // TY_WHEEL_TICK_MS
        uv_timer_start(&loop.wheel_timer, on_wheel, TY_WHEEL_TICK_MS, TY_WHEEL_TICK_MS)
    if tick <= loop.wheel_at:
        tick = loop.wheel_at + 1
    slot = <uint32_t>(tick % TY_WHEEL_SLOTS)
    st.deadline_ms = deadline_ms
    st.w_slot = slot + 1
    st.w_prev = NULL
    st.w_next = loop.wheel[slot]
    if st.w_next is not NULL:
        st.w_next.w_prev = st
    loop.wheel[slot] = st
    loop.wheel_n += 1


cdef void wheel_clear(ty_stream *st) noexcept nogil:
    cdef ty_loop *loop = st.loop
    if st.w_slot == 0:
        return
    if loop.wheel_next is st:
        loop.wheel_next = st.w_next
    if st.w_prev is not NULL:
        st.w_prev.w_next = st.w_next
    else:
        loop.wheel[st.w_slot - 1] = st.w_next
    if st.w_next is not NULL:
        st.w_next.w_prev = st.w_prev
    st.w_prev = NULL
    st.w_next = NULL
    st.w_slot = 0
    loop.wheel_n -= 1


cdef void on_wheel(uv_timer_t *handle) noexcept nogil:
    cdef ty_loop *loop = <ty_loop *>handle.data
    cdef uint64_t now = uv_now(&loop.uv)
    cdef uint64_t until = now // TY_WHEEL_TICK_MS
    cdef ty_stream *st
    if until > loop.wheel_at + TY_WHEEL_SLOTS:                     # stalled for a whole turn: each slot once
        loop.wheel_at = until - TY_WHEEL_SLOTS
    while loop.wheel_at < until:
        loop.wheel_at += 1
        st = loop.wheel[loop.wheel_at % TY_WHEEL_SLOTS]
        while st is not NULL:
            loop.wheel_next = st.w_next
            if st.deadline_ms <= now:
                wheel_clear(st)
                loop.hooks.stream_expired(st)                      # may clear others, wheel_next follows
            st = loop.wheel_next
    loop.wheel_next = NULL
    if loop.wheel_n == 0:
        uv_timer_stop(handle)
