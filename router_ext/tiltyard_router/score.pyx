# back > [score] > tap
"""Numbers that metrics ask for, read from the bytes of a PredictResponse as they stream by.

An entry of ``outputs`` that lies whole in the bytes at hand is read there. One that is cut is collected first, unless
its head already says that no metric wants it. A reason belongs to one metric, but for MALFORMED: then protobuf would
give no answer at all. What TensorFlow would not take for a tensor (a negative dimension, tensor_content of another
length than the shape asks for) is INDEX; what nothing is read from is not looked into.
"""

from libc.math cimport isfinite
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from tiltyard_router.tensor cimport (
    DT_STRING, tensor_number, tensor_open, tensor_raw, ty_tensor, ty_values, values_next, values_start)
from tiltyard_router.wire cimport (
    WIRE_DEPTH, WIRE_FIXED32, WIRE_FIXED64, WIRE_GROUP, WIRE_GROUP_END, WIRE_LEN, WIRE_LEN_MAX, WIRE_VARINT, ty_field,
    wire_field, wire_len, wire_tag, wire_varint)

cdef enum:                         # ty_reader.state: what the next byte is
    AT_TAG = 0                     # of a field of the message, or of an open group in it
    AT_VARINT = 1                  # of a varint that nobody wants
    AT_LEN = 2                     # of the length of a field that nobody wants
    AT_ENTRY_LEN = 3               # of the length of an entry of `outputs`
    AT_SKIP = 4                    # `left` bytes that nobody wants
    AT_HEAD = 5                    # `left` bytes of an entry; whether it is wanted is not known yet
    AT_COLLECT = 6                 # `left` bytes of an entry that is wanted

cdef enum:                         # tags
    TAG_OUTPUTS = 0x0A             # of PredictResponse
    TAG_KEY = 0x0A                 # of an entry
    TAG_VALUE = 0x12

cdef enum:
    ENTRY_MAX = 67108864           # a wanted entry that must be collected and is longer is UNSCORED_LIMIT
    ENTRY_FIRST = 1024             # first block that an entry is collected in
    GROUPS_BYTES = WIRE_DEPTH * 4

cdef enum:                         # what entry_head says
    HEAD_SHORT = 0                 # more bytes are needed to tell
    HEAD_PLAIN = 1                 # one key, then one value to the end: as every library writes it
    HEAD_ODD = 2                   # anything else that may yet be an entry

cdef struct ty_sum:                # elements read for one metric
    uint64_t rows                  # read so far
    double total


# ---- the message -------------------------------------------------------------------------------------------------

cdef void reader_init(ty_reader *r, const ty_metric *metrics, uint32_t n_metrics) noexcept nogil:
    memset(r, 0, sizeof(ty_reader))
    r.metrics = metrics
    r.n_metrics = n_metrics if n_metrics < TY_MAX_METRICS else TY_MAX_METRICS
    set_all(r, TY_UNSCORED_MISSING)


cdef void reader_clear(ty_reader *r) noexcept nogil:
    free(r.entry)
    r.entry = NULL
    r.entry_len = 0
    r.entry_cap = 0


cdef void reader_finish(ty_reader *r) noexcept nogil:
    if r.state != AT_TAG or r.shift != 0 or r.n_open != 0:
        r.failed = 1                             # it ends inside a field
    if r.failed:
        set_all(r, TY_UNSCORED_MALFORMED)
    reader_clear(r)


