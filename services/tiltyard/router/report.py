"""Sends what the loops have counted to the outcomes service, from a thread that the loops never wait for.

Each second the counters file of every own boot is read and the cells that changed since the last acknowledged report
are sent with their cumulative values, so loss, repeats and order do no harm. Files that dead boots have left behind are
sent in the same way, as final, and deleted once that is acknowledged. While the service is away nothing is lost: the
files hold everything.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from tiltyard.api.router.v1.counters_pb2 import CounterBlock, ReportCountersRequest
from tiltyard.api.router.v1.counters_pb2_grpc import CounterServiceStub
from tiltyard.cells import CLOSED, Values, is_float
from tiltyard.router.counters import SUFFIX, BlockCells, CountersError, CountersFile, Snapshot
from tiltyard.rpc import CHANNEL_OPTIONS

__all__ = ["Reporter", "counter_block"]

log = logging.getLogger(__name__)

MAX_BLOCKS: Final = 500
"""Blocks in one message: at most about 1.3 MB."""

MAX_LEFTOVERS: Final = 8
"""Files of dead boots worked on at a time."""

_REFUSED_RETRY_S = 30.0
_BACKOFF_S = (0.2, 5.0)
_STALE_NEW_FILE_S = 60.0


class _UnreachableError(Exception):
    """The service gave no answer; everything is tried again later."""


class _RefusedError(Exception):
    """The service says the report makes no sense."""


@dataclass(slots=True)
class _Boot:
    """What one counters file has been reported of."""

    file: CountersFile
    own: bool
    acked: dict[int, tuple[Values, Values]] = field(default_factory=dict)
    """Live and closed cells that the service has for good, by block."""
    acked_sequence: int = 0
    acked_closed_through: int = 0
    retry_at: float = 0.0
    uncounted_seen: int = 0

    def forget(self) -> None:
        """The next report carries everything."""
        self.acked.clear()
        self.acked_sequence = 0


class Reporter:
    """Sends counters until it is stopped. ``start`` and ``stop`` are called once each, from any thread.

    Args:
        counters_dir: folder with the counters files.
        own_boots: boot ids of the loops of this process; their files may appear later.
        address: the outcomes service's router-facing listener, ``unix:PATH`` or ``host:port``.
        router: name of this router, stable over its restarts.
        interval_s: time between reports.
        deadline_s: longest a call may take.
    """

    def __init__(
        self,
        counters_dir: Path,
        *,
        own_boots: Collection[bytes],
        address: str,
        router: str,
        interval_s: float = 1.0,
        deadline_s: float = 2.0,
    ) -> None:
        self._dir = counters_dir
        self._own = {boot_id.hex() for boot_id in own_boots}
        self._address = address
        self._router = router
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._boots: dict[str, _Boot] = {}
        self._unreadable: set[str] = set()
        self._stop = threading.Event()
        self._stop_by = float("inf")
        self._random = secrets.SystemRandom()
        self._thread = threading.Thread(target=self._run, name="tiltyard-reporter", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Send what is left and stop, within about ``timeout_s`` seconds.

        End the loops first: a boot that has ended is sent as final and its file deleted. What cannot be sent stays in
        the file for the next start.
        """
        self._stop_by = time.monotonic() + timeout_s
        self._stop.set()
        self._thread.join(timeout_s + 0.5)

    def _run(self) -> None:
        options = dict(CHANNEL_OPTIONS) | {"grpc.max_reconnect_backoff_ms": 1_000}
        wait_s = 0.0
        backoff_s = 0.0
        with grpc.insecure_channel(self._address, options=tuple(options.items())) as channel:
            stub = CounterServiceStub(channel)
            last = False
            while not last:
                last = self._stop.wait(wait_s)
                started = time.monotonic()
                try:
                    self._round(stub)
                except _UnreachableError as error:
                    if backoff_s == 0.0:
                        log.warning("outcomes service does not answer; counting goes on", extra={"reason": str(error)})
                    backoff_s = min(max(2 * backoff_s, _BACKOFF_S[0]), _BACKOFF_S[1])
                    wait_s = backoff_s * self._random.uniform(0.5, 1.0)
                except Exception:
                    # The thread must outlive whatever is wrong with one file or one answer.
                    log.exception("counters could not be reported; trying again")
                    wait_s = _BACKOFF_S[1]
                else:
                    if backoff_s:
                        log.info("outcomes service answers again")
                    backoff_s = 0.0
                    wait_s = max(0.0, self._interval_s - (time.monotonic() - started))
        for boot in self._boots.values():
            boot.file.close()

    def _round(self, stub: CounterServiceStub) -> None:
        """Report every file once."""
        self._scan()
        for name, boot in list(self._boots.items()):
            if boot.retry_at > time.monotonic():
                continue
            try:
                finished = self._report(stub, boot)
            except CountersError as error:
                log.warning("counters file dropped from reporting", extra={"reason": error.message})
                self._unreadable.add(name)
                self._drop(name)
            except _RefusedError as error:
                log.error("outcomes service refuses the counters", extra={"file": name, "reason": str(error)})
                boot.retry_at = time.monotonic() + _REFUSED_RETRY_S
            else:
                if finished:
                    boot.file.path.unlink(missing_ok=True)
                    self._drop(name)

    def _drop(self, name: str) -> None:
        self._boots.pop(name).file.close()

    def _scan(self) -> None:
        """Find the files of own boots and of dead ones; a file whose writer lives is locked by it."""
        leftovers = sum(not boot.own for boot in self._boots.values())
        for path in sorted(self._dir.glob("*" + SUFFIX)):
            own = path.name.removesuffix(SUFFIX) in self._own
            if path.name in self._boots or path.name in self._unreadable or (not own and leftovers >= MAX_LEFTOVERS):
                continue
            try:
                file = CountersFile(path)
            except FileNotFoundError:  # another reporter was faster
                continue
            except (CountersError, OSError) as error:
                log.warning("counters file cannot be read; it stays", extra={"file": str(path), "reason": str(error)})
                self._unreadable.add(path.name)
                continue
            if not own and not file.try_lock():
                file.close()
                continue
            self._boots[path.name] = _Boot(file, own)
            leftovers += not own
        for path in self._dir.glob("*" + SUFFIX + ".new"):  # a crash before the file was whole
            try:
                if time.time() - path.stat().st_mtime > _STALE_NEW_FILE_S:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _report(self, stub: CounterServiceStub, boot: _Boot) -> bool:
        """Report one file; true when it was the last time and the file can go."""
        snapshot = boot.file.read()
        if snapshot.uncounted > boot.uncounted_seen:
            boot.uncounted_seen = snapshot.uncounted
            log.warning("counters file is full; requests go uncounted", extra={"uncounted": snapshot.uncounted})
        final = snapshot.ended or not boot.own
        if not self._send(stub, boot, snapshot, final=final):
            boot.forget()
            if not self._send(stub, boot, snapshot, final=final):
                raise _UnreachableError("it asks for all cells again and again")
        return final

    def _send(self, stub: CounterServiceStub, boot: _Boot, snapshot: Snapshot, *, final: bool) -> bool:
        """Send what has changed; false when the service wants everything."""
        changed = [
            (number, cells) for number, cells in enumerate(snapshot.blocks) if _differs(boot.acked.get(number), cells)
        ]
        # Never empty: a report without blocks moves `closed_through` and shows that this router lives.
        parts = [changed[at : at + MAX_BLOCKS] for at in range(0, len(changed), MAX_BLOCKS)] or [[]]
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            request = ReportCountersRequest(
                router=self._router,
                boot_id=snapshot.boot_id,
                sequence=boot.file.next_report_sequence(),
                # A second is complete at the service only with the last part.
                closed_through=snapshot.closed_through if last else boot.acked_closed_through,
                final=final and last,
                blocks=[counter_block(cells, boot.acked.get(number)) for number, cells in part],
                base_sequence=boot.acked_sequence,
                uncounted=snapshot.uncounted,
            )
            if not self._call(stub, request):
                return False
            boot.acked_sequence = request.sequence
            boot.acked_closed_through = request.closed_through
            boot.acked.update((number, (cells.live, cells.closed)) for number, cells in part)
        return True

    def _call(self, stub: CounterServiceStub, request: ReportCountersRequest) -> bool:
        left_s = self._stop_by - time.monotonic()
        if left_s <= 0:
            raise _UnreachableError("out of time at the end")
        try:
            answer = stub.ReportCounters(request, timeout=min(self._deadline_s, left_s))
        except grpc.RpcError as error:
            call: Any = error  # every error a stub raises is a grpc.Call too
            if call.code() == grpc.StatusCode.INVALID_ARGUMENT:
                raise _RefusedError(call.details()) from error
            raise _UnreachableError(f"{call.code().name}: {call.details()}") from error
        return not answer.send_all and answer.sequence >= request.sequence


