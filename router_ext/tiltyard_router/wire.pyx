# peek, score > [wire]
"""Protobuf's wire format: what is called seldom. What is called for every field stands in wire.pxd."""

from libc.string cimport memcpy


cdef bint wire_utf8(const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef uint64_t eight = 0
    cdef uint8_t lead
    cdef uint8_t low                             # bounds of the second byte
    cdef uint8_t high
    cdef int more
    while p < end:
        if end - p >= 8:
            memcpy(&eight, p, 8)
            if eight & 0x8080808080808080ULL == 0:
                p += 8
                continue
        lead = p[0]
        p += 1
        if lead < 0x80:
            continue
        low = 0x80
        high = 0xBF
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            if lead == 0xE0:
                low = 0xA0                       # less would be overlong
            elif lead == 0xED:
                high = 0x9F                      # more would be a surrogate
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            if lead == 0xF0:
                low = 0x90
            elif lead == 0xF4:
                high = 0x8F                      # more would be beyond U+10FFFF
        else:
            return False
        if end - p < more or p[0] < low or p[0] > high:
            return False
        if (more > 1 and p[1] & 0xC0 != 0x80) or (more > 2 and p[2] & 0xC0 != 0x80):
            return False
        p += more
    return True


cdef const uint8_t *wire_skip_group(const uint8_t *p, const uint8_t *end, uint32_t number, int depth) noexcept nogil:
    cdef ty_iov piece
    cdef ty_cur c
    piece.p = p
    piece.n = end - p
    cur_init(&c, &piece, 1)
    return c.p if cur_skip_group(&c, number, depth) else NULL


cdef uint64_t cur_init(ty_cur *c, const ty_iov *iov, uint32_t n_iov) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(n_iov):
        total += iov[i].n
    c.p = NULL
    c.end = NULL
    c.rest = iov
    c.after = total
    cur_more(c)
    return total


cdef bint cur_next_piece(ty_cur *c) noexcept nogil:
    cdef size_t n
    while c.p == c.end:
        if c.after == 0:
            return False
        n = c.rest.n
        if n > c.after:                          # the cursor ends inside this piece
            n = c.after
        c.p = c.rest.p
        c.end = c.p + n
        c.after -= n
        c.rest += 1
    return True


cdef bint cur_varint_split(ty_cur *c, uint64_t *out, uint32_t most) noexcept nogil:
    cdef uint64_t value = 0
    cdef uint32_t i
    cdef uint8_t byte
    for i in range(most):
        if not cur_more(c):
            return False
        byte = c.p[0]
        c.p += 1
        value |= <uint64_t>(byte & 0x7F) << (7 * i)
        if byte < 0x80:
            out[0] = value
            return True
    return False


cdef bint cur_skip_split(ty_cur *c, uint64_t n) noexcept nogil:
    if n > cur_left(c):
        return False
    while n > <uint64_t>(c.end - c.p):
        n -= c.end - c.p
        c.p = c.end
        cur_next_piece(c)
    c.p += n
    return True


cdef bint cur_skip_group(ty_cur *c, uint32_t number, int depth) noexcept nogil:
    cdef uint32_t open_groups[WIRE_DEPTH]        # their field numbers, outermost first
    cdef int n_open = 1
    cdef uint32_t tag = 0
    if depth < 1:
        return False
    open_groups[0] = number
    while n_open > 0:
        if not cur_more(c) or not cur_tag(c, &tag):
            return False
        if tag & 7 == WIRE_GROUP:
            if n_open == depth:
                return False
            open_groups[n_open] = tag >> 3
            n_open += 1
        elif tag & 7 == WIRE_GROUP_END:
            n_open -= 1
            if open_groups[n_open] != tag >> 3:
                return False
        elif not cur_skip_field(c, tag, 0):
            return False
    return True


cdef void cur_copy(ty_cur *c, uint8_t *out, size_t n) noexcept nogil:
    cdef size_t k
    while n > 0 and cur_more(c):
        k = c.end - c.p
        if k > n:
            k = n
        memcpy(out, c.p, k)
        c.p += k
        out += k
        n -= k


cdef ty_cur cur_sub(const ty_cur *c, uint64_t n) noexcept nogil:
    cdef ty_cur sub = c[0]
    if n <= <uint64_t>(c.end - c.p):
        sub.end = sub.p + n
        sub.after = 0
    else:
        sub.after = n - <uint64_t>(c.end - c.p)
    return sub
