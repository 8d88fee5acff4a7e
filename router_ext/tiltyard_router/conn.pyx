"""One socket with one nghttp2 session: reading, batched writing, closing."""

from libc.string cimport memcpy, memset

from tiltyard_router.c_nghttp2 cimport (
    NGHTTP2_ERR_CALLBACK_FAILURE, NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, NGHTTP2_ERR_WOULDBLOCK, nghttp2_data_source,
    nghttp2_frame, nghttp2_session, nghttp2_session_del, nghttp2_session_mem_recv, nghttp2_session_mem_send,
    nghttp2_session_want_read, nghttp2_session_want_write)
from tiltyard_router.c_uv cimport (
    UV_EAGAIN, UV_EOF, uv_buf_t, uv_close, uv_handle_t, uv_idle_start, uv_idle_stop, uv_idle_t, uv_pipe_init,
    uv_read_start, uv_stream_t, uv_tcp_init, uv_try_write, uv_write, uv_write_t)
from tiltyard_router.mem cimport buf_bytes, buf_decref, buf_new_read, mem_alloc, mem_free, ty_buf
from tiltyard_router.model cimport (
    TY_COPY_BELOW, TY_FRONT, TY_OUT_IOV, TY_OUT_REF, TY_OUT_SOFT, ty_conn, ty_loop, ty_queue)
from tiltyard_router.queue cimport out_copy, out_mark_run, queue_send
from tiltyard_router.status cimport TY_ERR_NOMEM

cdef enum:
    FLUSH_ROUNDS = 8               # of TY_OUT_REF at the most, then other connections get their turn
    READ_ROOM = 16384              # a read buffer with less left is given up


cdef struct ty_write:              # what a short write left, copied; freed when libuv has sent it
    uv_write_t req
    ty_conn *conn


cdef ty_conn *conn_new(ty_loop *loop, uint8_t role, int is_pipe) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>mem_alloc(&loop.mem, sizeof(ty_conn))
    cdef int rv
    if c is NULL:
        return NULL
    memset(c, 0, sizeof(ty_conn))
    c.loop = loop
    c.role = role
    if is_pipe:
        rv = uv_pipe_init(&loop.uv, &c.h.pipe, 0)
    else:
        rv = uv_tcp_init(&loop.uv, &c.h.tcp)
    if rv != 0:
        mem_free(&loop.mem, c)
        return NULL
    c.h.handle.data = c
    return c


cdef int conn_start(ty_conn *c) noexcept nogil:
    c.connected = 1
    return uv_read_start(&c.h.stream, on_alloc, on_read)


cdef void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) noexcept nogil:
    """Every connection of the loop reads into the same buffer; behind what somebody still refers to, while that leaves
    room worth a read. (A buffer for each read would hold many times what short reads bring.)"""
    cdef ty_loop *loop = (<ty_conn *>handle.data).loop
    cdef ty_buf *into = loop.read_buf
    if into is not NULL and into.refs == 1:
        into.used = 0
    elif into is NULL or into.cap - into.used < READ_ROOM:
        buf_decref(into)
        into = buf_new_read(&loop.mem)
        loop.read_buf = into
    if into is NULL:
        buf.base = NULL                # libuv then calls on_read with UV_ENOBUFS
        buf.len = 0
        return
    buf.base = <char *>buf_bytes(into) + into.used
    buf.len = into.cap - into.used


