# stream > [pool] > back
"""Connections to model servers and services."""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport atoi
from libc.string cimport memcmp, memcpy, memset, strcmp, strlen, strncmp, strrchr

from tiltyard_router.c_nghttp2 cimport (
    NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, nghttp2_session_check_request_allowed, nghttp2_session_get_remote_settings)
from tiltyard_router.c_uv cimport (
    AF_INET, AF_INET6, SOCK_STREAM, UV_ETIMEDOUT, addrinfo, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage,
    uv_cancel, uv_connect_t, uv_freeaddrinfo, uv_getaddrinfo, uv_getaddrinfo_t, uv_ip4_addr, uv_ip6_addr, uv_now,
    uv_pipe_connect, uv_req_t, uv_tcp_connect, uv_tcp_nodelay)
from tiltyard_router.conn cimport conn_close, conn_new
from tiltyard_router.mem cimport mem_alloc, mem_free
from tiltyard_router.model cimport (
    TY_BACK, TY_BACK_CONNS, TY_BACK_STREAMS, TY_KIND_PREDICT, TY_MAX_ADDRS, TY_ST_WAITING, TY_WAITING_MAX, ty_backend,
    ty_conn, ty_endpoint, ty_loop, ty_routes, ty_stream)
from tiltyard_router.status cimport GRPC_RESOURCE_EXHAUSTED, GRPC_UNAVAILABLE, TY_ERR_NOMEM, status_text

cdef enum:
    RESOLVE_EVERY_MS = 30000
    RESOLVE_AFTER_FAIL_MS = 1000
    BACKOFF_FIRST_MS = 100
    BACKOFF_MAX_MS = 5000
    TRIES_MAX = 3                  # backends one waiting call is offered to


# ---------------------------------------------------------------- backends: made, named, let go

cdef ty_backend *backend_get(ty_loop *loop, const char *text) noexcept nogil:
    cdef ty_backend *b = loop.backends
    cdef size_t n
    while b is not NULL:
        if strcmp(b.text, text) == 0 and not b.dead:
            b.refs += 1
            return b
        b = b.next
    b = <ty_backend *>mem_alloc(&loop.mem, sizeof(ty_backend))
    if b is NULL:
        return NULL
    memset(b, 0, sizeof(ty_backend))
    n = strlen(text)
    b.text = <char *>mem_alloc(&loop.mem, n + 1)
    if b.text is NULL:
        mem_free(&loop.mem, b)
        return NULL
    memcpy(b.text, text, n + 1)
    b.loop = loop
    b.refs = 1
    b.next = loop.backends
    loop.backends = b
    backend_parse(b)
    return b


cdef void backend_release(ty_backend *b) noexcept nogil:
    """Without references it is swept by the next tick."""
    if b is not NULL:
        b.refs -= 1


cdef int host_and_port(const char *text, char *host, size_t cap, int *port) noexcept nogil:
    cdef const char *colon = strrchr(text, c':')
    cdef size_t n
    if colon is NULL:
        return -1
    n = colon - text
    if n >= 2 and text[0] == c'[' and text[n - 1] == c']':
        text += 1
        n -= 2
    if n == 0 or n >= cap:
        return -1
    memcpy(host, text, n)
    host[n] = 0
    port[0] = atoi(colon + 1)
    return 0


cdef void backend_parse(ty_backend *b) noexcept nogil:
    """An address needs no resolver: its endpoint is made and dialled at once."""
    cdef char host[256]
    cdef int port = 0
    cdef sockaddr_storage addr
    memset(&addr, 0, sizeof(addr))
    if strncmp(b.text, b"unix:", 5) == 0:
        b.literal = 1
    elif host_and_port(b.text, host, sizeof(host), &port) != 0:
        b.literal = 1                  # nonsense (refused by the routes' checks): an address that never answers
        b.resolved = 1
        return
    elif (uv_ip4_addr(host, port, <sockaddr_in *>&addr) == 0 or uv_ip6_addr(host, port, <sockaddr_in6 *>&addr) == 0):
        b.literal = 1
    if b.literal:
        b.resolved = 1
        endpoint_add(b, &addr)
    else:
        resolve(b)


