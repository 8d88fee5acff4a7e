"""The loop of the load generator."""
# loadgen > [load_core] > load_calls > load_hist

from libc.math cimport log
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close, read

from tiltyard_router.c_load cimport *
from tiltyard_router.load_calls cimport (
    arm_find, call_answered, call_fail, call_release, call_settle, list_push, list_push_front,
    list_remove)
from tiltyard_router.load_hist cimport hist_add, hist_quantile

cdef enum:
    TICK_MS = 10
    STREAM_WINDOW = 4194304                      # dataplane trap: 64 KiB and the prefix exceed the default
    CONN_WINDOW = 67108864

cdef const char *DIGITS = b"0123456789abcdef"
cdef uint64_t SHOW_NS = 100_000_000
cdef uint64_t BACKOFF_NS = 10_000_000
cdef uint64_t MAX_BACKOFF_NS = 1_000_000_000

# ---- small helpers ------------------------------------------------------------------------------------

cdef uint64_t random_next(ld_engine *e) noexcept nogil:
    """splitmix64: good enough to draw gaps and keys, and one word of state."""
    cdef uint64_t z
    e.random += <uint64_t>0x9E3779B97F4A7C15
    z = e.random
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)

cdef uint64_t gap_next(ld_engine *e) noexcept nogil:
    cdef double u
    if not e.cfg.poisson:
        return <uint64_t>e.cfg.gap_ns
    u = <double>((random_next(e) >> 11) + 1) / 9007199254740992.0    # above 0, at most 1
    return <uint64_t>(-log(u) * e.cfg.gap_ns)

cdef bint is_header(const uint8_t *name, size_t n, const char *wanted, size_t wanted_len) noexcept nogil:
    return n == wanted_len and memcmp(name, wanted, n) == 0

cdef int32_t small_number(const uint8_t *text, size_t n) noexcept nogil:
    """The decimal number in text, or -1."""
    cdef int32_t value = 0
    cdef size_t i
    if n == 0 or n > 3:
        return -1
    for i in range(n):
        if not 48 <= text[i] <= 57:
            return -1
        value = value * 10 + (text[i] - 48)
    return value

# ---- nghttp2's callbacks: they settle calls, and never open, close or flush ----------------------------------------

cdef int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_len,
                   const uint8_t *value, size_t value_len, uint8_t flags, void *user_data) noexcept nogil:
    cdef ld_engine *e = (<ld_conn *>user_data).engine
    cdef ld_call *call = <ld_call *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    cdef int32_t number
    if call is NULL or call.done:
        return 0
    if is_header(name, name_len, b":status", 7):
        call.http_status = small_number(value, value_len)
    elif is_header(name, name_len, b"grpc-status", 11):
        number = small_number(value, value_len)
        call.grpc_status = number if number >= 0 else 2
    elif is_header(name, name_len, b"grpc-message", 12):
        e.message_call = call
        e.message_len = min(value_len, <size_t>LD_MESSAGE)
        memcpy(e.message, value, e.message_len)
    elif call.arm is NULL and e.cfg.arm_header_len and is_header(
            name, name_len, e.cfg.arm_header, e.cfg.arm_header_len):
        call.arm = arm_find(e, value, value_len)
    return 0

cdef int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t n,
                 void *user_data) noexcept nogil:
    cdef ld_call *call = <ld_call *>nghttp2_session_get_stream_user_data(session, stream_id)
    cdef size_t i = 0
    if call is NULL or call.done:
        return 0
    while call.got + i < 5 and i < n:
        call.head[call.got + i] = data[i]
        i += 1
    call.got += n
    return 0

cdef int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) noexcept nogil:
    cdef ld_conn *c = <ld_conn *>user_data
    cdef ld_call *call
    if frame.hd.type == NGHTTP2_GOAWAY:
        c.draining = True
        return 0
    if frame.hd.type == NGHTTP2_SETTINGS:
        c.greeted = c.greeted or not frame.hd.flags & NGHTTP2_FLAG_ACK
        return 0
    if not frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        return 0
    if frame.hd.type != NGHTTP2_DATA and frame.hd.type != NGHTTP2_HEADERS:
        return 0
    call = <ld_call *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if call is NULL or call.done:
        return 0
    call_answered(c.engine, call)
    if call.sent < c.engine.cfg.body_len:        # answered before it was asked in full: nobody reads the rest
        return nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_CANCEL)
    return 0

