# back > stream > [reply] > client
"""The client's side of an answer."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t, uint8_t
from libc.stdio cimport snprintf
from libc.string cimport strlen

from tiltyard_router.c_nghttp2 cimport (
    NGHTTP2_DATA_FLAG_EOF, NGHTTP2_DATA_FLAG_NO_COPY, NGHTTP2_DATA_FLAG_NO_END_STREAM, NGHTTP2_ERR_DEFERRED,
    NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, NGHTTP2_NV_FLAG_NONE, NGHTTP2_NV_FLAG_NO_INDEX, nghttp2_data_provider,
    nghttp2_data_source, nghttp2_nv, nghttp2_session, nghttp2_session_resume_data, nghttp2_submit_response,
    nghttp2_submit_trailer)
from tiltyard_router.conn cimport conn_mark
from tiltyard_router.headers cimport (
    TY_H_CONTENT_TYPE, TY_H_GRPC_ENCODING, TY_H_GRPC_MESSAGE, TY_H_GRPC_STATUS, TY_H_OTHER, header_nv, message_encode,
    name_flags, text_nv)
from tiltyard_router.model cimport TY_HDR_MAX, TY_MSG_CAP, ty_headers, ty_queue, ty_stream
from tiltyard_router.receipt cimport TY_RECEIPT_CHARS
from tiltyard_router.status cimport GRPC_UNIMPLEMENTED

cdef enum:
    NV_MAX = TY_HDR_MAX + 8


cdef size_t put_fields(const ty_headers *h, nghttp2_nv *nva, int with_status) noexcept nogil:
    """What of a backend's fields is for the client: not its length, and a status only where the answer ends."""
    cdef size_t n = 0
    cdef uint32_t i
    cdef uint8_t token
    for i in range(h.n):
        token = h.items[i].token
        if (token == TY_H_OTHER or token == TY_H_CONTENT_TYPE or token == TY_H_GRPC_ENCODING
                or with_status and (token == TY_H_GRPC_STATUS or token == TY_H_GRPC_MESSAGE)):
            header_nv(&h.items[i], &nva[n], NGHTTP2_NV_FLAG_NONE)
            n += 1
    return n


cdef size_t put_ours(ty_stream *st, nghttp2_nv *nva) noexcept nogil:
    cdef size_t n = 0
    if st.arm is not NULL:
        text_nv(&nva[n], b"tiltyard-arm", 12, st.arm.name, st.arm.name_len, NGHTTP2_NV_FLAG_NONE)
        n += 1
    if st.has_receipt:
        text_nv(&nva[n], b"tiltyard-inference-id", 21, st.receipt, TY_RECEIPT_CHARS,
                name_flags(&st.front.named, b"tiltyard-inference-id", 21))
        n += 1
    return n


cdef int submit(ty_stream *st, nghttp2_nv *nva, size_t n, int with_body) noexcept nogil:
    cdef nghttp2_data_provider provider
    cdef int rv
    provider.source.ptr = &st.in_
    provider.read_callback = read_answer
    rv = nghttp2_submit_response(st.front.session, st.front_id, nva, n, &provider if with_body else NULL)
    if rv == 0:
        st.answered = 1
        if not with_body:
            st.trailers_sent = 1
        conn_mark(st.front)
    return rv


cdef int reply_head(ty_stream *st) noexcept nogil:
    cdef nghttp2_nv nva[NV_MAX]
    cdef size_t n = 1
    text_nv(&nva[0], b":status", 7, b"200", 3, NGHTTP2_NV_FLAG_NONE)
    n += put_fields(&st.answer, &nva[n], 0)
    n += put_ours(st, &nva[n])
    return submit(st, nva, n, 1)


cdef int reply_own_head(ty_stream *st) noexcept nogil:
    cdef nghttp2_nv nva[2]
    text_nv(&nva[0], b":status", 7, b"200", 3, NGHTTP2_NV_FLAG_NONE)
    text_nv(&nva[1], b"content-type", 12, b"application/grpc", 16, NGHTTP2_NV_FLAG_NONE)
    return submit(st, nva, 2, 1)


