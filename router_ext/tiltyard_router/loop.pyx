"""One proxy loop: what runs it, what it does each iteration, how it ends."""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from tiltyard_router.back cimport back_gone, back_send, back_setup, back_start
from tiltyard_router.c_sys cimport random_bytes, tune_malloc
from tiltyard_router.c_uv cimport (
    UV_RUN_DEFAULT, UV_RUN_NOWAIT, uv_async_init, uv_async_send, uv_async_t, uv_check_init, uv_check_start, uv_check_t,
    uv_close, uv_handle_t, uv_hrtime, uv_idle_init, uv_is_closing, uv_loop_close, uv_loop_init, uv_mutex_destroy,
    uv_mutex_init, uv_mutex_lock, uv_mutex_unlock, uv_now, uv_prepare_init, uv_prepare_start, uv_prepare_t, uv_run,
    uv_stop, uv_timer_init, uv_timer_start, uv_timer_t, uv_walk)
from tiltyard_router.clock cimport clock_second, clock_slew, clock_start
from tiltyard_router.conn cimport conn_flush_all
from tiltyard_router.front cimport front_close_all, front_drain_all, front_fail_all, front_gone, front_setup, front_tick
from tiltyard_router.health cimport health_changed, health_end
from tiltyard_router.listener cimport listener_close_all, listener_tick
from tiltyard_router.mem cimport buf_decref, mem_clear, mem_init
from tiltyard_router.model cimport TY_OUT_COPY, ty_config, ty_loop
from tiltyard_router.pool cimport pool_close_table, pool_free, pool_open_table, pool_shutdown, pool_tick
from tiltyard_router.receipt cimport signer_free, signer_new, signer_rekey
from tiltyard_router.routes cimport routes_free, ty_routes
from tiltyard_router.status cimport TY_ERR_NOMEM
from tiltyard_router.stream cimport stream_drained, stream_expired, stream_fail
from tiltyard_router.tap cimport tap_close, tap_free, tap_new
from tiltyard_router.wheel cimport wheel_init

cdef enum:
    TICK_MS = 100
    GOODBYE_MS = 500               # how long last answers may take to leave once the calls have ended
    UNWIND_MS = 500                # and how long libuv may take to let go of its handles


# ---------------------------------------------------------------- made and freed

cdef ty_loop *loop_new(const ty_config *config, const unsigned char *boot_id, const char *counters_path,
                       size_t max_counter_bytes, int *err) noexcept nogil:
    cdef ty_loop *loop = <ty_loop *>calloc(1, sizeof(ty_loop))
    err[0] = TY_ERR_NOMEM
    if loop is NULL:
        return NULL
    tune_malloc()
    loop.config = config[0]
    memcpy(loop.boot_id, boot_id, 6)
    mem_init(&loop.mem)
    set_hooks(loop)
    loop.out = <uint8_t *>malloc(TY_OUT_COPY)
    if loop.out is NULL or random_bytes(loop.rng, sizeof(loop.rng)) != 0 or front_setup() != 0 or back_setup() != 0:
        free(loop.out)
        free(loop)
        return NULL
    err[0] = uv_loop_init(&loop.uv)
    if err[0] != 0:
        free(loop.out)
        free(loop)
        return NULL
    uv_mutex_init(&loop.lock)
    clock_start(loop)
    err[0] = start_handles(loop)
    if err[0] == 0:
        loop.tap = tap_new(counters_path, boot_id, max_counter_bytes, err)
    if loop.tap is NULL:
        loop_free(loop)
        return NULL
    return loop


cdef void set_hooks(ty_loop *loop) noexcept nogil:
    loop.hooks.start_back = back_start
    loop.hooks.send_request = back_send
    loop.hooks.back_gone = back_gone
    loop.hooks.front_gone = front_gone
    loop.hooks.stream_failed = stream_fail
    loop.hooks.stream_expired = stream_expired
    loop.hooks.queue_drained = stream_drained


cdef int start_handles(ty_loop *loop) noexcept nogil:
    cdef int rv = uv_async_init(&loop.uv, &loop.wake, on_wake)
    loop.wake.data = loop
    loop.check.data = loop
    loop.prepare.data = loop
    loop.tick.data = loop
    loop.idle.data = loop
    if rv == 0:
        rv = uv_check_init(&loop.uv, &loop.check)
    if rv == 0:
        rv = uv_check_start(&loop.check, on_check)
    if rv == 0:
        rv = uv_prepare_init(&loop.uv, &loop.prepare)
    if rv == 0:
        rv = uv_prepare_start(&loop.prepare, on_prepare)
    if rv == 0:
        rv = uv_idle_init(&loop.uv, &loop.idle)
    if rv == 0:
        rv = uv_timer_init(&loop.uv, &loop.tick)
    if rv == 0:
        rv = uv_timer_start(&loop.tick, on_tick, TICK_MS, TICK_MS)
    if rv == 0:
        rv = wheel_init(loop)
    return rv


cdef void close_handle(uv_handle_t *handle, void *arg) noexcept nogil:
    if not uv_is_closing(handle):
        uv_close(handle, NULL)


cdef int unwind(ty_loop *loop) noexcept nogil:
    """Close every handle and let libuv finish. 0, or its status when a resolver thread would not end in time."""
    cdef uint64_t until = uv_hrtime() + <uint64_t>UNWIND_MS * 1000000
    cdef int rv
    loop.ending = 1
    listener_close_all(loop)
    front_close_all(loop)
    pool_shutdown(loop)
    uv_walk(&loop.uv, close_handle, NULL)
    while True:
        uv_run(&loop.uv, UV_RUN_NOWAIT)
        rv = uv_loop_close(&loop.uv)
        if rv == 0 or uv_hrtime() > until:
            return rv