cdef int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                         void *user_data) noexcept nogil:
    cdef ld_conn *c = <ld_conn *>user_data
    cdef ld_call *call = <ld_call *>nghttp2_session_get_stream_user_data(session, stream_id)
    if call is NULL or c.state != LD_UP:         # conn_close settles what is left
        return 0
    if not call.done:
        if error_code == NGHTTP2_NO_ERROR:
            call_answered(c.engine, call)
        elif error_code == NGHTTP2_REFUSED_STREAM:
            call_fail(c.engine, call, LD_FAIL_REFUSED)
        else:
            call_fail(c.engine, call, LD_FAIL_RESET)
    call_release(c.engine, call)
    return 0

cdef ssize_t on_body(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length, uint32_t *data_flags,
                     nghttp2_data_source *source, void *user_data) noexcept nogil:
    cdef ld_call *call = <ld_call *>source.ptr
    cdef const ld_config *cfg = (<ld_conn *>user_data).engine.cfg
    cdef size_t n = cfg.body_len - call.sent
    if n <= length:
        data_flags[0] |= NGHTTP2_DATA_FLAG_EOF
    else:
        n = length
    if cfg.body_len <= LD_COPY_BODY:
        memcpy(buf, cfg.body + call.sent, n)
        call.sent += n
    else:
        data_flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
    return <ssize_t>n

cdef int on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *framehd, size_t length,
                      nghttp2_data_source *source, void *user_data) noexcept nogil:
    cdef ld_conn *c = <ld_conn *>user_data
    cdef ld_call *call = <ld_call *>source.ptr
    if c.n_segs + 2 > LD_SEGS - 2 or c.out_len + LD_OUT_RESERVE > LD_OUT:
        return NGHTTP2_ERR_WOULDBLOCK            # dataplane trap 2: the caller writes, then asks again
    conn_copy(c, framehd, 9)
    c.segs[c.n_segs].base = <char *>c.engine.cfg.body + call.sent    # outlives the run
    c.segs[c.n_segs].len = length
    c.n_segs += 1
    call.sent += length
    return 0

# ---- connections ---------------------------------------------------------------------------------------------------

cdef void conn_copy(ld_conn *c, const uint8_t *data, size_t n) noexcept nogil:
    """Append bytes to the write being gathered; the caller has checked that they fit."""
    cdef char *to = c.out + c.out_len
    cdef uv_buf_t *last
    memcpy(to, data, n)
    c.out_len += n
    if c.n_segs:
        last = &c.segs[c.n_segs - 1]
        if last.base + last.len == to:
            last.len += n
            return
    c.segs[c.n_segs].base = to
    c.segs[c.n_segs].len = n
    c.n_segs += 1

cdef void on_conn_closed(uv_handle_t *handle) noexcept nogil:
    cdef ld_conn *c = <ld_conn *>handle.data
    c.state = LD_DOWN

cdef void conn_close(ld_conn *c) noexcept nogil:
    """Ends the connection; what was in flight on it has failed. Never inside a callback of nghttp2."""
    cdef ld_engine *e = c.engine
    cdef ld_call *call
    if c.state != LD_CONNECTING and c.state != LD_UP:
        return
    c.state = LD_CLOSING
    if c.session is not NULL:
        nghttp2_session_del(c.session)           # before the calls: it still points at them
        c.session = NULL
    while c.calls is not NULL:
        call = c.calls
        if not call.done:
            call_fail(e, call, LD_FAIL_CONNECTION)
        call_release(e, call)
    c.writing = False
    uv_close(<uv_handle_t *>&c.tcp, on_conn_closed)

cdef void conn_lost(ld_conn *c, int rv) noexcept nogil:
    """The connection failed with rv, or ended as agreed (0); the tick opens it again."""
    cdef ld_engine *e = c.engine
    cdef uint64_t wait = BACKOFF_NS << min(c.fails, <uint32_t>7)
    if rv != 0:
        e.error = rv
        c.fails += 1
        if not c.greeted:
            e.totals.connect_errors += 1
        else:
            e.totals.connections_lost += 1
    c.retry_ns = e.now_ns + min(wait, MAX_BACKOFF_NS)
    conn_close(c)

