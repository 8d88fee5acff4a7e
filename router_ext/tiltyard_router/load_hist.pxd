# loadgen > load_core > load_calls > [load_hist]
#
# Latencies in buckets whose width is at most 1/64 of their lower edge: any quantile is within 0.8 % of the truth, in
# 30 KB, for any number of calls. Values below 128 are exact.
from libc.stdint cimport uint64_t

cdef enum:
    LD_HIST_BUCKETS = 3776         # 128 exact ones, then 64 for each further power of two up to 2**64

cdef struct ld_hist:               # all zero is an empty histogram; values in nanoseconds
    uint64_t count
    uint64_t total
    uint64_t least
    uint64_t most
    uint64_t buckets[LD_HIST_BUCKETS]

cdef void hist_add(ld_hist *h, uint64_t ns) noexcept nogil
# Smallest recorded value that at least q (0 to 1) of all values do not exceed, within 0.8 %; 0 when there are none.
cdef uint64_t hist_quantile(const ld_hist *h, double q) noexcept nogil
