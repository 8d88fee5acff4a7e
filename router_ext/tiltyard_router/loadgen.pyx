"""Load-test a gRPC service: closed or open loop, every answer checked, no coordinated omission."""
# [loadgen] > load_core > load_calls > load_hist

import ipaddress
import os
import re
import socket
import threading
from dataclasses import dataclass, field, fields
from random import Random
from urllib.parse import unquote

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from tiltyard_router.c_load cimport (
    AF_INET, AF_INET6, NGHTTP2_NV_FLAG_NO_COPY_NAME, NGHTTP2_NV_FLAG_NO_COPY_VALUE, NGHTTP2_NV_FLAG_NO_INDEX, htons,
    nghttp2_strerror, sockaddr_in, sockaddr_in6, uv_strerror)
from tiltyard_router.load_core cimport *
from tiltyard_router.load_hist cimport hist_quantile, ld_hist

FAILURES = ("timeout", "connection", "reset", "refused", "http", "no_status")
_ENDS = {LD_END_DONE: "done", LD_END_STOPPED: "stopped", LD_END_LIMIT: "time limit",
         LD_END_NO_CONNECTION: "no connection"}
_DEFAULT_LIMIT_S = 600.0
_CONNECT_TIMEOUT_S = 5.0
_MAX_CALLS_OPEN = 1_000_000
_HEADER = re.compile(r"[a-z0-9_.\-]{1,64}")
_OWN_HEADERS = frozenset({"te", "content-type", "user-agent", "grpc-timeout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """What to send, where, how fast and how long; loadgen.pyi says what each setting means."""

    target: str
    payload: bytes
    path: str = "/tensorflow.serving.PredictionService/Predict"
    connections: int = 8
    streams: int = 16
    rps: float = 0.0
    spacing: str = "poisson"
    max_in_flight: int = 10_000
    requests: int = 0
    duration_s: float = 0.0
    warmup_requests: int = 0
    warmup_s: float = 0.0
    timeout_s: float = 10.0
    time_limit_s: float = 0.0
    key_header: str = ""
    keys: int = 0
    key_prefix: str = ""
    metadata: tuple = ()
    answer_size: object = None
    arm_header: str = "tiltyard-arm"
    max_reconnects: int = 100
    seed: object = None

    def __post_init__(self):
        def need(good, what):
            if not good:
                raise ValueError(what)

        need(1 <= self.connections <= 10_000, "connections must be 1 to 10000")
        need(1 <= self.streams <= 10_000, "streams must be 1 to 10000")
        need(self.connections * self.streams <= _MAX_CALLS_OPEN, "connections times streams must be at most 1000000")
        need(1 <= self.max_in_flight <= _MAX_CALLS_OPEN, "max_in_flight must be 1 to 1000000")
        need(self.rps == 0 or 0.001 <= self.rps <= 10_000_000, "rps must be 0 (closed loop) or 0.001 to 10000000")
        need(self.spacing in ("poisson", "constant"), "spacing must be 'poisson' or 'constant'")
        need(self.requests > 0 or self.duration_s > 0, "say how long: requests or duration_s must be above 0")
        for name in ("requests", "duration_s", "warmup_requests", "warmup_s", "keys", "time_limit_s", "max_reconnects"):
            need(0 <= getattr(self, name) < 2 ** 32, f"{name} must be 0 or more")
        need(0.001 <= self.timeout_s <= 86_400, "timeout_s must be 0.001 to 86400")
        need(self.path.startswith("/") and self.path.isascii(), "path must be /package.Service/Method")
        need(len(self.payload) < 2 ** 32, "payload must be under 4 GiB")
        need(self.answer_size in (None, "same") or (isinstance(self.answer_size, int) and self.answer_size >= 0),
             "answer_size must be None, 'same' or a number of bytes")
        need(len(self.key_prefix) <= LD_KEY - LD_KEY_DIGITS and self.key_prefix.isascii(),
             f"key_prefix must be ASCII, at most {LD_KEY - LD_KEY_DIGITS} characters")
        need(len(self.metadata) <= 32, "at most 32 metadata fields")
        for name, value in self.metadata:
            need(_HEADER.fullmatch(name) and name not in _OWN_HEADERS, f"metadata name {name!r} is not allowed")
            need(value.isascii() and value.isprintable(), f"metadata value of {name!r} must be printable ASCII")
        for name in (self.key_header, self.arm_header):
            need(name == "" or _HEADER.fullmatch(name), f"header name {name!r}: lower-case letters, digits, _ . - only")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Quantiles in seconds, each within 0.8 %."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    p999_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A run as it was at most 0.1 s ago."""

    measuring: bool
    elapsed_s: float
    issued: int
    ok: int
    not_sent: int
    in_flight: int
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What came of a run; loadgen.pyi says what each count means."""

    ended: str
    detail: str
    issued: int
    ok: int
    wrong_size: int
    statuses: dict
    failures: dict
    not_sent: int
    abandoned: int
    connect_errors: int
    connections_lost: int
    reconnects: int
    elapsed_s: float
    latency: Latency
    send_lag: Latency
    arms: dict = field(default_factory=dict)
    messages: dict = field(default_factory=dict)

    @property
    def failed(self):
        """Calls that were answered wrong or not at all."""
        return self.wrong_size + sum(self.statuses.values()) + sum(self.failures.values())

    @property
    def ok_rate(self):
        """OK calls per second."""
        return self.ok / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def clean(self):
        """The run ended by itself and every call was OK."""
        return self.ended == "done" and self.ok == self.issued


def _address(target):
    """The first address of host:port that takes a connection; the first of all when none does."""
    host, colon, port = target.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"target {target!r}: write host:port")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise ValueError(f"target {target!r}: {error}") from None
    addresses = [info[4] for info in found if info[0] in (socket.AF_INET, socket.AF_INET6)]
    if not addresses:
        raise ValueError(f"target {target!r} has no address")
    for address in addresses if len(addresses) > 1 else ():
        try:
            socket.create_connection(address[:2], timeout=1.0).close()
        except OSError:
            continue
        return address
    return addresses[0]


def _headers(config):
    """The fields of every request but the key, and the key's name."""
    milliseconds = max(1, round(config.timeout_s * 1000))
    pairs = [
        (":method", "POST"), (":scheme", "http"), (":path", config.path), (":authority", config.target),
        ("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "tiltyard-load"),
        ("grpc-timeout", f"{milliseconds}m"), *config.metadata,
    ]
    if config.key_header:
        pairs.append((config.key_header, ""))
    return [(name.encode(), value.encode()) for name, value in pairs]


cdef uint64_t _ns(double seconds) noexcept nogil:
    return <uint64_t>(seconds * 1e9)


cdef object _latency(const ld_hist *h):          # python
    cdef double scale = 1e-9
    return Latency(
        count=h.count, mean_s=h.total * scale / h.count if h.count else 0.0, p50_s=hist_quantile(h, 0.5) * scale,
        p90_s=hist_quantile(h, 0.9) * scale, p99_s=hist_quantile(h, 0.99) * scale,
        p999_s=hist_quantile(h, 0.999) * scale, max_s=h.most * scale)


@cython.final
cdef class Load:
    """One run. Only ``run`` blocks; ``stop`` and ``progress`` may be called from any thread."""

    cdef ld_engine *_engine                      # owned, from __cinit__ to __dealloc__
    cdef ld_config _cfg                          # what _engine reads; points into _kept
    cdef object _kept
    cdef bint _used

    def __cinit__(self, config):
        self._fill(config)
        self._engine = engine_new(&self._cfg)
        if self._engine is NULL:
            raise MemoryError("load generator")

    def __dealloc__(self):
        engine_free(self._engine)

    cdef _fill(self, config):
        cdef ld_config *cfg = &self._cfg
        cdef bytes body = b"\x00" + len(config.payload).to_bytes(4, "big") + config.payload
        cdef bytes arm_header = config.arm_header.encode()
        seed = int.from_bytes(os.urandom(8), "big") if config.seed is None else config.seed % 2 ** 64
        cdef bytes prefix = (config.key_prefix or self._prefix(seed)).encode()
        headers = _headers(config)
        self._kept = [body, arm_header, prefix, headers]
        memset(cfg, 0, sizeof(cfg[0]))
        self._fill_address(_address(config.target))
        self._fill_headers(headers, bool(config.key_header))
        cfg.body = <const uint8_t *><const char *>body
        cfg.body_len = len(body)
        cfg.n_keys = config.keys
        cfg.key_prefix = prefix
        cfg.key_prefix_len = len(prefix)
        cfg.arm_header = arm_header
        cfg.arm_header_len = len(arm_header)
        size = config.answer_size
        cfg.answer_size = LD_ANY_SIZE if size is None else LD_SAME_SIZE if size == "same" else size
        cfg.n_conns = config.connections
        cfg.streams = config.streams
        cfg.max_in_flight = config.max_in_flight
        cfg.gap_ns = 1e9 / config.rps if config.rps else 0.0
        cfg.poisson = config.spacing == "poisson"
        cfg.calls = config.requests
        cfg.duration_ns = _ns(config.duration_s)
        cfg.warmup_calls = config.warmup_requests
        cfg.warmup_ns = _ns(config.warmup_s)
        cfg.timeout_ns = _ns(config.timeout_s)
        cfg.connect_timeout_ns = _ns(min(config.timeout_s, _CONNECT_TIMEOUT_S))
        cfg.limit_ns = _ns(self._limit(config))
        cfg.max_reconnects = config.max_reconnects
        cfg.seed = seed

    @staticmethod
    def _prefix(seed):
        """With the number's 12 digits a key looks like a UUID and is as long."""
        digits = f"{Random(seed).getrandbits(80):020x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:], ""))

    @staticmethod
    def _limit(config):
        """Longest a run may take: what was asked for, or enough for what was asked and one silent server."""
        if config.time_limit_s:
            return config.time_limit_s
        slack = config.timeout_s + _CONNECT_TIMEOUT_S + 1.0
        if config.duration_s and not config.warmup_requests:
            return config.warmup_s + config.duration_s + slack
        planned = (config.requests + config.warmup_requests) / config.rps if config.rps else 0.0
        return max(_DEFAULT_LIMIT_S, config.warmup_s + config.duration_s + planned * 1.5 + slack)

    cdef _fill_address(self, address):
        cdef sockaddr_in *v4 = <sockaddr_in *>&self._cfg.addr
        cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&self._cfg.addr
        ip = ipaddress.ip_address(address[0].partition("%")[0])
        cdef bytes packed = ip.packed
        if ip.version == 4:
            v4.sin_family = AF_INET
            v4.sin_port = htons(<uint16_t>address[1])
            memcpy(&v4.sin_addr, <const char *>packed, 4)
        else:
            v6.sin6_family = AF_INET6
            v6.sin6_port = htons(<uint16_t>address[1])
            v6.sin6_scope_id = address[3]
            memcpy(&v6.sin6_addr, <const char *>packed, 16)

    cdef _fill_headers(self, headers, bint keyed):
        cdef ld_config *cfg = &self._cfg
        cdef bytes name, value
        cdef size_t i = 0
        for name, value in headers:
            cfg.nv[i].name = <uint8_t *><char *>name
            cfg.nv[i].namelen = len(name)
            cfg.nv[i].value = <uint8_t *><char *>value
            cfg.nv[i].valuelen = len(value)
            cfg.nv[i].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
            i += 1
        cfg.n_nv = i
        cfg.keyed = keyed
        if keyed:                                # call_send points it at the call's own key
            cfg.nv[i - 1].valuelen = len(self._kept[2]) + LD_KEY_DIGITS
            cfg.nv[i - 1].flags |= NGHTTP2_NV_FLAG_NO_INDEX

    def run(self):
        """Run to the end, once, with the GIL released."""
        cdef int rv
        if self._used:
            raise RuntimeError("a load run cannot be run twice")
        self._used = True
        with nogil:
            rv = engine_run(self._engine)
        if rv < 0:
            raise OSError(f"load generator: {uv_strerror(rv).decode()}")
        return self._result()

    def stop(self):
        """End the run at once; ``run`` returns what it has."""
        engine_stop(self._engine)

    def progress(self):
        """How far the run is."""
        cdef ld_progress p
        engine_progress(self._engine, &p)
        return Progress(
            measuring=bool(p.measuring), elapsed_s=p.elapsed_ns * 1e-9, issued=p.totals.issued, ok=p.totals.ok,
            not_sent=p.totals.not_sent, in_flight=p.in_flight, p50_s=p.p50_ns * 1e-9, p99_s=p.p99_ns * 1e-9)

    cdef _result(self):
        cdef ld_engine *e = self._engine
        cdef ld_totals *t = &e.totals
        arms = {e.arms[i].name[:e.arms[i].name_len].decode("utf-8", "replace"): e.arms[i].ok
                for i in range(<int>e.n_arms)}
        messages = {i: unquote(e.messages[i][:e.message_lens[i]].decode("latin-1"))
                    for i in range(LD_STATUSES) if e.message_lens[i]}
        return LoadResult(
            ended=_ENDS[e.end], detail=self._error(e.error), issued=t.issued, ok=t.ok, wrong_size=t.wrong_size,
            statuses={i: t.statuses[i] for i in range(LD_STATUSES) if t.statuses[i]},
            failures={FAILURES[i]: t.fails[i] for i in range(LD_FAILS) if t.fails[i]},
            not_sent=t.not_sent, abandoned=t.abandoned, connect_errors=t.connect_errors,
            connections_lost=t.connections_lost, reconnects=t.reconnects,
            elapsed_s=(e.last_ns - e.measure_ns) * 1e-9 if e.last_ns > e.measure_ns else 0.0,
            latency=_latency(&e.latency), send_lag=_latency(&e.lag), arms=arms, messages=messages)

    @staticmethod
    def _error(int rv):
        if rv == 0:
            return ""
        return (nghttp2_strerror(rv) if -999 <= rv <= -500 else uv_strerror(rv)).decode()


def run(config, *, on_progress=None, interval_s=0.2):
    """Run a load test; Ctrl-C ends it early and still returns what it has."""
    if not isinstance(config, LoadConfig):
        known = {f.name for f in fields(LoadConfig)}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
        config = LoadConfig(**config)
    load = Load(config)
    ended = threading.Event()
    box = []

    def work():
        try:
            box.append(load.run())
        except BaseException as error:           # handed to the caller's thread below
            box.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=work, name="tiltyard-load", daemon=True)
    thread.start()
    try:
        while not ended.wait(interval_s):
            if on_progress is not None:
                on_progress(load.progress())
    except KeyboardInterrupt:
        pass                                     # the result says that it was stopped
    finally:
        load.stop()
        thread.join()
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]
