# peek, score > [tensor] > wire
#
# One entry of a map<string, TensorProto>, read where it lies. The rules are TensorFlow's own (its Tensor::FromProto):
# tensor_content when it is not empty, else the typed field of the dtype; a typed field that is too short repeats its
# last value, an empty one means zeros, surplus values are ignored. Repeated fields merge as in protobuf.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

# tensorflow.DataType, as far as elements of it are read.
cdef enum:
    DT_FLOAT = 1
    DT_DOUBLE = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 5
    DT_INT8 = 6
    DT_STRING = 7
    DT_INT64 = 9
    DT_BOOL = 10
    DT_BFLOAT16 = 14
    DT_UINT16 = 17
    DT_HALF = 19
    DT_UINT32 = 22
    DT_UINT64 = 23

cdef struct ty_tensor:
    const uint8_t *entry           # borrowed: the entry's bytes
    const uint8_t *end
    const uint8_t *key             # in them
    size_t key_len
    const uint8_t *content         # in them; the last tensor_content
    size_t content_len
    int32_t dtype
    uint8_t bad_shape              # a negative dimension, an unknown rank or more elements than can be
    uint32_t rank
    uint64_t rows                  # the first dimension; 1 of a scalar
    uint64_t elements
    uint32_t field                 # the typed field of the dtype; 0: the dtype is read by nobody here
    uint32_t wire                  # how one value of it is written
    uint32_t size                  # of one element in tensor_content; 0 for strings

cdef struct ty_values:             # a walk over the typed field: run after run of values
    const uint8_t *at              # in the entry
    const uint8_t *in_value        # in the TensorProto
    const uint8_t *value_end
    const uint8_t *run             # this run's values as they are packed; NULL: one value, in `single`
    size_t n                       # bytes of them
    uint64_t single                # a varint

# 0 or TY_ERR_MALFORMED. Fields that no reading needs are stepped over, not checked.
cdef int tensor_open(ty_tensor *t, const uint8_t *entry, size_t n) noexcept nogil
cdef void values_start(ty_values *v, const ty_tensor *t) noexcept nogil
# 1 and the next run (of a string: one element), or 0 at the end. (The entry was walked before, so it is well formed.)
cdef int values_next(ty_values *v, const ty_tensor *t) noexcept nogil
# An integer element as TensorFlow narrows it, sign-extended to 64 bits; from its varint or from tensor_content.
cdef uint64_t tensor_int(int32_t dtype, uint64_t raw) noexcept nogil
# Any numeric element: from a varint, or from `size` little-endian bytes.
cdef double tensor_number(int32_t dtype, uint64_t raw) noexcept nogil
# `size` (1 to 8) little-endian bytes.
cdef uint64_t tensor_raw(const uint8_t *p, uint32_t size) noexcept nogil
