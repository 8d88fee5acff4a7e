# front > [predict] > pool
"""From a whole PredictRequest to an arm: peek, routes, split, rewrite, receipt.

The only place where an arm is chosen. Runs once a request, on the loop's thread.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy

from tiltyard_router.clock cimport clock_second
from tiltyard_router.headers cimport TY_H_OTHER, TY_H_USER_AGENT, ty_text
from tiltyard_router.mem cimport buf_bytes, buf_decref, buf_new, mem_alloc, mem_free, ty_buf
from tiltyard_router.model cimport TY_MSG_CAP, ty_header, ty_loop, ty_stream
from tiltyard_router.peek cimport (
    TY_KEY_MAX, TY_SPEC_NAME_CAP, peek_request, peek_tensor_key, spec_clear, spec_write, ty_iov, ty_spec)
from tiltyard_router.queue cimport queue_iov, queue_segments, queue_splice
from tiltyard_router.receipt cimport TY_RECEIPT_FORCED, TY_RECEIPT_KEYED, receipt_write
from tiltyard_router.routes cimport routes_find, ty_arm, ty_pipeline
from tiltyard_router.score cimport reader_init
from tiltyard_router.split cimport split_arm, split_bucket, split_hash, split_pick, split_slot
from tiltyard_router.status cimport (
    GRPC_INVALID_ARGUMENT, GRPC_NOT_FOUND, GRPC_RESOURCE_EXHAUSTED, TY_ERR_KEY_DTYPE, TY_ERR_KEY_LONG, TY_ERR_KEY_SHAPE,
    TY_ERR_LIMIT, TY_ERR_MALFORMED, TY_ERR_NOMEM, TY_ERR_NO_SPEC)
from tiltyard_router.tap cimport tap_assign, tap_block, tap_uncounted, ty_block_key

cdef enum:
    IOV_INLINE = 64
    HEAD_INLINE = 512              # model_spec fields are small; a larger one is written a second time


cdef int say(ty_stream *st, int status, const char *msg) noexcept nogil:
    snprintf(st.msg, TY_MSG_CAP, b"%s", msg)
    return status


cdef int predict_route(ty_stream *st) noexcept nogil:
    cdef ty_loop *loop = st.loop
    cdef ty_iov few[IOV_INLINE]
    cdef ty_iov *iov = few
    cdef uint32_t n = queue_segments(&st.out)
    cdef ty_spec spec
    cdef int status, count, rv
    if n > IOV_INLINE:
        iov = <ty_iov *>mem_alloc(&loop.mem, n * sizeof(ty_iov))
        if iov is NULL:
            return say(st, GRPC_RESOURCE_EXHAUSTED, b"out of memory")
    count = queue_iov(&st.out, 5, iov, n)
    rv = peek_request(iov, <uint32_t>count, &spec)
    if rv != 0:
        status = peek_refusal(st, rv)
    else:
        status = choose(st, &spec, iov, <uint32_t>count)
        if status == 0:
            status = rewrite(st, &spec)
    spec_clear(&spec)
    if iov is not few:
        mem_free(&loop.mem, iov)
    return status


cdef int peek_refusal(ty_stream *st, int rv) noexcept nogil:
    if rv == TY_ERR_NO_SPEC:
        return say(st, GRPC_INVALID_ARGUMENT, b"the request has no model_spec.name; set it to the name of a pipeline")
    if rv == TY_ERR_LIMIT:
        return say(st, GRPC_INVALID_ARGUMENT, b"the request's model_spec is too large")
    if rv == TY_ERR_NOMEM:
        return say(st, GRPC_RESOURCE_EXHAUSTED, b"out of memory")
    return say(st, GRPC_INVALID_ARGUMENT, b"the request is no valid tensorflow.serving.PredictRequest")


cdef int choose(ty_stream *st, const ty_spec *spec, const ty_iov *iov, uint32_t n_iov) noexcept nogil:
    """Sets pipeline, arm and receipt, and counts the assignment. 0 or a gRPC status."""
    cdef ty_loop *loop = st.loop
    cdef ty_pipeline *p
    cdef uint8_t key[TY_KEY_MAX]
    cdef int key_len, bucket = -1
    cdef uint32_t slot, i
    cdef uint8_t flags = 0
    cdef int shown = <int>(spec.name_len if spec.name_len < 128 else 128)
    p = routes_find(loop.routes, spec.name, spec.name_len) if spec.name_len <= TY_SPEC_NAME_CAP else NULL
    if p is NULL:
        snprintf(st.msg, TY_MSG_CAP, b"no pipeline '%.*s' is deployed; deploy it or check model_spec.name", shown,
                 spec.name)
        return GRPC_NOT_FOUND
    st.routes = loop.routes
    st.routes.refs += 1
    st.pipeline = p
    if spec.has_version:
        snprintf(st.msg, TY_MSG_CAP, b"pipeline '%.*s' chooses the version; name an arm by version_label, or leave "
                 b"both empty", shown, spec.name)
        return GRPC_INVALID_ARGUMENT
    if spec.has_label and spec.label_len > 0:
        i = forced_arm(p, spec)
        if i == p.n_arms:
            snprintf(st.msg, TY_MSG_CAP, b"pipeline '%.*s' has no arm '%.*s'; name an arm by version_label, or leave "
                     b"it empty", shown, spec.name, <int>(spec.label_len if spec.label_len < 64 else 64), spec.label)
            return GRPC_INVALID_ARGUMENT
        flags = TY_RECEIPT_FORCED
    else:
        key_len = find_key(st, p, iov, n_iov, key)
        if key_len < 0:
            return key_refusal(st, p, key_len)
        if key_len > 0:
            slot = split_slot(split_hash(p.salt, p.salt_len, key, <size_t>key_len))
            i = split_arm(&p.split, slot)
            bucket = split_bucket(p.salt, p.salt_len, key, <size_t>key_len)
            flags = TY_RECEIPT_KEYED
        else:
            i = split_pick(&p.split, random64(loop))
    st.arm = &p.arms[i]
    assign(st, i, flags, bucket)
    return 0


cdef uint64_t random64(ty_loop *loop) noexcept nogil:
    """xorshift128+ (Vigna, 2017): fast, and no one's safety rests on it."""
    cdef uint64_t a = loop.rng[0]
    cdef uint64_t b = loop.rng[1]
    loop.rng[0] = b
    a ^= a << 23
    loop.rng[1] = a ^ b ^ (a >> 18) ^ (b >> 5)
    return loop.rng[1] + b


