"""The latency histogram of the load generator."""
# loadgen > load_core > load_calls > [load_hist]

from libc.math cimport ceil
from libc.string cimport memset

cdef extern from *:
    int __builtin_clzll(unsigned long long x) noexcept nogil

cdef inline int hist_bucket(uint64_t ns) noexcept nogil:
    cdef int shift
    if ns < 128:
        return <int>ns
    shift = 57 - __builtin_clzll(ns)             # leaves the seven highest bits: 64 to 127
    return (shift << 6) + <int>(ns >> shift)

cdef inline uint64_t hist_middle(int bucket) noexcept nogil:
    cdef int shift
    if bucket < 128:
        return <uint64_t>bucket
    shift = (bucket >> 6) - 1
    return (<uint64_t>((bucket & 63) + 64) << shift) + ((<uint64_t>1 << shift) >> 1)

cdef void hist_add(ld_hist *h, uint64_t ns) noexcept nogil:
    if h.count == 0 or ns < h.least:
        h.least = ns
    if ns > h.most:
        h.most = ns
    h.count += 1
    h.total += ns
    h.buckets[hist_bucket(ns)] += 1

cdef uint64_t hist_quantile(const ld_hist *h, double q) noexcept nogil:
    cdef uint64_t wanted, seen = 0, value
    cdef int i
    if h.count == 0:
        return 0
    wanted = <uint64_t>ceil(q * <double>h.count)
    if wanted < 1:
        wanted = 1
    if wanted >= h.count:
        return h.most
    for i in range(LD_HIST_BUCKETS):
        seen += h.buckets[i]
        if seen >= wanted:
            value = hist_middle(i)
            return min(max(value, h.least), h.most)
    return h.most


def quantiles(values, wanted):
    """What the histogram says of these values.

    Args:
        values: nanoseconds, whole numbers from 0 to 2**64 - 1.
        wanted: quantiles, each from 0 to 1.

    Returns:
        The quantiles in nanoseconds, each within 0.8 % of the exact one.
    """
    cdef ld_hist h
    memset(&h, 0, sizeof(h))
    for value in values:
        hist_add(&h, value)
    return [hist_quantile(&h, q) for q in wanted]
