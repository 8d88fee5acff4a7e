# front > [predict] > pool: from a whole request to an arm
from tiltyard_router.model cimport ty_stream

# The request is complete: find its pipeline and arm, rewrite its head, count it. 0: st is ready for the pool.
# Otherwise a gRPC status, with st.msg saying why.
cdef int predict_route(ty_stream *st) noexcept nogil
