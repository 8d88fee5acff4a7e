# stream > pool > [back] > model server
"""The client side: sessions to model servers and services."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t, uint64_t, uint8_t
from libc.string cimport strlen, strncmp

from tiltyard_router.c_nghttp2 cimport (
    NGHTTP2_CANCEL, NGHTTP2_DATA, NGHTTP2_DATA_FLAG_EOF, NGHTTP2_DATA_FLAG_NO_COPY, NGHTTP2_ERR_CALLBACK_FAILURE,
    NGHTTP2_ERR_DEFERRED, NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_NONE, NGHTTP2_GOAWAY, NGHTTP2_HEADERS,
    NGHTTP2_NV_FLAG_NONE, NGHTTP2_NV_FLAG_NO_INDEX, NGHTTP2_SETTINGS, NGHTTP2_SETTINGS_ENABLE_PUSH,
    NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES,
    nghttp2_data_provider, nghttp2_data_source, nghttp2_frame, nghttp2_nv, nghttp2_option, nghttp2_option_new,
    nghttp2_option_set_no_auto_window_update, nghttp2_option_set_no_closed_streams, nghttp2_rcbuf, nghttp2_session,
    nghttp2_session_callbacks, nghttp2_session_callbacks_new, nghttp2_session_callbacks_set_on_begin_headers_callback,
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback, nghttp2_session_callbacks_set_on_frame_recv_callback,
    nghttp2_session_callbacks_set_on_header_callback2, nghttp2_session_callbacks_set_on_stream_close_callback,
    nghttp2_session_callbacks_set_send_data_callback, nghttp2_session_client_new3, nghttp2_session_get_stream_user_data,
    nghttp2_session_set_local_window_size, nghttp2_settings_entry, nghttp2_submit_request, nghttp2_submit_settings)
from tiltyard_router.c_uv cimport uv_now
from tiltyard_router.conn cimport conn_credit, conn_mark, conn_send_data, conn_start
from tiltyard_router.headers cimport (
    TY_H_GRPC_ACCEPT_ENCODING, TY_H_GRPC_ENCODING, TY_H_OTHER, TY_H_PATH, TY_H_USER_AGENT, header_nv, headers_add,
    headers_clear, headers_get, name_flags, number_write, text_nv, ty_text)
from tiltyard_router.model cimport (
    TY_CONN_WINDOW, TY_HDR_BYTES, TY_HDR_MAX, TY_KIND_PASS, TY_ST_DONE, TY_ST_SENT, TY_WINDOW, ty_backend, ty_conn,
    ty_header, ty_queue, ty_stream)
from tiltyard_router.pool cimport pool_conn_gone, pool_ready, pool_room
from tiltyard_router.status cimport TY_ERR_CLOSED, TY_ERR_NOMEM
from tiltyard_router.stream cimport stream_answer_data, stream_answer_end, stream_answer_head, stream_back_closed

cdef nghttp2_session_callbacks *callbacks = NULL
cdef nghttp2_option *option = NULL

cdef enum:
    NV_MAX = TY_HDR_MAX + 8


cdef int back_setup() noexcept nogil:
    global callbacks, option
    if callbacks is not NULL:
        return 0
    if nghttp2_session_callbacks_new(&callbacks) != 0 or nghttp2_option_new(&option) != 0:
        return TY_ERR_NOMEM
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback2(callbacks, on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close)
    nghttp2_session_callbacks_set_send_data_callback(callbacks, conn_send_data)
    nghttp2_option_set_no_auto_window_update(option, 1)    # credit goes back as the client drains
    nghttp2_option_set_no_closed_streams(option, 1)
    return 0


cdef int back_start(ty_conn *c) noexcept nogil:
    cdef nghttp2_settings_entry iv[4]
    cdef int rv = nghttp2_session_client_new3(&c.session, callbacks, c, option, &c.loop.mem.hooks)
    if rv != 0:
        return rv
    iv[0].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
    iv[0].value = 0
    iv[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    iv[1].value = TY_WINDOW
    iv[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    iv[2].value = TY_HDR_BYTES
    iv[3].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
    iv[3].value = 1
    rv = nghttp2_submit_settings(c.session, NGHTTP2_FLAG_NONE, iv, 4)
    if rv == 0:
        rv = nghttp2_session_set_local_window_size(c.session, NGHTTP2_FLAG_NONE, 0, TY_CONN_WINDOW)
    if rv == 0:
        rv = conn_start(c)
    if rv == 0:
        conn_mark(c)
    return rv


# ---------------------------------------------------------------- requests

cdef size_t put_timeout(const ty_stream *st, nghttp2_nv *nv, char *text) noexcept nogil:
    """What is left of the deadline, so that the backend gives up when the caller does. 0 when there is none."""
    cdef uint64_t now = uv_now(&st.loop.uv)
    cdef uint64_t left
    cdef size_t n
    if st.w_slot == 0:
        return 0
    left = st.deadline_ms - now if st.deadline_ms > now else 1
    n = number_write(left if left <= 99999999 else left // 1000, text)     # gRPC allows eight digits
    text[n] = c'm' if left <= 99999999 else c'S'
    text_nv(nv, b"grpc-timeout", 12, text, n + 1, NGHTTP2_NV_FLAG_NONE)
    # The text lies on our stack: nghttp2 copies it. The usual one, whole seconds, is worth an entry in the table.
    nv.flags = NGHTTP2_NV_FLAG_NONE if left % 1000 == 0 else NGHTTP2_NV_FLAG_NO_INDEX
    return 1


cdef size_t put_request(const ty_stream *st, ty_conn *c, nghttp2_nv *nva, char *timeout) noexcept nogil:
    """The caller's fields, without what belongs to one hop. Values of its own metadata stay out of HPACK's table: where
    they differ in every request each would cost a microsecond and push the others out."""
    cdef const ty_backend *to = c.endpoint.backend
    cdef size_t n = 6
    cdef uint32_t i
    cdef const ty_header *field
    cdef ty_text path = headers_get(&st.request, TY_H_PATH)
    cdef int passing = st.kind == TY_KIND_PASS
    cdef int is_unix = strncmp(to.text, b"unix:", 5) == 0
    text_nv(&nva[0], b":method", 7, b"POST", 4, NGHTTP2_NV_FLAG_NONE)
    text_nv(&nva[1], b":scheme", 7, b"http", 4, NGHTTP2_NV_FLAG_NONE)
    text_nv(&nva[2], b":path", 5, path.p, path.n, NGHTTP2_NV_FLAG_NONE)
    if is_unix:
        text_nv(&nva[3], b":authority", 10, b"localhost", 9, NGHTTP2_NV_FLAG_NONE)
    else:
        text_nv(&nva[3], b":authority", 10, to.text, strlen(to.text), NGHTTP2_NV_FLAG_NONE)
    text_nv(&nva[4], b"te", 2, b"trailers", 8, NGHTTP2_NV_FLAG_NONE)
    text_nv(&nva[5], b"content-type", 12, b"application/grpc", 16, NGHTTP2_NV_FLAG_NONE)
    for i in range(st.request.n):
        field = &st.request.items[i]
        if field.token == TY_H_USER_AGENT:
            header_nv(field, &nva[n], NGHTTP2_NV_FLAG_NONE)
            n += 1
        elif field.token == TY_H_OTHER:
            header_nv(field, &nva[n], name_flags(&c.named, field.name, field.name_len))
            n += 1
        elif passing and (field.token == TY_H_GRPC_ENCODING or field.token == TY_H_GRPC_ACCEPT_ENCODING):
            header_nv(field, &nva[n], NGHTTP2_NV_FLAG_NONE)
            n += 1
    n += put_timeout(st, &nva[n], timeout)
    return n


cdef int back_send(ty_conn *c, ty_stream *st) noexcept nogil:
    cdef nghttp2_nv nva[NV_MAX]
    cdef char timeout[24]
    cdef nghttp2_data_provider provider
    cdef size_t n
    cdef int32_t id
    if c.closing:
        return TY_ERR_CLOSED
    n = put_request(st, c, nva, timeout)
    provider.source.ptr = &st.out
    provider.read_callback = read_request
    id = nghttp2_submit_request(c.session, NULL, nva, n, &provider, st)
    if id < 0:
        return id
    st.state = TY_ST_SENT
    st.back = c
    st.back_id = id
    st.b_prev = NULL
    st.b_next = c.streams
    if st.b_next is not NULL:
        st.b_next.b_prev = st
    c.streams = st
    c.n_streams += 1
    c.endpoint.in_flight += 1
    conn_mark(c)
    return 0


cdef ssize_t read_request(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length,
                          uint32_t *data_flags, nghttp2_data_source *source, void *user_data) noexcept nogil:
    cdef ty_queue *q = <ty_queue *>source.ptr
    cdef size_t n = length
    if q.unsent == 0 and not q.ended:
        q.deferred = 1
        return NGHTTP2_ERR_DEFERRED
    if q.unsent < n:
        n = <size_t>q.unsent
    data_flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
    if q.ended and q.unsent == n:      # nothing is left behind this frame
        data_flags[0] |= NGHTTP2_DATA_FLAG_EOF
    return <ssize_t>n


# ---------------------------------------------------------------- answers

cdef int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) noexcept nogil:
    """Looked up once for the block, not for each field."""
    (<ty_conn *>user_data).reading = <ty_stream *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    return 0


cdef int on_header(nghttp2_session *session, const nghttp2_frame *frame, nghttp2_rcbuf *name, nghttp2_rcbuf *value,
                   uint8_t flags, void *user_data) noexcept nogil:
    cdef ty_stream *st = (<ty_conn *>user_data).reading
    cdef int rv
    if st is NULL or st.state == TY_ST_DONE:
        return 0
    if st.final_head:
        rv = headers_add(&st.trailers, &st.loop.mem, name, value)
    else:
        rv = headers_add(&st.answer, &st.loop.mem, name, value)
    return 0 if rv == 0 else NGHTTP2_ERR_CALLBACK_FAILURE


cdef inline ty_stream *stream_of(ty_conn *c, int32_t id) noexcept nogil:
    """Most frames belong to the stream whose headers came last."""
    if c.reading is not NULL and c.reading.back_id == id:
        return c.reading
    return <ty_stream *>nghttp2_session_get_stream_user_data(c.session, id)


cdef int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>user_data
    cdef ty_stream *st
    cdef int end = (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0
    if frame.hd.type == NGHTTP2_HEADERS:
        st = stream_of(c, frame.hd.stream_id)
        if st is not NULL:
            on_headers(st, end)
    elif frame.hd.type == NGHTTP2_DATA and end:
        st = stream_of(c, frame.hd.stream_id)
        if st is not NULL:
            stream_answer_end(st)
    elif frame.hd.type == NGHTTP2_GOAWAY:
        c.draining = 1                 # nothing new on it; what it will not process nghttp2 closes as refused
    elif frame.hd.type == NGHTTP2_SETTINGS and not frame.hd.flags & NGHTTP2_FLAG_ACK:
        pool_ready(c)
    return 0


cdef void on_headers(ty_stream *st, int end) noexcept nogil:
    if st.final_head:
        if end:
            stream_answer_end(st)
        return
    if 100 <= st.answer.status < 200:                  # interim: the real headers follow
        headers_clear(&st.answer, &st.loop.mem)
        return
    st.final_head = 1
    stream_answer_head(st, end)


cdef int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t n,
                       void *user_data) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>user_data
    cdef ty_stream *st = stream_of(c, stream_id)
    # The connection's credit goes back at once, or one slow client would hold up everybody on this connection.
    conn_credit(c, n)
    if st is not NULL:
        stream_answer_data(st, data, n)
    return 0


cdef void unlink(ty_conn *c, ty_stream *st) noexcept nogil:
    if st.b_prev is not NULL:
        st.b_prev.b_next = st.b_next
    else:
        c.streams = st.b_next
    if st.b_next is not NULL:
        st.b_next.b_prev = st.b_prev
    st.b_prev = NULL
    st.b_next = NULL
    if c.reading is st:
        c.reading = NULL
    c.n_streams -= 1
    if c.endpoint is not NULL:
        c.endpoint.in_flight -= 1


cdef int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                         void *user_data) noexcept nogil:
    cdef ty_conn *c = <ty_conn *>user_data
    cdef ty_stream *st = <ty_stream *>nghttp2_session_get_stream_user_data(session, stream_id)
    if st is NULL:
        return 0
    unlink(c, st)
    stream_back_closed(st, error_code, 0)
    pool_room(c)
    return 0


cdef void back_gone(ty_conn *c, int rv) noexcept nogil:
    """nghttp2 does not report the streams of a session that is deleted: the calls are found by our own list."""
    cdef ty_stream *st
    c.draining = 1 if c.connected else c.draining
    while c.streams is not NULL:
        st = c.streams
        unlink(c, st)
        stream_back_closed(st, NGHTTP2_CANCEL, 1)
    pool_conn_gone(c, rv)