cdef void on_read(uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>stream.data
    cdef ssize_t n
    if nread == 0 or c.closing:
        return
    if nread < 0:
        conn_close(c, <int>nread)
        return
    c.loop.read_buf.used += <unsigned int>nread
    n = nghttp2_session_mem_recv(c.session, <const uint8_t *>buf.base, <size_t>nread)
    if n < 0:                          # the session has queued a GOAWAY that says why, where it can
        conn_flush(c)
        conn_close(c, <int>n)
        return
    conn_mark(c)


cdef void conn_mark(ty_conn *c) noexcept nogil:
    if c.dirty or c.closing or not c.connected:
        return
    c.dirty = 1
    c.dirty_next = c.loop.dirty
    c.loop.dirty = c


cdef void conn_flush_all(ty_loop *loop) noexcept nogil:
    """Flushing one connection can make another one dirty (credit goes back): go on until none is left."""
    cdef ty_conn *c
    loop.dirty = join(loop.dirty, loop.later)
    loop.later = NULL
    while loop.dirty is not NULL:
        c = loop.dirty
        loop.dirty = c.dirty_next
        c.dirty_next = NULL
        c.dirty = 0
        if not c.closing:
            conn_flush(c)
    if loop.later is not NULL:
        uv_idle_start(&loop.idle, on_idle)


cdef ty_conn *join(ty_conn *first, ty_conn *second) noexcept nogil:
    cdef ty_conn *c = first
    if first is NULL:
        return second
    while c.dirty_next is not NULL:
        c = c.dirty_next
    c.dirty_next = second
    return first


cdef void on_idle(uv_idle_t *handle) noexcept nogil:
    """Its being active kept the loop from sleeping; the flush is in the prepare callback."""
    uv_idle_stop(handle)


cdef int fill(ty_conn *c) noexcept nogil:
    """Collect what the session wants to send, up to the bounds of one round. Status of nghttp2."""
    cdef ty_loop *loop = c.loop
    cdef const uint8_t *data = NULL
    cdef ssize_t n
    loop.out_len = 0
    loop.out_mark = 0
    loop.out_refs = 0
    loop.n_iov = 0
    loop.n_held = 0
    loop.out_full = 0
    while True:
        if loop.out_len > TY_OUT_SOFT:
            loop.out_full = 1
            break
        n = nghttp2_session_mem_send(c.session, &data)
        if n < 0:
            return <int>n
        if n == 0:
            break
        out_copy(loop, data, <size_t>n)    # one frame always fits behind TY_OUT_SOFT
    out_mark_run(loop)
    return 0


cdef int conn_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *framehd, size_t length,
                        nghttp2_data_source *source, void *user_data) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>user_data
    cdef ty_loop *loop = c.loop
    cdef ty_queue *q = <ty_queue *>source.ptr
    cdef uint32_t segments = <uint32_t>(length // TY_COPY_BELOW + 2)
    if q.unsent < length:              # the call failed after the frame was promised: its stream ends, nothing else
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    # Programmer's Guide, nghttp2_send_data_callback: WOULDBLOCK leaves the frame for the next mem_send. The bound is
    # the soft one here, too: a frame of another kind may follow within the same mem_send, copied behind this one.
    if (loop.out_len > TY_OUT_SOFT or loop.out_refs + length > TY_OUT_REF
            or loop.n_iov + 2 * segments > TY_OUT_IOV):
        loop.out_full = 1
        return NGHTTP2_ERR_WOULDBLOCK
    memcpy(loop.out + loop.out_len, framehd, 9)
    loop.out_len += 9
    if length != 0:
        if queue_send(q, length) != 0:
            return NGHTTP2_ERR_CALLBACK_FAILURE
        loop.hooks.queue_drained(q, length)
    return 0


cdef void release_held(ty_loop *loop) noexcept nogil:
    cdef uint32_t i
    for i in range(loop.n_held):
        buf_decref(loop.held[i])
    loop.n_held = 0


cdef int write_rest(ty_conn *c, size_t done) noexcept nogil:
    """Copy what was not written and let libuv send it; nothing else is sent until it has."""
    cdef ty_loop *loop = c.loop
    cdef size_t left = 0, at = 0, k
    cdef uint32_t i
    cdef ty_write *w
    cdef uint8_t *bytes
    cdef uv_buf_t buf
    cdef int rv
    for i in range(loop.n_iov):
        left += loop.iov[i].len
    left -= done
    w = <ty_write *>mem_alloc(&loop.mem, sizeof(ty_write) + left)
    if w is NULL:
        return TY_ERR_NOMEM
    bytes = <uint8_t *>w + sizeof(ty_write)
    for i in range(loop.n_iov):
        k = loop.iov[i].len
        if done >= k:
            done -= k
            continue
        memcpy(bytes + at, loop.iov[i].base + done, k - done)
        at += k - done
        done = 0
    w.conn = c
    buf.base = <char *>bytes
    buf.len = left
    rv = uv_write(&w.req, &c.h.stream, &buf, 1, on_written)
    if rv != 0:
        mem_free(&loop.mem, w)
        return rv
    c.write_busy = 1
    return 0


cdef void on_written(uv_write_t *req, int status) noexcept nogil:
    cdef ty_write *w = <ty_write *>req
    cdef ty_conn *c = w.conn
    mem_free(&c.loop.mem, w)           # the connection is freed in its close callback, which comes after this one
    c.write_busy = 0
    if status < 0:
        conn_close(c, status)
        return
    conn_mark(c)


cdef void conn_flush(ty_conn *c) noexcept nogil:
    cdef ty_loop *loop = c.loop
    cdef int rv, sent, _
    cdef size_t total
    cdef uint32_t i
    for _ in range(FLUSH_ROUNDS):
        if c.closing or c.write_busy:
            return
        rv = fill(c)
        if rv != 0:
            release_held(loop)
            conn_close(c, rv)
            return
        total = 0
        for i in range(loop.n_iov):
            total += loop.iov[i].len
        if total == 0:
            break
        sent = uv_try_write(&c.h.stream, loop.iov, loop.n_iov)
        if sent == UV_EAGAIN:
            sent = 0
        if sent >= 0 and <size_t>sent < total:
            sent = write_rest(c, <size_t>sent)
        release_held(loop)
        if sent < 0:
            conn_close(c, sent)
            return
        if not loop.out_full:
            break
    if not nghttp2_session_want_read(c.session) and not nghttp2_session_want_write(c.session) and not c.write_busy:
        conn_close(c, UV_EOF)
        return
    if loop.out_full and not c.write_busy and not c.dirty:
        c.dirty = 1
        c.dirty_next = loop.later
        loop.later = c


cdef void conn_close(ty_conn *c, int rv) noexcept nogil:
    if c.closing:
        return
    c.closing = 1
    uv_close(&c.h.handle, on_closed)
    if c.role == TY_FRONT:
        c.loop.hooks.front_gone(c, rv)
    else:
        c.loop.hooks.back_gone(c, rv)


cdef void on_closed(uv_handle_t *handle) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>handle.data
    cdef ty_loop *loop = c.loop
    if c.session is not NULL:
        nghttp2_session_del(c.session)
    if c.role == TY_FRONT:
        loop.n_fronts -= 1
    else:
        loop.n_backs -= 1
    mem_free(&loop.mem, c)
