# stream > [tap] > outcomes
#
# Counters of one loop in one mmap file per boot. All functions run on the loop's thread; other processes and threads
# read the file. Live cells are by completion, verdict cells by assignment second and only for closed seconds.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from tiltyard_router.score cimport TY_MAX_METRICS, TY_UNSCORED_REASONS, ty_metric

cdef enum:
    TY_STATUSES = 17               # gRPC status 0 to 16

cdef struct ty_tap                 # the file and the open seconds; private to tap.pyx
cdef struct ty_block               # one arm of one weight epoch: its cells in the file; lives as long as the tap
cdef struct ty_second              # what one block has open in one assignment second; freed when the second closes

cdef struct ty_outcome:            # what came of one call
    uint8_t status                 # gRPC status the client got (CANCELLED when it went away)
    uint8_t n_metrics
    double values[TY_MAX_METRICS]
    uint8_t reasons[TY_MAX_METRICS]   # TY_SCORED or why not

cdef struct ty_block_key:          # all borrowed for the call
    const char *pipeline
    const char *deployment_uid
    uint32_t epoch
    const char *arm
    uint32_t arm_index
    uint32_t share_slots
    const ty_metric *metrics
    uint32_t n_metrics

# path may be NULL: counters in memory only (tests). NULL and *err set on failure.
cdef ty_tap *tap_new(const char *path, const uint8_t *boot_id, size_t max_bytes, int *err) noexcept nogil
# Marks the file as ended cleanly and unmaps it; the file stays for the reader. Accepts NULL.
cdef void tap_free(ty_tap *tap) noexcept nogil
# The block of this key, made at first use. NULL when the file's limit is reached: the call is then not counted, and
# the file's header counts how many were not.
cdef ty_block *tap_block(ty_tap *tap, const ty_block_key *key) noexcept nogil
# One request was assigned to the block's arm in this unix second. Seconds never go back (an earlier one counts as the
# newest). Returns what must be handed to tap_complete; NULL when memory is out (still counted live).
cdef ty_second *tap_assign(ty_tap *tap, ty_block *block, int64_t second) noexcept nogil
cdef void tap_complete(ty_tap *tap, ty_block *block, ty_second *second, const ty_outcome *outcome) noexcept nogil
# Called once a second or oftener: closes, in order, every second before `now` in which nothing is in flight, folds it
# into the verdict cells and moves closed_through (also over seconds without requests).
cdef void tap_close(ty_tap *tap, int64_t now) noexcept nogil
# One request whose block could not be had.
cdef void tap_uncounted(ty_tap *tap) noexcept nogil