cdef int conn_gather(ld_conn *c) noexcept nogil:
    """Fill segs with what the session wants to send, as far as one write goes."""
    cdef const uint8_t *data = NULL
    cdef ssize_t n
    c.n_segs = 0
    c.out_len = 0
    while c.n_segs < LD_SEGS - 2 and c.out_len + LD_OUT_RESERVE <= LD_OUT:
        n = nghttp2_session_mem_send(c.session, &data)
        if n < 0:
            return <int>n
        if n == 0:
            break
        if c.out_len + <size_t>n > LD_OUT:
            return NGHTTP2_ERR_NOMEM
        conn_copy(c, data, <size_t>n)
    return 0

cdef void conn_write(ld_conn *c) noexcept nogil:
    cdef unsigned int i = 0
    cdef int rv = uv_try_write(<uv_stream_t *>&c.tcp, c.segs, c.n_segs)
    cdef size_t done
    if rv == UV_EAGAIN:
        rv = 0
    if rv < 0:
        conn_lost(c, rv)
        return
    done = <size_t>rv
    while i < c.n_segs and done >= c.segs[i].len:
        done -= c.segs[i].len
        i += 1
    if i == c.n_segs:
        return
    c.segs[i].base += done
    c.segs[i].len -= done
    rv = uv_write(&c.write_req, <uv_stream_t *>&c.tcp, &c.segs[i], c.n_segs - i, on_written)
    if rv < 0:
        conn_lost(c, rv)
        return
    c.writing = True
    c.since_ns = e_now(c.engine)

cdef void conn_flush(ld_conn *c) noexcept nogil:
    cdef int rv
    c.dirty = False
    while c.state == LD_UP and not c.writing:
        rv = conn_gather(c)
        if rv < 0:
            conn_lost(c, rv)
            return
        if c.n_segs == 0:
            break
        conn_write(c)
    if c.state != LD_UP:
        return
    if c.draining and c.n_calls == 0:
        conn_lost(c, 0)
    elif not nghttp2_session_want_read(c.session) and not nghttp2_session_want_write(c.session):
        conn_lost(c, 0 if c.draining else NGHTTP2_ERR_PROTO)         # nghttp2 has ended a broken session

cdef uint32_t conn_room(ld_conn *c) noexcept nogil:
    """How many more calls the connection takes now."""
    cdef uint32_t most
    if c.state != LD_UP or not c.greeted or c.draining or not nghttp2_session_check_request_allowed(c.session):
        return 0
    most = nghttp2_session_get_remote_settings(c.session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
    if most > c.engine.cfg.streams:
        most = c.engine.cfg.streams
    return most - c.n_calls if most > c.n_calls else 0

cdef void key_write(ld_engine *e, ld_call *call) noexcept nogil:
    cdef const ld_config *cfg = e.cfg
    cdef uint64_t number
    cdef int i
    if cfg.n_keys:
        number = random_next(e) % cfg.n_keys
    else:
        number = e.next_key
        e.next_key += 1
    memcpy(call.key, cfg.key_prefix, cfg.key_prefix_len)
    for i in range(LD_KEY_DIGITS):
        call.key[cfg.key_prefix_len + LD_KEY_DIGITS - 1 - i] = DIGITS[number & 15]
        number >>= 4
    e.nv[cfg.n_nv - 1].value = <uint8_t *>call.key

cdef bint call_send(ld_conn *c, ld_call *call) noexcept nogil:
    """Submit a call that is in no list. False, and nothing done, when the connection takes no more."""
    cdef ld_engine *e = c.engine
    cdef nghttp2_data_provider body
    cdef int32_t rv
    if e.cfg.keyed:
        key_write(e, call)
    call.sent = 0
    call.got = 0
    call.http_status = 0
    call.grpc_status = -1
    call.arm = NULL
    call.done = False
    body.source.ptr = call
    body.read_callback = on_body
    rv = nghttp2_submit_request(c.session, NULL, e.nv, e.cfg.n_nv, &body, call)
    if rv < 0:
        c.draining = True                        # out of stream ids, or of memory: another connection
        return False
    call.stream_id = rv
    call.sent_ns = e.now_ns
    call.conn = c
    call.conn_prev = NULL
    call.conn_next = c.calls
    if c.calls is not NULL:
        c.calls.conn_prev = call
    c.calls = call
    c.n_calls += 1
    c.dirty = True
    list_push(&e.live, call)
    if e.cfg.gap_ns > 0 and call.measured:
        hist_add(&e.lag, e.now_ns - call.planned_ns)
    return True

cdef void conn_fill(ld_conn *c) noexcept nogil:
    """Closed loop: a new call for each one that ended."""
    cdef ld_engine *e = c.engine
    cdef uint32_t room = conn_room(c)
    cdef ld_call *call
    if room:
        e_now(e)
    while room and e.free.head is not NULL and may_issue(e, e.now_ns):
        call = e.free.head
        list_remove(&e.free, call)
        call.planned_ns = e.now_ns
        call.measured = e.measuring
        if not call_send(c, call):
            list_push(&e.free, call)
            return
        issued(e)
        room -= 1

cdef void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) noexcept nogil:
    buf.base = (<ld_conn *>handle.data).engine.read_buf
    buf.len = LD_READ

