"""Header fields of one message."""

from libc.string cimport memcmp, memcpy, memset

from tiltyard_router.c_nghttp2 cimport (
    NGHTTP2_NV_FLAG_NONE, NGHTTP2_NV_FLAG_NO_COPY_NAME, NGHTTP2_NV_FLAG_NO_COPY_VALUE, NGHTTP2_NV_FLAG_NO_INDEX,
    nghttp2_nv, nghttp2_rcbuf, nghttp2_rcbuf_decref, nghttp2_rcbuf_get_buf, nghttp2_rcbuf_incref, nghttp2_vec)
from tiltyard_router.mem cimport mem_alloc, mem_free, ty_mem
from tiltyard_router.model cimport TY_HDR_BYTES, TY_HDR_MAX, ty_header, ty_headers
from tiltyard_router.status cimport TY_ERR_NOMEM

cdef struct ty_known:
    const char *name
    size_t n
    uint8_t token

cdef ty_known KNOWN[32]            # by slot_of: no two of the names below share a slot


cdef inline uint32_t slot_of(const uint8_t *name, size_t n) noexcept nogil:
    return <uint32_t>(n + 3 * name[n - 1] + 5 * name[n >> 1]) & 31


cdef int know(const char *name, size_t n, uint8_t token) except -1:
    cdef ty_known *slot = &KNOWN[slot_of(<const uint8_t *>name, n)]
    if slot.n != 0:
        raise AssertionError("two header names share a slot: find other factors for slot_of")
    slot.name = name
    slot.n = n
    slot.token = token
    return 0

know(b":path", 5, TY_H_PATH)
know(b":method", 7, TY_H_METHOD)
know(b":scheme", 7, TY_H_SCHEME)
know(b":status", 7, TY_H_STATUS)
know(b":authority", 10, TY_H_AUTHORITY)
know(b"te", 2, TY_H_TE)
know(b"user-agent", 10, TY_H_USER_AGENT)
know(b"content-type", 12, TY_H_CONTENT_TYPE)
know(b"content-length", 14, TY_H_CONTENT_LENGTH)
know(b"grpc-timeout", 12, TY_H_GRPC_TIMEOUT)
know(b"grpc-encoding", 13, TY_H_GRPC_ENCODING)
know(b"grpc-accept-encoding", 20, TY_H_GRPC_ACCEPT_ENCODING)
know(b"grpc-status", 11, TY_H_GRPC_STATUS)
know(b"grpc-message", 12, TY_H_GRPC_MESSAGE)


cdef inline uint8_t token_of(const uint8_t *name, size_t n) noexcept nogil:
    """Runs for every field of every message: one slot is looked at."""
    cdef const ty_known *known
    if n == 0:
        return TY_H_OTHER
    known = &KNOWN[slot_of(name, n)]
    if known.n == n and memcmp(known.name, name, n) == 0:
        return known.token
    if name[0] == c't' and n >= 9 and memcmp(name, b"tiltyard-", 9) == 0:
        return TY_H_TILTYARD
    return TY_H_PSEUDO if name[0] == c':' else TY_H_OTHER


cdef void headers_init(ty_headers *h, ty_header *own, uint32_t cap) noexcept nogil:
    memset(h, 0, sizeof(ty_headers))
    h.own = own
    h.items = own
    h.cap = cap


cdef void headers_clear(ty_headers *h, ty_mem *mem) noexcept nogil:
    cdef uint32_t i
    for i in range(h.n):
        nghttp2_rcbuf_decref(h.items[i].name_buf)
        nghttp2_rcbuf_decref(h.items[i].value_buf)
    if h.items is not h.own:
        mem_free(mem, h.items)
        h.cap = 0                      # the room is smaller again; 0 makes the next field ask for a block
        h.items = h.own
    h.n = 0
    h.bytes = 0
    h.overflow = 0
    h.is_post = 0
    h.status = 0
    memset(h.at, 0, sizeof(h.at))


cdef int grow(ty_headers *h, ty_mem *mem) noexcept nogil:
    cdef ty_header *more = <ty_header *>mem_alloc(mem, TY_HDR_MAX * sizeof(ty_header))
    if more is NULL:
        return TY_ERR_NOMEM
    memcpy(more, h.items, h.n * sizeof(ty_header))
    h.items = more
    h.cap = TY_HDR_MAX
    return 0


cdef inline int only_marked(ty_headers *h, uint8_t token, const uint8_t *value, size_t n) noexcept nogil:
    """Whether the field is of this hop only; keeps what is read of it."""
    if token == TY_H_METHOD:
        h.is_post = n == 4 and memcmp(value, b"POST", 4) == 0
    elif token == TY_H_STATUS:
        h.status = 0
        if n == 3:                     # digits: nghttp2 has checked them
            h.status = <uint16_t>((value[0] - c'0') * 100 + (value[1] - c'0') * 10 + value[2] - c'0')
    elif not (token == TY_H_SCHEME or token == TY_H_AUTHORITY or token == TY_H_TE or token == TY_H_PSEUDO
              or token == TY_H_CONTENT_LENGTH or token == TY_H_TILTYARD):
        return 0
    return 1


