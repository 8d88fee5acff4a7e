# peek, score > [tensor] > wire
"""Elements of a TensorProto that lies in a map entry, without decoding it into an array."""

from libc.math cimport INFINITY, NAN, ldexp
from libc.stdint cimport INT64_MAX, int8_t, int16_t, int64_t, uint16_t
from libc.string cimport memcpy, memset

from tiltyard_router.status cimport TY_ERR_MALFORMED
from tiltyard_router.wire cimport (
    WIRE_DEPTH, WIRE_FIXED32, WIRE_FIXED64, WIRE_LEN, WIRE_VARINT, ty_field, wire_field)

cdef enum:                         # field numbers
    ENTRY_KEY = 1
    ENTRY_VALUE = 2
    TENSOR_DTYPE = 1
    TENSOR_SHAPE = 2
    TENSOR_CONTENT = 4
    SHAPE_DIM = 2
    SHAPE_UNKNOWN_RANK = 3
    DIM_SIZE = 1

cdef enum:
    VALUE_DEPTH = WIRE_DEPTH - 2   # the answer and its entry enclose a TensorProto


cdef int tensor_open(ty_tensor *t, const uint8_t *entry, size_t n) noexcept nogil:
    cdef const uint8_t *p = entry
    cdef ty_field f
    memset(t, 0, sizeof(ty_tensor))
    t.entry = entry
    t.end = entry + n
    t.key = entry                                # a missing key is the empty one
    t.rows = 1
    t.elements = 1
    while p < t.end:
        p = wire_field(p, t.end, &f, VALUE_DEPTH + 1)
        if p is NULL:
            return TY_ERR_MALFORMED
        if f.wire != WIRE_LEN:
            continue
        if f.number == ENTRY_KEY:
            t.key = f.p
            t.key_len = f.n
        elif f.number == ENTRY_VALUE and read_value(t, f.p, f.n) != 0:
            return TY_ERR_MALFORMED
    choose_field(t)
    return 0


