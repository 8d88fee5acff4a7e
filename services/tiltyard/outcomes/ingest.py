"""Takes routers' reports in: checks them, and gathers those that arrive together into one transaction."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from tiltyard.api.router.v1.counters_pb2 import CounterBlock, ReportCountersRequest
from tiltyard.cells import CLOSED, MAX_METRICS, BlockKey, Values, cells_in_use, is_float
from tiltyard.errors import InvalidArgumentError, LimitError, UnavailableError

__all__ = ["Ack", "BlockReport", "BootReport", "Ingestor", "check_report"]

log = logging.getLogger(__name__)

MAX_BLOCKS: Final = 10_000
MAX_NAME: Final = 256
MAX_ARMS: Final = 16
MAX_SLOTS: Final = 10_000
BOOT_BYTES: Final = 6
MAX_BATCH: Final = 256
"""Reports in one transaction."""

MAX_WAITING: Final = 1_024
"""Reports waiting for theirs; the next one is turned away and comes again."""

_INT_END = np.uint64(2**63)


@dataclass(frozen=True, slots=True)
class BlockReport:
    """Some cells of one block.

    Attributes:
        key: the block.
        places: where the cells stand, shape ``(n,)``: live cells from 0, closed ones after the last of them.
        values: their cumulative values, shape ``(n,)``.
    """

    key: BlockKey
    places: npt.NDArray[np.int64]
    values: Values


@dataclass(frozen=True, slots=True)
class BootReport:
    """One report of one boot, checked."""

    router: str
    boot_id: bytes
    sequence: int
    base_sequence: int
    closed_through: int
    final: bool
    uncounted: int
    blocks: tuple[BlockReport, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """What the store holds of a boot after a report: its highest ``sequence``, and whether it misses something."""

    sequence: int
    send_all: bool


class CounterStore(Protocol):
    """Where reports go."""

    async def ingest(self, reports: list[BootReport]) -> list[Ack]:
        """Store reports in one transaction; back when it is committed for good."""


def check_report(request: ReportCountersRequest) -> BootReport:
    """Check a report whole.

    Raises:
        InvalidArgumentError: something in it makes no sense; says what.
    """
    _name("router", request.router)
    _must(len(request.boot_id) == BOOT_BYTES, f"boot_id must have {BOOT_BYTES} bytes, not {len(request.boot_id)}")
    _must(0 < request.sequence < 2**63, "sequence must be from 1 to 2^63 - 1")
    _must(request.base_sequence < request.sequence, "base_sequence must be below sequence")
    _must(0 <= request.closed_through < 2**40, "closed_through must be a unix time in seconds")
    _must(request.uncounted < 2**63, "uncounted must be below 2^63")
    _must(len(request.blocks) <= MAX_BLOCKS, f"at most {MAX_BLOCKS} blocks in one report")
    blocks = tuple(_check_block(block) for block in request.blocks)
    _must(len({block.key for block in blocks}) == len(blocks), "the same block twice in one report")
    return BootReport(
        router=request.router,
        boot_id=request.boot_id,
        sequence=request.sequence,
        base_sequence=request.base_sequence,
        closed_through=request.closed_through,
        final=request.final,
        uncounted=request.uncounted,
        blocks=blocks,
    )


def _check_block(block: CounterBlock) -> BlockReport:
    _name("pipeline", block.pipeline)
    _name("arm", block.arm)
    _must(len(block.deployment_uid) <= MAX_NAME, f"deployment_uid: at most {MAX_NAME} characters")
    _must(block.arm_index < MAX_ARMS, f"arm_index must be below {MAX_ARMS}")
    _must(block.share_slots <= MAX_SLOTS, f"share_slots must be at most {MAX_SLOTS}")
    _must(block.epoch < 2**31, "epoch must be below 2^31")
    metrics = tuple(block.metrics)
    _must(len(metrics) <= MAX_METRICS, f"at most {MAX_METRICS} metrics")
    _must(len(set(metrics)) == len(metrics), "metric names must differ")
    for metric in metrics:
        _name("metric", metric)
    in_use = cells_in_use(len(metrics))
    _must(len(block.cells) % 4 == 0, "cells must hold 4 bytes for each cell")
    _must(2 * len(block.cells) == len(block.values), "cells and values differ in length")
    numbers = np.frombuffer(block.cells, dtype="<u4").astype(np.int64)
    values = np.frombuffer(block.values, dtype="<u8")
    _must(bool(np.all(np.diff(numbers) > 0)), "cells must rise")
    closed = numbers >= CLOSED
    within = np.where(closed, numbers - CLOSED, numbers)
    _must(bool(np.all(within < in_use)), f"cell out of range: {len(metrics)} metrics have cells 0 to {in_use - 1}")
    floats = is_float(len(metrics))[within]
    _must(bool(np.all(np.isfinite(values.view("<f8")[floats]))), "a sum is not a finite number")
    _must(bool(np.all(values[~floats] < _INT_END)), "a count must be below 2^63")
    return BlockReport(
        key=BlockKey(
            pipeline=block.pipeline,
            deployment_uid=block.deployment_uid,
            epoch=block.epoch,
            arm=block.arm,
            arm_index=block.arm_index,
            share_slots=block.share_slots,
            metrics=metrics,
        ),
        places=np.where(closed, within + in_use, within),
        values=values,
    )


def _must(good: bool, message: str) -> None:
    if not good:
        raise InvalidArgumentError(f"counter report: {message}")


def _name(what: str, text: str) -> None:
    _must(0 < len(text) <= MAX_NAME, f"{what} must have 1 to {MAX_NAME} characters")
    _must("\x00" not in text, f"{what} must not hold a zero byte")


class Ingestor:
    """One writer for all routers: what arrives while a transaction runs goes into the next one together.

    Run ``run`` as a task; cancel it to stop. Reports that were not committed by then are not acknowledged.
    """

    def __init__(self, store: CounterStore) -> None:
        self._store = store
        self._waiting: asyncio.Queue[tuple[BootReport, asyncio.Future[Ack]]] = asyncio.Queue(MAX_WAITING)

    async def put(self, report: BootReport) -> Ack:
        """Store a report; back when it is committed.

        Raises:
            LimitError: too many reports are waiting.
            UnavailableError: the database cannot take it now.
        """
        done: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((report, done))
        except asyncio.QueueFull:
            raise LimitError(f"{MAX_WAITING} reports are waiting already; send this one again later") from None
        return await done

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                acks = await self._store.ingest([report for report, _ in batch])
            except Exception:
                log.exception("counters could not be stored", extra={"reports": len(batch)})
                error = UnavailableError("the database cannot take counters now; send them again later")
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), ack in zip(batch, acks, strict=True):
                if not done.done():
                    done.set_result(ack)
