# routes > [split] > stream
"""Which arm a request belongs to. The rule stands in docs/assignment.md, to the letter."""

cimport cython
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from tiltyard_router.c_xxhash cimport XXH3_64bits
from tiltyard_router.status cimport TY_ERR_MALFORMED, TY_ERR_NOMEM

cdef enum:
    SALT_MAX = 1024                # bytes; routes refuses longer salts
    KEY_MAX = 1024                 # and front longer keys
    SEARCH_RUNS = 16               # up to so many runs are searched; with more, each slot has a cell
    ARMS_MAX = 256                 # a cell is one byte
    FOR_SLOT = 0                   # the byte between salt and key
    FOR_BUCKET = 1


cdef uint64_t hash_with(uint8_t purpose, const uint8_t *salt, size_t salt_len, const uint8_t *key,
                        size_t key_len) noexcept nogil:
    cdef uint8_t text[SALT_MAX + 1 + KEY_MAX]
    if salt_len > SALT_MAX:                      # never; but nothing may be written outside
        salt_len = SALT_MAX
    if key_len > KEY_MAX:
        key_len = KEY_MAX
    memcpy(text, salt, salt_len)
    text[salt_len] = purpose
    memcpy(text + salt_len + 1, key, key_len)
    return XXH3_64bits(text, salt_len + 1 + key_len)


cdef uint64_t split_hash(const uint8_t *salt, size_t salt_len, const uint8_t *key, size_t key_len) noexcept nogil:
    return hash_with(FOR_SLOT, salt, salt_len, key, key_len)


cdef uint8_t split_bucket(const uint8_t *salt, size_t salt_len, const uint8_t *key, size_t key_len) noexcept nogil:
    return <uint8_t>(hash_with(FOR_BUCKET, salt, salt_len, key, key_len) >> 56)


cdef uint32_t split_slot(uint64_t u) noexcept nogil:
    # The high half of the 128-bit product, from two 64-bit ones: the low 32 bits of neither can carry further.
    cdef uint64_t low = (u & 0xFFFFFFFFU) * TY_SLOTS
    return <uint32_t>(((u >> 32) * TY_SLOTS + (low >> 32)) >> 32)


cdef uint32_t split_arm(const ty_split *s, uint32_t slot) noexcept nogil:
    cdef uint32_t i = 0
    if s.slots is not NULL:
        return s.slots[slot]
    while s.runs[i].end <= slot:                 # the last run ends at TY_SLOTS, above every slot
        i += 1
    return s.runs[i].arm


cdef uint32_t split_pick(const ty_split *s, uint64_t draw) noexcept nogil:
    return split_arm(s, split_slot(draw))


cdef int split_init(ty_split *s, const ty_run *runs, uint32_t n_runs, uint32_t n_arms) noexcept nogil:
    cdef uint32_t start = 0
    cdef uint32_t i
    memset(s, 0, sizeof(ty_split))
    if n_runs == 0 or n_runs > TY_SLOTS or n_arms > ARMS_MAX:
        return TY_ERR_MALFORMED
    for i in range(n_runs):
        if runs[i].end <= start or runs[i].end > TY_SLOTS or runs[i].arm >= n_arms:
            return TY_ERR_MALFORMED
        start = runs[i].end
    if start != TY_SLOTS:
        return TY_ERR_MALFORMED
    s.runs = <ty_run *>malloc(n_runs * sizeof(ty_run))
    if n_runs > SEARCH_RUNS:
        s.slots = <uint8_t *>malloc(TY_SLOTS)
    if s.runs is NULL or (n_runs > SEARCH_RUNS and s.slots is NULL):
        split_clear(s)
        return TY_ERR_NOMEM
    memcpy(s.runs, runs, n_runs * sizeof(ty_run))
    s.n_runs = n_runs
    if s.slots is not NULL:
        start = 0
        for i in range(n_runs):
            memset(s.slots + start, runs[i].arm, runs[i].end - start)
            start = runs[i].end
    return 0


