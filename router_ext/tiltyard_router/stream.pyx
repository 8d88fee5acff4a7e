# peek > routes > split > [stream] > pool > back, and back > [stream] > reply
"""The life of one call, from its headers to its outcome."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t, uint64_t, uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memset

from tiltyard_router.c_nghttp2 cimport (
    NGHTTP2_CANCEL, NGHTTP2_FLAG_NONE, NGHTTP2_INTERNAL_ERROR, NGHTTP2_NO_ERROR, NGHTTP2_REFUSED_STREAM,
    nghttp2_http2_strerror, nghttp2_session_resume_data, nghttp2_submit_rst_stream)
from tiltyard_router.c_uv cimport uv_now
from tiltyard_router.conn cimport conn_credit, conn_mark, conn_stream_credit
from tiltyard_router.headers cimport (
    TY_H_CONTENT_TYPE, TY_H_GRPC_STATUS, TY_H_GRPC_TIMEOUT, TY_H_PATH, headers_clear, headers_get, headers_init,
    status_number, timeout_us, ty_text)
from tiltyard_router.health cimport HEALTH_MAX_BYTES, health_answer, health_forget, health_path, health_watches
from tiltyard_router.mem cimport mem_alloc, mem_free
from tiltyard_router.model cimport (
    TY_HDR_INLINE, TY_KIND_HEALTH, TY_KIND_NONE, TY_KIND_PASS, TY_KIND_PREDICT, TY_KIND_REFUSED, TY_MSG_CAP,
    TY_ST_ANSWERING, TY_ST_BODY, TY_ST_DONE, TY_ST_SENT, TY_TRAILERS_INLINE, ty_backend, ty_conn, ty_loop, ty_queue,
    ty_stream)
from tiltyard_router.pool cimport pool_close_table, pool_forget, pool_send
from tiltyard_router.predict cimport predict_route
from tiltyard_router.queue cimport queue_add, queue_clear, queue_init, queue_rewind
from tiltyard_router.reply cimport reply_head, reply_http, reply_only_trailers, reply_resume
from tiltyard_router.routes cimport routes_free
from tiltyard_router.score cimport (
    TY_SCORED, TY_UNSCORED_ERROR, TY_UNSCORED_MALFORMED, reader_clear, reader_feed, reader_finish)
from tiltyard_router.status cimport (
    GRPC_CANCELLED, GRPC_DEADLINE_EXCEEDED, GRPC_INTERNAL, GRPC_INVALID_ARGUMENT, GRPC_OK, GRPC_PERMISSION_DENIED,
    GRPC_RESOURCE_EXHAUSTED, GRPC_UNAUTHENTICATED, GRPC_UNAVAILABLE, GRPC_UNIMPLEMENTED, GRPC_UNKNOWN)
from tiltyard_router.tap cimport tap_complete, ty_outcome
from tiltyard_router.wheel cimport wheel_clear, wheel_set

cdef long long MAX_TIMEOUT_US = <long long>3600 * 1000 * 1000000    # 1,000 hours: longer ones are as good as none

cdef enum:
    LAST_WORD_MS = 1000                # what a client may take to read the end of an answer that failed
    REFUSED_TRIES = 2                  # how often a refused, surely unprocessed call is sent again


# ---------------------------------------------------------------- begin and end

cdef ty_stream *stream_new(ty_conn *front, int32_t id) noexcept nogil:
    cdef ty_loop *loop = front.loop
    cdef ty_stream *st = <ty_stream *>mem_alloc(&loop.mem, sizeof(ty_stream))
    if st is NULL:
        return NULL
    memset(st, 0, <uint8_t *>&st.reader - <uint8_t *>st)
    st.msg[0] = 0
    st.reader.entry = NULL             # reader_clear looks at nothing else of one that never began
    st.loop = loop
    st.front = front
    st.front_id = id
    headers_init(&st.request, st.request_room, TY_HDR_INLINE)
    headers_init(&st.answer, st.answer_room, TY_HDR_INLINE)
    headers_init(&st.trailers, st.trailers_room, TY_TRAILERS_INLINE)
    queue_init(&st.out, st, 1)
    queue_init(&st.in_, st, 0)
    st.f_next = front.streams
    if st.f_next is not NULL:
        st.f_next.f_prev = st
    front.streams = st
    front.n_streams += 1
    loop.n_streams += 1
    return st


cdef void release(ty_stream *st) noexcept nogil:
    """Free the call once nobody refers to it: both sides closed, on no list."""
    cdef ty_loop *loop = st.loop
    if st.front is not NULL or st.back is not NULL:
        return
    settle(st, GRPC_CANCELLED)
    wheel_clear(st)
    pool_forget(st)
    queue_clear(&st.out)
    queue_clear(&st.in_)
    headers_clear(&st.request, &loop.mem)
    headers_clear(&st.answer, &loop.mem)
    headers_clear(&st.trailers, &loop.mem)
    reader_clear(&st.reader)
    table_release(st)
    loop.n_streams -= 1
    mem_free(&loop.mem, st)


cdef void table_release(ty_stream *st) noexcept nogil:
    cdef ty_loop *loop = st.loop
    if st.routes is NULL:
        return
    st.routes.refs -= 1
    if st.routes.refs == 0:            # it was replaced meanwhile, and this was its last call
        pool_close_table(loop, st.routes)
        routes_free(st.routes)
    st.routes = NULL
    st.pipeline = NULL
    st.arm = NULL


cdef void settle(ty_stream *st, int status) noexcept nogil:
    """Report the outcome of a counted call, once. An error of any kind is an outcome of the arm that was assigned."""
    cdef ty_outcome outcome
    cdef uint32_t i
    cdef uint8_t reason = TY_SCORED
    if not st.counted:
        return
    st.counted = 0
    if status != GRPC_OK:
        reason = TY_UNSCORED_ERROR
    elif st.compressed:
        reason = TY_UNSCORED_MALFORMED
    else:
        reader_finish(&st.reader)
    outcome.status = <uint8_t>status
    outcome.n_metrics = <uint8_t>st.pipeline.n_metrics
    for i in range(st.pipeline.n_metrics):
        outcome.values[i] = st.reader.values[i]
        outcome.reasons[i] = reason if reason != TY_SCORED else st.reader.reasons[i]
    tap_complete(st.loop.tap, st.block, st.second, &outcome)


# ---------------------------------------------------------------- the request

cdef int path_is(ty_text path, const char *want, size_t n) noexcept nogil:
    return path.n == n and memcmp(path.p, want, n) == 0


cdef int path_begins(ty_text path, const char *want, size_t n) noexcept nogil:
    return path.n > n and memcmp(path.p, want, n) == 0


cdef void stream_head(ty_stream *st) noexcept nogil:
    """Request headers are complete: what kind of call is it?"""
    if st.state == TY_ST_DONE:         # ended while they came
        return
    describe(st)


cdef void describe(ty_stream *st) noexcept nogil:
    cdef ty_text path = headers_get(&st.request, TY_H_PATH)
    cdef ty_text content = headers_get(&st.request, TY_H_CONTENT_TYPE)
    cdef uint64_t limit = st.loop.config.default_deadline_us
    if st.request.overflow:
        stream_fail(st, GRPC_RESOURCE_EXHAUSTED, b"the request's metadata is larger than 16384 bytes or 128 fields")
    elif not st.request.is_post:
        refuse_http(st, b"405")
    elif content.n < 16 or memcmp(content.p, b"application/grpc", 16) != 0:
        refuse_http(st, b"415")
    elif path_is(path, b"/tensorflow.serving.PredictionService/Predict", 45):
        st.kind = TY_KIND_PREDICT
        st.state = TY_ST_BODY
        st.out.keep = 1
        if set_deadline(st, limit):
            need_table(st)
    elif health_path(st, path):
        st.kind = TY_KIND_HEALTH
        st.state = TY_ST_BODY
        st.out.keep = 1
        set_deadline(st, limit)
    elif path_begins(path, b"/tiltyard.api.control.", 22):
        pass_on(st, st.loop.control, b"no control plane is connected to this router (--control)")
    elif path_begins(path, b"/tiltyard.api.outcomes.", 23):
        pass_on(st, st.loop.outcomes, b"no outcomes service is connected to this router (--outcomes)")
    else:
        unknown_method(st, path)


cdef void need_table(ty_stream *st) noexcept nogil:
    if st.loop.routes is NULL:
        stream_fail(st, GRPC_UNAVAILABLE, b"the router has no route table yet; it waits for the control plane")


cdef void unknown_method(ty_stream *st, ty_text path) noexcept nogil:
    snprintf(st.msg, TY_MSG_CAP, b"this router does not serve %.*s; it serves tensorflow.serving.PredictionService/"
             b"Predict, grpc.health.v1.Health and tiltyard.api.*", <int>(path.n if path.n < 100 else 100), path.p)
    stream_fail(st, GRPC_UNIMPLEMENTED, NULL)


cdef void refuse_http(ty_stream *st, const char *status) noexcept nogil:
    st.kind = TY_KIND_REFUSED
    st.state = TY_ST_DONE
    st.answer_ended = 1
    reply_http(st, status)


cdef int set_deadline(ty_stream *st, uint64_t limit_us) noexcept nogil:
    """The caller's grpc-timeout, at most limit_us (0: no limit). 0 when the call was ended over it."""
    cdef ty_text text = headers_get(&st.request, TY_H_GRPC_TIMEOUT)
    cdef long long us = <long long>limit_us
    cdef long long asked
    if text.p is not NULL:
        asked = timeout_us(text)
        if asked < 0:
            stream_fail(st, GRPC_INVALID_ARGUMENT, b"grpc-timeout is malformed")
            return 0
        if us == 0 or asked < us:
            us = asked
        if asked == 0:
            stream_fail(st, GRPC_DEADLINE_EXCEEDED, b"the deadline had passed on arrival")
            return 0
    st.begun_ms = uv_now(&st.loop.uv)
    if us > 0 and us < MAX_TIMEOUT_US:
        wheel_set(st, st.begun_ms + <uint64_t>((us + 999) // 1000))
    return 1


cdef void pass_on(ty_stream *st, ty_backend *to, const char *missing) noexcept nogil:
    """Control and outcomes calls stream through; their bytes are sent on as they come."""
    if to is NULL:
        stream_fail(st, GRPC_UNIMPLEMENTED, missing)
        return
    st.kind = TY_KIND_PASS
    st.pass_to = to
    if set_deadline(st, 0):
        pool_send(st)


cdef void stream_data(ty_stream *st, const uint8_t *data, size_t n) noexcept nogil:
    """Request bytes. Credit: a gathered request gets it at once (its size is limited), a passed one when it is sent."""
    cdef ty_conn *front = st.front
    conn_credit(front, n)
    if st.state == TY_ST_DONE:
        conn_stream_credit(front, st.front_id, &st.front_owed, n)
    elif st.kind == TY_KIND_PASS:
        if hold(&st.out, data, n):
            resume_back(st)
    else:
        conn_stream_credit(front, st.front_id, &st.front_owed, n)
        gather(st, data, n)


cdef int hold(ty_queue *q, const uint8_t *data, size_t n) noexcept nogil:
    """Keep bytes until the other side takes them. 0 when the call was ended over it.

    The windows bound what one stream can have here; what all of them together can is bounded here.
    """
    cdef ty_loop *loop = q.stream.loop
    if loop.buffered + n > loop.config.max_buffered_bytes:
        stream_fail(q.stream, GRPC_RESOURCE_EXHAUSTED, b"the router's buffers are full; try again later")
        return 0
    if queue_add(q, data, n) != 0:
        stream_fail(q.stream, GRPC_RESOURCE_EXHAUSTED, b"out of memory")
        return 0
    return 1


cdef void gather(ty_stream *st, const uint8_t *data, size_t n) noexcept nogil:
    """Collect the one message of a unary request, with its prefix; check sizes before a byte is kept."""
    cdef size_t k = 0
    while k < n and st.prefix_len < 5:
        st.prefix[st.prefix_len] = data[k]
        st.prefix_len += 1
        k += 1
        if st.prefix_len == 5:
            st.msg_len = (<uint32_t>st.prefix[1] << 24 | <uint32_t>st.prefix[2] << 16
                          | <uint32_t>st.prefix[3] << 8 | st.prefix[4])
            if not prefix_ok(st):
                return
    st.msg_got += n - k
    if st.prefix_len == 5 and st.msg_got > st.msg_len:
        stream_fail(st, GRPC_INVALID_ARGUMENT, b"the request holds more than one message")
    else:
        hold(&st.out, data, n)


cdef int prefix_ok(ty_stream *st) noexcept nogil:
    cdef uint64_t limit
    if st.prefix[0] != 0:
        st.compressed = 1              # makes the answer say what is accepted
        stream_fail(st, GRPC_UNIMPLEMENTED, b"compressed messages are not supported; send them uncompressed (identity)")
        return 0
    limit = st.loop.config.max_message_bytes if st.kind != TY_KIND_HEALTH else HEALTH_MAX_BYTES
    if st.msg_len > limit:
        snprintf(st.msg, TY_MSG_CAP, b"the request is larger than %llu bytes", <unsigned long long>limit)
        stream_fail(st, GRPC_RESOURCE_EXHAUSTED, NULL)
        return 0
    return 1


cdef void stream_request_end(ty_stream *st) noexcept nogil:
    st.request_ended = 1
    if st.state == TY_ST_DONE:
        return
    if st.kind == TY_KIND_PASS:
        st.out.ended = 1
        resume_back(st)
        return
    if st.prefix_len < 5 or st.msg_got < st.msg_len:
        stream_fail(st, GRPC_INVALID_ARGUMENT, b"the request ends before its message does")
    elif st.kind == TY_KIND_HEALTH:
        health_answer(st)
        if health_watches(st):         # for as long as the caller wants
            wheel_clear(st)
            set_deadline(st, 0)
    elif st.kind == TY_KIND_PREDICT:
        route(st)


cdef void route(ty_stream *st) noexcept nogil:
    cdef int status = predict_route(st)
    if status != 0:
        stream_fail(st, status, NULL)
        return
    if st.pipeline.timeout_us != 0:
        wheel_set(st, pipeline_deadline(st))
    pool_send(st)


cdef uint64_t pipeline_deadline(const ty_stream *st) noexcept nogil:
    """The pipeline's time-out takes the place of the default one, longer or shorter; the caller's holds beside it."""
    cdef uint64_t deadline = uv_now(&st.loop.uv) + (st.pipeline.timeout_us + 999) // 1000
    cdef ty_text text = headers_get(&st.request, TY_H_GRPC_TIMEOUT)
    cdef uint64_t asked
    if text.p is not NULL:
        asked = st.begun_ms + <uint64_t>((timeout_us(text) + 999) // 1000)
        if asked < deadline:
            return asked
    return deadline


cdef void resume_back(ty_stream *st) noexcept nogil:
    if st.back is NULL or not st.out.deferred:
        return
    st.out.deferred = 0
    nghttp2_session_resume_data(st.back.session, st.back_id)
    conn_mark(st.back)


cdef void stream_drained(ty_queue *q, size_t n) noexcept nogil:
    """Bytes went out on one side: the other side may send as many again."""
    cdef ty_stream *st = q.stream
    if q.to_back:
        if st.kind == TY_KIND_PASS and st.front is not NULL:
            conn_stream_credit(st.front, st.front_id, &st.front_owed, n)
    elif st.back is not NULL:
        conn_stream_credit(st.back, st.back_id, &st.back_owed, n)


cdef void stream_front_closed(ty_stream *st) noexcept nogil:
    """The client is done with it. If that is too early it has cancelled, and the backend is told."""
    cdef ty_conn *front = st.front
    if front is NULL:
        return
    if st.f_prev is not NULL:
        st.f_prev.f_next = st.f_next
    else:
        front.streams = st.f_next
    if st.f_next is not NULL:
        st.f_next.f_prev = st.f_prev
    front.n_streams -= 1
    if front.reading is st:
        front.reading = NULL
    queue_clear(&st.in_)
    st.front = NULL
    health_forget(st)
    if st.state != TY_ST_DONE:
        st.state = TY_ST_DONE
        settle(st, GRPC_CANCELLED)
    wheel_clear(st)
    pool_forget(st)
    reset_back(st, NGHTTP2_CANCEL)
    release(st)


cdef void reset_back(ty_stream *st, uint32_t code) noexcept nogil:
    if st.back is NULL or st.back.closing:
        return
    nghttp2_submit_rst_stream(st.back.session, NGHTTP2_FLAG_NONE, st.back_id, code)
    conn_mark(st.back)


# ---------------------------------------------------------------- the answer

cdef void answering(ty_stream *st) noexcept nogil:
    """The backend has begun to answer: the call cannot be sent again, its request need not be kept."""
    st.state = TY_ST_ANSWERING
    st.out.keep = 0


cdef int http_to_grpc(int status) noexcept nogil:
    """gRPC's http-grpc-status-mapping.md."""
    if status == 400:
        return GRPC_INTERNAL
    if status == 401:
        return GRPC_UNAUTHENTICATED
    if status == 403:
        return GRPC_PERMISSION_DENIED
    if status == 404:
        return GRPC_UNIMPLEMENTED
    if status == 429 or status == 502 or status == 503 or status == 504:
        return GRPC_UNAVAILABLE
    return GRPC_UNKNOWN


cdef void stream_answer_head(ty_stream *st, int end_stream) noexcept nogil:
    cdef int status = st.answer.status
    cdef ty_text content = headers_get(&st.answer, TY_H_CONTENT_TYPE)
    if st.state == TY_ST_DONE:
        return
    if st.answer.overflow:
        stream_fail(st, GRPC_RESOURCE_EXHAUSTED, b"the answer's metadata is larger than 16384 bytes or 128 fields")
    elif status != 200:
        snprintf(st.msg, TY_MSG_CAP, b"the backend answered with HTTP status %d", status)
        stream_fail(st, http_to_grpc(status), NULL)
    elif content.n < 16 or memcmp(content.p, b"application/grpc", 16) != 0:
        stream_fail(st, GRPC_INTERNAL, b"the backend's answer is no gRPC (content-type)")
    elif end_stream:
        answering(st)
        only_trailers(st)
    else:
        answering(st)
        if reply_head(st) != 0:
            stream_fail(st, GRPC_INTERNAL, b"the answer cannot be sent on")


cdef void only_trailers(ty_stream *st) noexcept nogil:
    """An error without a message: one block of headers."""
    cdef int status = status_number(headers_get(&st.answer, TY_H_GRPC_STATUS))
    st.back_ended = 1
    if status < 0:
        stream_fail(st, GRPC_INTERNAL, b"the backend ended its answer without a grpc-status")
        return
    if status == GRPC_OK and st.kind == TY_KIND_PREDICT:
        stream_fail(st, GRPC_INTERNAL, b"the backend answered OK without a message")
        return
    finish(st, status)
    reply_only_trailers(st)


cdef void finish(ty_stream *st, int status) noexcept nogil:
    """The answer has ended by the backend's own trailers."""
    settle(st, status)
    st.state = TY_ST_DONE
    st.answer_ended = 1
    st.in_.ended = 1
    queue_clear(&st.out)               # the deadline stays set: the client must take the answer before it


cdef void stream_answer_data(ty_stream *st, const uint8_t *data, size_t n) noexcept nogil:
    if st.front is NULL or st.state != TY_ST_ANSWERING:
        conn_stream_credit(st.back, st.back_id, &st.back_owed, n)
        return
    if st.kind == TY_KIND_PREDICT and not follow(st, data, n):
        return
    if hold(&st.in_, data, n):
        reply_resume(st)


cdef int follow(ty_stream *st, const uint8_t *data, size_t n) noexcept nogil:
    """Read the answer's framing and show its message to the reader. 0 when the call was ended over it."""
    cdef size_t k
    while n > 0:
        if st.answer_prefix_len < 5:
            st.answer_prefix[st.answer_prefix_len] = data[0]
            st.answer_prefix_len += 1
            data += 1
            n -= 1
            if st.answer_prefix_len == 5:
                st.answer_msgs += 1
                st.answer_left = (<uint32_t>st.answer_prefix[1] << 24 | <uint32_t>st.answer_prefix[2] << 16
                                  | <uint32_t>st.answer_prefix[3] << 8 | st.answer_prefix[4])
                st.compressed = st.answer_prefix[0] != 0
                if st.answer_left > st.loop.config.max_message_bytes:
                    stream_fail(st, GRPC_RESOURCE_EXHAUSTED, b"the answer is larger than the router's limit")
                    return 0
            continue
        if st.answer_left == 0:        # a second message; a unary call has one
            stream_fail(st, GRPC_INTERNAL, b"the backend's answer holds more than one message")
            return 0
        k = n if n < st.answer_left else <size_t>st.answer_left
        if st.counted and not st.compressed:
            reader_feed(&st.reader, data, k)
        st.answer_left -= k
        data += k
        n -= k
    return 1


cdef void stream_answer_end(ty_stream *st) noexcept nogil:
    """END_STREAM from the backend, with its trailers in st.trailers (or none)."""
    cdef int status, early = not st.out.ended or st.out.unsent > 0
    st.back_ended = 1
    if st.state == TY_ST_DONE:
        return
    if st.trailers.overflow:
        stream_fail(st, GRPC_RESOURCE_EXHAUSTED, b"the answer's trailers are larger than 16384 bytes or 128 fields")
        return
    status = status_number(headers_get(&st.trailers, TY_H_GRPC_STATUS))
    if status < 0:
        stream_fail(st, GRPC_INTERNAL, b"the backend ended its answer without a grpc-status")
        return
    if st.kind == TY_KIND_PREDICT and status == GRPC_OK and (st.answer_msgs != 1 or st.answer_left != 0):
        stream_fail(st, GRPC_INTERNAL, b"the backend's answer ends before its message does")
        return
    finish(st, status)
    if early:                          # the rest of the request is nobody's
        reset_back(st, NGHTTP2_NO_ERROR)
    reply_resume(st)


cdef void stream_back_closed(ty_stream *st, uint32_t error_code, int connection_lost) noexcept nogil:
    """The back stream is gone. If the answer has not ended, was the call surely not run, or is it lost?"""
    st.back = NULL
    st.back_id = 0
    if st.state != TY_ST_DONE:
        if (error_code == NGHTTP2_REFUSED_STREAM and not connection_lost and st.state == TY_ST_SENT
                and st.kind == TY_KIND_PREDICT and st.tries < REFUSED_TRIES):
            st.tries += 1
            headers_clear(&st.answer, &st.loop.mem)
            st.final_head = 0
            st.back_owed = 0
            queue_rewind(&st.out)
            pool_send(st)
        elif connection_lost:
            stream_fail(st, GRPC_UNAVAILABLE, b"the connection to the backend was lost")
        else:
            snprintf(st.msg, TY_MSG_CAP, b"the backend reset the call (%s)", nghttp2_http2_strerror(error_code))
            stream_fail(st, GRPC_UNAVAILABLE, NULL)
    release(st)


# ---------------------------------------------------------------- errors of ours

cdef void stream_fail(ty_stream *st, int status, const char *msg) noexcept nogil:
    if st.state == TY_ST_DONE:
        return
    if msg is not NULL:
        snprintf(st.msg, TY_MSG_CAP, b"%s", msg)
    if st.kind == TY_KIND_NONE:
        st.kind = TY_KIND_REFUSED
    settle(st, status)
    st.state = TY_ST_DONE
    st.status = status
    st.own_status = 1
    st.answer_ended = 1
    wheel_clear(st)
    pool_forget(st)
    queue_clear(&st.out)
    reset_back(st, NGHTTP2_CANCEL)
    if st.front is NULL:
        return
    if st.answered:                    # part of an answer is with the client: its trailers say what became of it
        st.in_.ended = 1
        wheel_set(st, uv_now(&st.loop.uv) + LAST_WORD_MS)
        reply_resume(st)
    elif reply_only_trailers(st) != 0:
        nghttp2_submit_rst_stream(st.front.session, NGHTTP2_FLAG_NONE, st.front_id, NGHTTP2_INTERNAL_ERROR)
        conn_mark(st.front)


cdef void stream_expired(ty_stream *st) noexcept nogil:
    if st.state != TY_ST_DONE:
        stream_fail(st, GRPC_DEADLINE_EXCEEDED, b"the deadline passed")
    elif st.front is not NULL:         # all is decided, but the client does not take it: nothing is kept for it
        queue_clear(&st.in_)
        nghttp2_submit_rst_stream(st.front.session, NGHTTP2_FLAG_NONE, st.front_id, NGHTTP2_CANCEL)
        conn_mark(st.front)