cdef size_t addr_size(const sockaddr_storage *addr) noexcept nogil:
    if addr.ss_family == AF_INET:
        return sizeof(sockaddr_in)
    return sizeof(sockaddr_in6) if addr.ss_family == AF_INET6 else 0


cdef ty_endpoint *endpoint_find(ty_backend *b, const sockaddr_storage *addr) noexcept nogil:
    cdef uint32_t i
    for i in range(b.n_endpoints):
        if (b.endpoints[i].addr.ss_family == addr.ss_family
                and memcmp(&b.endpoints[i].addr, addr, addr_size(addr)) == 0):
            return b.endpoints[i]
    return NULL


cdef void endpoint_add(ty_backend *b, const sockaddr_storage *addr) noexcept nogil:
    cdef ty_endpoint *ep
    if b.n_endpoints == TY_MAX_ADDRS:
        return
    ep = <ty_endpoint *>mem_alloc(&b.loop.mem, sizeof(ty_endpoint))
    if ep is NULL:
        return                         # the next resolve tries again
    memset(ep, 0, sizeof(ty_endpoint))
    ep.backend = b
    ep.addr = addr[0]
    b.endpoints[b.n_endpoints] = ep
    b.n_endpoints += 1
    dial(ep)


cdef void endpoint_drop(ty_backend *b, uint32_t i) noexcept nogil:
    """Its calls finish; ticks close its connections as they fall idle, and the endpoint goes with the last one."""
    cdef ty_endpoint *ep = b.endpoints[i]
    cdef ty_conn *c = ep.conns
    b.n_endpoints -= 1
    b.endpoints[i] = b.endpoints[b.n_endpoints]
    ep.backend = NULL
    if c is NULL:
        mem_free(&b.loop.mem, ep)
        return
    ep.next = b.loop.dropped
    b.loop.dropped = ep
    while c is not NULL:
        c.draining = 1
        c = c.next


cdef void dropped_free(ty_loop *loop, ty_endpoint *ep) noexcept nogil:
    cdef ty_endpoint **link = &loop.dropped
    while link[0] is not ep:
        link = &link[0].next
    link[0] = ep.next
    mem_free(&loop.mem, ep)


# ---------------------------------------------------------------- resolving names, off the loop

cdef void resolve(ty_backend *b) noexcept nogil:
    cdef char host[256]
    cdef char service[16]
    cdef int port = 0
    cdef addrinfo hints
    if b.resolving or host_and_port(b.text, host, sizeof(host), &port) != 0:
        return
    memset(&hints, 0, sizeof(hints))
    hints.ai_socktype = SOCK_STREAM
    snprintf(service, sizeof(service), b"%d", port)
    b.resolve_req.data = b
    if uv_getaddrinfo(&b.loop.uv, &b.resolve_req, on_resolved, host, service, &hints) == 0:
        b.resolving = 1
    b.resolve_ms = uv_now(&b.loop.uv) + RESOLVE_EVERY_MS


cdef void on_resolved(uv_getaddrinfo_t *req, int status, addrinfo *res) noexcept nogil:
    cdef ty_backend *b = <ty_backend *>req.data
    cdef addrinfo *ai = res
    cdef sockaddr_storage addr
    cdef ty_endpoint *ep
    cdef uint32_t i
    b.resolving = 0
    if status == 0 and not b.dead:
        for i in range(b.n_endpoints):
            b.endpoints[i].gone = 1
        while ai is not NULL:
            if ai.ai_family == AF_INET or ai.ai_family == AF_INET6:
                memset(&addr, 0, sizeof(addr))
                memcpy(&addr, ai.ai_addr, ai.ai_addrlen)
                ep = endpoint_find(b, &addr)
                if ep is NULL:
                    endpoint_add(b, &addr)
                else:
                    ep.gone = 0
            ai = ai.ai_next
        i = 0
        while i < b.n_endpoints:
            if b.endpoints[i].gone:
                endpoint_drop(b, i)
            else:
                i += 1
    elif not b.dead:                   # addresses known from before stay in use
        b.resolve_ms = uv_now(&b.loop.uv) + RESOLVE_AFTER_FAIL_MS
    b.resolved = 1
    if res is not NULL:
        uv_freeaddrinfo(res)
    if not b.dead and all_down(b):
        offer_elsewhere(b)


