"""Counters of one loop: what is counted when, and that the file makes sense at every moment."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiltyard.cells import Counts, decode
from tiltyard.router.counters import CountersError, CountersFile, Snapshot, counters_path

if TYPE_CHECKING:
    from tiltyard_router import tap
else:
    tap = pytest.importorskip("tiltyard_router.tap")

pytestmark = pytest.mark.router

BOOT = bytes.fromhex("0102030405ff")
ERROR, MISSING, NAN, MALFORMED = 1, 2, 5, 6
START = 1_000


def read(path: Path) -> Snapshot:
    with CountersFile(path) as file:
        return file.read()


def live(path: Path, block: int = 0) -> Counts:
    cells = read(path).blocks[block]
    return decode(cells.live, cells.key.metrics)


def closed(path: Path, block: int = 0) -> Counts:
    cells = read(path).blocks[block]
    return decode(cells.closed, cells.key.metrics)


def new_tap(folder: Path, max_bytes: int = 1 << 20) -> tuple[tap.Tap, Path]:
    path = counters_path(folder, BOOT)
    return tap.Tap(path, BOOT, max_bytes), path


def a_block(
    counters: tap.Tap, *, arm: str = "champion", index: int = 0, epoch: int = 1, metrics: tuple[str, ...] = ("main",)
) -> tap.Block:
    block = counters.block("workspaces/w/pipelines/p", "uid", epoch, arm, index, 5_000, list(metrics))
    assert block is not None
    return block


def one(counters: tap.Tap, block: tap.Block, second: int, status: int = 0, *values: float | int) -> None:
    counters.complete(counters.assign(block, second), status, values)


def test_the_header_names_the_boot_and_the_block_its_key(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    assert counters.block("workspaces/w/pipelines/p", "d1", 7, "challenger ü", 3, 3_333, ["main", "x"]) is not None
    snapshot = read(path)
    assert snapshot.boot_id == BOOT
    assert abs(snapshot.created - time.time()) < 5
    assert (snapshot.closed_through, snapshot.ended, snapshot.uncounted) == (0, False, 0)
    key = snapshot.blocks[0].key
    assert (key.pipeline, key.deployment_uid, key.epoch) == ("workspaces/w/pipelines/p", "d1", 7)
    assert (key.arm, key.arm_index, key.share_slots, key.metrics) == ("challenger ü", 3, 3_333, ("main", "x"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_live_counts_follow_each_call_and_closed_counts_wait_for_the_second(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    block = a_block(counters)
    call = counters.assign(block, START)
    assert (live(path).assigned, live(path).completed) == (1, 0)
    counters.complete(call, 0, [0.5])
    one(counters, block, START, 14, ERROR)
    got = live(path)
    assert (got.assigned, got.completed, got.statuses) == (2, 2, {0: 1, 14: 1})
    assert (got.metrics[0].scored, got.metrics[0].total, got.metrics[0].sum_of_squares) == (1, 0.5, 0.25)
    assert got.metrics[0].unscored == {"error": 1}
    assert closed(path).assigned == 0
    counters.close(START)
    assert (closed(path).assigned, read(path).closed_through) == (0, START - 1)
    counters.close(START + 1)
    assert closed(path) == got
    assert read(path).closed_through == START


def test_a_hanging_request_holds_its_second_and_all_later_ones(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    champion = a_block(counters)
    challenger = a_block(counters, arm="challenger", index=1)
    one(counters, champion, START, 0, 1.0)
    hanging = counters.assign(challenger, START + 1)
    one(counters, champion, START + 1, 0, 1.0)
    one(counters, champion, START + 5, 0, 1.0)
    counters.close(START + 60)
    assert read(path).closed_through == START
    assert (closed(path, 0).assigned, closed(path, 1).assigned) == (1, 0)
    counters.complete(hanging, 4, [ERROR])
    assert closed(path, 0).assigned == 1
    counters.close(START + 61)
    assert read(path).closed_through == START + 60
    assert (closed(path, 0).assigned, closed(path, 1).assigned) == (3, 1)
    assert closed(path, 1).statuses == {4: 1}


def test_a_clock_that_goes_back_reopens_nothing(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    block = a_block(counters)
    one(counters, block, START, 0, 1.0)
    counters.close(START + 10)
    assert read(path).closed_through == START + 9
    one(counters, block, START - 500, 0, 1.0)  # counts as START + 10
    counters.close(START + 5)
    assert (read(path).closed_through, closed(path).assigned) == (START + 9, 1)
    counters.close(START + 10)
    assert closed(path).assigned == 1
    counters.close(START + 11)
    assert (read(path).closed_through, closed(path).assigned) == (START + 10, 2)


def test_the_same_key_has_one_block_and_each_epoch_its_own(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    for epoch in (1, 2, 1, 2, 1):
        one(counters, a_block(counters, epoch=epoch), START, 0, 1.0)
    assert [cells.key.epoch for cells in read(path).blocks] == [1, 2]
    assert (live(path, 0).assigned, live(path, 1).assigned) == (3, 2)


def test_values_that_are_no_numbers_are_unscored_and_leave_the_sums_alone(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    block = a_block(counters, metrics=("a", "b"))
    one(counters, block, START, 0, math.inf, -2.0)
    one(counters, block, START, 0, math.nan, MISSING)
    one(counters, block, START, 0, 200, 3.0)
    one(counters, block, START, 99)
    a, b = live(path).metrics
    assert (a.scored, a.total, a.unscored) == (0, 0.0, {"error": 1, "nan": 2, "malformed": 1})
    assert (b.scored, b.total, b.sum_of_squares, b.unscored) == (2, 1.0, 13.0, {"error": 1, "missing": 1})
    assert live(path).statuses == {0: 3, 2: 1}


def test_a_full_file_gives_no_more_blocks_and_counts_on(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path, max_bytes=4 * 4096)
    blocks = [a_block(counters, epoch=epoch) for epoch in (1, 2, 3)]
    assert counters.block("p", "u", 4, "arm", 0, 1, []) is None
    counters.uncounted()
    for block in blocks:
        one(counters, block, START, 0, 1.0)
    assert read(path).uncounted == 1
    assert [live(path, number).assigned for number in range(3)] == [1, 1, 1]
    assert path.stat().st_size == 4 * 4096


def test_names_that_do_not_fit_give_no_block(tmp_path: Path) -> None:
    counters, _ = new_tap(tmp_path)
    assert counters.block("p" * 900, "u", 1, "a" * 61, 0, 1, []) is None
    assert counters.block("p" * 900, "u", 1, "a" * 59, 0, 1, []) is not None


def test_many_blocks_grow_the_file_under_an_open_reader(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path, max_bytes=1 << 22)
    one(counters, a_block(counters), START, 0, 1.0)
    with CountersFile(path) as file:
        assert len(file.read().blocks) == 1
        for epoch in range(2, 300):
            one(counters, a_block(counters, epoch=epoch), START, 0, 1.0)
        cells = file.read().blocks
    assert [decode(block.live, block.key.metrics).assigned for block in cells] == [1] * 299


def test_a_clean_end_closes_the_last_second_and_frees_the_lock(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    one(counters, a_block(counters), START, 0, 1.0)
    with CountersFile(path) as file:
        assert not file.try_lock()
        counters.end()
        assert file.try_lock()
        assert file.read().ended
    assert closed(path).assigned == 1
    with pytest.raises(ValueError, match="ended"):
        counters.close(START)


def test_a_crash_drops_open_seconds_whole(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    block = a_block(counters)
    one(counters, block, START, 0, 1.0)
    counters.close(START + 1)
    one(counters, block, START + 1, 0, 1.0)
    counters.assign(block, START + 1)
    counters.abandon()
    snapshot = read(path)
    assert (snapshot.ended, snapshot.closed_through) == (False, START)
    assert (live(path).assigned, closed(path).assigned) == (3, 1)


def test_no_two_files_of_one_boot(tmp_path: Path) -> None:
    path = tmp_path / "x.counters"
    (tmp_path / "x.counters.new").touch()
    with pytest.raises(FileExistsError):
        tap.Tap(path, BOOT)
    with pytest.raises(FileNotFoundError):
        tap.Tap(tmp_path / "no" / "folder", BOOT)
    assert not path.exists()


@pytest.mark.parametrize("damage", [b"", b"x" * 4096, b"TILTCNT\x02" + bytes(4088)])
def test_a_file_that_is_none_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.counters"
    path.write_bytes(damage)
    with pytest.raises(CountersError):
        CountersFile(path)


def test_a_file_shorter_than_its_header_says_is_refused(tmp_path: Path) -> None:
    counters, path = new_tap(tmp_path)
    for epoch in range(1, 40):
        a_block(counters, epoch=epoch)
    counters.abandon()
    os.truncate(path, 8 * 4096)
    with pytest.raises(CountersError, match="shorter"):
        read(path)


# -- consistency ---------------------------------------------------------------------------------------------------

PER_SECOND = 10  # even: both arms get the same number in each second


def check_consistent(snapshot: Snapshot, per_second: int = PER_SECOND) -> int:
    """Closed cells are those of whole seconds, the same ones in both arms; gives how many seconds."""
    seconds = max(0, snapshot.closed_through - START + 1) if snapshot.closed_through else 0
    for cells in snapshot.blocks:
        now, done = (decode(values, cells.key.metrics) for values in (cells.live, cells.closed))
        assert done.assigned == seconds * per_second // 2
        assert done.completed == done.assigned == sum(done.statuses.values())
        for metric in done.metrics:
            assert metric.scored + sum(metric.unscored.values()) == done.completed
            assert 0 <= metric.total == metric.sum_of_squares <= metric.scored
        assert now.assigned >= done.assigned
        assert now.assigned >= now.completed
    return seconds


@pytest.mark.parametrize(("per_second", "seconds"), [(10, 1_000_000), (40, 1_000_000), (160, 500_000)])
def test_a_reader_beside_the_writer_sees_whole_seconds_only(tmp_path: Path, per_second: int, seconds: int) -> None:
    counters, path = new_tap(tmp_path)
    blocks = [a_block(counters), a_block(counters, arm="challenger", index=1)]
    seen: set[int] = set()
    driven = 0
    with CountersFile(path) as file:
        while len(seen) <= 3 and driven < 10 * seconds:  # again where nearly each read was overtaken
            # Without the GIL, so this thread really runs beside it. A "second" lasts a microsecond or less.
            writer = threading.Thread(target=counters.drive, args=(blocks, START + driven, seconds, per_second))
            writer.start()
            while writer.is_alive():
                try:
                    seen.add(check_consistent(file.read(), per_second))
                except CountersError:
                    continue  # overtaken each time
            writer.join()
            driven += seconds
    assert check_consistent(read(path), per_second) == driven
    assert len(seen) > 3


CHILD = f"""
import sys
from tiltyard_router import tap
counters = tap.Tap(sys.argv[1], bytes.fromhex("0102030405ff"), 1 << 20)
blocks = [counters.block("p", "u", 1, arm, index, 5000, ["main"]) for index, arm in enumerate(["a", "b"])]
print("go", flush=True)
counters.drive(blocks, {START}, 1 << 30, {PER_SECOND})
"""


def test_a_kill_at_any_instruction_leaves_a_consistent_file(tmp_path: Path) -> None:
    rng = random.Random(20)
    seconds = []
    for number in range(30):
        path = tmp_path / f"{number}.counters"
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child.stdout as out:
            assert out.readline() == b"go\n"
            threading.Event().wait(rng.uniform(0.001, 0.02))
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
        with CountersFile(path) as file:
            assert file.try_lock()
            snapshot = file.read()
        seconds.append(check_consistent(snapshot))
        assert not snapshot.ended
        for cells in snapshot.blocks:
            now = decode(cells.live, cells.key.metrics)
            assert 0 <= sum(now.statuses.values()) - now.completed <= 1  # the call being written when it was killed
            assert now.assigned - now.completed <= 2
    assert len(set(seconds)) > 20
