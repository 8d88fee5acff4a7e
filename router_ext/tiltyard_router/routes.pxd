# peek > [routes] > split
#
# The route table: built whole from a spec under the GIL, handed to a loop by pointer, immutable from then on (but for
# the two fields of an arm that say so). Everything it points to is its own: texts and arrays lie in its arena.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from tiltyard_router.score cimport TY_MAX_METRICS, ty_metric
from tiltyard_router.split cimport ty_split
from tiltyard_router.tap cimport ty_block

cdef enum:
    TY_MAX_ARMS = 16
    TY_RECEIPT_SECRET = 32

cdef struct ty_arm:                # all texts are NUL-terminated as well as counted
    const char *name
    size_t name_len
    const char *model
    size_t model_len
    int64_t version
    uint32_t share_slots           # slots of the 10,000 that are this arm's
    uint32_t *backends             # n_backends indices into ty_routes.backends
    uint32_t n_backends            # at least 1
    uint32_t next_backend          # scratch of the loop: where its round robin stands
    ty_block *block                # borrowed from the tap, set by the loop at the arm's first request; else NULL

cdef struct ty_pipeline:
    const char *key                # what it is counted under
    const char *uid                # the deployment, for the counts
    const char *hash_key           # metadata key or input tensor; lower case
    size_t hash_key_len            # 0: requests have no key
    const uint8_t *salt
    size_t salt_len
    uint32_t epoch                 # from 1
    uint64_t timeout_us            # longest a call may take; 0: the router's default
    ty_arm *arms                   # 1 to TY_MAX_ARMS; the first is the champion
    uint32_t n_arms
    ty_split split                 # owned
    ty_metric metrics[TY_MAX_METRICS]
    uint32_t n_metrics

cdef struct ty_name                # one request name; private to routes.pyx
cdef struct ty_chunk               # a piece of the arena; private to routes.pyx

cdef struct ty_routes:
    uint64_t revision
    uint32_t refs                  # requests that run on this table; the loop's thread only
    ty_pipeline *pipelines         # may be NULL when n_pipelines is 0
    uint32_t n_pipelines
    const char **backends          # unique "host:port" texts, NUL-terminated; may be NULL when n_backends is 0
    uint32_t n_backends
    void **pools                   # scratch of the loop, one a backend; set when the table comes into force, else NULL
    uint8_t has_key                # the receipt key below is set
    uint8_t key_number
    uint8_t key_secret[TY_RECEIPT_SECRET]
    ty_name *names                 # private: open addressing, name_mask + 1 cells, at most half of them used
    size_t name_mask
    ty_chunk *arena                # private: list of chunks, newest first

# The pipeline a request means by this model_spec.name, or NULL. (Borrowed from the table.)
cdef ty_pipeline *routes_find(const ty_routes *r, const char *name, size_t n) noexcept nogil
# Frees the table and all it owns; accepts NULL. Needs no GIL.
cdef void routes_free(ty_routes *r) noexcept nogil

cdef class RouteTable:
    cdef ty_routes *_routes        # owned until taken
    # Hands the table over: the caller frees it with routes_free. NULL when it was taken before.
    cdef ty_routes *take(self) noexcept
    cdef int _check(self) except -1    # raises ValueError when it was taken