cdef void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) noexcept nogil:
    cdef ld_conn *c = <ld_conn *>stream.data
    cdef ld_engine *e = c.engine
    cdef ssize_t rv
    if n == 0 or c.state != LD_UP:
        return
    e_now(e)
    if n < 0:
        conn_lost(c, 0 if c.draining and c.n_calls == 0 else <int>n)
    else:
        rv = nghttp2_session_mem_recv(c.session, <const uint8_t *>buf.base, <size_t>n)
        if rv < 0:
            conn_lost(c, <int>rv)
        else:
            if c.greeted and e.begun_ns == 0:
                begin(e)
            pump(e, c)
            conn_flush(c)
    settle(e)

cdef void on_written(uv_write_t *req, int status) noexcept nogil:
    cdef ld_conn *c = <ld_conn *>req.data
    if c.state != LD_UP:
        return                                   # cancelled by the close
    e_now(c.engine)
    c.writing = False
    if status < 0:
        conn_lost(c, status)
    else:
        pump(c.engine, c)
        conn_flush(c)
    settle(c.engine)

cdef int conn_greet(ld_conn *c) noexcept nogil:
    cdef nghttp2_settings_entry settings[2]
    cdef int rv = nghttp2_session_client_new(&c.session, c.engine.callbacks, c)
    if rv < 0:
        return rv
    settings[0].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
    settings[0].value = 0
    settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    settings[1].value = STREAM_WINDOW
    rv = nghttp2_submit_settings(c.session, NGHTTP2_FLAG_NONE, settings, 2)
    if rv < 0:
        return rv
    return nghttp2_session_set_local_window_size(c.session, NGHTTP2_FLAG_NONE, 0, CONN_WINDOW)

cdef void on_connect(uv_connect_t *req, int status) noexcept nogil:
    cdef ld_conn *c = <ld_conn *>req.data
    cdef ld_engine *e = c.engine
    cdef int rv = status
    if c.state != LD_CONNECTING:
        return
    e_now(e)
    if rv == 0:
        rv = conn_greet(c)
    if rv == 0:
        rv = uv_read_start(<uv_stream_t *>&c.tcp, on_alloc, on_read)
    if rv < 0:
        conn_lost(c, rv)
        settle(e)
        return
    c.state = LD_UP
    conn_flush(c)
    settle(e)

cdef void conn_open(ld_conn *c) noexcept nogil:
    cdef ld_engine *e = c.engine
    cdef int rv
    if c.tried:
        if e.totals.reconnects >= e.cfg.max_reconnects or (e.begun_ns == 0 and c.fails >= 3):
            c.state = LD_DEAD
            e.n_dead += 1
            return
        e.totals.reconnects += 1
    c.tried = True
    rv = uv_tcp_init(&e.loop, &c.tcp)
    if rv < 0:
        e.error = rv
        c.retry_ns = e.now_ns + MAX_BACKOFF_NS
        return
    c.tcp.data = c
    c.state = LD_CONNECTING
    c.greeted = False
    c.draining = False
    c.opened_ns = e.now_ns
    rv = uv_tcp_connect(&c.connect_req, &c.tcp, <const sockaddr *>&e.cfg.addr, on_connect)
    if rv == 0:
        rv = uv_tcp_nodelay(&c.tcp, 1)
    if rv < 0:
        conn_lost(c, rv)

# ---- the run -------------------------------------------------------------------------------------------------------

cdef uint64_t e_now(ld_engine *e) noexcept nogil:
    e.now_ns = uv_hrtime()
    return e.now_ns

