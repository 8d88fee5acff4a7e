"""Memory of one loop: free lists by size class, and buffers with reference counts."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from tiltyard_router.c_sys cimport log2_up

cdef extern from * nogil:
    """
    #ifdef __SANITIZE_ADDRESS__
    #define KEEP_PER_CLASS 0u      /* a block that is handed out again would hide that it is used after its end */
    #define KEEP_READ_BUFS 0u
    #else
    #define KEEP_PER_CLASS 4096u
    #define KEEP_READ_BUFS 64u
    #endif
    """
    const uint32_t KEEP_PER_CLASS  # blocks kept for reuse in each class; more goes back to malloc
    const uint32_t KEEP_READ_BUFS

cdef struct ty_free:
    ty_free *next

cdef struct ty_head:               # in front of every block, so that free needs no size; keeps 16-byte alignment
    uint32_t klass                 # index of the free list, or TY_CLASSES: straight from malloc
    uint32_t pad
    size_t size

cdef enum:
    SMALLEST = 64


cdef inline uint32_t class_of(size_t n) noexcept nogil:
    """Index of the smallest class that n bytes fit in (n is at least 1)."""
    return log2_up(n) - 6 if n > SMALLEST else 0


cdef void *mem_alloc(ty_mem *mem, size_t n) noexcept nogil:
    cdef size_t want = n + sizeof(ty_head)
    cdef uint32_t k
    cdef ty_free *block
    if want > (SMALLEST << (TY_CLASSES - 1)):
        return fresh_block(mem, want, TY_CLASSES)
    k = class_of(want)
    block = mem.lists[k]
    if block is NULL:
        return fresh_block(mem, <size_t>SMALLEST << k, k)
    mem.lists[k] = block.next          # it lies behind the head, which still says what the block is
    mem.depth[k] -= 1
    mem.live_bytes += <size_t>SMALLEST << k
    return block


cdef void *fresh_block(ty_mem *mem, size_t size, uint32_t k) noexcept nogil:
    cdef ty_head *head = <ty_head *>malloc(size)
    if head is NULL:
        return NULL
    head.klass = k
    head.size = size
    mem.live_bytes += size
    return <uint8_t *>head + sizeof(ty_head)


cdef void mem_free(ty_mem *mem, void *p) noexcept nogil:
    cdef ty_head *head
    cdef ty_free *block
    cdef uint32_t k
    if p is NULL:
        return
    head = <ty_head *>(<uint8_t *>p - sizeof(ty_head))
    k = head.klass
    mem.live_bytes -= head.size
    if k >= TY_CLASSES or mem.depth[k] >= KEEP_PER_CLASS:
        free(head)
        return
    block = <ty_free *>p
    block.next = mem.lists[k]
    mem.lists[k] = block
    mem.depth[k] += 1


cdef void *hook_malloc(size_t n, void *data) noexcept nogil:
    return mem_alloc(<ty_mem *>data, n)


cdef void hook_free(void *p, void *data) noexcept nogil:
    mem_free(<ty_mem *>data, p)


cdef void *hook_calloc(size_t count, size_t n, void *data) noexcept nogil:
    cdef void *p
    if n != 0 and count > <size_t>-1 // n:
        return NULL
    p = mem_alloc(<ty_mem *>data, count * n)
    if p is not NULL:
        memset(p, 0, count * n)
    return p


cdef void *hook_realloc(void *p, size_t n, void *data) noexcept nogil:
    cdef ty_head *head
    cdef void *fresh
    cdef size_t had
    if p is NULL:
        return mem_alloc(<ty_mem *>data, n)
    head = <ty_head *>(<uint8_t *>p - sizeof(ty_head))
    had = head.size - sizeof(ty_head)
    if n <= had:
        return p
    fresh = mem_alloc(<ty_mem *>data, n)
    if fresh is NULL:
        return NULL
    memcpy(fresh, p, had)
    mem_free(<ty_mem *>data, p)
    return fresh


cdef void mem_init(ty_mem *mem) noexcept nogil:
    memset(mem, 0, sizeof(ty_mem))
    mem.hooks.mem_user_data = mem
    mem.hooks.malloc = hook_malloc
    mem.hooks.free = hook_free
    mem.hooks.calloc = hook_calloc
    mem.hooks.realloc = hook_realloc


cdef void mem_clear(ty_mem *mem) noexcept nogil:
    """Give the spare blocks back. Blocks still handed out stay their owners'."""
    cdef int k
    cdef ty_free *block
    for k in range(TY_CLASSES):
        while mem.lists[k] is not NULL:
            block = mem.lists[k]
            mem.lists[k] = block.next
            free(<uint8_t *>block - sizeof(ty_head))
        mem.depth[k] = 0
    while mem.read_bufs is not NULL:
        block = mem.read_bufs
        mem.read_bufs = block.next
        free(block)
    mem.n_read_bufs = 0


cdef ty_buf *buf_new(ty_mem *mem, size_t cap) noexcept nogil:
    cdef ty_buf *buf = <ty_buf *>mem_alloc(mem, sizeof(ty_buf) + cap)
    if buf is NULL:
        return NULL
    buf.refs = 1
    buf.cap = <uint32_t>cap
    buf.used = 0
    buf.klass = 0
    buf.mem = mem
    return buf


cdef ty_buf *buf_new_read(ty_mem *mem) noexcept nogil:
    """A buffer of TY_READ_BUF bytes, from the spare ones when there are any."""
    cdef ty_free *block = mem.read_bufs
    cdef ty_buf *buf
    if block is not NULL:
        mem.read_bufs = block.next
        mem.n_read_bufs -= 1
        buf = <ty_buf *>block
    else:
        buf = <ty_buf *>malloc(sizeof(ty_buf) + TY_READ_BUF)
        if buf is NULL:
            return NULL
    buf.refs = 1
    buf.cap = TY_READ_BUF
    buf.used = 0
    buf.klass = 1
    buf.mem = mem
    mem.live_bytes += TY_READ_BUF
    return buf


cdef void buf_decref(ty_buf *buf) noexcept nogil:
    """Let go of one reference; the last one frees. Accepts NULL."""
    cdef ty_mem *mem
    cdef ty_free *block
    if buf is NULL:
        return
    buf.refs -= 1
    if buf.refs != 0:
        return
    mem = buf.mem
    if buf.klass == 0:
        mem_free(mem, buf)
        return
    mem.live_bytes -= TY_READ_BUF
    if mem.n_read_bufs >= KEEP_READ_BUFS:
        free(buf)
        return
    block = <ty_free *>buf
    block.next = mem.read_bufs
    mem.read_bufs = block
    mem.n_read_bufs += 1