cdef void loop_free(ty_loop *loop) noexcept nogil:
    cdef ty_routes *pending
    if loop is NULL:
        return
    if unwind(loop) != 0:
        return                         # a resolver thread still refers to it: memory is lost, nothing else
    if loop.routes is not NULL:
        drop_table(loop, loop.routes)
    pending = loop.pending
    routes_free(pending)
    pool_free(loop)
    tap_free(loop.tap)
    signer_free(loop.signer)
    buf_decref(loop.read_buf)
    mem_clear(&loop.mem)
    uv_mutex_destroy(&loop.lock)
    free(loop.out)
    free(loop)


# ---------------------------------------------------------------- each iteration

cdef int loop_run(ty_loop *loop) noexcept nogil:
    uv_run(&loop.uv, UV_RUN_DEFAULT)       # until uv_stop
    tap_close(loop.tap, clock_second(loop) + 1)
    return loop.failure


cdef void on_check(uv_check_t *handle) noexcept nogil:
    """After the batch of events: everybody who has something to send sends it in one go."""
    conn_flush_all(<ty_loop *>handle.data)


cdef void on_prepare(uv_prepare_t *handle) noexcept nogil:
    """Before the loop sleeps: what timers and other threads' messages made ready."""
    conn_flush_all(<ty_loop *>handle.data)


cdef void on_tick(uv_timer_t *handle) noexcept nogil:
    cdef ty_loop *loop = <ty_loop *>handle.data
    cdef uint64_t now = uv_now(&loop.uv)
    clock_slew(loop)
    tap_close(loop.tap, clock_second(loop))
    pool_tick(loop, now)
    listener_tick(loop)
    front_tick(loop)
    if loop.draining:
        drain_tick(loop, now)


# ---------------------------------------------------------------- messages from other threads

cdef void loop_apply(ty_loop *loop, ty_routes *routes) noexcept nogil:
    cdef ty_routes *old
    uv_mutex_lock(&loop.lock)
    old = loop.pending
    loop.pending = routes
    uv_mutex_unlock(&loop.lock)
    routes_free(old)                       # never came into force: a newer one overtook it
    uv_async_send(&loop.wake)


cdef void loop_stop(ty_loop *loop) noexcept nogil:
    uv_mutex_lock(&loop.lock)
    loop.stop_calls += 1
    uv_mutex_unlock(&loop.lock)
    uv_async_send(&loop.wake)


cdef void on_wake(uv_async_t *handle) noexcept nogil:
    cdef ty_loop *loop = <ty_loop *>handle.data
    cdef ty_routes *fresh
    cdef uint32_t stops
    uv_mutex_lock(&loop.lock)
    fresh = loop.pending
    loop.pending = NULL
    stops = loop.stop_calls
    uv_mutex_unlock(&loop.lock)
    if fresh is not NULL:
        swap(loop, fresh)
    if stops >= 2:
        uv_stop(&loop.uv)
    elif stops == 1 and not loop.draining:
        drain(loop)


cdef void drop_table(ty_loop *loop, ty_routes *routes) noexcept nogil:
    routes.refs -= 1
    if routes.refs == 0:
        pool_close_table(loop, routes)
        routes_free(routes)


cdef void swap(ty_loop *loop, ty_routes *fresh) noexcept nogil:
    """The new table is in force from the next request on; calls in flight keep theirs."""
    cdef ty_routes *old = loop.routes
    fresh.refs = 1
    if pool_open_table(loop, fresh) != 0 or use_key(loop, fresh) != 0:
        drop_table(loop, fresh)            # memory is out: the old table stays
        return
    loop.routes = fresh
    if old is not NULL:
        drop_table(loop, old)
    else:
        health_changed(loop)
    uv_mutex_lock(&loop.lock)
    loop.applied = fresh.revision
    uv_mutex_unlock(&loop.lock)


cdef int use_key(ty_loop *loop, const ty_routes *routes) noexcept nogil:
    if not routes.has_key:
        return 0
    if loop.signer is NULL:
        loop.signer = signer_new(routes.key_secret, routes.key_number, loop.boot_id)
        if loop.signer is NULL:
            return TY_ERR_NOMEM
    elif loop.key_number != routes.key_number or memcmp(loop.key_secret, routes.key_secret, 32) != 0:
        if signer_rekey(loop.signer, routes.key_secret, routes.key_number) != 0:
            return TY_ERR_NOMEM
    loop.key_number = routes.key_number
    memcpy(loop.key_secret, routes.key_secret, 32)
    return 0


# ---------------------------------------------------------------- the end

cdef void drain(ty_loop *loop) noexcept nogil:
    loop.draining = 1
    loop.drain_deadline_ms = uv_now(&loop.uv) + loop.config.drain_limit_ms
    listener_close_all(loop)
    health_end(loop)
    front_drain_all(loop)


cdef void drain_tick(ty_loop *loop, uint64_t now) noexcept nogil:
    """Stop once every client has gone, or when the time is over and the last answers have left."""
    if loop.n_fronts == 0:
        uv_stop(&loop.uv)
    elif now >= loop.drain_deadline_ms + GOODBYE_MS:
        uv_stop(&loop.uv)
    elif now >= loop.drain_deadline_ms:
        front_fail_all(loop)
