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

    /* Unix time in seconds. The coarse clock is the kernel's last tick: a few nanoseconds to read, and a second is
       all that assignment needs. */
    static inline int64_t ty_wall_seconds(void)
    {
        struct timespec now;
    #ifdef CLOCK_REALTIME_COARSE
        clock_gettime(CLOCK_REALTIME_COARSE, &now);
    #else
        clock_gettime(CLOCK_REALTIME, &now);
    #endif
        return (int64_t)now.tv_sec;
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
    int64_t wall_seconds "ty_wall_seconds"() noexcept nogil
    int random_bytes "ty_random_bytes"(void *p, size_t n) noexcept nogil
    void tune_malloc "ty_tune_malloc"() noexcept nogil

cdef extern from "unistd.h" nogil:
    int dup(int fd)
    int close(int fd)