cdef void split_clear(ty_split *s) noexcept nogil:
    free(s.runs)
    free(s.slots)
    memset(s, 0, sizeof(ty_split))


# ---- for tools and tests -----------------------------------------------------------------------------------------

SLOTS = TY_SLOTS
MAX_KEY = KEY_MAX


@cython.final
cdef class Splitter:
    """One split: its salt and its table of slots.

    Args:
        runs: ``(end, arm)``, ``end`` the first slot after the run; the last ends at 10,000.
        salt: at most 1,024 bytes.

    Raises:
        ValueError: the runs or the salt are not like that.
        MemoryError: memory is out.
    """

    cdef ty_split _split                         # from __cinit__ to __dealloc__
    cdef bytes _salt

    def __cinit__(self, runs, bytes salt not None=b""):
        cdef ty_run *raw
        cdef uint32_t i = 0
        cdef int rv
        if len(salt) > SALT_MAX:
            raise ValueError(f"the salt has {len(salt)} bytes; it may have {SALT_MAX}")
        pairs = [(int(end), int(arm)) for end, arm in runs]
        if any(not 0 <= end <= TY_SLOTS or not 0 <= arm < ARMS_MAX for end, arm in pairs):
            raise ValueError(f"runs: an end or an arm is out of range in {pairs}")
        raw = <ty_run *>malloc((len(pairs) + 1) * sizeof(ty_run))
        if raw is NULL:
            raise MemoryError("runs")
        for end, arm in pairs:
            raw[i].end = end
            raw[i].arm = arm
            i += 1
        rv = split_init(&self._split, raw, i, ARMS_MAX)
        free(raw)
        if rv == TY_ERR_NOMEM:
            raise MemoryError("split")
        if rv != 0:
            raise ValueError(f"runs: ends must rise and the last must be {TY_SLOTS}, in {pairs}")
        self._salt = salt

    def __dealloc__(self):
        split_clear(&self._split)

    cdef uint64_t hash_of(self, bytes key) except? 0:
        if len(key) > KEY_MAX:
            raise ValueError(f"the key has {len(key)} bytes; the router refuses more than {KEY_MAX}")
        return split_hash(<const uint8_t *>self._salt, len(self._salt), <const uint8_t *>key, len(key))

    def assign(self, bytes key not None):
        """Hash, slot and arm index of a key.

        Raises:
            ValueError: the key has more than 1,024 bytes.
        """
        cdef uint64_t u = self.hash_of(key)
        cdef uint32_t slot = split_slot(u)
        return u, slot, split_arm(&self._split, slot)

    def arms(self, keys):
        """Arm index of each key.

        Raises:
            ValueError: a key has more than 1,024 bytes.
        """
        cdef bytes key
        return [split_arm(&self._split, split_slot(self.hash_of(key))) for key in keys]

    def pick(self, uint64_t draw):
        """Arm index for a request without a key, by a 64-bit random number."""
        return split_pick(&self._split, draw)

    def bucket(self, bytes key not None):
        """Analysis bucket of a key, 0 to 255.

        Raises:
            ValueError: the key has more than 1,024 bytes.
        """
        self.hash_of(key)
        return split_bucket(<const uint8_t *>self._salt, len(self._salt), <const uint8_t *>key, len(key))

    def assign_many(self, bytes key not None, int count):
        """Find the arm of a key ``count`` times, and drop it: for measuring."""
        cdef const uint8_t *salt = self._salt
        cdef size_t salt_len = len(self._salt)
        cdef const uint8_t *text = key
        cdef size_t n = len(key)
        cdef uint64_t sum = 0
        cdef int _i
        with nogil:
            for _i in range(count):
                sum += split_arm(&self._split, split_slot(split_hash(salt, salt_len, text, n)))
        return sum


def arm_of(runs, bytes salt not None, bytes key not None):
    """Hash, slot and arm index of one key.

    Raises:
        ValueError: what ``Splitter`` and its ``assign`` raise.
    """
    return Splitter(runs, salt).assign(key)