cdef uint32_t forced_arm(const ty_pipeline *p, const ty_spec *spec) noexcept nogil:
    cdef uint32_t i
    for i in range(p.n_arms):
        if p.arms[i].name_len == spec.label_len and memcmp(p.arms[i].name, spec.label, spec.label_len) == 0:
            return i
    return p.n_arms


cdef void assign(ty_stream *st, uint32_t i, uint8_t flags, int bucket) noexcept nogil:
    """Counts the request for its arm (never a forced one) and signs its receipt."""
    cdef ty_loop *loop = st.loop
    cdef ty_pipeline *p = st.pipeline
    cdef ty_arm *arm = st.arm
    cdef int64_t now = clock_second(loop)
    cdef ty_block_key key
    if not flags & TY_RECEIPT_FORCED:
        if arm.block is NULL:
            key.pipeline = p.key
            key.deployment_uid = p.uid
            key.epoch = p.epoch
            key.arm = arm.name
            key.arm_index = i
            key.share_slots = arm.share_slots
            key.metrics = p.metrics
            key.n_metrics = p.n_metrics
            arm.block = tap_block(loop.tap, &key)
        if arm.block is NULL:
            tap_uncounted(loop.tap)
        else:
            st.block = arm.block
            st.second = tap_assign(loop.tap, arm.block, now)
            st.counted = 1
    if loop.signer is not NULL:
        st.has_receipt = receipt_write(loop.signer, <uint8_t>(i | flags), bucket, p.epoch, arm.share_slots,
                                       <uint32_t>now, st.receipt) == 0
    reader_init(&st.reader, p.metrics, p.n_metrics)


cdef int rewrite(ty_stream *st, const ty_spec *spec) noexcept nogil:
    """A new head (gRPC prefix and model_spec) in front of the untouched rest. 0 or a gRPC status."""
    cdef ty_loop *loop = st.loop
    cdef ty_arm *arm = st.arm
    cdef ty_buf *head = NULL
    cdef size_t n = 0, cap = HEAD_INLINE
    cdef uint64_t length
    cdef uint32_t i
    cdef uint8_t *p
    cdef int rv
    while True:
        head = buf_new(&loop.mem, 5 + cap)
        if head is NULL:
            return say(st, GRPC_RESOURCE_EXHAUSTED, b"out of memory")
        n = spec_write(spec, arm.model, arm.model_len, arm.version, buf_bytes(head) + 5, cap)
        if n <= cap:
            break
        buf_decref(head)
        cap = n
    length = st.msg_len + n
    for i in range(spec.n_cuts):
        length -= spec.cuts[i].end - spec.cuts[i].start
    p = buf_bytes(head)
    p[0] = 0
    p[1] = <uint8_t>(length >> 24)
    p[2] = <uint8_t>(length >> 16)
    p[3] = <uint8_t>(length >> 8)
    p[4] = <uint8_t>length
    head.used = <uint32_t>(5 + n)
    rv = queue_splice(&st.out, head, 5, spec.cuts, spec.n_cuts)
    buf_decref(head)
    if rv != 0:
        return say(st, GRPC_RESOURCE_EXHAUSTED, b"out of memory")
    st.out.keep = 1                    # until answer headers come: a call that surely did not run is sent again
    st.out.ended = 1
    return 0


