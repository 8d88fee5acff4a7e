# The few things of the C library that Cython does not declare.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <malloc.h>
    #include <stdint.h>
    #include <sys/random.h>
    #include <time.h>
    #include <unistd.h>

    /* Unix time in milliseconds. */
    static inline int64_t ty_wall_ms(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }

    /* Exponent of the smallest power of two that is at least n; n > 1. */
    static inline unsigned int ty_log2_up(size_t n)
    {
        return 64u - (unsigned int)__builtin_clzll((unsigned long long)n - 1);
    }

    static inline int ty_random_bytes(void *p, size_t n)
    {
        return getrandom(p, n, 0) == (ssize_t)n ? 0 : -1;
    }

    /* Buffers come and go in waves: giving their pages back to the kernel each time costs more than the traffic. */
    static inline void ty_tune_malloc(void)
    {
    #ifdef M_TRIM_THRESHOLD
        mallopt(M_TRIM_THRESHOLD, 64 << 20);
        mallopt(M_MMAP_THRESHOLD, 4 << 20);
    #endif
    }
    """
    unsigned int log2_up "ty_log2_up"(size_t n) noexcept nogil
    int64_t wall_ms "ty_wall_ms"() noexcept nogil
    int random_bytes "ty_random_bytes"(void *p, size_t n) noexcept nogil
    void tune_malloc "ty_tune_malloc"() noexcept nogil

cdef extern from "unistd.h" nogil:
    int dup(int fd)
    int close(int fd)