cdef int headers_add(ty_headers *h, ty_mem *mem, nghttp2_rcbuf *name, nghttp2_rcbuf *value) noexcept nogil:
    cdef nghttp2_vec nv = nghttp2_rcbuf_get_buf(name)
    cdef nghttp2_vec vv = nghttp2_rcbuf_get_buf(value)
    cdef uint8_t token = token_of(nv.base, nv.len)
    cdef ty_header *field
    if h.n == TY_HDR_MAX or h.bytes + nv.len + vv.len + 32 > TY_HDR_BYTES:
        h.overflow = 1
        return 0
    h.bytes += <uint32_t>(nv.len + vv.len + 32)
    if only_marked(h, token, vv.base, vv.len):
        return 0
    if h.n == h.cap and grow(h, mem) != 0:
        return TY_ERR_NOMEM
    nghttp2_rcbuf_incref(name)
    nghttp2_rcbuf_incref(value)
    field = &h.items[h.n]
    field.name_buf = name
    field.value_buf = value
    field.name = <const char *>nv.base
    field.value = <const char *>vv.base
    field.name_len = <uint32_t>nv.len
    field.value_len = <uint32_t>vv.len
    field.token = token
    h.n += 1
    h.at[token] = <uint8_t>h.n
    return 0


cdef ty_text headers_get(const ty_headers *h, uint8_t token) noexcept nogil:
    cdef ty_text text
    cdef uint32_t i = h.at[token]
    text.p = NULL
    text.n = 0
    if i != 0:
        text.p = h.items[i - 1].value
        text.n = h.items[i - 1].value_len
    return text


cdef void header_nv(const ty_header *field, nghttp2_nv *nv, uint8_t flags) noexcept nogil:
    text_nv(nv, field.name, field.name_len, field.value, field.value_len, flags)


cdef void text_nv(nghttp2_nv *nv, const char *name, size_t name_len, const char *value, size_t value_len,
                  uint8_t flags) noexcept nogil:
    nv.name = <uint8_t *>name
    nv.namelen = name_len
    nv.value = <uint8_t *>value
    nv.valuelen = value_len
    nv.flags = flags | NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE


cdef uint8_t name_flags(uint64_t *named, const char *name, size_t n) noexcept nogil:
    cdef uint64_t bit = <uint64_t>1 << ((n * 7 + <uint8_t>name[0] * 3 + <uint8_t>name[n // 2] * 5
                                         + <uint8_t>name[n - 1]) & 63)
    if named[0] & bit:
        return NGHTTP2_NV_FLAG_NO_INDEX
    named[0] |= bit
    return NGHTTP2_NV_FLAG_NONE


cdef size_t number_write(uint64_t value, char *out) noexcept nogil:
    cdef char digits[20]
    cdef size_t n = 0, i
    while True:
        digits[n] = <char>(c'0' + value % 10)
        n += 1
        value //= 10
        if value == 0:
            break
    for i in range(n):
        out[i] = digits[n - 1 - i]
    return n


cdef long long timeout_us(ty_text text) noexcept nogil:
    """gRPC over HTTP/2: at most 8 digits and one unit of H M S m u n."""
    cdef long long value = 0
    cdef size_t i
    cdef char unit
    if text.n < 2 or text.n > 9:
        return -1
    for i in range(text.n - 1):
        if text.p[i] < c'0' or text.p[i] > c'9':
            return -1
        value = value * 10 + (text.p[i] - c'0')
    unit = text.p[text.n - 1]
    if unit == c'H':
        return value * 3600 * 1000000
    if unit == c'M':
        return value * 60000000
    if unit == c'S':
        return value * 1000000
    if unit == c'm':
        return value * 1000
    if unit == c'u':
        return value
    if unit == c'n':
        return (value + 999) // 1000
    return -1


cdef int status_number(ty_text text) noexcept nogil:
    if text.n == 1 and c'0' <= text.p[0] <= c'9':
        return text.p[0] - c'0'
    if text.n == 2 and text.p[0] == c'1' and c'0' <= text.p[1] <= c'6':
        return 10 + text.p[1] - c'0'
    return -1


cdef size_t message_encode(const char *msg, char *out, size_t cap) noexcept nogil:
    cdef const char *hexdigits = b"0123456789ABCDEF"
    cdef size_t n = 0
    cdef uint8_t b
    while msg[0] != 0:
        b = <uint8_t>msg[0]
        if 0x20 <= b <= 0x7E and b != c'%':
            if n + 1 > cap:
                break
            out[n] = <char>b
            n += 1
        else:
            if n + 3 > cap:
                break
            out[n] = c'%'
            out[n + 1] = hexdigits[b >> 4]
            out[n + 2] = hexdigits[b & 15]
            n += 3
        msg += 1
    return n
