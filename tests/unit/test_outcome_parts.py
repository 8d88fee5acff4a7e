"""What the outcomes service refuses, and how it adds up."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiltyard.api.router.v1.counters_pb2 import CounterBlock, ReportCountersRequest
from tiltyard.cells import BlockKey, Values, add_up, cells_in_use, decode
from tiltyard.errors import ConfigError, InvalidArgumentError, LimitError, UnavailableError
from tiltyard.outcomes.app import OutcomesSettings, build_outcomes
from tiltyard.outcomes.ingest import MAX_WAITING, Ack, BootReport, Ingestor, check_report
from tiltyard.outcomes.report import BlockRow, BootRow, build_report, find_pipeline
from tiltyard.outcomes.store import SqlStore


def packed(*cells: tuple[int, int | float]) -> dict[str, bytes]:
    return {
        "cells": b"".join(struct.pack("<I", number) for number, _ in cells),
        "values": b"".join(struct.pack("<d" if isinstance(value, float) else "<Q", value) for _, value in cells),
    }


def block(**changes: object) -> CounterBlock:
    fields: dict[str, object] = {
        "pipeline": "p",
        "deployment_uid": "u",
        "epoch": 1,
        "arm": "champion",
        "metrics": ["main"],
        "share_slots": 5_000,
        **packed((0, 3), (1, 2), (20, 0.5), (128, 3)),
    }
    return CounterBlock(**(fields | changes))  # type: ignore[arg-type]


def request(**changes: object) -> ReportCountersRequest:
    fields: dict[str, object] = {"router": "r", "boot_id": b"123456", "sequence": 1, "blocks": [block()]}
    return ReportCountersRequest(**(fields | changes))  # type: ignore[arg-type]


def test_a_good_report_is_taken_apart() -> None:
    report = check_report(request(sequence=9, base_sequence=8, closed_through=1_700_000_000, final=True, uncounted=2))
    assert (report.sequence, report.base_sequence, report.closed_through) == (9, 8, 1_700_000_000)
    assert (report.final, report.uncounted) == (True, 2)
    (part,) = report.blocks
    assert part.places.tolist() == [0, 1, 20, cells_in_use(1)]
    assert part.key == BlockKey("p", "u", 1, "champion", 0, 5_000, ("main",))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (request(router=""), "router"),
        (request(router="r" * 257), "router"),
        (request(boot_id=b"12345"), "boot_id"),
        (request(sequence=0), "sequence"),
        (request(sequence=2**63), "sequence"),
        (request(base_sequence=1), "base_sequence"),
        (request(closed_through=-1), "closed_through"),
        (request(closed_through=2**50), "closed_through"),
        (request(uncounted=2**63), "uncounted"),
        (request(blocks=[block(), block()]), "twice"),
        (request(blocks=[block(arm=str(n)) for n in range(10_001)]), "blocks"),
        (request(blocks=[block(pipeline="")]), "pipeline"),
        (request(blocks=[block(pipeline="a\x00b")]), "pipeline"),
        (request(blocks=[block(deployment_uid="u" * 257)]), "deployment_uid"),
        (request(blocks=[block(arm="")]), "arm"),
        (request(blocks=[block(arm_index=16)]), "arm_index"),
        (request(blocks=[block(share_slots=10_001)]), "share_slots"),
        (request(blocks=[block(epoch=2**31)]), "epoch"),
        (request(blocks=[block(metrics=[str(n) for n in range(9)])]), "metrics"),
        (request(blocks=[block(metrics=["a", "a"])]), "differ"),
        (request(blocks=[block(metrics=[""])]), "metric"),
        (request(blocks=[block(cells=b"123")]), "4 bytes"),
        (request(blocks=[block(values=b"1234567")]), "length"),
        (request(blocks=[block(**packed((1, 1), (0, 1)))]), "rise"),
        (request(blocks=[block(**packed((0, 1), (0, 1)))]), "rise"),
        (request(blocks=[block(**packed((29, 1)))]), "out of range"),
        (request(blocks=[block(**packed((128 + 29, 1)))]), "out of range"),
        (request(blocks=[block(**packed((2**32 - 1, 1)))]), "out of range"),
        (request(blocks=[block(metrics=[], **packed((19, 1)))]), "out of range"),
        (request(blocks=[block(**packed((20, float("nan"))))]), "finite"),
        (request(blocks=[block(**packed((128 + 21, float("inf"))))]), "finite"),
        (request(blocks=[block(**packed((0, 2**63)))]), "below 2"),
    ],
)
def test_a_report_that_makes_no_sense_is_refused_and_says_why(bad: ReportCountersRequest, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        check_report(bad)


class SlowStore:
    """Commits when told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[int] = []
        self.go = asyncio.Event()
        self.error = error

    async def ingest(self, reports: list[BootReport]) -> list[Ack]:
        self.batches.append(len(reports))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return [Ack(report.sequence, send_all=False) for report in reports]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_what_arrives_during_a_commit_goes_into_the_next_one_together() -> None:
    store = SlowStore()
    ingestor = Ingestor(store)
    writer = asyncio.create_task(ingestor.run())
    first = asyncio.create_task(ingestor.put(check_report(request())))
    await until(lambda: store.batches == [1])
    rest = [asyncio.create_task(ingestor.put(check_report(request(sequence=n)))) for n in range(2, 12)]
    await asyncio.sleep(0)
    assert not first.done()
    store.go.set()
    assert [ack.sequence for ack in await asyncio.gather(first, *rest)] == list(range(1, 12))
    assert store.batches == [1, 10]
    writer.cancel()


