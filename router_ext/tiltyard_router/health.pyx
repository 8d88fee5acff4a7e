# front > [health]
"""grpc.health.v1 (grpc/grpc doc/health-checking.md), answered by the router itself."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy

from tiltyard_router.headers cimport ty_text
from tiltyard_router.model cimport TY_MSG_CAP, TY_ST_ANSWERING, TY_ST_DONE, ty_conn, ty_loop, ty_stream
from tiltyard_router.queue cimport queue_add, queue_clear, queue_iov
from tiltyard_router.reply cimport reply_own_head, reply_resume
from tiltyard_router.status cimport GRPC_INVALID_ARGUMENT, GRPC_NOT_FOUND, GRPC_OK
from tiltyard_router.wire cimport WIRE_DEPTH, WIRE_LEN, ty_field, ty_iov, wire_field

cdef enum:
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3            # watch only
    CHECK = 1                      # ty_stream.watching before the answer
    WATCH = 2
    WATCHING = 3                   # and while updates may follow
    WATCHING_UNKNOWN = 4           # the same of a service that is not here: only the end is left to tell
    NAME_MAX = 256
    PIECES = 16


cdef int health_path(ty_stream *st, ty_text path) noexcept nogil:
    if path.n == 28 and memcmp(path.p, b"/grpc.health.v1.Health/Check", 28) == 0:
        st.watching = CHECK
    elif path.n == 28 and memcmp(path.p, b"/grpc.health.v1.Health/Watch", 28) == 0:
        st.watching = WATCH
    return st.watching != 0


cdef int read_name(ty_stream *st, uint8_t *name, size_t *n_name) noexcept nogil:
    """HealthCheckRequest.service (field 1) of a small message; the last one counts. 0, or -1: malformed or too long."""
    cdef ty_iov iov[PIECES]
    cdef uint8_t msg[HEALTH_MAX_BYTES]
    cdef const uint8_t *p
    cdef ty_field field
    cdef size_t n = 0, k
    cdef int pieces = queue_iov(&st.out, 5, iov, PIECES)
    cdef int i
    n_name[0] = 0
    if pieces < 0 or st.msg_len > sizeof(msg):
        return -1
    for i in range(pieces):
        for k in range(iov[i].n):
            msg[n] = iov[i].p[k]
            n += 1
    p = msg
    while p < msg + n:
        p = wire_field(p, msg + n, &field, WIRE_DEPTH - 1)
        if p is NULL:
            return -1
        if field.number == 1 and field.wire == WIRE_LEN:
            if field.n > NAME_MAX:
                return -1
            memcpy(name, field.p, field.n)
            n_name[0] = field.n
    return 0


cdef uint8_t state_of(ty_loop *loop) noexcept nogil:
    return SERVING if loop.routes is not NULL and not loop.draining else NOT_SERVING


cdef void send_state(ty_stream *st, uint8_t state) noexcept nogil:
    """One HealthCheckResponse: field 1, varint."""
    cdef uint8_t msg[7]
    msg[0] = 0
    msg[1] = 0
    msg[2] = 0
    msg[3] = 0
    msg[4] = 2
    msg[5] = 0x08
    msg[6] = state
    queue_add(&st.in_, msg, 7)
    reply_resume(st)


cdef void end_ok(ty_stream *st) noexcept nogil:
    st.state = TY_ST_DONE
    st.status = GRPC_OK
    st.own_status = 1
    st.msg[0] = 0
    st.answer_ended = 1
    st.in_.ended = 1
    reply_resume(st)


cdef void health_answer(ty_stream *st) noexcept nogil:
    cdef uint8_t name[NAME_MAX]
    cdef size_t n = 0
    cdef int known
    if read_name(st, name, &n) != 0:
        st.loop.hooks.stream_failed(st, GRPC_INVALID_ARGUMENT, b"no valid grpc.health.v1.HealthCheckRequest")
        return
    queue_clear(&st.out)
    known = n == 0 or n == 36 and memcmp(name, b"tensorflow.serving.PredictionService", 36) == 0
    if not known and st.watching == CHECK:
        snprintf(st.msg, TY_MSG_CAP, b"no service '%.*s' here", <int>(n if n < 100 else 100), <char *>name)
        st.loop.hooks.stream_failed(st, GRPC_NOT_FOUND, NULL)
        return
    st.state = TY_ST_ANSWERING
    if reply_own_head(st) != 0:
        return                                     # memory; the stream's deadline or its client ends it
    send_state(st, state_of(st.loop) if known else SERVICE_UNKNOWN)
    if st.watching == CHECK:
        end_ok(st)
    else:
        st.watching = WATCHING if known else WATCHING_UNKNOWN
        st.loop.n_watching += 1


cdef int health_watches(const ty_stream *st) noexcept nogil:
    return st.watching >= WATCHING


cdef void health_forget(ty_stream *st) noexcept nogil:
    if st.watching >= WATCHING:
        st.watching = 0
        st.loop.n_watching -= 1


cdef void health_changed(ty_loop *loop) noexcept nogil:
    each_watch(loop, 0)


cdef void health_end(ty_loop *loop) noexcept nogil:
    each_watch(loop, 1)


cdef void each_watch(ty_loop *loop, int ending) noexcept nogil:
    cdef ty_conn *c = loop.fronts
    cdef ty_stream *st
    if loop.n_watching == 0:
        return
    while c is not NULL:
        st = c.streams
        while st is not NULL:
            if st.watching >= WATCHING and st.state != TY_ST_DONE:
                if st.watching == WATCHING:
                    send_state(st, state_of(loop))
                if ending:
                    end_ok(st)
            st = st.f_next
        c = c.next