cdef bint may_issue(ld_engine *e, uint64_t at) noexcept nogil:
    """Whether one more call may be issued for the time `at`; turns measuring on when the warm-up is over."""
    cdef const ld_config *cfg = e.cfg
    if e.issuing_over or e.begun_ns == 0:
        return False
    if not e.measuring and e.issued >= cfg.warmup_calls and at >= e.begun_ns + cfg.warmup_ns:
        e.measuring = True
        e.measure_ns = at
    if e.measuring:
        if cfg.calls and e.totals.issued >= cfg.calls:
            e.issuing_over = True
        elif cfg.duration_ns and at >= e.measure_ns + cfg.duration_ns:
            e.issuing_over = True
    return not e.issuing_over

cdef void begin(ld_engine *e) noexcept nogil:
    e.begun_ns = e.now_ns
    e.next_ns = e.now_ns
    if e.cfg.gap_ns > 0:
        pacer_arm(e)

cdef void issued(ld_engine *e) noexcept nogil:
    e.issued += 1
    if e.measuring:
        e.totals.issued += 1

cdef void plan(ld_engine *e, uint64_t at) noexcept nogil:
    """Open loop: one call is due at `at`."""
    cdef ld_call *call = e.free.head
    issued(e)
    if call is NULL:
        if e.measuring:
            e.totals.not_sent += 1
        return
    list_remove(&e.free, call)
    call.planned_ns = at
    call.measured = e.measuring
    list_push(&e.pending, call)

cdef void pump(ld_engine *e, ld_conn *c) noexcept nogil:
    """Send what may be sent: closed loop on c, open loop the pending calls wherever there is room."""
    cdef uint32_t tried = 0, n = e.cfg.n_conns
    cdef ld_call *call
    cdef ld_conn *other
    if e.cfg.gap_ns == 0:
        conn_fill(c)
        return
    if e.pending.head is NULL:
        return
    e_now(e)
    while e.pending.head is not NULL and tried < n:
        other = &e.conns[e.turn]
        e.turn = e.turn + 1 if e.turn + 1 < n else 0
        if conn_room(other) == 0:
            tried += 1
            continue
        call = e.pending.head
        list_remove(&e.pending, call)
        if call_send(other, call):
            tried = 0
        else:
            list_push_front(&e.pending, call)    # it stays the oldest
            tried += 1
    flush_dirty(e)

cdef void flush_dirty(ld_engine *e) noexcept nogil:
    cdef uint32_t i
    for i in range(e.cfg.n_conns):
        if e.conns[i].dirty:
            conn_flush(&e.conns[i])

