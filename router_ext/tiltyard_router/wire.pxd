# peek, score > [wire]
#
# Protobuf's wire format, and no messages: fields in one stretch of bytes, and a cursor over bytes that lie in pieces.
# Nothing is copied, nothing outside the given bytes is read, and what protobuf refuses is refused: tags and lengths of
# more than 5 bytes, field number 0, wire types 6 and 7, groups that do not close, nesting deeper than 100.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_LEN = 2
    WIRE_GROUP = 3
    WIRE_GROUP_END = 4
    WIRE_FIXED32 = 5
    WIRE_DEPTH = 100               # protobuf's own limit; each enclosing message takes one off
    WIRE_LEN_MAX = 0x7FFFFFFF      # longest field that protobuf reads

cdef struct ty_iov:
    const uint8_t *p               # borrowed
    size_t n

cdef struct ty_field:              # one field, read whole
    uint32_t number
    uint32_t wire
    uint64_t value                 # of a varint
    const uint8_t *p               # content of a LEN or fixed field; borrowed
    size_t n

cdef struct ty_cur:                # a place in bytes that lie in pieces, with an end before or at theirs
    const uint8_t *p
    const uint8_t *end             # of the current piece
    const ty_iov *rest             # the pieces after it
    uint64_t after                 # bytes before the end that lie in them

# True when [p, p + n) is UTF-8 as protobuf checks it (no surrogates, nothing overlong).
cdef bint wire_utf8(const uint8_t *p, size_t n) noexcept nogil
# The content of a group whose start tag was read. The place after its end tag, NULL when malformed.
cdef const uint8_t *wire_skip_group(const uint8_t *p, const uint8_t *end, uint32_t number, int depth) noexcept nogil

# The total of bytes; the cursor stands at the first.
cdef uint64_t cur_init(ty_cur *c, const ty_iov *iov, uint32_t n_iov) noexcept nogil
# Steps over empty pieces; False at the end.
cdef bint cur_next_piece(ty_cur *c) noexcept nogil
cdef bint cur_varint_split(ty_cur *c, uint64_t *out, uint32_t most) noexcept nogil
cdef bint cur_skip_split(ty_cur *c, uint64_t n) noexcept nogil
cdef bint cur_skip_group(ty_cur *c, uint32_t number, int depth) noexcept nogil
# Copies n bytes, which must be there, and steps over them.
cdef void cur_copy(ty_cur *c, uint8_t *out, size_t n) noexcept nogil
# A cursor of its own over the next n bytes, which must be there; c stays where it is.
cdef ty_cur cur_sub(const ty_cur *c, uint64_t n) noexcept nogil


cdef inline const uint8_t *wire_varint(const uint8_t *p, const uint8_t *end, uint64_t *out) noexcept nogil:
    """The place after the varint; NULL when it does not end before `end` or within 10 bytes."""
    cdef uint64_t value = 0
    cdef uint32_t shift = 0
    cdef uint8_t byte
    if p < end and p[0] < 0x80:
        out[0] = p[0]
        return p + 1
    while p < end and shift < 70:
        byte = p[0]
        p += 1
        value |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            out[0] = value
            return p
        shift += 7
    return NULL


cdef inline const uint8_t *wire_tag(const uint8_t *p, const uint8_t *end, uint32_t *out) noexcept nogil:
    cdef uint64_t value = 0
    cdef const uint8_t *q = wire_varint(p, end, &value)
    if q is NULL or q - p > 5 or value < 8 or value > 0xFFFFFFFFU:
        return NULL
    out[0] = <uint32_t>value
    return q


cdef inline const uint8_t *wire_len(const uint8_t *p, const uint8_t *end, size_t *out) noexcept nogil:
    """The place where the content begins; all of it lies before `end`."""
    cdef uint64_t value = 0
    cdef const uint8_t *q = wire_varint(p, end, &value)
    if q is NULL or q - p > 5 or value > WIRE_LEN_MAX or value > <uint64_t>(end - q):
        return NULL
    out[0] = <size_t>value
    return q


cdef inline const uint8_t *wire_field(const uint8_t *p, const uint8_t *end, ty_field *f, int depth) noexcept nogil:
    """Read one field whole; the place after it, NULL when malformed. `depth`: how deep a group in it may nest."""
    cdef uint32_t tag = 0
    cdef size_t n = 0
    p = wire_tag(p, end, &tag)
    if p is NULL:
        return NULL
    f.number = tag >> 3
    f.wire = tag & 7
    f.value = 0
    f.p = p
    f.n = 0
    if f.wire == WIRE_LEN:
        p = wire_len(p, end, &n)
        if p is NULL:
            return NULL
    elif f.wire == WIRE_VARINT:
        return wire_varint(p, end, &f.value)
    elif f.wire == WIRE_FIXED32 or f.wire == WIRE_FIXED64:
        n = 4 if f.wire == WIRE_FIXED32 else 8
        if n > <size_t>(end - p):
            return NULL
    elif f.wire == WIRE_GROUP:
        return wire_skip_group(p, end, f.number, depth)
    else:
        return NULL
    f.p = p
    f.n = n
    return p + n


cdef inline uint64_t cur_left(const ty_cur *c) noexcept nogil:
    return <uint64_t>(c.end - c.p) + c.after


cdef inline bint cur_more(ty_cur *c) noexcept nogil:
    """Whether a byte is left; then the current piece holds it."""
    return c.p < c.end or cur_next_piece(c)


cdef inline bint cur_varint(ty_cur *c, uint64_t *out, uint32_t most) noexcept nogil:
    """A varint of at most `most` bytes, 10 or less; False when malformed."""
    cdef const uint8_t *q
    if c.p < c.end and c.p[0] < 0x80:
        out[0] = c.p[0]
        c.p += 1
        return True
    if c.end - c.p >= 10:
        q = wire_varint(c.p, c.end, out)
        if q is NULL or q - c.p > most:
            return False
        c.p = q
        return True
    return cur_varint_split(c, out, most)


cdef inline bint cur_tag(ty_cur *c, uint32_t *out) noexcept nogil:
    cdef uint64_t value = 0
    if not cur_varint(c, &value, 5) or value < 8 or value > 0xFFFFFFFFU:
        return False
    out[0] = <uint32_t>value
    return True


cdef inline bint cur_len(ty_cur *c, uint64_t *out) noexcept nogil:
    """The length of a field; so many bytes are there."""
    return cur_varint(c, out, 5) and out[0] <= WIRE_LEN_MAX and out[0] <= cur_left(c)


cdef inline bint cur_skip(ty_cur *c, uint64_t n) noexcept nogil:
    """Step over n bytes; False when there are fewer."""
    if n <= <uint64_t>(c.end - c.p):
        c.p += n
        return True
    return cur_skip_split(c, n)


cdef inline bint cur_skip_field(ty_cur *c, uint32_t tag, int depth) noexcept nogil:
    """Step over the content of a field whose tag was read; False when malformed."""
    cdef uint64_t n = 0
    cdef uint32_t wire = tag & 7
    if wire == WIRE_LEN:
        return cur_len(c, &n) and cur_skip(c, n)
    if wire == WIRE_VARINT:
        return cur_varint(c, &n, 10)
    if wire == WIRE_FIXED32:
        return cur_skip(c, 4)
    if wire == WIRE_FIXED64:
        return cur_skip(c, 8)
    if wire == WIRE_GROUP:
        return cur_skip_group(c, tag >> 3, depth)
    return False
