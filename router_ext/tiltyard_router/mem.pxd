# Memory of one loop: size-classed free lists, and the reference-counted buffers that received bytes lie in.
# Everything here belongs to one loop's thread; nothing is locked.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from tiltyard_router.c_nghttp2 cimport nghttp2_mem

cdef enum:
    TY_CLASSES = 8                 # 64 B, 128 B, ... 8 KiB; larger blocks go to malloc
    TY_READ_BUF = 65536            # what one read of a socket can bring

cdef struct ty_free                # a block on a free list

cdef struct ty_mem:
    ty_free *lists[TY_CLASSES]     # owned
    uint32_t depth[TY_CLASSES]
    ty_free *read_bufs             # owned: spare buffers of TY_READ_BUF
    uint32_t n_read_bufs
    uint64_t live_bytes            # handed out and not yet back
    nghttp2_mem hooks              # for nghttp2 sessions of this loop

cdef struct ty_buf:                # bytes that several parties read and the last one frees
    uint32_t refs
    uint32_t cap
    uint32_t used                  # bytes written; only the one who appends moves it
    uint32_t klass                 # 1: came from read_bufs
    ty_mem *mem

cdef void mem_init(ty_mem *mem) noexcept nogil
cdef void mem_clear(ty_mem *mem) noexcept nogil
cdef void *mem_alloc(ty_mem *mem, size_t n) noexcept nogil
cdef void mem_free(ty_mem *mem, void *p) noexcept nogil

cdef ty_buf *buf_new(ty_mem *mem, size_t cap) noexcept nogil
cdef ty_buf *buf_new_read(ty_mem *mem) noexcept nogil
cdef void buf_decref(ty_buf *buf) noexcept nogil

cdef inline void buf_incref(ty_buf *buf) noexcept nogil:
    buf.refs += 1

cdef inline uint8_t *buf_bytes(ty_buf *buf) noexcept nogil:
    return <uint8_t *>buf + sizeof(ty_buf)