cdef size_t put_status(const ty_stream *st, nghttp2_nv *nva, char *digits, char *text) noexcept nogil:
    """Our own grpc-status and grpc-message; the texts lie with the caller, who lets nghttp2 copy them."""
    cdef size_t n = 0
    cdef size_t k = <size_t>snprintf(digits, 8, b"%d", st.status)
    text_nv(&nva[n], b"grpc-status", 11, digits, k, NGHTTP2_NV_FLAG_NONE)
    nva[n].flags = NGHTTP2_NV_FLAG_NONE
    n += 1
    k = message_encode(st.msg, text, 3 * TY_MSG_CAP)
    if k > 0:
        text_nv(&nva[n], b"grpc-message", 12, text, k, NGHTTP2_NV_FLAG_NONE)
        nva[n].flags = NGHTTP2_NV_FLAG_NO_INDEX
        n += 1
    if st.status == GRPC_UNIMPLEMENTED and st.compressed:
        text_nv(&nva[n], b"grpc-accept-encoding", 20, b"identity", 8, NGHTTP2_NV_FLAG_NONE)
        n += 1
    return n


cdef int reply_only_trailers(ty_stream *st) noexcept nogil:
    cdef nghttp2_nv nva[NV_MAX]
    cdef char digits[8]
    cdef char text[3 * TY_MSG_CAP]
    cdef size_t n = 1
    text_nv(&nva[0], b":status", 7, b"200", 3, NGHTTP2_NV_FLAG_NONE)
    if st.own_status:
        text_nv(&nva[1], b"content-type", 12, b"application/grpc", 16, NGHTTP2_NV_FLAG_NONE)
        n += 1
        n += put_status(st, &nva[n], digits, text)
    else:
        n += put_fields(&st.answer, &nva[n], 1)
    n += put_ours(st, &nva[n])
    return submit(st, nva, n, 0)


cdef int reply_http(ty_stream *st, const char *status) noexcept nogil:
    cdef nghttp2_nv nva[1]
    text_nv(&nva[0], b":status", 7, status, strlen(status), NGHTTP2_NV_FLAG_NONE)
    return submit(st, nva, 1, 0)


cdef int put_trailers(ty_stream *st) noexcept nogil:
    cdef nghttp2_nv nva[NV_MAX]
    cdef char digits[8]
    cdef char text[3 * TY_MSG_CAP]
    cdef size_t n
    if st.own_status:
        n = put_status(st, nva, digits, text)
    else:
        n = put_fields(&st.trailers, nva, 1)
    return nghttp2_submit_trailer(st.front.session, st.front_id, nva, n)


cdef ssize_t read_answer(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length,
                         uint32_t *data_flags, nghttp2_data_source *source, void *user_data) noexcept nogil:
    """How many bytes the next DATA frame carries; conn_send_data puts them there.

    Programmer's Guide, nghttp2_data_source_read_callback: EOF with NO_END_STREAM, and the trailers submitted in here.
    """
    cdef ty_queue *q = <ty_queue *>source.ptr
    cdef size_t n = length
    if q.unsent == 0 and not q.ended:
        q.deferred = 1
        return NGHTTP2_ERR_DEFERRED
    if q.unsent < n:
        n = <size_t>q.unsent
    data_flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
    if q.ended and q.unsent == n:      # nothing is left behind this frame (that n equals `length` proves nothing)
        data_flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
        if put_trailers(q.stream) != 0:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        q.stream.trailers_sent = 1
    return <ssize_t>n


cdef void reply_resume(ty_stream *st) noexcept nogil:
    if st.front is NULL or not st.in_.deferred:
        return
    st.in_.deferred = 0
    nghttp2_session_resume_data(st.front.session, st.front_id)
    conn_mark(st.front)