# ---------------------------------------------------------------- the key

cdef int find_key(ty_stream *st, const ty_pipeline *p, const ty_iov *iov, uint32_t n_iov, uint8_t *out) noexcept nogil:
    """Key bytes from the metadata, else from the tensor. Length, 0 for none, or a TY_ERR_KEY_*."""
    cdef int n
    if p.hash_key_len == 0:
        return 0
    n = metadata_key(st, p, out)
    if n != 0:
        return n
    return peek_tensor_key(iov, n_iov, p.hash_key, p.hash_key_len, out)


cdef int metadata_key(const ty_stream *st, const ty_pipeline *p, uint8_t *out) noexcept nogil:
    """The last metadata value of that name: as sent, or decoded where the name ends with -bin."""
    cdef uint32_t i = st.request.n
    cdef size_t n = p.hash_key_len
    cdef const ty_header *field
    cdef ty_text value
    cdef int named_bin = n > 4 and memcmp(p.hash_key + n - 4, b"-bin", 4) == 0
    while i > 0:
        i -= 1
        field = &st.request.items[i]
        if field.token != TY_H_OTHER and field.token != TY_H_USER_AGENT:
            continue
        if field.name_len < n or memcmp(field.name, p.hash_key, n) != 0:
            continue
        if field.name_len == n + 4 and memcmp(field.name + n, b"-bin", 4) == 0 or field.name_len == n and named_bin:
            value.p = field.value
            value.n = field.value_len
            return base64_key(value, out)
        if field.name_len == n:
            if field.value_len > TY_KEY_MAX:
                return TY_ERR_KEY_LONG
            memcpy(out, field.value, field.value_len)
            return <int>field.value_len
    return 0


cdef int base64_value(uint8_t c) noexcept nogil:
    if c'A' <= c <= c'Z':
        return c - c'A'
    if c'a' <= c <= c'z':
        return c - c'a' + 26
    if c'0' <= c <= c'9':
        return c - c'0' + 52
    if c == c'+':
        return 62
    if c == c'/':
        return 63
    return -1


cdef int base64_key(ty_text text, uint8_t *out) noexcept nogil:
    """gRPC over HTTP/2: padding is optional, several values may be joined by commas (the last counts)."""
    cdef size_t i, begin = 0, end = text.n
    cdef uint32_t bits = 0
    cdef int have = 0, v, n = 0
    for i in range(text.n):
        if text.p[i] == c',':
            begin = i + 1
    while end > begin and text.p[end - 1] == c'=':
        end -= 1
    if (end - begin) % 4 == 1:
        return TY_ERR_MALFORMED
    for i in range(begin, end):
        v = base64_value(<uint8_t>text.p[i])
        if v < 0:
            return TY_ERR_MALFORMED
        bits = (bits << 6) | <uint32_t>v
        have += 6
        if have >= 8:
            have -= 8
            if n == TY_KEY_MAX:
                return TY_ERR_KEY_LONG
            out[n] = <uint8_t>(bits >> have)
            n += 1
    return n


cdef int key_refusal(ty_stream *st, const ty_pipeline *p, int rv) noexcept nogil:
    if rv == TY_ERR_KEY_DTYPE:
        snprintf(st.msg, TY_MSG_CAP, b"input '%s' is the pipeline's key: it must be a string or an integer", p.hash_key)
    elif rv == TY_ERR_KEY_SHAPE:
        snprintf(st.msg, TY_MSG_CAP, b"input '%s' is the pipeline's key: it must hold one value, or the same in every "
                 b"row", p.hash_key)
    elif rv == TY_ERR_KEY_LONG:
        snprintf(st.msg, TY_MSG_CAP, b"the key '%s' is longer than 1024 bytes", p.hash_key)
    elif rv == TY_ERR_NOMEM:
        return say(st, GRPC_RESOURCE_EXHAUSTED, b"out of memory")
    else:
        snprintf(st.msg, TY_MSG_CAP, b"the key '%s' cannot be decoded", p.hash_key)
    return GRPC_INVALID_ARGUMENT
