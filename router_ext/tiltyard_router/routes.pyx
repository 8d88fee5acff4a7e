"""The immutable route table."""
# peek > [routes] > split

import math
import re

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from tiltyard_router.c_xxhash cimport XXH3_64bits
from tiltyard_router.peek cimport TY_SPEC_NAME_CAP
from tiltyard_router.split cimport TY_SLOTS, split_arm, split_clear, split_init, ty_run
from tiltyard_router.status cimport TY_ERR_NOMEM

cdef enum:
    CHUNK = 65536
    MAX_SALT = 1024                              # bytes
    MAX_TEXT = 1024                              # bytes of a pipeline's key or uid, or of an output's name

cdef struct ty_chunk:
    ty_chunk *next
    size_t used
    size_t cap                                   # bytes that follow the struct

cdef struct ty_name:
    const char *text                             # NULL: a free cell
    uint32_t n
    uint32_t pipeline


# ---- the arena and the name index: plain C -----------------------------------------------------------------------

cdef void *arena_take(ty_routes *r, size_t n) noexcept nogil:
    """n zeroed bytes, aligned to 8, that live as long as the table; NULL when memory is out."""
    cdef ty_chunk *chunk = r.arena
    cdef size_t cap
    cdef char *out
    n = (n + 7) & ~(<size_t>7)
    if chunk is NULL or chunk.cap - chunk.used < n:
        cap = CHUNK if n <= CHUNK // 4 else n    # large pieces get a chunk of their own size
        chunk = <ty_chunk *>malloc(sizeof(ty_chunk) + cap)
        if chunk is NULL:
            return NULL
        chunk.used = 0
        chunk.cap = cap
        if cap == CHUNK or r.arena is NULL:
            chunk.next = r.arena
            r.arena = chunk
        else:                                    # behind the newest, whose room is still worth using
            chunk.next = r.arena.next
            r.arena.next = chunk
    out = <char *>(chunk + 1) + chunk.used
    chunk.used += n
    memset(out, 0, n)
    return out

cdef ty_name *name_cell(const ty_routes *r, const char *name, size_t n) noexcept nogil:
    """The cell that holds the name, or the free one where it belongs. (There always is a free one.)"""
    cdef size_t at = XXH3_64bits(name, n) & r.name_mask
    cdef ty_name *cell = &r.names[at]
    while cell.text is not NULL and (cell.n != n or memcmp(cell.text, name, n) != 0):
        at = (at + 1) & r.name_mask
        cell = &r.names[at]
    return cell

cdef ty_pipeline *routes_find(const ty_routes *r, const char *name, size_t n) noexcept nogil:
    cdef ty_name *cell
    if n == 0 or n > TY_SPEC_NAME_CAP:
        return NULL
    cell = name_cell(r, name, n)
    if cell.text is NULL:
        return NULL
    return &r.pipelines[cell.pipeline]

cdef void routes_free(ty_routes *r) noexcept nogil:
    cdef ty_chunk *chunk
    cdef uint32_t i
    if r is NULL:
        return
    for i in range(r.n_pipelines):
        split_clear(&r.pipelines[i].split)
    while r.arena is not NULL:
        chunk = r.arena
        r.arena = chunk.next
        free(chunk)
    free(r.names)
    memset(r.key_secret, 0, TY_RECEIPT_SECRET)
    free(r)


# ---- building: Python values in, checked; the caller frees the table on any error -------------------------------

_KEY_NAME = re.compile(r"[a-z0-9_.-]{1,64}")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

cdef void *take(ty_routes *r, size_t n) except NULL:
    cdef void *out = arena_take(r, n)
    if out is NULL:
        raise MemoryError("route table")
    return out

cdef long long whole(object value, long long low, long long high, str what) except? -1:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} is {value!r}, not a whole number")
    if not low <= value <= high:
        raise ValueError(f"{what} is {value}; it must be {low} to {high}")
    return value

cdef const char *keep(ty_routes *r, bytes data) except NULL:
    """A NUL-terminated copy in the arena."""
    cdef size_t n = len(data)
    cdef char *out = <char *>take(r, n + 1)
    memcpy(out, <const char *>data, n)
    return out


