# front > [peek] > routes
"""What the router must know of a PredictRequest, found in its bytes.

Strings of model_spec are checked for UTF-8, as protobuf checks them; what is only passed on is not looked into.
"""

from collections import namedtuple

from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

from tiltyard_router.status cimport (
    TY_ERR_KEY_DTYPE, TY_ERR_KEY_LONG, TY_ERR_KEY_SHAPE, TY_ERR_LIMIT, TY_ERR_MALFORMED, TY_ERR_NO_SPEC, TY_ERR_NOMEM,
    status_text)
from tiltyard_router.tensor cimport (
    DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_STRING, DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64, tensor_int,
    tensor_open, tensor_raw, ty_tensor, ty_values, values_next, values_start)
from tiltyard_router.wire cimport (
    WIRE_DEPTH, WIRE_LEN, WIRE_VARINT, cur_copy, cur_init, cur_left, cur_len, cur_more, cur_skip, cur_skip_field,
    cur_sub, cur_tag, ty_cur, ty_field, wire_field, wire_utf8, wire_varint)

cdef enum:                         # tags: field number and wire type
    TAG_MODEL_SPEC = 0x0A          # of PredictRequest
    TAG_INPUTS = 0x12
    TAG_KEY = 0x0A                 # of an entry of `inputs`

cdef enum:                         # field numbers of ModelSpec
    SPEC_NAME = 1
    SPEC_VERSION = 2
    SPEC_SIGNATURE = 3
    SPEC_LABEL = 4

cdef enum:
    SPEC_STACK = 512               # a model_spec that lies in pieces is gathered; up to here on the stack
    INT_CHARS = 20                 # of the longest 64-bit integer, with its sign


# ---- model_spec --------------------------------------------------------------------------------------------------

cdef int peek_request(const ty_iov *iov, uint32_t n_iov, ty_spec *spec) noexcept nogil:
    cdef ty_cur c
    cdef uint64_t total = cur_init(&c, iov, n_iov)
    cdef uint64_t start
    cdef uint32_t tag = 0
    cdef int rv
    spec.name_len = 0
    spec.label_len = 0
    spec.has_label = 0
    spec.has_version = 0
    spec.version = 0
    spec.n_cuts = 0
    spec.rest = spec.rest_inline
    spec.rest_len = 0
    spec.rest_cap = TY_SPEC_INLINE
    while cur_more(&c):
        start = total - cur_left(&c)
        if not cur_tag(&c, &tag):
            return TY_ERR_MALFORMED
        if tag == TAG_MODEL_SPEC:
            rv = take_spec(spec, &c)
            if rv != 0:
                return rv
            if spec.n_cuts == TY_SPEC_MAX_CUTS:
                return TY_ERR_LIMIT
            spec.cuts[spec.n_cuts].start = start
            spec.cuts[spec.n_cuts].end = total - cur_left(&c)
            spec.n_cuts += 1
        elif not cur_skip_field(&c, tag, WIRE_DEPTH):
            return TY_ERR_MALFORMED
    if spec.name_len == 0:
        return TY_ERR_NO_SPEC
    return 0


cdef void spec_clear(ty_spec *spec) noexcept nogil:
    if spec.rest is not spec.rest_inline:
        free(spec.rest)
    spec.rest = spec.rest_inline
    spec.rest_len = 0
    spec.rest_cap = TY_SPEC_INLINE


cdef int take_spec(ty_spec *spec, ty_cur *c) noexcept nogil:
    """Merge the model_spec field whose tag was read."""
    cdef uint8_t stack[SPEC_STACK]
    cdef uint8_t *whole
    cdef uint64_t n = 0
    cdef int rv
    if not cur_len(c, &n):
        return TY_ERR_MALFORMED
    if n > TY_SPEC_REST_MAX:
        return TY_ERR_LIMIT
    if n <= <uint64_t>(c.end - c.p):
        rv = merge_spec(spec, c.p, <size_t>n)
        c.p += n
        return rv
    whole = stack
    if n > SPEC_STACK:
        whole = <uint8_t *>malloc(<size_t>n)
        if whole is NULL:
            return TY_ERR_NOMEM
    cur_copy(c, whole, <size_t>n)
    rv = merge_spec(spec, whole, <size_t>n)
    if whole is not stack:
        free(whole)
    return rv