# ---------------------------------------------------------------- dialling

cdef void dial(ty_endpoint *ep) noexcept nogil:
    cdef ty_backend *b = ep.backend
    cdef ty_loop *loop = b.loop
    cdef int is_pipe = strncmp(b.text, b"unix:", 5) == 0
    cdef ty_conn *c
    cdef int rv = 0
    if loop.ending:
        return
    c = conn_new(loop, TY_BACK, is_pipe)
    if c is NULL:
        dial_failed(ep)
        return
    c.endpoint = ep
    c.next = ep.conns
    if c.next is not NULL:
        c.next.prev = c
    ep.conns = c
    ep.n_conns += 1
    ep.n_dialling += 1
    loop.n_backs += 1
    c.dial_deadline_ms = uv_now(&loop.uv) + loop.config.connect_timeout_ms
    c.connect_req.data = c
    if is_pipe:
        uv_pipe_connect(&c.connect_req, &c.h.pipe, b.text + 5, on_connect)
    else:
        rv = uv_tcp_connect(&c.connect_req, &c.h.tcp, <sockaddr *>&ep.addr, on_connect)
    if rv != 0:
        conn_close(c, rv)


cdef void on_connect(uv_connect_t *req, int status) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>req.data
    cdef ty_endpoint *ep = c.endpoint
    if c.closing or ep is NULL:        # timed out: closing has reported it
        return
    if status != 0:
        conn_close(c, status)
        return
    if ep.addr.ss_family != 0:
        uv_tcp_nodelay(&c.h.tcp, 1)
    status = c.loop.hooks.start_back(c)
    if status != 0:
        conn_close(c, status)


cdef void pool_ready(ty_conn *c) noexcept nogil:
    cdef ty_endpoint *ep = c.endpoint
    if c.dial_deadline_ms != 0:
        c.dial_deadline_ms = 0
        if ep is not NULL:
            ep.n_dialling -= 1
            ep.down = 0
            ep.fails = 0
    pool_room(c)


cdef uint64_t jitter(ty_loop *loop, uint64_t n) noexcept nogil:
    """Between half of n and n."""
    loop.rng[2] = loop.rng[2] * <uint64_t>6364136223846793005 + <uint64_t>1442695040888963407
    return n // 2 + (loop.rng[2] >> 33) % (n // 2 + 1)


cdef void dial_failed(ty_endpoint *ep) noexcept nogil:
    cdef ty_backend *b = ep.backend
    cdef uint64_t now = uv_now(&b.loop.uv)
    cdef uint64_t wait = BACKOFF_MAX_MS
    if ep.fails < 6:
        wait = <uint64_t>BACKOFF_FIRST_MS << ep.fails
    if wait > BACKOFF_MAX_MS:
        wait = BACKOFF_MAX_MS
    ep.fails += 1
    ep.redial_ms = now + jitter(b.loop, wait)
    if not b.literal and b.resolve_ms > now + RESOLVE_AFTER_FAIL_MS:
        b.resolve_ms = now + RESOLVE_AFTER_FAIL_MS
    if not has_connection(ep):
        ep.down = 1
        if all_down(b):
            offer_elsewhere(b)


cdef int has_connection(const ty_endpoint *ep) noexcept nogil:
    cdef const ty_conn *c = ep.conns
    while c is not NULL:
        if c.dial_deadline_ms == 0 and not c.closing and not c.draining:
            return 1
        c = c.next
    return 0


