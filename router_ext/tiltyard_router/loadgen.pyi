"""Load-test a gRPC service: closed or open loop, every answer checked, no coordinated omission.

Compiled on nghttp2 and libuv; one loop, the GIL released. The usual entry is :func:`run`::

    result = run(LoadConfig(target="127.0.0.1:8500", payload=request.SerializeToString(), duration_s=10))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, final

FAILURES: tuple[str, ...]
"""Why a call can fail without a gRPC status from the server: the keys of ``LoadResult.failures``."""

@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """What to send, where, how fast and how long.

    Closed loop (``rps`` 0): ``streams`` calls are always in flight on each connection. Open loop: calls start at their
    planned times whatever the answers do, and their latency counts from there.

    Attributes:
        target: ``host:port``, plaintext HTTP/2.
        payload: one message, without gRPC's 5-byte prefix.
        path: ``/package.Service/Method``, a unary method.
        connections: how many connections.
        streams: most calls in flight on one connection (less where the server allows less).
        rps: calls per second over all connections, at least 0.001; 0 is the closed loop.
        spacing: gaps between calls in the open loop: random as of independent callers, or all the same.
        max_in_flight: open loop: calls due while so many are under way are counted as not sent.
        requests: measured calls; 0 is no limit.
        duration_s: measured time; 0 is no limit. One of the two must be set.
        warmup_requests: calls before measuring begins.
        warmup_s: time before measuring begins, from the first connection on.
        timeout_s: deadline of a call, sent as ``grpc-timeout``; also the longest a stuck write or connect may take.
        time_limit_s: longest the whole run may take; 0: by the rest, at least 600 s when a number of
            requests has to be waited for.
        key_header: metadata name of the key; ``""`` sends none.
        keys: how many different keys, drawn at random; 0 gives every call its own.
        key_prefix: what keys begin with; ``""`` is 24 characters made from the seed, so that keys are new each run.
        metadata: further metadata of every call.
        answer_size: message bytes of a right answer; ``"same"``: as many as the arm's first; ``None``: any.
        arm_header: answer metadata that names the arm.
        max_reconnects: how often lost connections are opened again in all.
        seed: of gaps and keys; ``None`` is a random one.

    Raises:
        ValueError: a setting is out of range.
    """

    target: str
    payload: bytes
    path: str = ...
    connections: int = ...
    streams: int = ...
    rps: float = ...
    spacing: str = ...
    max_in_flight: int = ...
    requests: int = ...
    duration_s: float = ...
    warmup_requests: int = ...
    warmup_s: float = ...
    timeout_s: float = ...
    time_limit_s: float = ...
    key_header: str = ...
    keys: int = ...
    key_prefix: str = ...
    metadata: tuple[tuple[str, str], ...] = ...
    answer_size: int | Literal["same"] | None = ...
    arm_header: str = ...
    max_reconnects: int = ...
    seed: int | None = ...

    def __post_init__(self) -> None: ...

@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Quantiles in seconds, each within 0.8 %; ``max_s`` and ``mean_s`` are exact."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    p999_s: float
    max_s: float

@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A run as it was at most 0.1 s ago; the counts are of measured calls."""

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
    """What came of a run. ``issued`` is the sum of ``ok``, ``failed``, ``not_sent`` and ``abandoned``.

    Attributes:
        ended: ``"done"``, ``"stopped"``, ``"time limit"`` or ``"no connection"``.
        detail: the last error of a connection, or ``""``.
        issued: measured calls that were due.
        ok: answered with status OK and a right size.
        wrong_size: answered with status OK, but cut off, of more than one message, or not of the wanted size.
        statuses: calls by gRPC status the server gave, without OK.
        failures: calls without a gRPC status, by reason (``FAILURES``).
        not_sent: calls due in the open loop while ``max_in_flight`` were under way.
        abandoned: calls still open when the run ended early.
        connect_errors: connections that could not be made, warm-up included.
        connections_lost: connections that broke, warm-up included.
        reconnects: connections opened again, warm-up included.
        elapsed_s: from the first measured call to the end of the last.
        latency: of calls that were OK or given up at their deadline, from the planned time (closed loop: from sending).
        send_lag: open loop: from the planned time to the sending. Large values mean that the generator, the server's
            limit on streams or a lost connection held calls back.
        arms: OK calls by arm, as named in the answers.
        messages: the first error message of each gRPC status.
    """

    ended: str
    detail: str
    issued: int
    ok: int
    wrong_size: int
    statuses: dict[int, int]
    failures: dict[str, int]
    not_sent: int
    abandoned: int
    connect_errors: int
    connections_lost: int
    reconnects: int
    elapsed_s: float
    latency: Latency
    send_lag: Latency
    arms: dict[str, int] = ...
    messages: dict[int, str] = ...

    @property
    def failed(self) -> int:
        """Calls that were answered wrong or not at all."""

    @property
    def ok_rate(self) -> float:
        """OK calls per second."""

    @property
    def clean(self) -> bool:
        """The run ended by itself and every call was OK."""

@final
class Load:
    """One run. Only ``run`` blocks; ``stop`` and ``progress`` may be called from any thread.

    Raises:
        ValueError: the target cannot be resolved.
        MemoryError: memory is out.
    """

    def __new__(cls, config: LoadConfig) -> Self: ...
    def run(self) -> LoadResult:
        """Run to the end, once, with the GIL released.

        Raises:
            OSError: the loop could not start.
            RuntimeError: it was run before.
        """

    def stop(self) -> None:
        """End the run at once; ``run`` returns what it has."""

    def progress(self) -> Progress:
        """How far the run is."""

def run(
    config: LoadConfig | Mapping[str, Any],
    *,
    on_progress: Callable[[Progress], object] | None = None,
    interval_s: float = 0.2,
) -> LoadResult:
    """Run a load test; Ctrl-C ends it early and still returns what it has (``ended`` is ``"stopped"``).

    Args:
        config: the settings, or a mapping of them.
        on_progress: called in this thread every ``interval_s`` seconds.
        interval_s: seconds between calls of ``on_progress``.

    Raises:
        ValueError: a setting is unknown or out of range, or the target cannot be resolved.
        OSError: the loop could not start.
        MemoryError: memory is out.
    """