def _differs(acked: tuple[Values, Values] | None, cells: BlockCells) -> bool:
    if acked is None:
        return True
    return not (np.array_equal(acked[0], cells.live) and np.array_equal(acked[1], cells.closed))


def counter_block(cells: BlockCells, acked: tuple[Values, Values] | None) -> CounterBlock:
    """The cells that changed since ``acked``, or all that are not zero; and always the sums.

    A count only grows, so one that equals the acknowledged value was never sent as anything else since. A sum may fall
    back to that value, or to zero, after a report in between that the service took in and whose answer was lost.
    """
    sums = is_float(len(cells.key.metrics))
    numbers = []
    values = []
    for offset, now, before in (
        (0, cells.live, acked[0] if acked else None),
        (CLOSED, cells.closed, acked[1] if acked else None),
    ):
        (changed,) = np.nonzero(sums | (now != (0 if before is None else before)))
        numbers.append(changed + offset)
        values.append(now[changed])
    key = cells.key
    return CounterBlock(
        pipeline=key.pipeline,
        deployment_uid=key.deployment_uid,
        epoch=key.epoch,
        arm=key.arm,
        arm_index=key.arm_index,
        share_slots=key.share_slots,
        metrics=key.metrics,
        cells=np.concatenate(numbers).astype("<u4").tobytes(),
        values=np.concatenate(values).astype("<u8").tobytes(),
    )