async def test_a_failed_commit_is_no_acknowledgement_and_the_writer_goes_on() -> None:
    store = SlowStore(OSError("disk full"))
    store.go.set()
    ingestor = Ingestor(store)
    writer = asyncio.create_task(ingestor.run())
    with pytest.raises(UnavailableError):
        await ingestor.put(check_report(request()))
    store.error = None
    assert (await ingestor.put(check_report(request()))).sequence == 1
    writer.cancel()


async def test_too_many_waiting_reports_are_turned_away() -> None:
    ingestor = Ingestor(SlowStore())
    waiting = [asyncio.create_task(ingestor.put(check_report(request()))) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(LimitError):
        await ingestor.put(check_report(request()))
    for task in waiting:
        task.cancel()


class FailingStore(SqlStore):
    """Its disk is full from some report on."""

    fails = False

    async def _update_boot(self, *args: Any) -> None:
        if self.fails:
            raise OSError("disk full")
        await super()._update_boot(*args)


async def test_a_transaction_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = FailingStore(tmp_path / "x.db", clock=lambda: 1.0)
    await store.open()
    await store.ingest([check_report(request())])
    more = check_report(request(sequence=2, base_sequence=1, blocks=[block(**packed((0, 5)))]))
    store.fails = True
    with pytest.raises(OSError, match="disk full"):
        await store.ingest([more])
    store.fails = False
    blocks, _ = await store.blocks("p", "u")
    assert int(blocks[0].values[0]) == 3
    assert await store.ingest([more]) == [Ack(2, send_all=False)]
    blocks, _ = await store.blocks("p", "u")
    assert int(blocks[0].values[0]) == 5
    await store.close()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("workspaces/a/pipelines/x", "workspaces/a/pipelines/x"),
        ("a/x", "workspaces/a/pipelines/x"),
        ("x", "workspaces/a/pipelines/x"),
        ("plain", "plain"),
        ("b/two", "workspaces/b/pipelines/two"),
        ("c/of-file", "c/of-file"),
        ("of-file", "c/of-file"),
        ("a/none", None),
        ("none", None),
        ("pipelines/x", None),
        ("workspaces/a/pipelines/none", None),
    ],
)
def test_a_pipeline_is_found_by_any_of_its_names(wanted: str, found: str | None) -> None:
    names = [
        "workspaces/a/pipelines/x",
        "workspaces/a/pipelines/two",
        "workspaces/b/pipelines/two",
        "plain",
        "c/of-file",
    ]
    names.append("workspaces/a/pipelines/plain")  # the exact name goes first
    assert find_pipeline(wanted, names) == found


def test_a_plain_name_of_two_pipelines_is_refused_with_both_names() -> None:
    with pytest.raises(InvalidArgumentError, match="workspaces/a/pipelines/x, workspaces/b/pipelines/x"):
        find_pipeline("x", ["workspaces/b/pipelines/x", "workspaces/a/pipelines/x"])


def cells(live: dict[int, int | float], closed: dict[int, int | float], metrics: int = 1) -> Values:
    values = np.zeros(2 * cells_in_use(metrics), np.uint64)
    for at, cell, value in [
        *((0, cell, value) for cell, value in live.items()),
        *((cells_in_use(metrics), cell, value) for cell, value in closed.items()),
    ]:
        if isinstance(value, float):
            values.view(np.float64)[at + cell] = value
        else:
            values[at + cell] = value
    return values