cdef void reader_feed(ty_reader *r, const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    if r.n_metrics == 0:
        return
    while p < end and not r.failed:
        if r.state == AT_SKIP:
            p += step(r, end - p)
            if r.left == 0:
                r.state = AT_TAG
        elif r.state == AT_HEAD or r.state == AT_COLLECT:
            p = feed_entry(r, p, end)
        else:
            if r.state == AT_TAG and r.shift == 0 and r.n_open == 0:
                p = feed_whole(r, p, end)
                if p == end or r.failed:
                    return
            p = feed_varint(r, p, end)


cdef const uint8_t *feed_whole(ty_reader *r, const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Take fields as long as they lie whole in the chunk. Leaves the rest, and what may be malformed, to the others."""
    cdef const uint8_t *q
    cdef uint32_t tag = 0
    cdef size_t n = 0
    cdef ty_field f
    while p < end and not r.failed:
        q = wire_tag(p, end, &tag)
        if q is NULL:
            return p
        if tag == TAG_OUTPUTS:
            q = wire_len(q, end, &n)
            if q is NULL:
                return p
            if not small_and_unwanted(r, q, n):
                take_entry(r, q, n)
            p = q + n
        elif tag & 7 == WIRE_GROUP:
            return p
        else:
            q = wire_field(p, end, &f, 0)
            if q is NULL:
                return p
            p = q
    return p


cdef const uint8_t *feed_varint(ty_reader *r, const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Go on with a tag, a length or a value, byte by byte."""
    cdef uint32_t most = 10 if r.state == AT_VARINT else 5
    cdef uint8_t byte
    while p < end:
        byte = p[0]
        p += 1
        r.varint |= <uint64_t>(byte & 0x7F) << r.shift
        r.shift += 7
        if byte < 0x80:
            on_varint(r, r.varint)
            r.varint = 0
            r.shift = 0
            break
        if r.shift == 7 * most:
            r.failed = 1
            break
    return p


cdef void on_varint(ty_reader *r, uint64_t value) noexcept nogil:
    if r.state == AT_TAG:
        on_tag(r, value)
    elif r.state == AT_VARINT:
        r.state = AT_TAG
    elif value > WIRE_LEN_MAX:
        r.failed = 1
    elif r.state == AT_LEN:
        r.left = value
        r.state = AT_SKIP if value > 0 else AT_TAG
    else:
        r.left = value
        r.state = AT_HEAD
        r.entry_len = 0
        if value == 0:
            take_entry(r, <const uint8_t *>&r.state, 0)
            r.state = AT_TAG


cdef void on_tag(ty_reader *r, uint64_t tag) noexcept nogil:
    cdef uint32_t wire = tag & 7
    if tag < 8 or tag > 0xFFFFFFFFU:
        r.failed = 1
    elif wire == WIRE_LEN:
        r.state = AT_ENTRY_LEN if tag == TAG_OUTPUTS and r.n_open == 0 else AT_LEN
    elif wire == WIRE_VARINT:
        r.state = AT_VARINT
    elif wire == WIRE_FIXED32 or wire == WIRE_FIXED64:
        r.left = 4 if wire == WIRE_FIXED32 else 8
        r.state = AT_SKIP
    elif wire == WIRE_GROUP:
        open_group(r, <uint32_t>tag >> 3)
    elif wire == WIRE_GROUP_END and r.n_open > 0:
        r.n_open -= 1
        if (<uint32_t *>r.entry)[r.n_open] != <uint32_t>tag >> 3:
            r.failed = 1
    else:
        r.failed = 1


cdef void open_group(ty_reader *r, uint32_t number) noexcept nogil:
    """No entry is being collected between two fields, so its block has room for the numbers of open groups."""
    if r.n_open == WIRE_DEPTH or not reserve(r, GROUPS_BYTES, GROUPS_BYTES):
        r.failed = 1
        return
    (<uint32_t *>r.entry)[r.n_open] = number
    r.n_open += 1


cdef inline size_t step(ty_reader *r, size_t n) noexcept nogil:
    """How many of the next n bytes belong to the field; they are counted off."""
    if n > r.left:
        n = <size_t>r.left
    r.left -= n
    return n


# ---- an entry that is cut ----------------------------------------------------------------------------------------

cdef const uint8_t *feed_entry(ty_reader *r, const uint8_t *p, const uint8_t *end) noexcept nogil:
    cdef uint64_t total = r.entry_len + r.left
    cdef const uint8_t *key = NULL
    cdef size_t key_len = 0
    cdef size_t want = 0
    cdef size_t k
    cdef int head
    if r.state == AT_HEAD:
        if r.entry_len == 0 and <uint64_t>(end - p) >= r.left:   # only its length was cut off
            take_entry(r, p, <size_t>r.left)
            p += r.left
            r.left = 0
            r.state = AT_TAG
            return p
        head = entry_head(r.entry, r.entry_len, total, &want, &key, &key_len)
        if head != HEAD_SHORT:
            r.state = AT_COLLECT
            if head == HEAD_PLAIN and not wanted(r, key, key_len):
                give_up(r)
            elif total > ENTRY_MAX:
                over_limit(r, head == HEAD_PLAIN, key, key_len)
            return p
        want -= r.entry_len                      # entry_head asked for so many bytes
    else:
        want = <size_t>r.left
    k = end - p
    if k > want:
        k = want
    if not reserve(r, r.entry_len + k, total):
        over_limit(r, False, NULL, 0)
        return p
    memcpy(r.entry + r.entry_len, p, k)
    r.entry_len += k
    r.left -= k
    if r.left == 0:
        take_entry(r, r.entry, r.entry_len)
        r.entry_len = 0
        r.state = AT_TAG
    return p + k


cdef void give_up(ty_reader *r) noexcept nogil:
    """Step over what is left of the entry."""
    r.entry_len = 0
    r.state = AT_SKIP if r.left > 0 else AT_TAG


cdef void over_limit(ty_reader *r, bint known, const uint8_t *key, size_t key_len) noexcept nogil:
    """The entry cannot be kept: unscored are the metrics it was for, or, its key unknown, all it may have been for."""
    cdef uint32_t i
    for i in range(r.n_metrics):
        if i < TY_MAX_METRICS and (not known or is_for(&r.metrics[i], key, key_len)):
            r.reasons[i] = TY_UNSCORED_LIMIT
    give_up(r)


cdef bint reserve(ty_reader *r, size_t n, uint64_t most) noexcept nogil:
    """Room for n bytes of an entry of `most`: doubled as bytes come, never by what a length claims."""
    cdef size_t cap = r.entry_cap if r.entry_cap > 0 else ENTRY_FIRST
    cdef uint8_t *grown
    if n <= r.entry_cap:
        return True
    while cap < n:
        cap *= 2
    if cap > most and cap > ENTRY_FIRST:
        cap = <size_t>most
    grown = <uint8_t *>realloc(r.entry, cap)
    if grown is NULL:
        return False
    r.entry = grown
    r.entry_cap = cap
    return True


cdef int entry_head(const uint8_t *p, size_t have, uint64_t total, size_t *want, const uint8_t **key,
                    size_t *key_len) noexcept nogil:
    """What the first `have` of `total` bytes say of an entry; HEAD_SHORT sets how many it takes to tell."""
    cdef size_t start = 2                        # of the key: after its tag and a length of one byte
    cdef uint64_t value = 0
    cdef const uint8_t *q
    want[0] = <size_t>(3 if total > 3 else total)
    if have < want[0]:
        return HEAD_SHORT
    if have < 3 or p[0] != TAG_KEY:
        return HEAD_ODD
    key_len[0] = p[1] & 0x7F
    if p[1] >= 0x80:
        if p[2] >= 0x80:                         # a key of 16 KiB
            return HEAD_ODD
        key_len[0] |= <size_t>p[2] << 7
        start = 3
    if start + key_len[0] + 2 > total:           # no room for a value
        return HEAD_ODD
    want[0] = start + key_len[0] + 6             # the value's tag, and the longest length
    if want[0] > total:
        want[0] = <size_t>total
    if have < want[0]:
        return HEAD_SHORT
    key[0] = p + start
    q = p + start + key_len[0]
    if q[0] != TAG_VALUE:
        return HEAD_ODD
    q = wire_varint(q + 1, p + want[0], &value)
    if q is NULL or value != total - <uint64_t>(q - p):
        return HEAD_ODD
    return HEAD_PLAIN


# ---- a whole entry -----------------------------------------------------------------------------------------------

cdef inline bint is_for(const ty_metric *m, const uint8_t *key, size_t key_len) noexcept nogil:
    return m.output_len == key_len and memcmp(m.output, key, key_len) == 0


cdef inline bint wanted(const ty_reader *r, const uint8_t *key, size_t key_len) noexcept nogil:
    cdef uint32_t i
    for i in range(r.n_metrics):
        if is_for(&r.metrics[i], key, key_len):
            return True
    return False


cdef inline bint small_and_unwanted(const ty_reader *r, const uint8_t *p, size_t n) noexcept nogil:
    """What entry_head and `wanted` say, for the most frequent entry: lengths of one byte, no metric's output."""
    cdef size_t key_len
    if n < 4 or p[0] != TAG_KEY:
        return False
    key_len = p[1]
    return (key_len + 4 <= n and key_len < 0x80 and p[key_len + 2] == TAG_VALUE and p[key_len + 3] < 0x80
            and p[key_len + 3] == n - key_len - 4 and not wanted(r, p + 2, key_len))


cdef void take_entry(ty_reader *r, const uint8_t *p, size_t n) noexcept nogil:
    """The last of repeated map keys counts: each one read writes over what was before."""
    cdef const uint8_t *key = NULL
    cdef size_t key_len = 0
    cdef size_t want = 0
    cdef ty_tensor t
    cdef uint32_t i
    if entry_head(p, n, n, &want, &key, &key_len) == HEAD_PLAIN and not wanted(r, key, key_len):
        return
    if tensor_open(&t, p, n) != 0:
        r.failed = 1
        return
    for i in range(r.n_metrics):
        if is_for(&r.metrics[i], t.key, t.key_len):
            r.reasons[i] = measure(&t, &r.metrics[i], &r.values[i])
            if r.reasons[i] == TY_UNSCORED_MALFORMED:
                r.failed = 1


cdef uint8_t measure(const ty_tensor *t, const ty_metric *m, double *out) noexcept nogil:
    """The mean over the rows of one element of each; TY_SCORED or the reason why there is none."""
    cdef ty_sum sum
    cdef uint64_t row_len
    cdef uint8_t reason
    if t.field == 0 or t.dtype == DT_STRING:
        return TY_UNSCORED_DTYPE
    if t.bad_shape or t.elements == 0:
        return TY_UNSCORED_INDEX
    row_len = t.elements // t.rows
    if m.index < 0 or <uint64_t>m.index >= row_len:
        return TY_UNSCORED_INDEX
    sum.rows = 0
    sum.total = 0
    if t.content_len > 0:
        if t.content_len // t.size != t.elements or t.content_len % t.size != 0:
            return TY_UNSCORED_INDEX
        reason = sum_packed(&sum, t, m, t.content, t.elements, <uint64_t>m.index, row_len)
    else:
        reason = sum_values(&sum, t, m, row_len)
    if reason != TY_SCORED:
        return reason
    out[0] = sum.total / <double>t.rows
    return TY_SCORED if isfinite(out[0]) else TY_UNSCORED_NAN


cdef inline bint add(ty_sum *sum, const ty_metric *m, double value, uint64_t times) noexcept nogil:
    """One element, the same in so many rows; False when it is no finite number."""
    if not isfinite(value):
        return False
    if m.has_above:
        value = 1.0 if value > m.above else 0.0
    sum.total += value * <double>times
    sum.rows += times
    return True


cdef uint8_t sum_packed(ty_sum *sum, const ty_tensor *t, const ty_metric *m, const uint8_t *p, uint64_t n,
                        uint64_t at, uint64_t row_len) noexcept nogil:
    """Elements `at`, `at + row_len`, ... of the n at p, which are `size` bytes each; as many as rows are missing."""
    while sum.rows < t.rows and at < n:
        if not add(sum, m, tensor_number(t.dtype, tensor_raw(p + at * t.size, t.size)), 1):
            return TY_UNSCORED_NAN
        at += row_len
    return TY_SCORED


cdef uint8_t sum_values(ty_sum *sum, const ty_tensor *t, const ty_metric *m, uint64_t row_len) noexcept nogil:
    cdef ty_values v
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef uint64_t at = 0                         # number of the run's first element
    cdef uint64_t next_at = <uint64_t>m.index    # number of the element that is wanted next
    cdef uint64_t n
    cdef uint64_t raw = 0                        # the last element; zero when there is none
    cdef uint8_t reason
    values_start(&v, t)
    while sum.rows < t.rows and values_next(&v, t):
        if t.wire != WIRE_VARINT:
            if v.n % t.size != 0:
                return TY_UNSCORED_MALFORMED
            n = v.n // t.size
            if n == 0:
                continue
            if next_at < at + n:
                reason = sum_packed(sum, t, m, v.run, n, next_at - at, row_len)
                if reason != TY_SCORED:
                    return reason
                next_at = <uint64_t>m.index + sum.rows * row_len
            at += n
            raw = tensor_raw(v.run + v.n - t.size, t.size)
            continue
        p = v.run
        end = p + v.n
        while sum.rows < t.rows and (p is NULL or p < end):
            raw = v.single
            if p is not NULL:
                p = wire_varint(p, end, &raw)
                if p is NULL:
                    return TY_UNSCORED_MALFORMED
            if at == next_at:
                if not add(sum, m, tensor_number(t.dtype, raw), 1):
                    return TY_UNSCORED_NAN
                next_at += row_len
            at += 1
            if v.run is NULL:
                break
    if sum.rows < t.rows and not add(sum, m, tensor_number(t.dtype, raw), t.rows - sum.rows):
        return TY_UNSCORED_NAN
    return TY_SCORED


cdef inline void set_all(ty_reader *r, uint8_t reason) noexcept nogil:
    memset(r.reasons, reason, TY_MAX_METRICS)


# ---- for tests and tools -----------------------------------------------------------------------------------------

#: Names of the reasons why an answer gave no value, by their number.
REASONS = {
    TY_UNSCORED_ERROR: "error",
    TY_UNSCORED_MISSING: "missing",
    TY_UNSCORED_DTYPE: "dtype",
    TY_UNSCORED_INDEX: "index",
    TY_UNSCORED_NAN: "nan",
    TY_UNSCORED_MALFORMED: "malformed",
    TY_UNSCORED_LIMIT: "limit",
}


cdef class _Metrics:
    """Metrics as the core takes them, from ``(output, index, above)``."""

    cdef ty_metric items[TY_MAX_METRICS]
    cdef uint32_t n
    cdef list names                              # what the items point to

    def __cinit__(self, metrics):
        cdef bytes output
        if len(metrics) > TY_MAX_METRICS:
            raise ValueError(f"{len(metrics)} metrics; at most {TY_MAX_METRICS}")
        self.names = []
        for name, index, above in metrics:
            output = name
            self.names.append(output)
            self.items[self.n].name = output
            self.items[self.n].name_len = len(output)
            self.items[self.n].output = output
            self.items[self.n].output_len = len(output)
            self.items[self.n].index = index
            self.items[self.n].has_above = above is not None
            self.items[self.n].above = 0.0 if above is None else above
            self.n += 1


def read(pieces, metrics):
    """What each metric ``(output, index, above)`` reads from a PredictResponse that comes in these pieces.

    Returns:
        A float, or the name of the reason why there is none.
    """
    cdef _Metrics wants = _Metrics(metrics)
    cdef ty_reader r
    cdef bytes piece
    cdef uint8_t *copy
    cdef size_t n
    reader_init(&r, wants.items, wants.n)
    try:
        for piece in pieces:
            n = len(piece)
            copy = <uint8_t *>malloc(n)          # a block of exactly its size: sanitizers see every read outside
            if copy is NULL and n > 0:
                raise MemoryError("piece")
            if n > 0:
                memcpy(copy, <const char *>piece, n)
            reader_feed(&r, copy, n)
            free(copy)
        reader_finish(&r)
        return [r.values[i] if r.reasons[i] == TY_SCORED else REASONS[r.reasons[i]] for i in range(wants.n)]
    finally:
        reader_clear(&r)


def read_many(bytes message not None, metrics, int count):
    """Read a message ``count`` times, and drop what it says: for measuring."""
    cdef _Metrics wants = _Metrics(metrics)
    cdef ty_reader r
    cdef const uint8_t *p = message
    cdef size_t n = len(message)
    cdef double total = 0
    cdef int _i
    with nogil:
        for _i in range(count):
            reader_init(&r, wants.items, wants.n)
            reader_feed(&r, p, n)
            reader_finish(&r)
            total += r.values[0]
            reader_clear(&r)
    return total
