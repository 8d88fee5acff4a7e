# One proxy loop: what runs it, what it does each iteration, how it ends.
from tiltyard_router.model cimport ty_config, ty_loop
from tiltyard_router.routes cimport ty_routes

# A loop that counts in counters_path (NULL: in memory only). NULL and *err on failure.
cdef ty_loop *loop_new(const ty_config *config, const unsigned char *boot_id, const char *counters_path,
                       size_t max_counter_bytes, int *err) noexcept nogil
# Only when it does not run. Accepts NULL.
cdef void loop_free(ty_loop *loop) noexcept nogil
# Serves until it was stopped. 0, or the status it failed with.
cdef int loop_run(ty_loop *loop) noexcept nogil
# These two from any thread.
cdef void loop_apply(ty_loop *loop, ty_routes *routes) noexcept nogil
cdef void loop_stop(ty_loop *loop) noexcept nogil
