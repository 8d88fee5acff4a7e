# loadgen > load_core > [load_calls] > load_hist
#
# The lists that calls are in, and the accounting: a live call is settled exactly once, by call_answered, call_fail or
# call_settle, and its slot is released when its stream is closed.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from tiltyard_router.load_core cimport ld_arm, ld_call, ld_engine, ld_list

cdef void list_push(ld_list *l, ld_call *call) noexcept nogil
cdef void list_push_front(ld_list *l, ld_call *call) noexcept nogil
cdef void list_remove(ld_list *l, ld_call *call) noexcept nogil
# The arm of that name, made at first sight; never NULL.
cdef ld_arm *arm_find(ld_engine *e, const uint8_t *name, size_t n) noexcept nogil
# The answer is complete: judge it by its statuses and its size.
cdef void call_answered(ld_engine *e, ld_call *call) noexcept nogil
# There was no answer, or none that counts; why is one of LD_FAIL_*.
cdef void call_fail(ld_engine *e, ld_call *call, int why) noexcept nogil
# Takes the call out of `live` and counts nothing.
cdef void call_settle(ld_engine *e, ld_call *call) noexcept nogil
# Its stream is closed: takes it off its connection, back to `free`.
cdef void call_release(ld_engine *e, ld_call *call) noexcept nogil
