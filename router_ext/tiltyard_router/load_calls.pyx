"""What becomes of the load generator's calls."""
# loadgen > load_core > [load_calls] > load_hist

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from tiltyard_router.load_core cimport (
    LD_ANY_SIZE, LD_ARM_NAME, LD_ARMS, LD_FAIL_HTTP, LD_FAIL_NO_STATUS, LD_FAIL_TIMEOUT, LD_SAME_SIZE, LD_STATUSES,
    ld_conn)
from tiltyard_router.load_hist cimport hist_add

cdef void list_push(ld_list *l, ld_call *call) noexcept nogil:
    call.next = NULL
    call.prev = l.tail
    if l.tail is not NULL:
        l.tail.next = call
    else:
        l.head = call
    l.tail = call
    l.n += 1

cdef void list_remove(ld_list *l, ld_call *call) noexcept nogil:
    if call.prev is not NULL:
        call.prev.next = call.next
    else:
        l.head = call.next
    if call.next is not NULL:
        call.next.prev = call.prev
    else:
        l.tail = call.prev
    call.prev = NULL
    call.next = NULL
    l.n -= 1

cdef void list_push_front(ld_list *l, ld_call *call) noexcept nogil:
    call.prev = NULL
    call.next = l.head
    if l.head is not NULL:
        l.head.prev = call
    else:
        l.tail = call
    l.head = call
    l.n += 1

cdef ld_arm *arm_find(ld_engine *e, const uint8_t *name, size_t n) noexcept nogil:
    cdef uint32_t i
    cdef ld_arm *arm
    if n > LD_ARM_NAME:
        n = LD_ARM_NAME
    for i in range(e.n_arms):
        arm = &e.arms[i]
        if arm.name_len == n and memcmp(arm.name, name, n) == 0:
            return arm
    if e.n_arms == LD_ARMS:
        return &e.arms[LD_ARMS - 1]
    arm = &e.arms[e.n_arms]
    e.n_arms += 1
    memcpy(arm.name, name, n)
    arm.name_len = n
    arm.size = -1
    return arm

cdef void call_settle(ld_engine *e, ld_call *call) noexcept nogil:
    call.done = True
    list_remove(&e.live, call)
    if call.measured:
        e.last_ns = e.now_ns

cdef void call_fail(ld_engine *e, ld_call *call, int why) noexcept nogil:
    call_settle(e, call)
    if not call.measured:
        return
    e.totals.fails[why] += 1
    if why == LD_FAIL_TIMEOUT:                   # waited at least this long: leaving it out would flatter
        hist_add(&e.latency, e.now_ns - call.planned_ns)

cdef void call_status(ld_engine *e, ld_call *call, int status) noexcept nogil:
    call_settle(e, call)
    if status >= LD_STATUSES:
        status = 2
    if e.message_call is call and e.message_lens[status] == 0:
        memcpy(e.messages[status], e.message, e.message_len)
        e.message_lens[status] = e.message_len
    if call.measured:
        e.totals.statuses[status] += 1

cdef bint answer_is_right(ld_engine *e, ld_call *call, ld_arm *arm) noexcept nogil:
    cdef int64_t size, wanted = e.cfg.answer_size
    if call.got < 5:
        return False
    size = (<int64_t>call.head[1] << 24) | (call.head[2] << 16) | (call.head[3] << 8) | call.head[4]
    if call.got != <uint64_t>size + 5:
        return False                             # cut off, or more than one message
    if wanted == LD_SAME_SIZE:
        if arm.size < 0:
            arm.size = size
        wanted = arm.size
    return wanted == LD_ANY_SIZE or size == wanted

cdef void call_answered(ld_engine *e, ld_call *call) noexcept nogil:
    """The answer is complete."""
    cdef ld_arm *arm = call.arm if call.arm is not NULL else &e.no_arm
    call.conn.fails = 0
    if call.grpc_status > 0:
        call_status(e, call, call.grpc_status)
    elif call.http_status != 200:
        call_fail(e, call, LD_FAIL_HTTP)
    elif call.grpc_status < 0:
        call_fail(e, call, LD_FAIL_NO_STATUS)
    else:
        call_settle(e, call)
        if not call.measured:
            return
        if not answer_is_right(e, call, arm):
            e.totals.wrong_size += 1
            return
        e.totals.ok += 1
        arm.ok += 1
        hist_add(&e.latency, e.now_ns - call.planned_ns)

cdef void call_release(ld_engine *e, ld_call *call) noexcept nogil:
    """The stream is closed: the slot is free."""
    cdef ld_conn *c = call.conn
    if call.conn_prev is not NULL:
        call.conn_prev.conn_next = call.conn_next
    else:
        c.calls = call.conn_next
    if call.conn_next is not NULL:
        call.conn_next.conn_prev = call.conn_prev
    c.n_calls -= 1
    call.conn = NULL
    if e.message_call is call:
        e.message_call = NULL
    list_push(&e.free, call)
