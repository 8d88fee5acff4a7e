"""Bytes on their way between the two sides of a call."""

from libc.string cimport memcpy, memset

from tiltyard_router.c_nghttp2 cimport NGHTTP2_ERR_WOULDBLOCK
from tiltyard_router.c_uv cimport uv_now
from tiltyard_router.mem cimport buf_bytes, buf_decref, buf_incref, buf_new, mem_alloc, mem_free
from tiltyard_router.model cimport TY_COPY_BELOW, TY_OUT_COPY, ty_loop, ty_queue, ty_seg, ty_stream
from tiltyard_router.status cimport TY_ERR_LIMIT, TY_ERR_NOMEM

cdef enum:
    COPY_BUF = 4000                # room for small pieces behind one another; with its head one 4 KiB block


cdef void queue_init(ty_queue *q, ty_stream *st, uint8_t to_back) noexcept nogil:
    memset(q, 0, sizeof(ty_queue))
    q.stream = st
    q.to_back = to_back


cdef void seg_free(ty_loop *loop, ty_seg *seg) noexcept nogil:
    buf_decref(seg.buf)
    mem_free(&loop.mem, seg)


cdef void queue_clear(ty_queue *q) noexcept nogil:
    cdef ty_seg *seg
    cdef ty_loop *loop = q.stream.loop
    while q.head is not NULL:
        seg = q.head
        q.head = seg.next
        seg_free(loop, seg)
    loop.buffered -= q.held
    count_out(q, q.unsent)
    q.tail = NULL
    q.at = NULL
    q.at_off = 0
    q.held = 0


cdef int queue_push(ty_queue *q, ty_buf *buf, const uint8_t *p, size_t n) noexcept nogil:
    cdef ty_loop *loop = q.stream.loop
    cdef ty_seg *seg
    if n == 0:
        return 0
    seg = <ty_seg *>mem_alloc(&loop.mem, sizeof(ty_seg))
    if seg is NULL:
        return TY_ERR_NOMEM
    buf_incref(buf)
    seg.next = NULL
    seg.buf = buf
    seg.p = p
    seg.n = n
    if q.tail is NULL:
        q.head = seg
    else:
        q.tail.next = seg
    q.tail = seg
    if q.at is NULL:
        q.at = seg
        q.at_off = 0
    count_in(q, n)
    return 0


cdef inline void count_in(ty_queue *q, size_t n) noexcept nogil:
    cdef ty_stream *st = q.stream
    q.unsent += n
    q.held += n
    st.loop.buffered += n
    if not q.to_back and st.front is not NULL:
        if st.front.unsent == 0:
            st.front.moved_ms = uv_now(&st.loop.uv)
        st.front.unsent += n


cdef inline void count_out(ty_queue *q, uint64_t n) noexcept nogil:
    cdef ty_stream *st = q.stream
    q.unsent -= n
    if not q.to_back and st.front is not NULL:
        st.front.unsent -= n
        st.front.moved_ms = uv_now(&st.loop.uv)


cdef int copy_in(ty_queue *q, const uint8_t *data, size_t n) noexcept nogil:
    """Append by copying, behind the last small piece where it fits."""
    cdef ty_loop *loop = q.stream.loop
    cdef ty_seg *tail = q.tail
    cdef ty_buf *buf
    cdef size_t cap
    cdef int rv
    if (tail is not NULL and tail.buf.klass == 0 and tail.buf.refs == 1 and tail.buf.cap - tail.buf.used >= n
            and tail.p + tail.n == buf_bytes(tail.buf) + tail.buf.used):
        memcpy(buf_bytes(tail.buf) + tail.buf.used, data, n)
        tail.buf.used += <unsigned int>n
        tail.n += n
        if q.at is NULL:               # everything before was sent; the new bytes begin behind it
            q.at = tail
            q.at_off = tail.n - n
        count_in(q, n)
        return 0
    # The first piece of a message is usually the only one: take what it needs. Further ones share bigger blocks.
    cap = n if tail is NULL or n > COPY_BUF else COPY_BUF
    buf = buf_new(&loop.mem, cap)
    if buf is NULL:
        return TY_ERR_NOMEM
    memcpy(buf_bytes(buf), data, n)
    buf.used = <unsigned int>n
    rv = queue_push(q, buf, buf_bytes(buf), n)
    buf_decref(buf)
    return rv


cdef int queue_add(ty_queue *q, const uint8_t *data, size_t n) noexcept nogil:
    cdef ty_buf *read_buf = q.stream.loop.read_buf
    if n == 0:
        return 0
    if (n >= TY_COPY_BELOW and read_buf is not NULL and data >= buf_bytes(read_buf)
            and data + n <= buf_bytes(read_buf) + read_buf.cap):
        return queue_push(q, read_buf, data, n)
    return copy_in(q, data, n)