def _checked_text(value, most, what):
    """UTF-8 of a text of 1 to `most` bytes without control characters, which C and HTTP could misread."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is {value!r}, not a text")
    data = value.encode("utf-8")
    if not data or len(data) > most:
        raise ValueError(f"{what} has {len(data)} bytes; it must have 1 to {most}")
    if _CONTROL.search(data):
        raise ValueError(f"{what} {value!r} holds a control character")
    return data


cdef int build_metric(ty_routes *r, ty_metric *out, object spec, str where) except -1:
    name = spec.name
    if not isinstance(name, str) or not _KEY_NAME.fullmatch(name):
        raise ValueError(f"{where}: metric name {name!r} is not 1 to 64 of a-z 0-9 _ . -")
    where = f"{where}: metric {name!r}"
    data = name.encode("ascii")
    out.name = keep(r, data)
    out.name_len = len(data)
    data = _checked_text(spec.output, MAX_TEXT, f"{where}: output")
    out.output = keep(r, data)
    out.output_len = len(data)
    out.index = whole(spec.index, 0, 2**63 - 1, f"{where}: index")
    above = spec.above
    out.has_above = above is not None
    if above is not None:
        if isinstance(above, bool) or not isinstance(above, (int, float)):
            raise TypeError(f"{where}: above is {above!r}, not a number")
        if not math.isfinite(above):
            raise ValueError(f"{where}: above is {above}, not a finite number")
        out.above = above
    return 0

cdef int build_arm(ty_routes *r, ty_arm *out, object spec, dict backends, str where) except -1:
    cdef uint32_t i
    data = _checked_text(spec.name, TY_SPEC_NAME_CAP, f"{where}: arm name")
    where = f"{where}: arm {spec.name!r}"
    if not data.isascii():                       # it is sent as metadata, and metadata is ASCII
        raise ValueError(f"{where}: the name is not ASCII")
    out.name = keep(r, data)
    out.name_len = len(data)
    data = _checked_text(spec.model, TY_SPEC_NAME_CAP, f"{where}: model")
    out.model = keep(r, data)
    out.model_len = len(data)
    out.version = whole(spec.version, 1, 2**63 - 1, f"{where}: version")
    addresses = [_checked_text(address, 300, f"{where}: backend") for address in spec.backends]
    if not addresses:
        raise ValueError(f"{where}: no backends; it needs at least one host:port")
    if len(set(addresses)) != len(addresses):
        raise ValueError(f"{where}: a backend is given twice")
    out.n_backends = len(addresses)
    out.backends = <uint32_t *>take(r, out.n_backends * sizeof(uint32_t))
    for i in range(out.n_backends):
        out.backends[i] = backends.setdefault(addresses[i], len(backends))
    return 0

cdef int build_split(ty_pipeline *out, object slots, str where) except -1:
    """The slot table, and each arm's share by it."""
    cdef list runs = list(slots)
    cdef uint32_t n = <uint32_t>min(len(runs), TY_SLOTS + 1), i
    cdef long long end, arm, start = 0
    cdef int rv
    cdef ty_run *copy
    if not 1 <= n <= TY_SLOTS:
        raise ValueError(f"{where}: {len(runs)} runs of slots; there must be 1 to {TY_SLOTS}")
    copy = <ty_run *>malloc(n * sizeof(ty_run))
    if copy is NULL:
        raise MemoryError("route table")
    try:
        for i in range(n):
            last, index = runs[i]
            end = whole(last, start + 1, TY_SLOTS, f"{where}: end of run {i + 1} of the slots")
            arm = whole(index, 0, <long long>out.n_arms - 1, f"{where}: arm of run {i + 1} of the slots")
            out.arms[arm].share_slots += <uint32_t>(end - start)
            copy[i].end = <uint16_t>end
            copy[i].arm = <uint16_t>arm
            start = end
        if start != TY_SLOTS:
            raise ValueError(f"{where}: the slots end at {start}; they must end at {TY_SLOTS}")
        rv = split_init(&out.split, copy, n, out.n_arms)
    finally:
        free(copy)
    if rv == TY_ERR_NOMEM:
        raise MemoryError("route table")
    if rv < 0:
        raise ValueError(f"{where}: the slots make no table")
    return 0

