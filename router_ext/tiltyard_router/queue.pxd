# Bytes on their way between the two sides of a call: slices of reference-counted buffers.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from tiltyard_router.mem cimport ty_buf
from tiltyard_router.model cimport ty_loop, ty_queue, ty_stream
from tiltyard_router.peek cimport ty_cut, ty_iov

cdef void queue_init(ty_queue *q, ty_stream *st, uint8_t to_back) noexcept nogil
# Drops every segment; the queue can be used again.
cdef void queue_clear(ty_queue *q) noexcept nogil
# Appends received bytes: small pieces are copied, larger ones keep a reference on the read buffer they lie in.
cdef int queue_add(ty_queue *q, const uint8_t *data, size_t n) noexcept nogil
# Appends a slice of a buffer; takes a reference of its own.
cdef int queue_push(ty_queue *q, ty_buf *buf, const uint8_t *p, size_t n) noexcept nogil
# Puts the sending position back to the start (only with keep).
cdef void queue_rewind(ty_queue *q) noexcept nogil
# Moves up to n unsent bytes into the flush of the loop. 0, or WOULDBLOCK when the flush is full.
cdef int queue_send(ty_queue *q, size_t n) noexcept nogil
# Replaces the content: `head` in front, then the old bytes from `skip` on without the cuts (ranges counted after skip).
cdef int queue_splice(ty_queue *q, ty_buf *head, size_t skip, const ty_cut *cuts, uint32_t n_cuts) noexcept nogil
# The segments as an iov, without their first `skip` bytes. Returns the count, or TY_ERR_LIMIT when cap is too small.
cdef int queue_iov(const ty_queue *q, size_t skip, ty_iov *iov, uint32_t cap) noexcept nogil
cdef uint32_t queue_segments(const ty_queue *q) noexcept nogil

# The flush of one connection (conn.pyx starts and ends it).
cdef int out_copy(ty_loop *loop, const uint8_t *p, size_t n) noexcept nogil
cdef void out_mark_run(ty_loop *loop) noexcept nogil