cdef void queue_rewind(ty_queue *q) noexcept nogil:
    q.at = q.head
    q.at_off = 0
    q.unsent = q.held
    q.deferred = 0


cdef void queue_pop_sent(ty_queue *q) noexcept nogil:
    """Free the segments in front of the sending position."""
    cdef ty_seg *seg
    cdef ty_loop *loop = q.stream.loop
    while q.head is not NULL and q.head is not q.at:
        seg = q.head
        q.head = seg.next
        q.held -= seg.n
        loop.buffered -= seg.n
        seg_free(loop, seg)
    if q.head is NULL:
        q.tail = NULL


cdef int out_copy(ty_loop *loop, const uint8_t *p, size_t n) noexcept nogil:
    if loop.out_len + n > TY_OUT_COPY:
        loop.out_full = 1
        return NGHTTP2_ERR_WOULDBLOCK
    memcpy(loop.out + loop.out_len, p, n)
    loop.out_len += n
    return 0


cdef void out_mark_run(ty_loop *loop) noexcept nogil:
    """End the current run of copied bytes as one iov."""
    if loop.out_len > loop.out_mark:
        loop.iov[loop.n_iov].base = <char *>(loop.out + loop.out_mark)
        loop.iov[loop.n_iov].len = loop.out_len - loop.out_mark
        loop.n_iov += 1
        loop.out_mark = loop.out_len


cdef int queue_send(ty_queue *q, size_t n) noexcept nogil:
    cdef ty_loop *loop = q.stream.loop
    cdef ty_seg *seg
    cdef size_t k, done = n
    while n > 0:
        seg = q.at
        if seg is NULL:                # nghttp2 was promised more than there is: a bug, made visible
            return TY_ERR_LIMIT
        k = seg.n - q.at_off
        if k > n:
            k = n
        if k < TY_COPY_BELOW:
            memcpy(loop.out + loop.out_len, seg.p + q.at_off, k)     # room was checked by the caller
            loop.out_len += k
        else:
            out_mark_run(loop)
            loop.iov[loop.n_iov].base = <char *>(seg.p + q.at_off)
            loop.iov[loop.n_iov].len = k
            loop.n_iov += 1
            buf_incref(seg.buf)
            loop.held[loop.n_held] = seg.buf
            loop.n_held += 1
            loop.out_refs += k
        q.at_off += k
        n -= k
        if q.at_off == seg.n:
            q.at = seg.next
            q.at_off = 0
    count_out(q, done)
    if not q.keep:
        queue_pop_sent(q)
    return 0


cdef int queue_splice(ty_queue *q, ty_buf *head, size_t skip, const ty_cut *cuts, uint32_t n_cuts) noexcept nogil:
    """The old bytes stay where they are; only the list of slices is new."""
    cdef ty_queue old = q[0]
    cdef ty_seg *seg = old.head
    cdef ty_loop *loop = q.stream.loop
    cdef uint64_t at = 0               # position of seg's first byte, counted from the start of the queue
    cdef uint64_t start, end, seg_end
    cdef uint32_t i = 0
    cdef int rv
    q.head = NULL
    q.tail = NULL
    q.at = NULL
    q.at_off = 0
    q.unsent = 0
    q.held = 0
    rv = queue_push(q, head, buf_bytes(head), head.used)
    while seg is not NULL and rv == 0:
        seg_end = at + seg.n
        start = at if at > skip else skip
        while start < seg_end and rv == 0:
            while i < n_cuts and cuts[i].end + skip <= start:
                i += 1
            if i < n_cuts and cuts[i].start + skip <= start:          # inside a cut
                start = cuts[i].end + skip
                continue
            end = seg_end
            if i < n_cuts and cuts[i].start + skip < end:
                end = cuts[i].start + skip
            rv = queue_push(q, seg.buf, seg.p + (start - at), <size_t>(end - start))
            start = end
        at = seg_end
        seg = seg.next
    while old.head is not NULL:
        seg = old.head
        old.head = seg.next
        loop.buffered -= seg.n
        seg_free(loop, seg)
    return rv


cdef uint32_t queue_segments(const ty_queue *q) noexcept nogil:
    cdef const ty_seg *seg = q.head
    cdef uint32_t n = 0
    while seg is not NULL:
        n += 1
        seg = seg.next
    return n


cdef int queue_iov(const ty_queue *q, size_t skip, ty_iov *iov, uint32_t cap) noexcept nogil:
    cdef const ty_seg *seg = q.head
    cdef uint32_t n = 0
    while seg is not NULL:
        if seg.n <= skip:
            skip -= seg.n
        else:
            if n == cap:
                return TY_ERR_LIMIT
            iov[n].p = seg.p + skip
            iov[n].n = seg.n - skip
            skip = 0
            n += 1
        seg = seg.next
    return <int>n
