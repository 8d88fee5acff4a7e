# routes > [split] > stream
#
# Which arm a request belongs to: by key (sticky) or by a random draw. See DESIGN in docs/assignment.md.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    TY_SLOTS = 10000

cdef struct ty_run:
    uint16_t end                   # first slot after this run; the last run ends at TY_SLOTS
    uint16_t arm

cdef struct ty_split:
    ty_run *runs                   # owned, n_runs long, freed by split_clear
    uint32_t n_runs                # at least 1; the table is checked when it is built, not per request
    uint8_t *slots                 # owned, TY_SLOTS arm indices; NULL when n_runs is small enough to search

# u = XXH3_64(salt || 0x00 || key), seed 0, without an allocation.
cdef uint64_t split_hash(const uint8_t *salt, size_t salt_len, const uint8_t *key, size_t key_len) noexcept nogil
# (u * TY_SLOTS) >> 64 in 128 bits.
cdef uint32_t split_slot(uint64_t u) noexcept nogil
cdef uint32_t split_arm(const ty_split *s, uint32_t slot) noexcept nogil
# Keyless: a 64-bit random number takes the place of the hash.
cdef uint32_t split_pick(const ty_split *s, uint64_t draw) noexcept nogil
# Analysis bucket 0-255 of a key: XXH3_64 with a second, independent salt (the salt with 0x01 in place of 0x00).
cdef uint8_t split_bucket(const uint8_t *salt, size_t salt_len, const uint8_t *key, size_t key_len) noexcept nogil
# Takes runs that end at TY_SLOTS in ascending order; copies them. 0, TY_ERR_MALFORMED or TY_ERR_NOMEM.
cdef int split_init(ty_split *s, const ty_run *runs, uint32_t n_runs, uint32_t n_arms) noexcept nogil
cdef void split_clear(ty_split *s) noexcept nogil