cdef int all_down(const ty_backend *b) noexcept nogil:
    cdef uint32_t i
    if not b.resolved:
        return 0
    for i in range(b.n_endpoints):
        if not b.endpoints[i].down:
            return 0
    return 1


cdef void pool_conn_gone(ty_conn *c, int rv) noexcept nogil:
    cdef ty_endpoint *ep = c.endpoint
    cdef ty_backend *b
    if ep is NULL:
        return
    b = ep.backend
    if c.prev is not NULL:
        c.prev.next = c.next
    else:
        ep.conns = c.next
    if c.next is not NULL:
        c.next.prev = c.prev
    c.prev = NULL
    c.next = NULL
    c.endpoint = NULL
    ep.n_conns -= 1
    if b is NULL:                      # dropped
        if ep.n_conns == 0:
            dropped_free(c.loop, ep)
        return
    if c.dial_deadline_ms != 0:
        ep.n_dialling -= 1
        dial_failed(ep)


# ---------------------------------------------------------------- choosing

cdef uint32_t conn_cap(ty_conn *c) noexcept nogil:
    cdef uint32_t peer = nghttp2_session_get_remote_settings(c.session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
    return peer if peer < TY_BACK_STREAMS else TY_BACK_STREAMS


cdef ty_conn *room_on(ty_endpoint *ep) noexcept nogil:
    """Its least loaded connection that takes another call, or NULL."""
    cdef ty_conn *c = ep.conns
    cdef ty_conn *best = NULL
    while c is not NULL:
        if (c.dial_deadline_ms == 0 and not c.closing and not c.draining and c.n_streams < conn_cap(c)
                and (best is NULL or c.n_streams < best.n_streams)):
            best = c
        c = c.next
    if best is not NULL and not nghttp2_session_check_request_allowed(best.session):
        best.draining = 1              # its stream ids are used up, or a GOAWAY is on its way
        return NULL
    return best


cdef ty_conn *least_loaded(ty_backend *b, ty_conn *best) noexcept nogil:
    """The better of `best` and the least loaded connection with room to the least loaded endpoint of b."""
    cdef uint32_t i, k = 0
    cdef ty_endpoint *ep
    cdef ty_conn *c
    b.turn += 1
    for i in range(b.n_endpoints):
        if b.n_endpoints > 1:
            k = (b.turn + i) % b.n_endpoints
        ep = b.endpoints[k]
        if ep.down or best is not NULL and ep.in_flight >= best.endpoint.in_flight:
            continue
        c = room_on(ep)
        if c is not NULL:
            best = c
    return best


cdef void dial_more(ty_backend *b) noexcept nogil:
    """A call has to wait: endpoints without a connection, or with full ones, get another."""
    cdef uint32_t i
    cdef ty_endpoint *ep
    cdef uint64_t now = uv_now(&b.loop.uv)
    i = 0
    while i < b.n_endpoints:
        ep = b.endpoints[i]
        if not ep.down and ep.n_dialling == 0 and ep.n_conns < TY_BACK_CONNS and now >= ep.redial_ms:
            dial(ep)
        i += 1


cdef inline ty_backend *backend_of(const ty_stream *st, uint32_t i) noexcept nogil:
    """The i-th backend of the call's arm, counted from where its round robin stands."""
    if st.kind != TY_KIND_PREDICT:
        return st.pass_to
    if st.arm.n_backends == 1:
        return <ty_backend *>st.routes.pools[st.arm.backends[0]]
    return <ty_backend *>st.routes.pools[st.arm.backends[(st.arm.next_backend + i) % st.arm.n_backends]]


cdef void pool_send(ty_stream *st) noexcept nogil:
    cdef ty_conn *best = NULL
    cdef uint32_t i, n = 1
    if st.kind == TY_KIND_PREDICT:
        n = st.arm.n_backends
        st.arm.next_backend += 1
    for i in range(n):
        best = least_loaded(backend_of(st, i), best)
    if best is not NULL:
        send_on(best, st)
    else:
        wait_or_fail(st, n)


cdef void wait_or_fail(ty_stream *st, uint32_t n) noexcept nogil:
    """None of its n backends has room now: it waits for the one where the fewest wait."""
    cdef ty_backend *b
    cdef ty_backend *wait_on = NULL
    cdef uint32_t i
    for i in range(n):
        b = backend_of(st, i)
        if not all_down(b) and (wait_on is NULL or b.n_waiting < wait_on.n_waiting):
            wait_on = b
    if wait_on is NULL:
        st.loop.hooks.stream_failed(st, GRPC_UNAVAILABLE, b"no backend of this arm can be reached")
    elif wait_on.n_waiting >= TY_WAITING_MAX:
        st.loop.hooks.stream_failed(st, GRPC_RESOURCE_EXHAUSTED, b"too many calls wait for a connection to the backend")
    else:
        wait(wait_on, st)
        dial_more(wait_on)


cdef void send_on(ty_conn *c, ty_stream *st) noexcept nogil:
    cdef int rv = c.loop.hooks.send_request(c, st)
    if rv != 0:
        st.loop.hooks.stream_failed(st, GRPC_UNAVAILABLE, status_text(rv))


cdef void wait(ty_backend *b, ty_stream *st) noexcept nogil:
    st.state = TY_ST_WAITING
    st.wait_ms = uv_now(&b.loop.uv)
    st.waiting_on = b
    st.b_next = NULL
    st.b_prev = b.waiting_tail
    if b.waiting_tail is not NULL:
        b.waiting_tail.b_next = st
    else:
        b.waiting = st
    b.waiting_tail = st
    b.n_waiting += 1


cdef void pool_forget(ty_stream *st) noexcept nogil:
    cdef ty_backend *b = st.waiting_on
    if b is NULL:
        return
    if st.b_prev is not NULL:
        st.b_prev.b_next = st.b_next
    else:
        b.waiting = st.b_next
    if st.b_next is not NULL:
        st.b_next.b_prev = st.b_prev
    else:
        b.waiting_tail = st.b_prev
    st.b_prev = NULL
    st.b_next = NULL
    st.waiting_on = NULL
    b.n_waiting -= 1


cdef void pool_room(ty_conn *c) noexcept nogil:
    cdef ty_backend *b
    cdef ty_stream *st
    if c.endpoint is NULL or c.endpoint.backend is NULL:
        return
    b = c.endpoint.backend
    while (b.waiting is not NULL and not c.closing and not c.draining and c.n_streams < conn_cap(c)
           and nghttp2_session_check_request_allowed(c.session)):
        st = b.waiting
        pool_forget(st)
        send_on(c, st)


cdef void offer_elsewhere(ty_backend *b) noexcept nogil:
    """No address of b can be reached: each waiting call tries another backend of its arm, or fails."""
    cdef ty_stream *st
    cdef uint32_t n = b.n_waiting
    while b.waiting is not NULL and n > 0:
        st = b.waiting
        pool_forget(st)
        st.tries += 1
        if st.tries > TRIES_MAX:
            b.loop.hooks.stream_failed(st, GRPC_UNAVAILABLE, b"no backend of this arm can be reached")
        else:
            pool_send(st)
        n -= 1


# ---------------------------------------------------------------- tables

cdef int pool_open_table(ty_loop *loop, ty_routes *routes) noexcept nogil:
    cdef uint32_t i
    routes.pools = <void **>mem_alloc(&loop.mem, (routes.n_backends + 1) * sizeof(void *))
    if routes.pools is NULL:
        return TY_ERR_NOMEM
    memset(routes.pools, 0, (routes.n_backends + 1) * sizeof(void *))
    for i in range(routes.n_backends):
        routes.pools[i] = backend_get(loop, routes.backends[i])
        if routes.pools[i] is NULL:
            return TY_ERR_NOMEM
    return 0


cdef void pool_close_table(ty_loop *loop, ty_routes *routes) noexcept nogil:
    cdef uint32_t i
    if routes.pools is NULL:
        return
    for i in range(routes.n_backends):
        backend_release(<ty_backend *>routes.pools[i])
    mem_free(&loop.mem, routes.pools)
    routes.pools = NULL


# ---------------------------------------------------------------- time, and the end

cdef void tick_conns(ty_endpoint *ep, uint64_t now) noexcept nogil:
    cdef ty_conn *c = ep.conns
    cdef ty_conn *after
    while c is not NULL:
        after = c.next
        if c.dial_deadline_ms != 0 and now >= c.dial_deadline_ms:
            conn_close(c, UV_ETIMEDOUT)
        elif c.draining and c.n_streams == 0:
            conn_close(c, 0)
        c = after


cdef void tick_waiting(ty_backend *b, uint64_t now) noexcept nogil:
    """Nothing may wait for a connection longer than dialling may take, unless there is one and it is full."""
    cdef uint64_t limit = b.loop.config.connect_timeout_ms + 100
    cdef ty_stream *st
    cdef uint32_t i
    for i in range(b.n_endpoints):
        if has_connection(b.endpoints[i]):
            return
    while b.waiting is not NULL and now - b.waiting.wait_ms > limit:
        st = b.waiting
        pool_forget(st)
        b.loop.hooks.stream_failed(st, GRPC_UNAVAILABLE, b"no connection to the backend in time")


cdef void pool_tick(ty_loop *loop, uint64_t now) noexcept nogil:
    cdef ty_backend **link = &loop.backends
    cdef ty_backend *b
    cdef ty_endpoint *ep = loop.dropped
    cdef ty_endpoint *after
    cdef uint32_t i
    while ep is not NULL:
        after = ep.next
        tick_conns(ep, now)            # the last connection takes ep with it
        ep = after
    while link[0] is not NULL:
        b = link[0]
        if b.refs == 0:
            while b.n_endpoints > 0:
                endpoint_drop(b, b.n_endpoints - 1)
            b.dead = 1
            if not b.resolving:
                link[0] = b.next
                mem_free(&loop.mem, b.text)
                mem_free(&loop.mem, b)
                continue
        elif not b.literal and now >= b.resolve_ms:
            resolve(b)
        i = 0
        while i < b.n_endpoints:
            ep = b.endpoints[i]
            tick_conns(ep, now)
            # A connection that is draining takes nothing new, however long its last calls run.
            if (ep.n_dialling == 0 and ep.n_conns < TY_BACK_CONNS and now >= ep.redial_ms
                    and not has_connection(ep)):
                dial(ep)
            i += 1
        if b.waiting is not NULL:
            tick_waiting(b, now)
        link = &b.next


cdef void close_conns(ty_endpoint *ep) noexcept nogil:
    cdef ty_conn *c = ep.conns
    cdef ty_conn *after
    while c is not NULL:
        after = c.next
        conn_close(c, 0)
        c = after


cdef void pool_shutdown(ty_loop *loop) noexcept nogil:
    """With loop.ending set nothing is dialled any more; endpoints go with their connections."""
    cdef ty_backend *b = loop.backends
    cdef ty_endpoint *ep = loop.dropped
    cdef ty_endpoint *after
    cdef uint32_t i
    while ep is not NULL:
        after = ep.next
        close_conns(ep)
        ep = after
    while b is not NULL:
        if b.resolving:
            uv_cancel(<uv_req_t *>&b.resolve_req)
        for i in range(b.n_endpoints):
            close_conns(b.endpoints[i])
        offer_elsewhere(b)
        b = b.next


cdef void pool_free(ty_loop *loop) noexcept nogil:
    """After the uv loop has closed: no connection is left."""
    cdef ty_backend *b
    cdef uint32_t i
    while loop.backends is not NULL:
        b = loop.backends
        loop.backends = b.next
        for i in range(b.n_endpoints):
            mem_free(&loop.mem, b.endpoints[i])
        mem_free(&loop.mem, b.text)
        mem_free(&loop.mem, b)
