"""Counters arrive exactly once, whatever happens to the messages that carry them."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiltyard.api.router.v1.counters_pb2 import ReportCountersRequest
from tiltyard.cells import BlockKey, Values, cells_in_use, is_float
from tiltyard.outcomes.ingest import check_report
from tiltyard.outcomes.report import build_report
from tiltyard.outcomes.store import SqlStore
from tiltyard.router.counters import BlockCells
from tiltyard.router.report import counter_block

METRICS = ("main", "other")
CELLS = cells_in_use(len(METRICS))
FLOATS = is_float(len(METRICS))
LOST = 0.3
COPIES = 3
ARMS = ("champion", "challenger")


@dataclass
class Boot:
    """A router's side: the ledger of what happened, and what it believes the service to have."""

    number: int
    rng: random.Random
    blocks: dict[BlockKey, BlockCells] = field(default_factory=dict)
    acked: dict[BlockKey, tuple[Values, Values]] = field(default_factory=dict)
    sequence: int = 0
    acked_sequence: int = 0
    closed_through: int = 0

    def happen(self) -> None:
        """Some requests, and sometimes a second that closes."""
        for _ in range(self.rng.randrange(1, 6)):
            index = self.rng.randrange(2)
            key = BlockKey("p", "u", self.rng.choice((1, 2)), ARMS[index], index, 5_000, METRICS)
            zeros = np.zeros(CELLS, np.uint64)
            cells = self.blocks.setdefault(key, BlockCells(key, zeros, zeros))
            live = cells.live.copy()
            for cell in self.rng.sample(range(CELLS), 5):
                if FLOATS[cell]:  # values may be negative, so sums may fall
                    live.view(np.float64)[cell] += self.rng.choice((-0.5, 0.25, 3.0))
                else:
                    live[cell] += np.uint64(1)
            self.blocks[key] = BlockCells(key, live, cells.closed)
        if self.rng.random() < 0.5:
            self.closed_through += 1
            self.blocks = {key: BlockCells(key, cells.live, cells.live) for key, cells in self.blocks.items()}

    def report(self, *, final: bool = False) -> tuple[ReportCountersRequest, dict[BlockKey, tuple[Values, Values]]]:
        """The next report, and what the service has once it took that in."""
        self.sequence += 1
        state = {key: (cells.live, cells.closed) for key, cells in self.blocks.items()}
        message = ReportCountersRequest(
            router="r",
            boot_id=self.number.to_bytes(6, "big"),
            sequence=self.sequence,
            closed_through=self.closed_through,
            final=final,
            base_sequence=self.acked_sequence,
            blocks=[
                counter_block(cells, self.acked.get(key))
                for key, cells in self.blocks.items()
                if key not in self.acked or not all(map(np.array_equal, self.acked[key], state[key]))
            ],
        )
        return message, state

    def forget(self) -> None:
        """The service wants everything."""
        self.acked, self.acked_sequence = {}, 0


async def deliver(
    store: SqlStore,
    boots: list[Boot],
    sent: list[tuple[int, ReportCountersRequest, dict[BlockKey, tuple[Values, Values]]]],
) -> None:
    """Some messages arrive in one transaction; some of the answers are lost."""
    acks = await store.ingest([check_report(message) for _, message, _ in sent])
    for (number, message, state), ack in zip(sent, acks, strict=True):
        boot = boots[number]
        if boot.rng.random() < LOST:
            continue
        if ack.send_all:
            boot.forget()
        elif ack.sequence >= message.sequence > boot.acked_sequence:
            boot.acked, boot.acked_sequence = state, message.sequence


async def totals(store: SqlStore) -> dict[BlockKey, tuple[list[int], list[float]]]:
    """What the store holds, over boots: counts of the two sets, and their sums."""
    blocks, _ = await store.blocks("p", "u")
    out: dict[BlockKey, tuple[list[int], list[float]]] = {}
    mask = np.tile(FLOATS, 2)
    for block in blocks:
        ints, floats = out.setdefault(block.key, ([0] * int((~mask).sum()), [0.0] * int(mask.sum())))
        ints[:] = [a + b for a, b in zip(ints, block.values[~mask].tolist(), strict=True)]
        floats[:] = [a + b for a, b in zip(floats, block.values.view(np.float64)[mask].tolist(), strict=True)]
    return out


def ledger(boots: list[Boot]) -> dict[BlockKey, tuple[list[int], list[float]]]:
    """The same from what really happened."""
    out: dict[BlockKey, tuple[list[int], list[float]]] = {}
    for boot in boots:
        for key, cells in boot.blocks.items():
            ints, floats = out.setdefault(key, ([0] * (2 * int((~FLOATS).sum())), [0.0] * (2 * int(FLOATS.sum()))))
            both = [*cells.live[~FLOATS].tolist(), *cells.closed[~FLOATS].tolist()]
            ints[:] = [a + b for a, b in zip(ints, both, strict=True)]
            sums = [values.view(np.float64)[FLOATS].tolist() for values in (cells.live, cells.closed)]
            floats[:] = [a + b for a, b in zip(floats, sums[0] + sums[1], strict=True)]
    return out


@asynccontextmanager
async def a_store(path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(path, clock=lambda: 1_000.0)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def settle(store: SqlStore, boots: list[Boot]) -> None:
    """The network is good again: everybody gets a final report through."""
    for boot in boots:
        for _ in range(2):
            message, state = boot.report(final=True)
            (ack,) = await store.ingest([check_report(message)])
            if not ack.send_all:
                boot.acked, boot.acked_sequence = state, message.sequence
                break
            boot.forget()
        else:
            raise AssertionError("all cells were refused too")


async def play(folder: Path, seed: int, steps: int, *, restart_at: int = -1, wipe_at: int = -1) -> None:
    rng = random.Random(seed)
    boots = [Boot(number, random.Random(rng.random())) for number in range(3)]
    flying: list[tuple[int, ReportCountersRequest, dict[BlockKey, tuple[Values, Values]]]] = []
    database = 0
    for first, last in ((0, restart_at), (restart_at, wipe_at), (wipe_at, steps)) if wipe_at >= 0 else ((0, steps),):
        async with a_store(folder / f"{database}.db") as store:
            for _ in range(first, last):
                for boot in boots:
                    boot.happen()
                    message, state = boot.report()
                    if rng.random() >= LOST:
                        flying += [(boot.number, message, state)] * COPIES
                rng.shuffle(flying)
                arrived, flying = flying[: len(flying) // 2], flying[len(flying) // 2 :]
                await deliver(store, boots, arrived)
            if last == steps:
                await settle(store, boots)
                rng.shuffle(flying)
                await deliver(store, boots, flying)  # long after the end
                assert await totals(store) == ledger(boots)
                blocks, rows = await store.blocks("p", "u")
                report = build_report("p", "u", blocks, rows, now=1_000.0)
                assert sum(arm.lost for arm in report.arms) == sum(
                    int(cells.live[0]) - int(cells.closed[0]) for boot in boots for cells in boot.blocks.values()
                )
        database += last == wipe_at  # the disk was lost


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 25))
def test_lost_doubled_and_shuffled_reports_give_the_ledger(seed: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), seed, steps))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(seed=3469367, restart_at=0, wipe_at=16)  # a sum that fell back to what was acknowledged
@given(seed=st.integers(0, 2**32), restart_at=st.integers(0, 8), wipe_at=st.integers(8, 16))
def test_a_restart_and_a_lost_database_give_the_ledger(seed: int, restart_at: int, wipe_at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), seed, 20, restart_at=restart_at, wipe_at=wipe_at))