cdef int read_value(ty_tensor *t, const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef ty_field f
    while p < end:
        p = wire_field(p, end, &f, VALUE_DEPTH)
        if p is NULL:
            return TY_ERR_MALFORMED
        if f.number == TENSOR_DTYPE and f.wire == WIRE_VARINT:
            t.dtype = <int32_t>f.value
        elif f.wire == WIRE_LEN and f.number == TENSOR_SHAPE:
            if read_shape(t, f.p, f.n) != 0:
                return TY_ERR_MALFORMED
        elif f.wire == WIRE_LEN and f.number == TENSOR_CONTENT:
            t.content = f.p
            t.content_len = f.n
    return 0


cdef int read_shape(ty_tensor *t, const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef const uint8_t *q
    cdef const uint8_t *dim_end
    cdef uint64_t size
    cdef ty_field f
    cdef ty_field dim
    while p < end:
        p = wire_field(p, end, &f, VALUE_DEPTH - 1)
        if p is NULL:
            return TY_ERR_MALFORMED
        if f.number == SHAPE_UNKNOWN_RANK and f.wire == WIRE_VARINT:
            t.bad_shape |= f.value != 0
        elif f.number == SHAPE_DIM and f.wire == WIRE_LEN:
            size = 0
            q = f.p
            dim_end = q + f.n
            while q < dim_end:
                q = wire_field(q, dim_end, &dim, VALUE_DEPTH - 2)
                if q is NULL:
                    return TY_ERR_MALFORMED
                if dim.number == DIM_SIZE and dim.wire == WIRE_VARINT:
                    size = dim.value
            add_dim(t, size)
    return 0


cdef void add_dim(ty_tensor *t, uint64_t size) noexcept nogil:
    if size > <uint64_t>INT64_MAX or (size != 0 and t.elements > <uint64_t>INT64_MAX // size):
        t.bad_shape = 1                          # negative, or too many
        return
    if t.rank == 0:
        t.rows = size
    t.rank += 1
    t.elements *= size


cdef void choose_field(ty_tensor *t) noexcept nogil:
    cdef int32_t dtype = t.dtype
    t.wire = WIRE_VARINT
    if dtype == DT_FLOAT:
        t.field = 5
        t.wire = WIRE_FIXED32
        t.size = 4
    elif dtype == DT_DOUBLE:
        t.field = 6
        t.wire = WIRE_FIXED64
        t.size = 8
    elif dtype == DT_STRING:
        t.field = 8
        t.wire = WIRE_LEN
    elif dtype == DT_INT64:
        t.field = 10
        t.size = 8
    elif dtype == DT_INT32 or dtype == DT_UINT8 or dtype == DT_INT16 or dtype == DT_INT8 or dtype == DT_UINT16:
        t.field = 7
        t.size = 4 if dtype == DT_INT32 else 2 if dtype == DT_INT16 or dtype == DT_UINT16 else 1
    elif dtype == DT_BOOL:
        t.field = 11
        t.size = 1
    elif dtype == DT_HALF or dtype == DT_BFLOAT16:
        t.field = 13
        t.size = 2
    elif dtype == DT_UINT32:
        t.field = 16
        t.size = 4
    elif dtype == DT_UINT64:
        t.field = 17
        t.size = 8


cdef void values_start(ty_values *v, const ty_tensor *t) noexcept nogil:
    v.at = t.entry
    v.in_value = t.entry
    v.value_end = t.entry
    v.run = NULL
    v.n = 0
    v.single = 0


cdef int values_next(ty_values *v, const ty_tensor *t) noexcept nogil:
    cdef ty_field f
    while True:
        while v.in_value < v.value_end:
            v.in_value = wire_field(v.in_value, v.value_end, &f, VALUE_DEPTH)
            if v.in_value is NULL:               # never: tensor_open walked it
                return 0
            if f.number != t.field:
                continue
            if f.wire == WIRE_LEN or (f.wire == t.wire and f.wire != WIRE_VARINT):
                v.run = f.p
                v.n = f.n
                return 1
            if f.wire == t.wire:
                v.run = NULL
                v.n = 0
                v.single = f.value
                return 1
        if v.at == t.end:
            return 0
        v.at = wire_field(v.at, t.end, &f, VALUE_DEPTH + 1)
        if v.at is NULL:
            return 0
        if f.number == ENTRY_VALUE and f.wire == WIRE_LEN:
            v.in_value = f.p
            v.value_end = f.p + f.n


cdef uint64_t tensor_int(int32_t dtype, uint64_t raw) noexcept nogil:
    if dtype == DT_INT32:
        return <uint64_t><int64_t><int32_t>raw
    if dtype == DT_INT16:
        return <uint64_t><int64_t><int16_t>raw
    if dtype == DT_INT8:
        return <uint64_t><int64_t><int8_t>raw
    if dtype == DT_UINT8:
        return <uint8_t>raw
    if dtype == DT_UINT16:
        return <uint16_t>raw
    if dtype == DT_UINT32:
        return <uint32_t>raw
    return raw


cdef double tensor_number(int32_t dtype, uint64_t raw) noexcept nogil:
    cdef uint32_t bits32 = <uint32_t>raw
    cdef float single = 0
    cdef double wide = 0
    if dtype == DT_FLOAT or dtype == DT_BFLOAT16:
        if dtype == DT_BFLOAT16:
            bits32 <<= 16
        memcpy(&single, &bits32, 4)
        return single
    if dtype == DT_DOUBLE:
        memcpy(&wide, &raw, 8)
        return wide
    if dtype == DT_HALF:
        return half_number(<uint16_t>raw)
    if dtype == DT_BOOL:
        return 1.0 if raw else 0.0
    if dtype == DT_UINT64:
        return <double>raw
    return <double><int64_t>tensor_int(dtype, raw)


cdef double half_number(uint16_t bits) noexcept nogil:
    """IEEE 754 half precision: 5 bits of exponent, 10 of fraction."""
    cdef int exponent = (bits >> 10) & 31
    cdef int fraction = bits & 0x3FF
    cdef double value
    if exponent == 31:
        value = NAN if fraction else INFINITY
    elif exponent == 0:
        value = ldexp(fraction, -24)
    else:
        value = ldexp(fraction | 0x400, exponent - 25)
    return -value if bits & 0x8000 else value


cdef uint64_t tensor_raw(const uint8_t *p, uint32_t size) noexcept nogil:
    cdef uint64_t raw = 0
    cdef uint32_t i
    for i in range(size):
        raw |= <uint64_t>p[i] << (8 * i)
    return raw