cdef int merge_spec(ty_spec *spec, const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef const uint8_t *start
    cdef ty_field f
    cdef int rv = 0
    while p < end and rv == 0:
        start = p
        p = wire_field(p, end, &f, WIRE_DEPTH - 1)
        if p is NULL:
            return TY_ERR_MALFORMED
        if f.wire != WIRE_LEN or f.number > SPEC_LABEL:
            rv = keep_rest(spec, start, p - start)
        elif f.number == SPEC_VERSION:
            if not spec.has_version:             # the oneof held nothing or a label: a fresh submessage
                spec.version = 0
            spec.has_version = 1
            spec.has_label = 0
            rv = merge_version(spec, f.p, f.n)
        elif not wire_utf8(f.p, f.n):
            rv = TY_ERR_MALFORMED
        elif f.number == SPEC_NAME:
            spec.name_len = f.n
            memcpy(spec.name, f.p, f.n if f.n < TY_SPEC_NAME_CAP else TY_SPEC_NAME_CAP)
        elif f.number == SPEC_LABEL:
            spec.has_label = 1
            spec.has_version = 0
            spec.label_len = f.n
            memcpy(spec.label, f.p, f.n if f.n < TY_SPEC_NAME_CAP else TY_SPEC_NAME_CAP)
        else:                                    # the signature's name
            rv = keep_rest(spec, start, p - start)
    return rv


cdef int merge_version(ty_spec *spec, const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef ty_field f
    while p < end:
        p = wire_field(p, end, &f, WIRE_DEPTH - 2)
        if p is NULL:
            return TY_ERR_MALFORMED
        if f.number == 1 and f.wire == WIRE_VARINT:
            spec.version = <int64_t>f.value
    return 0


cdef int keep_rest(ty_spec *spec, const uint8_t *p, size_t n) noexcept nogil:
    cdef size_t want = spec.rest_len + n
    cdef size_t cap = spec.rest_cap
    cdef uint8_t *grown
    if want > TY_SPEC_REST_MAX:
        return TY_ERR_LIMIT
    if want > cap:
        while cap < want:
            cap *= 2
        if spec.rest is spec.rest_inline:
            grown = <uint8_t *>malloc(cap)
            if grown is not NULL:
                memcpy(grown, spec.rest, spec.rest_len)
        else:
            grown = <uint8_t *>realloc(spec.rest, cap)
        if grown is NULL:
            return TY_ERR_NOMEM
        spec.rest = grown
        spec.rest_cap = cap
    memcpy(spec.rest + spec.rest_len, p, n)
    spec.rest_len = want
    return 0


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t n = 1
    while value >= 0x80:
        value >>= 7
        n += 1
    return n


cdef inline uint8_t *put_varint(uint8_t *out, uint64_t value) noexcept nogil:
    while value >= 0x80:
        out[0] = <uint8_t>(value | 0x80)
        out += 1
        value >>= 7
    out[0] = <uint8_t>value
    return out + 1


cdef size_t spec_write(const ty_spec *spec, const char *model, size_t model_len, int64_t version,
                       uint8_t *out, size_t cap) noexcept nogil:
    cdef size_t number = 1 + varint_size(<uint64_t>version) if version != 0 else 0   # of Int64Value
    cdef size_t content = 1 + varint_size(model_len) + model_len + 2 + number + spec.rest_len
    cdef size_t size = 1 + varint_size(content) + content
    if size > cap:
        return size
    out[0] = TAG_MODEL_SPEC
    out = put_varint(out + 1, content)
    out[0] = SPEC_NAME << 3 | WIRE_LEN
    out = put_varint(out + 1, model_len)
    memcpy(out, model, model_len)
    out += model_len
    out[0] = SPEC_VERSION << 3 | WIRE_LEN        # also when it is 0: the field's presence is what chooses a version
    out[1] = <uint8_t>number
    out += 2
    if number > 0:
        out[0] = 1 << 3 | WIRE_VARINT
        out = put_varint(out + 1, <uint64_t>version)
    memcpy(out, spec.rest, spec.rest_len)
    return size


# ---- the key in a tensor -----------------------------------------------------------------------------------------

cdef int peek_tensor_key(const ty_iov *iov, uint32_t n_iov, const char *name, size_t name_len,
                         uint8_t *out) noexcept nogil:
    cdef ty_cur c
    cdef ty_cur found
    cdef uint64_t n = 0
    cdef uint64_t found_n = 0
    cdef uint8_t *whole
    cdef uint32_t tag = 0
    cdef bint have = False
    cdef int rv
    cur_init(&c, iov, n_iov)
    while cur_more(&c):
        if not cur_tag(&c, &tag):
            return TY_ERR_MALFORMED
        if tag != TAG_INPUTS:
            if not cur_skip_field(&c, tag, WIRE_DEPTH):
                return TY_ERR_MALFORMED
            continue
        if not cur_len(&c, &n):
            return TY_ERR_MALFORMED
        rv = entry_is(&c, n, name, name_len)
        if rv < 0:
            return rv
        if rv > 0:                               # the last of repeated map keys counts
            have = True
            found = c
            found_n = n
        cur_skip(&c, n)
    if not have:
        return 0
    if found_n <= <uint64_t>(found.end - found.p):
        return key_of_entry(found.p, <size_t>found_n, out)
    whole = <uint8_t *>malloc(<size_t>found_n)
    if whole is NULL:
        return TY_ERR_NOMEM
    cur_copy(&found, whole, <size_t>found_n)
    rv = key_of_entry(whole, <size_t>found_n, out)
    free(whole)
    return rv


cdef int entry_is(const ty_cur *c, uint64_t n, const char *name, size_t name_len) noexcept nogil:
    """1 when the map entry in the next n bytes has this key, 0 when not, or TY_ERR_MALFORMED."""
    cdef ty_cur e = cur_sub(c, n)
    cdef uint64_t key_len = 0
    cdef uint32_t tag = 0
    cdef bint same = name_len == 0               # a missing key is the empty one
    while cur_more(&e):
        if not cur_tag(&e, &tag):
            return TY_ERR_MALFORMED
        if tag == TAG_KEY:
            if not cur_len(&e, &key_len):
                return TY_ERR_MALFORMED
            same = key_len == name_len and cur_equal(&e, <const uint8_t *>name, name_len)
            cur_skip(&e, key_len)
        elif not cur_skip_field(&e, tag, WIRE_DEPTH - 1):
            return TY_ERR_MALFORMED
    return same


cdef bint cur_equal(const ty_cur *c, const uint8_t *p, size_t n) noexcept nogil:
    """Whether the next n bytes, which must be there, are these."""
    cdef ty_cur at = c[0]
    cdef size_t k
    while n > 0 and cur_more(&at):
        k = at.end - at.p
        if k > n:
            k = n
        if memcmp(at.p, p, k) != 0:
            return False
        at.p += k
        p += k
        n -= k
    return True


cdef int key_of_entry(const uint8_t *entry, size_t n, uint8_t *out) noexcept nogil:
    cdef ty_tensor t
    cdef int32_t dtype
    if tensor_open(&t, entry, n) != 0:
        return TY_ERR_MALFORMED
    dtype = t.dtype
    if dtype == DT_STRING:
        if t.bad_shape or t.elements != t.rows or t.rows == 0 or t.content_len > 0:
            return TY_ERR_KEY_SHAPE              # (strings in tensor_content: TensorFlow's private format)
        return key_of_strings(&t, out)
    if (dtype == DT_INT64 or dtype == DT_INT32 or dtype == DT_INT16 or dtype == DT_INT8 or dtype == DT_UINT64
            or dtype == DT_UINT32 or dtype == DT_UINT16 or dtype == DT_UINT8):
        if t.bad_shape or t.elements != t.rows or t.rows == 0:
            return TY_ERR_KEY_SHAPE
        return key_of_ints(&t, out)
    return TY_ERR_KEY_DTYPE


cdef int key_of_strings(const ty_tensor *t, uint8_t *out) noexcept nogil:
    cdef ty_values v
    cdef const uint8_t *key = NULL
    cdef size_t key_len = 0
    cdef uint64_t at = 0
    values_start(&v, t)
    while at < t.elements and values_next(&v, t):
        if at == 0:
            key = v.run
            key_len = v.n
        elif v.n != key_len or memcmp(v.run, key, key_len) != 0:
            return TY_ERR_KEY_SHAPE
        at += 1
    if key_len > TY_KEY_MAX:
        return TY_ERR_KEY_LONG
    if key_len > 0:
        memcpy(out, key, key_len)
    return <int>key_len


cdef int key_of_ints(const ty_tensor *t, uint8_t *out) noexcept nogil:
    cdef ty_values v
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef uint64_t key = 0                        # of no values at all
    cdef uint64_t at = 0
    cdef uint64_t raw
    if t.content_len > 0:
        if t.content_len // t.size != t.elements or t.content_len % t.size != 0:
            return TY_ERR_KEY_SHAPE
        p = t.content
        end = p + t.content_len
        key = tensor_raw(p, t.size)
        while p < end:
            if tensor_raw(p, t.size) != key:
                return TY_ERR_KEY_SHAPE
            p += t.size
        return put_decimal(t.dtype, key, out)
    values_start(&v, t)
    while at < t.elements and values_next(&v, t):
        p = v.run
        end = p + v.n
        while at < t.elements and (p is NULL or p < end):
            raw = v.single
            if p is not NULL:
                p = wire_varint(p, end, &raw)
                if p is NULL:
                    return TY_ERR_MALFORMED
            raw = tensor_int(t.dtype, raw)
            if at == 0:
                key = raw
            elif raw != key:
                return TY_ERR_KEY_SHAPE
            at += 1
            if v.run is NULL:
                break
    return put_decimal(t.dtype, key, out)


cdef int put_decimal(int32_t dtype, uint64_t value, uint8_t *out) noexcept nogil:
    cdef uint8_t digits[INT_CHARS]
    cdef int n = 0
    cdef int at = 0
    value = tensor_int(dtype, value)
    if dtype != DT_UINT64 and <int64_t>value < 0:
        out[0] = c'-'
        at = 1
        value = 0 - value                        # also right for the smallest
    while n == 0 or value > 0:
        digits[n] = <uint8_t>(c'0' + value % 10)
        value //= 10
        n += 1
    while n > 0:
        n -= 1
        out[at] = digits[n]
        at += 1
    return at


# ---- for tests and tools -----------------------------------------------------------------------------------------

SpecResult = namedtuple("SpecResult", "name name_len label label_len version cuts rest")


class PeekError(ValueError):
    """The core refuses the message; ``status`` is one of ``tiltyard_router.status.OWN_STATUSES``."""

    def __init__(self, int status):
        super().__init__(status_text(status).decode("ascii"))
        self.status = status


cdef class _Pieces:
    """Copies of the pieces, each in a block of exactly its size, so that a sanitizer sees every read outside."""

    cdef ty_iov *iov                             # owned, and so is each piece
    cdef uint32_t n

    def __cinit__(self, pieces):
        cdef bytes piece
        cdef uint8_t *copy
        cdef Py_ssize_t size
        self.iov = <ty_iov *>malloc((len(pieces) + 1) * sizeof(ty_iov))
        if self.iov is NULL:
            raise MemoryError("pieces")
        for piece in pieces:
            size = len(piece)
            copy = <uint8_t *>malloc(size)
            if copy is NULL and size > 0:
                raise MemoryError("pieces")
            if size > 0:
                memcpy(copy, <const char *>piece, size)
            self.iov[self.n].p = copy
            self.iov[self.n].n = size
            self.n += 1

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.n):
            free(<void *>self.iov[i].p)
        free(self.iov)


def scan(pieces):
    """Find and merge the model_spec fields of a PredictRequest that lies in these pieces.

    Raises:
        PeekError: the core refuses the message.
    """
    cdef _Pieces held = _Pieces(pieces)
    cdef ty_spec spec
    cdef int rv
    with nogil:
        rv = peek_request(held.iov, held.n, &spec)
    try:
        if rv != 0:
            raise PeekError(rv)
        return SpecResult(
            spec.name[:min(spec.name_len, <size_t>TY_SPEC_NAME_CAP)],
            spec.name_len,
            spec.label[:min(spec.label_len, <size_t>TY_SPEC_NAME_CAP)] if spec.has_label else None,
            spec.label_len if spec.has_label else 0,
            spec.version if spec.has_version else None,
            tuple([(spec.cuts[i].start, spec.cuts[i].end) for i in range(spec.n_cuts)]),
            (<char *>spec.rest)[:spec.rest_len],
        )
    finally:
        spec_clear(&spec)


def rewrite(pieces, bytes model not None, int64_t version):
    """The message as it is forwarded: one model_spec for this model and version, then the rest untouched.

    Raises:
        PeekError: the core refuses the message.
    """
    cdef _Pieces held = _Pieces(pieces)
    cdef ty_spec spec
    cdef bytearray head
    cdef size_t size
    cdef uint64_t at = 0
    cdef int rv
    whole = b"".join(pieces)
    with nogil:
        rv = peek_request(held.iov, held.n, &spec)
    try:
        if rv != 0:
            raise PeekError(rv)
        size = spec_write(&spec, <const char *>model, len(model), version, NULL, 0)
        head = bytearray(size)
        if spec_write(&spec, <const char *>model, len(model), version, <uint8_t *><char *>head, size) != size:
            raise AssertionError("spec_write told two sizes")
        out = [bytes(head)]
        for i in range(spec.n_cuts):
            out.append(whole[at:spec.cuts[i].start])
            at = spec.cuts[i].end
        out.append(whole[at:])
        return b"".join(out)
    finally:
        spec_clear(&spec)


def tensor_key(pieces, bytes name not None):
    """The key bytes in the input tensor of this name; empty when there is none.

    Raises:
        PeekError: the core refuses the message or the tensor.
    """
    cdef _Pieces held = _Pieces(pieces)
    cdef uint8_t out[TY_KEY_MAX]
    cdef const char *text = name
    cdef size_t text_len = len(name)
    cdef int rv
    with nogil:
        rv = peek_tensor_key(held.iov, held.n, text, text_len, out)
    if rv < 0:
        raise PeekError(rv)
    return (<char *>out)[:rv]


def scan_many(pieces, int count, bytes model=None):
    """Do ``count`` times what the router does with one request, and drop it: for measuring.

    With ``model`` the new model_spec is written too.
    """
    cdef _Pieces held = _Pieces(pieces)
    cdef ty_spec spec
    cdef uint8_t out[1024]
    cdef const char *text = NULL
    cdef size_t text_len = 0
    cdef int i
    cdef int rv = 0
    if model is not None:
        text = model
        text_len = len(model)
    with nogil:
        for i in range(count):
            rv |= peek_request(held.iov, held.n, &spec)
            if text is not NULL:
                spec_write(&spec, text, text_len, i + 1, out, sizeof(out))
            spec_clear(&spec)
    if rv != 0:
        raise PeekError(rv)
