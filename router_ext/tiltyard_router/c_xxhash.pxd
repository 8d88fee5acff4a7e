from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

cdef extern from "xxhash.h" nogil:
    ctypedef uint64_t XXH64_hash_t
    XXH64_hash_t XXH3_64bits(const void *data, size_t n)