def row(boot: int, arm: str, index: int, values: Values, *, epoch: int = 1, share: int = 5_000) -> BlockRow:
    return BlockRow(boot, BlockKey("p", "u", epoch, arm, index, share, ("main",)), values, changed=50.0 + boot)


def test_a_report_adds_up_boots_and_epochs_and_counts_what_dead_boots_lost() -> None:
    blocks = [
        row(1, "challenger", 1, cells({0: 10, 1: 9, 2: 9, 19: 9, 20: 4.5, 21: 3.0}, {0: 7}), share=2_500),
        row(1, "champion", 0, cells({0: 20, 1: 20, 2: 19, 16: 1, 19: 19, 20: 1.25, 22: 1}, {0: 20}), share=7_500),
        row(2, "champion", 0, cells({0: 5, 1: 4, 2: 4, 19: 4, 20: -2.0}, {0: 3}), share=7_500),
        row(2, "champion", 0, cells({0: 1}, {}), epoch=2, share=10_000),
    ]
    boots = {1: BootRow(90.0, 80, final=True, uncounted=0), 2: BootRow(95.0, 94, final=False, uncounted=3)}
    report = build_report("p", "u", blocks, boots, now=100.0)
    champion, challenger = report.arms
    assert (champion.arm, champion.live.assigned, champion.live.completed, champion.closed.assigned) == (
        "champion",
        26,
        24,
        23,
    )
    assert champion.live.statuses == {0: 23, 14: 1}
    (metric,) = champion.live.metrics
    assert (metric.scored, metric.total, metric.mean, metric.unscored) == (23, -0.75, -0.75 / 23, {"error": 1})
    assert (champion.lost, challenger.lost) == (0, 3)
    assert champion.share_slots == 10_000
    assert (report.closed_through, report.boots, report.changed, report.uncounted) == (94, 2, 52.0, 3)
    assert [epoch.epoch for epoch in report.epochs] == [1, 2]
    assert [(arm.arm, arm.live.assigned, arm.share_slots) for arm in report.epochs[0].arms] == [
        ("champion", 25, 7_500),
        ("challenger", 10, 2_500),
    ]


def test_silent_and_ended_routers_do_not_hold_closed_through_back() -> None:
    blocks = [row(boot, "champion", 0, cells({0: 1}, {})) for boot in (1, 2, 3, 4)]
    boots = {
        1: BootRow(1_000.0, 500, final=True, uncounted=0),
        2: BootRow(900.0, 600, final=False, uncounted=0),  # silent for 100 s
        3: BootRow(995.0, 993, final=False, uncounted=0),
        4: BootRow(999.0, 998, final=False, uncounted=0),
    }
    assert build_report("p", "u", blocks, boots, now=1_000.0).closed_through == 993
    assert build_report("p", "u", blocks, boots, now=9_000.0).closed_through == 998


def test_metrics_of_one_name_add_up_across_blocks_that_have_others_too() -> None:
    left = BlockRow(1, BlockKey("p", "u", 1, "a", 0, 1, ("x", "y")), cells({19: 2, 20: 1.0, 29: 1}, {}, 2), 0.0)
    right = BlockRow(1, BlockKey("p", "u", 2, "a", 0, 1, ("y",)), cells({19: 5, 20: 2.5}, {}), 0.0)
    report = build_report("p", "u", [left, right], {1: BootRow(0.0, 0, final=False, uncounted=0)}, now=0.0)
    assert [(m.metric, m.scored, m.total) for m in report.arms[0].live.metrics] == [("x", 2, 1.0), ("y", 6, 2.5)]


def test_adding_up_keeps_counts_exact_beyond_doubles() -> None:
    big = cells({0: 2**62 - 1, 20: 0.1}, {0: 2**61 + 1})
    total = add_up([big, cells({0: 2, 20: 0.2}, {})], 1)
    assert decode(total[: cells_in_use(1)], ("m",)).assigned == 2**62 + 1
    assert decode(total[: cells_in_use(1)], ("m",)).metrics[0].total == 0.1 + 0.2
    assert int(total[cells_in_use(1)]) == 2**61 + 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"listen": "0.0.0.0:0"}, "--insecure-listen"),
        ({"router_listen": "127.0.0.1:0"}, "UNIX socket"),
        ({"router_listen": "unix:/" + "x" * 110}, "at most 107"),
    ],
)
async def test_open_addresses_are_refused(tmp_path: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        await build_outcomes(OutcomesSettings(data_dir=tmp_path, **settings)).start()  # type: ignore[arg-type]
