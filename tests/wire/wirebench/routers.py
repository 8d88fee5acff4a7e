"""Routers to test: the core in a thread of this process, and the real process."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tiltyard.cells import Counts, decode
from tiltyard.router.counters import CountersFile, Snapshot
from tiltyard.router.spec import ArmSpec, MetricSpec, PipelineSpec, ReceiptKey, RouteSpec
from tiltyard.slots import first_table
from tiltyard.testing.cluster import Service, start_router

from wirebench.wires import LIMIT_S, wait_until

if TYPE_CHECKING:  # a test file that stands without the compiled core is skipped, not an error
    from tiltyard_router.core import Router

SECRET = bytes(range(32))
KEY_NUMBER = 5

Address = str | Sequence[str]


def arm(name: str, backends: Address, *, model: str = "", version: int = 1) -> ArmSpec:
    """An arm; its model is called ``model-<name>`` unless said otherwise."""
    return ArmSpec(
        name=name,
        model=model or f"model-{name}",
        version=version,
        backends=(backends,) if isinstance(backends, str) else tuple(backends),
    )


def pipeline(
    *arms: ArmSpec,
    name: str = "p",
    weights: Sequence[int] | None = None,
    hash_key: str = "session_id",
    salt: bytes = b"salt",
    metrics: Sequence[MetricSpec] = (),
    epoch: int = 1,
    timeout_s: float = 0.0,
    names: Sequence[str] = (),
) -> PipelineSpec:
    """A pipeline with the first table of its weights."""
    return PipelineSpec(
        key=name,
        uid="d-1",
        request_names=tuple(names) or (name,),
        arms=arms,
        slots=tuple(first_table(weights or [1] * len(arms)).runs()),
        epoch=epoch,
        hash_key=hash_key,
        salt=salt,
        metrics=tuple(metrics),
        timeout_s=timeout_s,
    )


class CoreRouter:
    """The core in a thread. When it ends it must have let go of every call and byte, or the test fails.

    Args:
        pipelines: the first table; ``None``: none yet.
        counters: file to count in.
        settings: of ``tiltyard_router.core.Router``.
    """

    def __init__(
        self, *pipelines: PipelineSpec, counters: Path | None = None, table: bool = True, **settings: Any
    ) -> None:
        from tiltyard_router.core import Router

        self.boot_id = os.urandom(6)
        self.counters = counters
        self.revision = 0
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
            self._core: Router | None = Router(
                listen_fds=[listener.fileno()],
                boot_id=self.boot_id,
                counters_path=None if counters is None else str(counters),
                **settings,
            )
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(self._core,), name="core", daemon=True)
        self._thread.start()
        if table:
            self.apply(*pipelines)

    def _run(self, core: Router) -> None:
        try:
            core.run()
        except BaseException as error:
            self._failure = error

    @property
    def core(self) -> Router:
        """The core."""
        assert self._core is not None
        return self._core

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait_idle()
        finally:
            self.end()

    def apply(self, *pipelines: PipelineSpec) -> None:
        """Put a table in force."""
        from tiltyard_router.routes import RouteTable

        self.revision += 1
        spec = RouteSpec(self.revision, pipelines, ReceiptKey(KEY_NUMBER, SECRET))
        self.core.apply(RouteTable(spec))
        wait_until(lambda: self.core.applied_revision() == self.revision, "the table")

    def stats(self) -> dict[str, int]:
        """What is live now."""
        return self.core.stats()

    def wait_idle(self) -> None:
        """Wait until no call and no byte of one is left."""

        def idle() -> bool:
            stats = self.stats()
            return stats["streams"] == 0 and stats["buffered_bytes"] == 0

        try:
            wait_until(idle, "the router to let go of every call")
        except AssertionError:
            raise AssertionError(f"still there: {self.stats()}") from None

    def stop(self) -> None:
        """First call: drain; second call: at once."""
        self.core.stop()

    @property
    def running(self) -> bool:
        """Whether ``run`` has not returned."""
        return self._thread.is_alive()

    def end(self) -> None:
        """End it at once, and free it."""
        if self._core is None:
            return
        self._core.stop()
        self._core.stop()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the core did not end"
        self._core = None
        if self._failure is not None:
            raise self._failure

    def snapshot(self) -> Snapshot:
        """The counters file, now. Works after the end, too."""
        assert self.counters is not None
        with CountersFile(self.counters) as file:
            return file.read()


BlockCounts = dict[tuple[str, str, int], Counts]


def counts(snapshot: Snapshot, *, closed: bool) -> BlockCounts:
    """Counts by (pipeline, arm, epoch)."""
    return {
        (block.key.pipeline, block.key.arm, block.key.epoch): decode(
            block.closed if closed else block.live, block.key.metrics
        )
        for block in snapshot.blocks
    }


def routes_yaml(*pipelines: PipelineSpec, weights: Sequence[float] | None = None) -> str:
    """A routes file that says the same, as far as files can; weights are 1 each unless given."""
    lines = ["pipelines:"]
    for p in pipelines:
        lines += [f"  - name: {p.key}", f'    salt: "{p.salt.decode()}"', "    arms:"]
        if p.hash_key:
            lines.insert(-1, f"    hash_key: {p.hash_key}")
        for a, weight in zip(p.arms, weights or [1] * len(p.arms), strict=True):
            backends = ", ".join(f'"{address}"' for address in a.backends)
            lines.append(
                f"      - {{name: {a.name}, weight: {weight}, model: {a.model}, version: {a.version}, "
                f"backends: [{backends}]}}"
            )
        if p.metrics:
            lines.append("    metrics:")
        for m in p.metrics:
            above = "" if m.above is None else f", above: {m.above}"
            lines.append(f"      - {{name: {m.name}, output: {m.output}, index: {m.index}{above}}}")
    return "\n".join(lines) + "\n"


@contextmanager
def start_process(routes: str, *flags: str, folder: Path) -> Iterator[Service]:
    """A real router process. At the end it must live, or have ended with status 0, or have been killed by the test."""
    with start_router(routes, *flags, folder=folder) as service:
        yield service
        assert service.alive() or service.returncode() in (0, -signal.SIGKILL), service.said()


def counters_of(service_folder: Path) -> Path:
    """The one counters file of a router process started by ``start_process`` in this folder."""
    (path,) = (service_folder / "router" / "counters").glob("*.counters")
    return path


def five_sigma(n: int, share: float) -> float:
    """Five standard errors of a count of n draws at this share."""
    return 5 * math.sqrt(n * share * (1 - share))