cdef int build_pipeline(ty_routes *r, ty_pipeline *out, object spec, dict backends) except -1:
    cdef uint32_t i
    cdef size_t n
    data = _checked_text(spec.key, MAX_TEXT, "a pipeline's key")
    where = f"pipeline {spec.key!r}"
    out.key = keep(r, data)
    out.uid = keep(r, _checked_text(spec.uid, MAX_TEXT, f"{where}: uid"))
    hash_key = spec.hash_key
    if not isinstance(hash_key, str) or (hash_key and not _KEY_NAME.fullmatch(hash_key)):
        raise ValueError(f"{where}: hash_key {hash_key!r} is not 1 to 64 of a-z 0-9 _ . -")
    data = hash_key.encode("ascii")
    out.hash_key = keep(r, data)
    out.hash_key_len = len(data)
    salt = spec.salt
    if not isinstance(salt, bytes):
        raise TypeError(f"{where}: salt is no bytes")
    if len(salt) > MAX_SALT:
        raise ValueError(f"{where}: the salt has {len(salt)} bytes; at most {MAX_SALT}")
    out.salt = <const uint8_t *>keep(r, salt)
    out.salt_len = len(salt)
    out.epoch = <uint32_t>whole(spec.epoch, 1, 2**32 - 1, f"{where}: epoch")
    timeout = spec.timeout_s
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{where}: timeout_s is {timeout!r}, not a number")
    if not 0 <= timeout <= 86400 or 0 < timeout < 1e-6:
        raise ValueError(f"{where}: timeout_s is {timeout}; it must be 0 or 0.000001 to 86400")
    out.timeout_us = <uint64_t>round(timeout * 1e6)

    arms = list(spec.arms)
    if not 1 <= len(arms) <= TY_MAX_ARMS:
        raise ValueError(f"{where}: {len(arms)} arms; there must be 1 to {TY_MAX_ARMS}")
    if len({arm.name for arm in arms}) != len(arms):
        raise ValueError(f"{where}: two arms have one name")
    n = len(arms)
    out.arms = <ty_arm *>take(r, n * sizeof(ty_arm))
    out.n_arms = <uint32_t>n
    for i in range(out.n_arms):
        build_arm(r, &out.arms[i], arms[i], backends, where)
    build_split(out, spec.slots, where)

    metrics = list(spec.metrics)
    if len(metrics) > TY_MAX_METRICS:
        raise ValueError(f"{where}: {len(metrics)} metrics; at most {TY_MAX_METRICS}")
    if len({metric.name for metric in metrics}) != len(metrics):
        raise ValueError(f"{where}: two metrics have one name")
    out.n_metrics = <uint32_t>len(metrics)
    for i in range(out.n_metrics):
        build_metric(r, &out.metrics[i], metrics[i], where)
    return 0

cdef int build_names(ty_routes *r, list pipelines) except -1:
    """The index of request names: at most half of its cells used, so that a search meets a free one soon."""
    cdef size_t cells = 2, wanted
    cdef uint32_t i
    cdef ty_name *cell
    cdef bytes data
    wanted = 2 * sum([len(spec.request_names) for spec in pipelines])
    while cells < wanted:
        cells *= 2
    r.names = <ty_name *>calloc(cells, sizeof(ty_name))
    if r.names is NULL:
        raise MemoryError("route table")
    r.name_mask = cells - 1
    for i in range(r.n_pipelines):
        if not pipelines[i].request_names:
            raise ValueError(f"pipeline {pipelines[i].key!r}: no request names, so no request could mean it")
        for name in pipelines[i].request_names:
            data = _checked_text(name, TY_SPEC_NAME_CAP, f"pipeline {pipelines[i].key!r}: request name")
            cell = name_cell(r, data, len(data))
            if cell.text is not NULL:
                raise ValueError(f"request name {name!r} belongs to pipeline {pipelines[cell.pipeline].key!r} "
                                 f"and to {pipelines[i].key!r}; it can mean only one")
            cell.text = keep(r, data)
            cell.n = <uint32_t>len(data)
            cell.pipeline = i
    return 0

cdef int build_key(ty_routes *r, object key) except -1:
    if key is None:
        return 0
    secret = key.secret
    if not isinstance(secret, bytes):
        raise TypeError("the receipt key's secret is no bytes")
    if len(secret) != TY_RECEIPT_SECRET:
        raise ValueError(f"the receipt key's secret has {len(secret)} bytes; it must have {TY_RECEIPT_SECRET}")
    r.key_number = <uint8_t>whole(key.number, 0, 15, "the receipt key's number")
    memcpy(r.key_secret, <const char *>secret, TY_RECEIPT_SECRET)
    r.has_key = 1
    return 0