cdef void pacer_arm(ld_engine *e) noexcept nogil:
    cdef itimerspec when
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = <long>(e.next_ns // 1_000_000_000)
    when.it_value.tv_nsec = <long>(e.next_ns % 1_000_000_000)
    timerfd_settime(e.pacer_fd, TFD_TIMER_ABSTIME, &when, NULL)

cdef void on_pacer(uv_poll_t *handle, int status, int events) noexcept nogil:
    cdef ld_engine *e = <ld_engine *>handle.data
    cdef uint64_t fired = 0
    if e.closing or read(e.pacer_fd, &fired, sizeof(fired)) < 0:
        return
    e_now(e)
    while e.next_ns <= e.now_ns and may_issue(e, e.next_ns):
        plan(e, e.next_ns)
        e.next_ns += gap_next(e)
    pump(e, &e.conns[0])
    if not e.issuing_over:
        pacer_arm(e)
    settle(e)

cdef void settle(ld_engine *e) noexcept nogil:
    """At the end of every event: is the run over?"""
    if e.closing:
        return
    if e.issuing_over and e.live.n == 0 and e.pending.n == 0:
        engine_close(e, LD_END_DONE)
    elif e.n_dead == e.cfg.n_conns:
        engine_close(e, LD_END_NO_CONNECTION)

cdef void on_handle_closed(uv_handle_t *handle) noexcept nogil:
    pass

cdef void engine_close(ld_engine *e, int why) noexcept nogil:
    """Closes every handle, so that the loop ends; keeps all counts."""
    cdef ld_call *call
    cdef uint32_t i
    if e.closing:
        return
    e.closing = True
    e.issuing_over = True
    e.end = why
    while e.live.head is not NULL:
        call = e.live.head
        call_settle(e, call)                     # conn_close below frees it
        if call.measured:
            e.totals.abandoned += 1
    while e.pending.head is not NULL:
        call = e.pending.head
        list_remove(&e.pending, call)
        if call.measured:
            e.totals.abandoned += 1
        list_push(&e.free, call)
    publish(e)
    for i in range(e.cfg.n_conns):
        conn_close(&e.conns[i])
    uv_mutex_lock(&e.lock)
    e.wake_open = False
    uv_mutex_unlock(&e.lock)
    uv_close(<uv_handle_t *>&e.wake, on_handle_closed)
    uv_close(<uv_handle_t *>&e.tick, on_handle_closed)
    if e.pacer_fd >= 0:
        uv_close(<uv_handle_t *>&e.pacer, on_handle_closed)

cdef void publish(ld_engine *e) noexcept nogil:
    uv_mutex_lock(&e.lock)
    e.shown.totals = e.totals
    e.shown.elapsed_ns = e.now_ns - e.measure_ns if e.measuring and e.now_ns > e.measure_ns else 0
    e.shown.in_flight = e.live.n + e.pending.n
    e.shown.p50_ns = hist_quantile(&e.latency, 0.5)
    e.shown.p99_ns = hist_quantile(&e.latency, 0.99)
    e.shown.measuring = e.measuring
    uv_mutex_unlock(&e.lock)
    e.shown_ns = e.now_ns

cdef void expire(ld_engine *e) noexcept nogil:
    """Give up calls past their deadline. Both lists are in the order of their times, so the heads are the oldest."""
    cdef ld_call *call
    while e.live.head is not NULL and e.now_ns - e.live.head.sent_ns >= e.cfg.timeout_ns:
        call = e.live.head
        call_fail(e, call, LD_FAIL_TIMEOUT)
        call.conn.dirty = True
        nghttp2_submit_rst_stream(call.conn.session, NGHTTP2_FLAG_NONE, call.stream_id, NGHTTP2_CANCEL)
    while e.pending.head is not NULL and e.now_ns - e.pending.head.planned_ns >= e.cfg.timeout_ns:
        call = e.pending.head
        list_remove(&e.pending, call)
        list_push(&e.live, call)
        call_fail(e, call, LD_FAIL_TIMEOUT)
        list_push(&e.free, call)

cdef void on_tick(uv_timer_t *handle) noexcept nogil:
    cdef ld_engine *e = <ld_engine *>handle.data
    cdef ld_conn *c
    cdef uint32_t i
    e_now(e)
    expire(e)
    may_issue(e, e.now_ns if e.cfg.gap_ns == 0 else e.next_ns)       # notices the end when no call comes back
    for i in range(e.cfg.n_conns):
        c = &e.conns[i]
        if c.state == LD_DOWN and e.now_ns >= c.retry_ns and not (e.issuing_over and e.pending.n == 0):
            conn_open(c)
        elif c.state == LD_DOWN or c.state == LD_CLOSING or c.state == LD_DEAD:
            pass
        elif not c.greeted and e.now_ns - c.opened_ns >= e.cfg.connect_timeout_ns:
            conn_lost(c, UV_ETIMEDOUT)
        elif c.state == LD_UP and c.writing and e.now_ns - c.since_ns >= e.cfg.timeout_ns:
            conn_lost(c, UV_ETIMEDOUT)           # the server has stopped reading
        elif c.state == LD_UP:
            pump(e, c)
            conn_flush(c)
    if e.now_ns - e.shown_ns >= SHOW_NS:
        publish(e)
    settle(e)
    if not e.closing and e.now_ns - e.start_ns >= e.cfg.limit_ns:
        engine_close(e, LD_END_LIMIT)

cdef void on_wake(uv_async_t *handle) noexcept nogil:
    cdef ld_engine *e = <ld_engine *>handle.data
    e_now(e)
    engine_close(e, LD_END_STOPPED)

cdef ld_engine *engine_new(const ld_config *cfg) noexcept nogil:
    cdef ld_engine *e = <ld_engine *>calloc(1, sizeof(ld_engine))
    cdef size_t i
    if e is NULL:
        return NULL
    if uv_mutex_init(&e.lock) != 0:
        free(e)
        return NULL
    e.cfg = cfg
    e.pacer_fd = -1
    e.random = cfg.seed
    e.no_arm.size = -1
    memcpy(e.nv, cfg.nv, sizeof(e.nv))
    e.n_calls = cfg.max_in_flight if cfg.gap_ns > 0 else <size_t>cfg.n_conns * cfg.streams
    e.calls = <ld_call *>calloc(e.n_calls, sizeof(ld_call))
    e.conns = <ld_conn *>calloc(cfg.n_conns, sizeof(ld_conn))
    e.read_buf = <char *>malloc(LD_READ)
    if e.calls is NULL or e.conns is NULL or e.read_buf is NULL or callbacks_make(e) != 0:
        engine_free(e)
        return NULL
    for i in range(e.n_calls):
        list_push(&e.free, &e.calls[i])
    for i in range(cfg.n_conns):
        e.conns[i].engine = e
        e.conns[i].connect_req.data = &e.conns[i]
        e.conns[i].write_req.data = &e.conns[i]
        e.conns[i].out = <char *>malloc(LD_OUT)
        if e.conns[i].out is NULL:
            engine_free(e)
            return NULL
    return e

cdef int callbacks_make(ld_engine *e) noexcept nogil:
    cdef int rv = nghttp2_session_callbacks_new(&e.callbacks)
    if rv != 0:
        return rv
    nghttp2_session_callbacks_set_on_header_callback(e.callbacks, on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(e.callbacks, on_data)
    nghttp2_session_callbacks_set_on_frame_recv_callback(e.callbacks, on_frame)
    nghttp2_session_callbacks_set_on_stream_close_callback(e.callbacks, on_stream_close)
    nghttp2_session_callbacks_set_send_data_callback(e.callbacks, on_send_data)
    return 0

cdef void engine_free(ld_engine *e) noexcept nogil:
    cdef uint32_t i
    if e is NULL:
        return
    if e.conns is not NULL:
        for i in range(e.cfg.n_conns):
            free(e.conns[i].out)
    if e.callbacks is not NULL:
        nghttp2_session_callbacks_del(e.callbacks)
    free(e.conns)
    free(e.calls)
    free(e.read_buf)
    uv_mutex_destroy(&e.lock)
    free(e)

cdef int engine_start(ld_engine *e) noexcept nogil:
    """Opens the handles. A step that fails leaves the rest to engine_run, which closes what is open."""
    cdef int rv = uv_timer_init(&e.loop, &e.tick)
    cdef uint32_t i
    if rv == 0:
        rv = uv_async_init(&e.loop, &e.wake, on_wake)
    if rv < 0:
        return rv
    e.tick.data = e
    e.wake.data = e
    rv = uv_timer_start(&e.tick, on_tick, TICK_MS, TICK_MS)
    if rv == 0 and e.cfg.gap_ns > 0:
        e.pacer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if e.pacer_fd < 0:
            return UV_EMFILE
        rv = uv_poll_init(&e.loop, &e.pacer, e.pacer_fd)
        if rv == 0:
            e.pacer.data = e
            rv = uv_poll_start(&e.pacer, UV_READABLE, on_pacer)
    if rv < 0:
        return rv
    for i in range(e.cfg.n_conns):
        conn_open(&e.conns[i])
    uv_mutex_lock(&e.lock)
    e.wake_open = True
    if e.stop_asked:
        uv_async_send(&e.wake)
    uv_mutex_unlock(&e.lock)
    return 0

cdef void close_handle(uv_handle_t *handle, void *arg) noexcept nogil:
    uv_close(handle, on_handle_closed)

cdef int engine_run(ld_engine *e) noexcept nogil:
    cdef int rv = uv_loop_init(&e.loop)
    if rv < 0:
        return rv
    e_now(e)
    e.start_ns = e.now_ns
    e.shown_ns = e.now_ns
    rv = engine_start(e)
    if rv < 0:
        uv_walk(&e.loop, close_handle, NULL)
    uv_run(&e.loop, UV_RUN_DEFAULT)
    if e.pacer_fd >= 0:
        close(e.pacer_fd)
    uv_loop_close(&e.loop)
    return rv

cdef void engine_stop(ld_engine *e) noexcept nogil:
    uv_mutex_lock(&e.lock)
    e.stop_asked = True
    if e.wake_open:
        uv_async_send(&e.wake)
    uv_mutex_unlock(&e.lock)

cdef void engine_progress(ld_engine *e, ld_progress *out) noexcept nogil:
    uv_mutex_lock(&e.lock)
    out[0] = e.shown
    uv_mutex_unlock(&e.lock)
