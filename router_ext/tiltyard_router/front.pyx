# client > listener > [front] > peek
"""The server side: clients' connections and their HTTP/2 sessions."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t, uint64_t, uint8_t

from tiltyard_router.c_nghttp2 cimport (
    NGHTTP2_DATA, NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_NONE,
    NGHTTP2_HCAT_REQUEST, NGHTTP2_HEADERS, NGHTTP2_NO_ERROR, NGHTTP2_PING, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
    NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE,
    NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, nghttp2_frame, nghttp2_option, nghttp2_option_new,
    nghttp2_option_set_max_outbound_ack, nghttp2_option_set_no_auto_window_update, nghttp2_option_set_no_closed_streams,
    nghttp2_rcbuf, nghttp2_session, nghttp2_session_callbacks, nghttp2_session_callbacks_new,
    nghttp2_session_callbacks_set_on_begin_headers_callback, nghttp2_session_callbacks_set_on_data_chunk_recv_callback,
    nghttp2_session_callbacks_set_on_frame_recv_callback, nghttp2_session_callbacks_set_on_frame_send_callback,
    nghttp2_session_callbacks_set_on_header_callback2, nghttp2_session_callbacks_set_on_stream_close_callback,
    nghttp2_session_callbacks_set_send_data_callback, nghttp2_session_get_last_proc_stream_id,
    nghttp2_session_get_stream_user_data, nghttp2_session_server_new3, nghttp2_session_set_local_window_size,
    nghttp2_session_set_stream_user_data, nghttp2_settings_entry, nghttp2_submit_goaway, nghttp2_submit_ping,
    nghttp2_submit_rst_stream, nghttp2_submit_settings, nghttp2_submit_shutdown_notice)
from tiltyard_router.c_uv cimport uv_accept, uv_now, uv_stream_t, uv_tcp_nodelay
from tiltyard_router.conn cimport conn_close, conn_credit, conn_mark, conn_new, conn_send_data, conn_start
from tiltyard_router.headers cimport headers_add
from tiltyard_router.model cimport (
    TY_CONN_WINDOW, TY_FRONT, TY_FRONT_STREAMS, TY_HDR_BYTES, TY_STALL_MS, TY_WINDOW, ty_conn, ty_loop, ty_stream)
from tiltyard_router.status cimport GRPC_UNAVAILABLE, TY_ERR_NOMEM, TY_ERR_TIMEOUT
from tiltyard_router.stream cimport (
    stream_data, stream_fail, stream_front_closed, stream_head, stream_new, stream_request_end)

cdef nghttp2_session_callbacks *callbacks = NULL
cdef nghttp2_option *option = NULL

cdef enum:
    # When the client does not answer the PING that follows the first GOAWAY, the second goes out after this.
    GOAWAY_WAIT_MS = 1000


cdef int front_setup() noexcept nogil:
    global callbacks, option
    if callbacks is not NULL:
        return 0
    if nghttp2_session_callbacks_new(&callbacks) != 0 or nghttp2_option_new(&option) != 0:
        return TY_ERR_NOMEM
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback2(callbacks, on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv)
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close)
    nghttp2_session_callbacks_set_send_data_callback(callbacks, conn_send_data)
    nghttp2_option_set_no_auto_window_update(option, 1)
    nghttp2_option_set_no_closed_streams(option, 1)
    nghttp2_option_set_max_outbound_ack(option, 1000)
    return 0


cdef int start_session(ty_conn *c) noexcept nogil:
    cdef nghttp2_settings_entry iv[4]
    cdef int rv = nghttp2_session_server_new3(&c.session, callbacks, c, option, &c.loop.mem.hooks)
    if rv != 0:
        return rv
    iv[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    iv[0].value = TY_FRONT_STREAMS
    iv[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    iv[1].value = TY_WINDOW
    iv[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    iv[2].value = TY_HDR_BYTES
    iv[3].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES     # nobody in gRPC uses them, and the tree costs
    iv[3].value = 1
    rv = nghttp2_submit_settings(c.session, NGHTTP2_FLAG_NONE, iv, 4)
    if rv == 0:
        rv = nghttp2_session_set_local_window_size(c.session, NGHTTP2_FLAG_NONE, 0, TY_CONN_WINDOW)
    return rv


cdef int front_accept(ty_loop *loop, uv_stream_t *server) noexcept nogil:
    cdef ty_conn *c = conn_new(loop, TY_FRONT, 0)
    cdef int rv
    if c is NULL:
        return TY_ERR_NOMEM
    loop.n_fronts += 1
    c.next = loop.fronts
    if c.next is not NULL:
        c.next.prev = c
    loop.fronts = c
    rv = uv_accept(server, &c.h.stream)
    if rv == 0:
        uv_tcp_nodelay(&c.h.tcp, 1)
        rv = start_session(c)
    if rv == 0:
        rv = conn_start(c)
    if rv != 0:
        conn_close(c, rv)
        return 0
    if loop.draining:
        say_goodbye(c)
    conn_mark(c)
    return 0


cdef void front_gone(ty_conn *c, int rv) noexcept nogil:
    """The connection is closing: each of its calls is cancelled, by our own list."""
    cdef ty_loop *loop = c.loop
    while c.streams is not NULL:
        stream_front_closed(c.streams)
    if c.prev is not NULL:
        c.prev.next = c.next
    else:
        loop.fronts = c.next
    if c.next is not NULL:
        c.next.prev = c.prev
    c.prev = NULL
    c.next = NULL


# ---------------------------------------------------------------- frames

cdef int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>user_data
    cdef ty_stream *st
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    st = stream_new(c, frame.hd.stream_id)
    if st is NULL:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE       # this stream is reset, the connection lives
    nghttp2_session_set_stream_user_data(session, frame.hd.stream_id, st)
    c.reading = st
    return 0


cdef int on_header(nghttp2_session *session, const nghttp2_frame *frame, nghttp2_rcbuf *name, nghttp2_rcbuf *value,
                   uint8_t flags, void *user_data) noexcept nogil:
    cdef ty_stream *st
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0                       # request trailers mean nothing in gRPC
    st = (<ty_conn *>user_data).reading
    if st is not NULL and headers_add(&st.request, &st.loop.mem, name, value) != 0:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    return 0


cdef inline ty_stream *stream_of(ty_conn *c, int32_t id) noexcept nogil:
    """Most frames belong to the stream whose headers came last."""
    if c.reading is not NULL and c.reading.front_id == id:
        return c.reading
    return <ty_stream *>nghttp2_session_get_stream_user_data(c.session, id)


cdef int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>user_data
    cdef ty_stream *st
    if frame.hd.type == NGHTTP2_PING:
        if frame.hd.flags & NGHTTP2_FLAG_ACK and c.goaway_sent == 1:
            say_last_word(c)
        return 0
    if frame.hd.type != NGHTTP2_HEADERS and frame.hd.type != NGHTTP2_DATA:
        return 0
    st = stream_of(c, frame.hd.stream_id)
    if st is NULL:
        return 0
    if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        stream_head(st)
    if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream_request_end(st)
    return 0


cdef int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t n,
                       void *user_data) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>user_data
    cdef ty_stream *st = stream_of(c, stream_id)
    if st is NULL:                     # reset earlier, but the credit must still go back
        conn_credit(c, n)
        return 0
    stream_data(st, data, n)
    return 0


cdef int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) noexcept nogil:
    """An answer that ended before its request did: the client need not send the rest (RFC 9113, 8.1)."""
    cdef ty_stream *st
    if frame.hd.type != NGHTTP2_HEADERS or not frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        return 0
    st = <ty_stream *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if st is not NULL and not st.request_ended:
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR)
    return 0


cdef int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                         void *user_data) noexcept nogil:
    cdef ty_stream *st = <ty_stream *>nghttp2_session_get_stream_user_data(session, stream_id)
    if st is not NULL:
        stream_front_closed(st)
    return 0


# ---------------------------------------------------------------- goodbye, in two steps

cdef void say_goodbye(ty_conn *c) noexcept nogil:
    """GOAWAY with the highest id, then a PING: once it is answered the client has stopped opening streams."""
    if c.goaway_sent or c.closing:
        return
    c.goaway_sent = 1
    c.goaway_final_ms = uv_now(&c.loop.uv) + GOAWAY_WAIT_MS
    nghttp2_submit_shutdown_notice(c.session)
    nghttp2_submit_ping(c.session, NGHTTP2_FLAG_NONE, NULL)
    conn_mark(c)


cdef void say_last_word(ty_conn *c) noexcept nogil:
    """After this GOAWAY the session wants nothing more once its last stream has ended, and the flush closes it."""
    c.goaway_sent = 2
    nghttp2_submit_goaway(c.session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(c.session),
                          NGHTTP2_NO_ERROR, NULL, 0)
    conn_mark(c)


cdef void front_drain_all(ty_loop *loop) noexcept nogil:
    cdef ty_conn *c = loop.fronts
    while c is not NULL:
        say_goodbye(c)
        c = c.next


cdef void front_tick(ty_loop *loop) noexcept nogil:
    cdef ty_conn *c = loop.fronts
    cdef ty_conn *after
    cdef uint64_t now = uv_now(&loop.uv)
    while c is not NULL:
        after = c.next
        if c.unsent > 0 and now - c.moved_ms > TY_STALL_MS:        # it would hold its share of the buffers for ever
            conn_close(c, TY_ERR_TIMEOUT)
        elif c.goaway_sent == 1 and now >= c.goaway_final_ms:
            say_last_word(c)
        c = after


cdef void front_fail_all(ty_loop *loop) noexcept nogil:
    cdef ty_conn *c = loop.fronts
    cdef ty_stream *st
    while c is not NULL:
        st = c.streams
        while st is not NULL:
            stream_fail(st, GRPC_UNAVAILABLE, b"the router is shutting down")
            st = st.f_next
        if c.goaway_sent != 2 and not c.closing:
            say_last_word(c)
        c = c.next


cdef void front_close_all(ty_loop *loop) noexcept nogil:
    cdef ty_conn *c = loop.fronts
    cdef ty_conn *after
    while c is not NULL:
        after = c.next
        conn_close(c, 0)
        c = after
