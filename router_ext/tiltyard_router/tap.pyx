# stream > [tap] > outcomes
"""Counters of one loop in one mmap file per boot; the layout stands in docs/counters.md.

The file must make sense to a reader at any moment, also when this process was killed between two instructions. So a
block shows only once its key is whole (``blocks_used`` moves last), and closed seconds are folded into the *spare* one
of a block's two verdict copies: the spare is marked unreadable, filled, stamped with the second, and only when all
blocks of the second are done does ``closed_through`` move to it. A reader takes, for each block, the copy with the
largest stamp that is not beyond ``closed_through``.

Who owns what: ``ty_tap`` owns everything here and frees it in ``tap_free``. A ``ty_second`` is lent to a request from
``tap_assign`` to ``tap_complete``; its second cannot close in between.
"""

cimport cython
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, uint16_t
from libc.stdio cimport rename, snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen
from posix.fcntl cimport O_CREAT, O_EXCL, O_RDWR, open as c_open, posix_fallocate
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from posix.mman cimport mmap, munmap
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close, getpid, unlink

from tiltyard_router.c_xxhash cimport XXH3_64bits
from tiltyard_router.score cimport TY_SCORED, TY_UNSCORED_ERROR, TY_UNSCORED_MALFORMED, TY_UNSCORED_NAN
from tiltyard_router.status cimport TY_ERR_LIMIT, TY_ERR_NOMEM

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <sys/file.h>
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the counters file is little-endian"
    #endif
    #define TY_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define TY_FENCE() __atomic_thread_fence(__ATOMIC_RELEASE)
    """
    void release_i64 "TY_RELEASE" (int64_t *p, int64_t value)
    void release_u64 "TY_RELEASE" (uint64_t *p, uint64_t value)
    void release_fence "TY_FENCE" ()
    int O_CLOEXEC
    int LOCK_EX
    int LOCK_NB
    int flock(int fd, int operation)

cdef enum:
    VERSION = 1
    PAGE = 4096                    # of the header, and of each block
    SET_BYTES = 1024               # room for 128 cells; 99 are in use
    MAX_CELLS = 128
    KEY_BYTES = 1024
    KEY_WORDS = 128
    STRINGS_AT = 64                # in the key part
    STEP = 16 * PAGE               # the file grows by so much
    BUCKETS = 4096
    BOOT_BYTES = 6

    CELL_ASSIGNED = 0
    CELL_COMPLETED = 1
    CELL_STATUS = 2
    CELL_METRICS = 19              # CELL_STATUS + TY_STATUSES
    METRIC_CELLS = 10              # scored n, sum, sum of squares, seven reasons

cdef const char *MAGIC = b"TILTCNT\x01"

cdef struct file_header:           # the first page of the file
    char magic[8]
    uint32_t version
    uint32_t header_bytes
    uint32_t block_bytes
    uint32_t set_bytes
    uint32_t max_metrics
    uint32_t pid
    uint8_t boot_id[8]             # six, and two zeros
    int64_t created                # unix seconds
    int64_t closed_through
    uint64_t blocks_used
    uint64_t bytes_used
    uint64_t uncounted
    uint64_t ended
    uint64_t report_sequence       # the reporter's own; never touched here

cdef struct block_key:             # the first part of a block
    uint32_t epoch
    uint32_t arm_index
    uint32_t share_slots
    uint32_t n_metrics
    int64_t stamps[2]
    uint16_t lengths[16]           # pipeline, uid, arm, then the metrics; the strings stand packed from STRINGS_AT

cdef struct ty_open:               # one assignment second with something in it that is not folded yet
    int64_t second
    uint64_t in_flight             # over all blocks
    ty_second *records
    ty_open *next

cdef struct ty_second:             # one block's share of it
    ty_block *block
    ty_open *open
    ty_second *next
    uint64_t cells[MAX_CELLS]      # as many as the block has metrics for are allocated

cdef struct ty_block:
    block_key *key                 # in the file
    uint64_t *live                 # in the file
    uint64_t *copies[2]            # in the file: verdict cells
    ty_second *newest              # the record of the newest second it counted in; stale once that second closed
    ty_open *newest_open           # the second of `newest`
    int64_t newest_second
    ty_block *chain                # next of the hash bucket
    uint64_t hash
    uint32_t n_metrics
    uint32_t n_cells
    uint8_t current                # which copy was folded last

cdef struct ty_tap:
    file_header *header            # owned mapping, max_bytes long
    size_t max_bytes
    size_t ready_bytes             # of these the file holds so many: touching the rest would raise SIGBUS
    int fd                         # keeps the lock that says "alive"; -1 in memory
    int64_t newest                 # newest assignment second; never goes back
    ty_open *first
    ty_open *last
    ty_open *spare_opens
    ty_second *spare_records[TY_MAX_METRICS + 1]   # by number of metrics
    ty_block *buckets[BUCKETS]


# -- the file ------------------------------------------------------------------------------------------------------

cdef int open_locked(const char *path) noexcept nogil:
    """A new file, locked; its descriptor or a negative errno."""
    cdef int rv
    cdef int fd = c_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, <int>0o600)
    if fd < 0:
        return -errno
    if flock(fd, LOCK_EX | LOCK_NB) != 0:
        rv = -errno
        close(fd)
        unlink(path)
        return rv
    return fd


cdef int tap_reserve(ty_tap *tap, size_t need) noexcept nogil:
    """Make the first ``need`` bytes of the mapping safe to touch. A full disk shows here, not as SIGBUS later."""
    cdef size_t want
    cdef int rv = EINTR
    if need > tap.max_bytes:
        return TY_ERR_LIMIT
    if need <= tap.ready_bytes:
        return 0
    want = (need + STEP - 1) // STEP * STEP
    if want > tap.max_bytes:
        want = tap.max_bytes
    if tap.fd >= 0:
        while rv == EINTR:
            rv = posix_fallocate(tap.fd, 0, <long>want)
        if rv != 0:
            return -rv
    tap.ready_bytes = want
    return 0


cdef int tap_map(ty_tap *tap, const uint8_t *boot_id) noexcept nogil:
    cdef timespec now
    cdef file_header *header
    # The whole range is mapped once, so pointers into it stay valid; the file behind it grows in steps.
    cdef void *at = mmap(NULL, tap.max_bytes, PROT_READ | PROT_WRITE,
                         MAP_SHARED if tap.fd >= 0 else MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, tap.fd, 0)
    cdef int rv
    if at == MAP_FAILED:
        return -errno
    tap.header = <file_header *>at
    rv = tap_reserve(tap, PAGE)
    if rv != 0:
        return rv
    header = tap.header
    clock_gettime(CLOCK_REALTIME, &now)
    memcpy(header.magic, MAGIC, 8)
    header.version = VERSION
    header.header_bytes = PAGE
    header.block_bytes = PAGE
    header.set_bytes = SET_BYTES
    header.max_metrics = TY_MAX_METRICS
    header.pid = <uint32_t>getpid()
    memcpy(header.boot_id, boot_id, BOOT_BYTES)
    header.created = now.tv_sec
    header.bytes_used = PAGE
    return 0


cdef int tap_open(ty_tap *tap, const char *path, const uint8_t *boot_id) noexcept nogil:
    """Make the file under a name of its own, and show it only when it is locked and its header stands."""
    cdef size_t n = strlen(path) + 5
    cdef char *fresh = <char *>malloc(n)
    cdef int rv
    if fresh is NULL:
        return TY_ERR_NOMEM
    snprintf(fresh, n, b"%s.new", path)
    tap.fd = open_locked(fresh)
    if tap.fd < 0:
        rv = tap.fd
    else:
        rv = tap_map(tap, boot_id)
        if rv == 0 and rename(fresh, path) != 0:
            rv = -errno
        if rv != 0:
            unlink(fresh)
    free(fresh)
    return rv


cdef ty_tap *tap_new(const char *path, const uint8_t *boot_id, size_t max_bytes, int *err) noexcept nogil:
    cdef ty_tap *tap = <ty_tap *>calloc(1, sizeof(ty_tap))
    if tap is NULL:
        err[0] = TY_ERR_NOMEM
        return NULL
    tap.fd = -1
    tap.max_bytes = max_bytes // PAGE * PAGE
    if tap.max_bytes < 2 * PAGE:
        err[0] = TY_ERR_LIMIT
    elif path is NULL:
        err[0] = tap_map(tap, boot_id)
    else:
        err[0] = tap_open(tap, path, boot_id)
    if err[0] != 0:
        tap_release(tap)
        return NULL
    return tap


cdef void tap_free(ty_tap *tap) noexcept nogil:
    if tap is NULL:
        return
    # Nothing can be assigned any more, so the newest second is complete too once nothing is in flight.
    tap_close(tap, tap.newest + 1)
    release_u64(&tap.header.ended, 1)
    tap_release(tap)


cdef void free_records(ty_second *record) noexcept nogil:
    cdef ty_second *next_record
    while record is not NULL:
        next_record = record.next
        free(record)
        record = next_record


cdef void free_opens(ty_open *opened) noexcept nogil:
    cdef ty_open *next_open
    while opened is not NULL:
        next_open = opened.next
        free_records(opened.records)
        free(opened)
        opened = next_open


cdef void tap_release(ty_tap *tap) noexcept nogil:
    """Give back memory, mapping and lock."""
    cdef ty_block *block
    cdef int i
    free_opens(tap.first)
    free_opens(tap.spare_opens)
    for i in range(TY_MAX_METRICS + 1):
        free_records(tap.spare_records[i])
    for i in range(BUCKETS):
        while tap.buckets[i] is not NULL:
            block = tap.buckets[i]
            tap.buckets[i] = block.chain
            free(block)
    if tap.header is not NULL:
        munmap(tap.header, tap.max_bytes)
    if tap.fd >= 0:
        close(tap.fd)
    free(tap)


# -- blocks --------------------------------------------------------------------------------------------------------

cdef bint key_part(uint8_t *page, size_t *at, int index, const char *text, size_t n) noexcept nogil:
    if n > 0xFFFF or at[0] + n > KEY_BYTES:
        return False
    memcpy(page + at[0], text, n)
    (<block_key *>page).lengths[index] = <uint16_t>n
    at[0] += n
    return True


cdef bint key_write(const ty_block_key *key, uint8_t *page) noexcept nogil:
    """Write the key part, ``KEY_BYTES`` long; false when the names do not fit."""
    cdef block_key *out = <block_key *>page
    cdef size_t at = STRINGS_AT
    cdef uint32_t i
    memset(page, 0, KEY_BYTES)
    if key.n_metrics > TY_MAX_METRICS:
        return False
    out.epoch = key.epoch
    out.arm_index = key.arm_index
    out.share_slots = key.share_slots
    out.n_metrics = key.n_metrics
    if not key_part(page, &at, 0, key.pipeline, strlen(key.pipeline)):
        return False
    if not key_part(page, &at, 1, key.deployment_uid, strlen(key.deployment_uid)):
        return False
    if not key_part(page, &at, 2, key.arm, strlen(key.arm)):
        return False
    for i in range(key.n_metrics):
        if not key_part(page, &at, 3 + <int>i, key.metrics[i].name, key.metrics[i].name_len):
            return False
    return True


cdef bint key_same(const block_key *kept, const uint8_t *wanted) noexcept nogil:
    """Compare all but the stamps, which stand at bytes 16 to 31."""
    return (memcmp(kept, wanted, 16) == 0
            and memcmp(<const uint8_t *>kept + 32, wanted + 32, KEY_BYTES - 32) == 0)


cdef ty_block *block_new(ty_tap *tap, const uint8_t *key) noexcept nogil:
    cdef uint64_t index = tap.header.blocks_used
    cdef size_t at = PAGE * (index + 1)
    cdef uint8_t *page = <uint8_t *>tap.header + at
    cdef ty_block *block = <ty_block *>calloc(1, sizeof(ty_block))
    cdef int i
    if block is NULL:
        return NULL
    if tap_reserve(tap, at + PAGE) != 0:
        free(block)
        return NULL
    memcpy(page, key, KEY_BYTES)
    block.key = <block_key *>page
    block.key.stamps[1] = INT64_MAX              # unreadable; copy 0 is readable as it is: all zero, stamp 0
    block.live = <uint64_t *>(page + KEY_BYTES)
    for i in range(2):
        block.copies[i] = <uint64_t *>(page + KEY_BYTES + SET_BYTES * (i + 1))
    block.n_metrics = block.key.n_metrics
    block.n_cells = CELL_METRICS + METRIC_CELLS * block.n_metrics
    tap.header.bytes_used = at + PAGE
    release_u64(&tap.header.blocks_used, index + 1)
    return block


cdef ty_block *tap_block(ty_tap *tap, const ty_block_key *key) noexcept nogil:
    cdef uint64_t page[KEY_WORDS]                # of 8-byte words, for their alignment
    cdef uint64_t h
    cdef ty_block *block
    if not key_write(key, <uint8_t *>page):
        return NULL
    h = XXH3_64bits(page, KEY_BYTES)
    block = tap.buckets[h % BUCKETS]
    while block is not NULL:
        if block.hash == h and key_same(block.key, <const uint8_t *>page):
            return block
        block = block.chain
    block = block_new(tap, <const uint8_t *>page)
    if block is NULL:
        return NULL
    block.hash = h
    block.chain = tap.buckets[h % BUCKETS]
    tap.buckets[h % BUCKETS] = block
    return block


cdef void tap_uncounted(ty_tap *tap) noexcept nogil:
    tap.header.uncounted += 1


# -- requests ------------------------------------------------------------------------------------------------------

cdef ty_open *second_open(ty_tap *tap, int64_t second) noexcept nogil:
    """A new last second, from the free list if that has one."""
    cdef ty_open *opened = tap.spare_opens
    if opened is not NULL:
        tap.spare_opens = opened.next
    else:
        opened = <ty_open *>malloc(sizeof(ty_open))
        if opened is NULL:
            return NULL
    opened.second = second
    opened.in_flight = 0
    opened.records = NULL
    opened.next = NULL
    if tap.last is NULL:
        tap.first = opened
    else:
        tap.last.next = opened
    tap.last = opened
    return opened


cdef ty_second *record_new(ty_tap *tap, ty_block *block, ty_open *opened) noexcept nogil:
    cdef ty_second *record = tap.spare_records[block.n_metrics]
    cdef size_t cells = block.n_cells * sizeof(uint64_t)
    if record is not NULL:
        tap.spare_records[block.n_metrics] = record.next
    else:
        record = <ty_second *>malloc(sizeof(ty_second) - MAX_CELLS * sizeof(uint64_t) + cells)
        if record is NULL:
            return NULL
    memset(record.cells, 0, cells)
    record.block = block
    record.open = opened
    record.next = opened.records
    opened.records = record
    block.newest = record
    block.newest_open = opened
    block.newest_second = opened.second
    return record


cdef ty_second *tap_assign(ty_tap *tap, ty_block *block, int64_t second) noexcept nogil:
    cdef ty_second *record
    cdef ty_open *opened = tap.last
    block.live[CELL_ASSIGNED] += 1
    if second > tap.newest:
        tap.newest = second
    else:
        second = tap.newest
    if opened is NULL or opened.second != second:
        opened = second_open(tap, second)
        if opened is NULL:
            return NULL
    # A second is opened at most once (they never go back), so its number says whether the record is still good.
    if block.newest_second == second and block.newest_open is opened:
        record = block.newest
    else:
        record = record_new(tap, block, opened)
        if record is NULL:
            return NULL
    record.cells[CELL_ASSIGNED] += 1
    opened.in_flight += 1
    return record


cdef inline void count_outcome(uint64_t *cells, uint32_t n_metrics, const ty_outcome *o) noexcept nogil:
    """Add one outcome to a set of cells; `completed` last."""
    cdef uint32_t i
    cdef uint8_t reason
    cdef uint8_t status = o.status if o.status < TY_STATUSES else 2      # UNKNOWN
    cdef double value = 0
    cdef uint64_t *m = cells + CELL_METRICS
    for i in range(n_metrics):
        # An outcome with fewer metrics comes from a call that has no answer.
        reason = o.reasons[i] if i < o.n_metrics else TY_UNSCORED_ERROR
        if reason == TY_SCORED:
            value = o.values[i]
            if value - value != 0:               # infinite or no number: it would spoil the sums for good
                reason = TY_UNSCORED_NAN
        elif reason >= TY_UNSCORED_REASONS:
            reason = TY_UNSCORED_MALFORMED
        if reason == TY_SCORED:
            (<double *>m)[1] += value
            (<double *>m)[2] += value * value
            m[0] += 1
        else:
            m[2 + reason] += 1
        m += METRIC_CELLS
    cells[CELL_STATUS + status] += 1
    cells[CELL_COMPLETED] += 1


cdef void tap_complete(ty_tap *tap, ty_block *block, ty_second *second, const ty_outcome *outcome) noexcept nogil:
    count_outcome(block.live, block.n_metrics, outcome)
    if second is not NULL:
        count_outcome(second.cells, block.n_metrics, outcome)
        second.open.in_flight -= 1


# -- seconds -------------------------------------------------------------------------------------------------------

cdef void block_fold(ty_block *block, const uint64_t *add, int64_t second) noexcept nogil:
    """Current copy + one second -> spare copy, which then is the current one."""
    cdef int spare = 1 - block.current
    cdef const uint64_t *old = block.copies[block.current]
    cdef uint64_t *new = block.copies[spare]
    cdef uint32_t m, metric
    cdef int i
    release_i64(&block.key.stamps[spare], INT64_MAX)   # unreadable while it is written
    release_fence()
    for i in range(CELL_METRICS):
        new[i] = old[i] + add[i]
    for metric in range(block.n_metrics):
        m = CELL_METRICS + METRIC_CELLS * metric
        new[m] = old[m] + add[m]
        (<double *>new)[m + 1] = (<const double *>old)[m + 1] + (<const double *>add)[m + 1]
        (<double *>new)[m + 2] = (<const double *>old)[m + 2] + (<const double *>add)[m + 2]
        for i in range(3, METRIC_CELLS):
            new[m + i] = old[m + i] + add[m + i]
    release_i64(&block.key.stamps[spare], second)
    block.current = <uint8_t>spare


cdef void first_fold(ty_tap *tap) noexcept nogil:
    """Fold the first open second into the verdict cells, and give its records back."""
    cdef ty_open *opened = tap.first
    cdef ty_second *record = opened.records
    cdef ty_second *next_record
    while record is not NULL:
        next_record = record.next
        block_fold(record.block, record.cells, opened.second)
        record.next = tap.spare_records[record.block.n_metrics]
        tap.spare_records[record.block.n_metrics] = record
        record = next_record
    # Only now does the second count: a reader sees it in all blocks or in none.
    release_i64(&tap.header.closed_through, opened.second)
    tap.first = opened.next
    if tap.first is NULL:
        tap.last = NULL
    opened.records = NULL
    opened.next = tap.spare_opens
    tap.spare_opens = opened


cdef void tap_close(ty_tap *tap, int64_t now) noexcept nogil:
    cdef int64_t through
    while tap.first is not NULL and tap.first.second < now and tap.first.in_flight == 0:
        first_fold(tap)
    through = now - 1
    if tap.first is not NULL and tap.first.second <= through:
        through = tap.first.second - 1
    if through > tap.header.closed_through:
        release_i64(&tap.header.closed_through, through)
    # What comes from now on must not fall into a closed second, whatever the clock says.
    if tap.newest <= tap.header.closed_through:
        tap.newest = tap.header.closed_through + 1


# -- façade for tests ----------------------------------------------------------------------------------------------

@cython.final
cdef class Block:
    """Cells of one arm of one weight epoch; lives as long as its tap."""

    cdef ty_block *_block                        # owned by the tap
    cdef Tap _tap


@cython.final
cdef class Call:
    """One assigned request; it must be completed once."""

    cdef ty_block *_block                        # owned by the tap
    cdef ty_second *_second                      # lent until it is completed
    cdef bint _done
    cdef Tap _tap


@cython.final
cdef class Tap:
    """One counters file, driven by hand.

    Args:
        path: the file to make; ``None`` counts in memory only.
        boot_id: 6 bytes.
        max_bytes: largest size of the file; at least two pages.

    Raises:
        OSError: the file could not be made.
        MemoryError: memory is out.
        ValueError: ``max_bytes`` or the boot id is too small.
    """

    cdef ty_tap *_ptr                            # owned, until end() or __dealloc__

    def __cinit__(self, path, bytes boot_id not None, size_t max_bytes=268_435_456):
        cdef int rv = 0
        cdef bytes name = str(path).encode()
        cdef const char *where = NULL
        if path is not None:
            where = name
        if len(boot_id) != BOOT_BYTES:
            raise ValueError(f"a boot id has {BOOT_BYTES} bytes, this one has {len(boot_id)}")
        self._ptr = tap_new(where, <const uint8_t *>boot_id, max_bytes, &rv)
        if self._ptr is NULL:
            if rv == TY_ERR_LIMIT:
                raise ValueError("a counters file has at least two pages")
            if rv == TY_ERR_NOMEM:
                raise MemoryError("counters")
            raise OSError(-rv, "counters file", path)

    def __dealloc__(self):
        tap_free(self._ptr)

    cdef ty_tap *alive(self) except NULL:
        if self._ptr is NULL:
            raise ValueError("the tap has ended")
        return self._ptr

    def end(self):
        """End as the loop does at a clean stop; the file stays."""
        tap_free(self._ptr)
        self._ptr = NULL

    def abandon(self):
        """End as a crash does: nothing more is written, and the lock is free."""
        tap_release(self.alive())
        self._ptr = NULL

    def block(self, str pipeline not None, str uid not None, uint32_t epoch, str arm not None, uint32_t arm_index,
              uint32_t share_slots, list metrics not None):
        """The block of a key, made at first use; ``None`` when the file is full or the names do not fit."""
        cdef ty_block_key key
        cdef ty_metric wanted[TY_MAX_METRICS]
        cdef Block out = Block.__new__(Block)
        if len(metrics) > TY_MAX_METRICS:
            raise ValueError(f"at most {TY_MAX_METRICS} metrics")
        texts = [text.encode() for text in [pipeline, uid, arm, *metrics]]
        memset(wanted, 0, sizeof(wanted))
        for i in range(len(metrics)):
            wanted[i].name = texts[3 + i]
            wanted[i].name_len = len(texts[3 + i])
        key.pipeline = texts[0]
        key.deployment_uid = texts[1]
        key.epoch = epoch
        key.arm = texts[2]
        key.arm_index = arm_index
        key.share_slots = share_slots
        key.metrics = wanted
        key.n_metrics = <uint32_t>len(metrics)
        out._block = tap_block(self.alive(), &key)
        out._tap = self
        return out if out._block is not NULL else None

    def assign(self, Block block not None, int64_t second):
        """One request for the block's arm in this second."""
        cdef Call call = Call.__new__(Call)
        call._second = tap_assign(self.alive(), block._block, second)
        call._block = block._block
        call._tap = self
        return call

    def complete(self, Call call not None, uint8_t status, values=()):
        """What came of it. A value is a float, or an int that says why there is none (``TY_UNSCORED_*``)."""
        cdef ty_outcome outcome
        if call._done:
            raise ValueError("completed before")
        memset(&outcome, 0, sizeof(outcome))
        outcome.status = status
        outcome.n_metrics = <uint8_t>len(values)
        for i in range(outcome.n_metrics):
            if isinstance(values[i], float):
                outcome.values[i] = values[i]
            else:
                outcome.reasons[i] = values[i]
        tap_complete(self.alive(), call._block, call._second, &outcome)
        call._done = True

    def close(self, int64_t now):
        """Close what can be closed before ``now``."""
        tap_close(self.alive(), now)

    def uncounted(self):
        """One request whose block could not be had."""
        tap_uncounted(self.alive())

    def drive(self, list blocks not None, int64_t start, int seconds, int per_second):
        """Assign and complete ``per_second`` requests a second, in turn on ``blocks``, one of them a second late.

        Runs in one go without the GIL: for crash tests and for measuring what one request costs.
        """
        cdef ty_tap *tap = self.alive()
        cdef size_t n = <size_t>len(blocks)
        cdef ty_block **targets
        cdef int s
        if n == 0:
            raise ValueError("no blocks")
        targets = <ty_block **>malloc(n * sizeof(ty_block *))
        if targets is NULL:
            raise MemoryError("blocks")
        for i in range(n):
            targets[i] = (<Block?>blocks[i])._block
        with nogil:
            for s in range(seconds):
                tap_close(tap, start + s)
                drive_second(tap, targets, n, start + s, per_second)
            tap_close(tap, start + seconds)
        free(targets)


cdef void drive_second(ty_tap *tap, ty_block **blocks, size_t n, int64_t second, int count) noexcept nogil:
    cdef ty_outcome outcome
    cdef ty_second *record
    cdef ty_second *held = NULL
    cdef ty_block *block
    cdef int i
    memset(&outcome, 0, sizeof(outcome))
    outcome.n_metrics = TY_MAX_METRICS
    for i in range(count):
        block = blocks[<size_t>i % n]
        record = tap_assign(tap, block, second)
        if i == 0:                               # one request ends when its second is over
            held = record
            continue
        outcome.status = 14 if i % 7 == 0 else 0
        outcome.reasons[0] = TY_UNSCORED_ERROR if i % 7 == 0 else TY_SCORED
        outcome.values[0] = i & 1
        tap_complete(tap, block, record, &outcome)
    if count > 0:
        tap_close(tap, second + 1)
        tap_complete(tap, blocks[0], held, &outcome)