cdef int build(ty_routes *r, object spec) except -1:
    cdef dict backends = {}                      # address -> index, in order of first use
    cdef list pipelines = list(spec.pipelines)
    cdef size_t n = len(pipelines)
    cdef uint32_t i
    r.revision = <uint64_t>whole(spec.revision, 1, 2**63 - 1, "the revision")
    build_key(r, spec.receipt_key)
    if n > 1_000_000:
        raise ValueError(f"{n} pipelines; at most 1000000")
    if len({pipeline.key for pipeline in pipelines}) != len(pipelines):
        raise ValueError("two pipelines have one key")
    if n > 0:
        r.pipelines = <ty_pipeline *>take(r, n * sizeof(ty_pipeline))
        r.n_pipelines = <uint32_t>n              # from here on routes_free looks at them; all zero is fine
    for i in range(r.n_pipelines):
        build_pipeline(r, &r.pipelines[i], pipelines[i], backends)
    build_names(r, pipelines)
    if backends:
        n = len(backends)
        r.backends = <const char **>take(r, n * sizeof(char *))
        r.n_backends = <uint32_t>n
        for address, index in backends.items():
            r.backends[<uint32_t>index] = keep(r, address)
    return 0


@cython.final
cdef class RouteTable:
    """The routes of one revision as the core reads them: built whole, checked, never changed."""

    def __cinit__(self, spec):
        self._routes = <ty_routes *>calloc(1, sizeof(ty_routes))
        if self._routes is NULL:
            raise MemoryError("route table")
        build(self._routes, spec)                # on an error __dealloc__ frees what there is

    def __dealloc__(self):
        routes_free(self._routes)

    cdef ty_routes *take(self) noexcept:
        cdef ty_routes *out = self._routes
        self._routes = NULL
        return out

    cdef int _check(self) except -1:
        if self._routes is NULL:
            raise ValueError("this route table was handed to a router; build another one from its spec")
        return 0

    @property
    def revision(self):
        """The spec's revision."""
        self._check()
        return self._routes.revision

    def __len__(self):
        self._check()
        return self._routes.n_pipelines

    def find(self, str name):
        """The key of the pipeline that a request means by this name; None when nobody answers to it."""
        cdef ty_pipeline *p
        cdef bytes data = name.encode("utf-8", "surrogatepass")
        self._check()
        p = routes_find(self._routes, data, len(data))
        return None if p is NULL else (<bytes>p.key).decode("utf-8")

    def describe(self, str name):
        """What the core will read of the pipeline of this request name, for people and tests."""
        cdef ty_pipeline *p
        cdef ty_arm *arm
        cdef bytes data = name.encode("utf-8", "surrogatepass")
        cdef uint32_t i, j, owner
        cdef list arms = [], metrics = [], runs = []
        self._check()
        p = routes_find(self._routes, data, len(data))
        if p is NULL:
            raise KeyError(name)
        for i in range(p.n_arms):
            arm = &p.arms[i]
            arms.append({
                "name": arm.name[:arm.name_len].decode("utf-8"),
                "model": arm.model[:arm.model_len].decode("utf-8"),
                "version": arm.version,
                "share_slots": arm.share_slots,
                "backends": [(<bytes>self._routes.backends[arm.backends[j]]).decode("utf-8")
                             for j in range(arm.n_backends)],
            })
        for i in range(p.n_metrics):
            metrics.append({
                "name": p.metrics[i].name[:p.metrics[i].name_len].decode("utf-8"),
                "output": p.metrics[i].output[:p.metrics[i].output_len].decode("utf-8"),
                "index": p.metrics[i].index,
                "above": p.metrics[i].above if p.metrics[i].has_above else None,
            })
        owner = split_arm(&p.split, 0)
        for i in range(1, <uint32_t>TY_SLOTS):
            j = split_arm(&p.split, i)
            if j != owner:
                runs.append((i, owner))
                owner = j
        runs.append((<uint32_t>TY_SLOTS, owner))
        return {
            "key": (<bytes>p.key).decode("utf-8"),
            "uid": (<bytes>p.uid).decode("utf-8"),
            "hash_key": p.hash_key[:p.hash_key_len].decode("utf-8"),
            "salt": p.salt[:p.salt_len],
            "epoch": p.epoch,
            "timeout_us": p.timeout_us,
            "arms": arms,
            "slots": runs,
            "metrics": metrics,
        }
