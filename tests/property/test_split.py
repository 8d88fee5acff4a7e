"""The split: slots, tables and arms, whatever the key."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from tiltyard.slots import SLOTS, first_table, move, shares

if TYPE_CHECKING:
    from tiltyard_router import split
else:
    split = pytest.importorskip("tiltyard_router.split", exc_type=ImportError)

pytestmark = pytest.mark.router

UNHURRIED = settings(deadline=None)
U64 = st.integers(0, 2**64 - 1)
SALTS = st.binary(max_size=300)
KEYS = st.one_of(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=1024))
WEIGHTS = st.integers(1, 16).flatmap(lambda n: st.lists(st.integers(0, 40), min_size=n, max_size=n).filter(any))
# Up to thousands of runs: short tables are searched, long ones looked up.
TABLES = st.builds(
    lambda ends, seed: [(end, random.Random(seed * 10_000 + end).randrange(16)) for end in sorted({*ends, SLOTS})],
    st.one_of(st.sets(st.integers(1, SLOTS), max_size=20), st.integers(2, 40).map(lambda n: set(range(n, SLOTS, n)))),
    st.integers(0, 99),
)


@UNHURRIED
@given(SALTS, KEYS)
def test_hash_and_slot_are_the_published_rule(salt: bytes, key: bytes) -> None:
    u, slot, arm = split.arm_of([(SLOTS, 5)], salt, key)
    assert u == xxhash.xxh3_64_intdigest(salt + b"\0" + key)
    assert slot == u * SLOTS >> 64
    assert arm == 5
    assert split.Splitter([(SLOTS, 0)], salt).bucket(key) == xxhash.xxh3_64_intdigest(salt + b"\1" + key) >> 56


@UNHURRIED
@given(TABLES, U64)
def test_a_draw_falls_into_the_run_of_its_slot(runs: list[tuple[int, int]], draw: int) -> None:
    slot = draw * SLOTS >> 64
    assert split.Splitter(runs).pick(draw) == next(arm for end, arm in runs if slot < end)


def test_every_slot_of_a_short_and_of_a_long_table_has_its_arm() -> None:
    for step in (1, 7, 500, 5000):
        runs = [(end, end // step % 16) for end in range(step, SLOTS, step)] + [(SLOTS, 15)]
        table = split.Splitter(runs)
        owners = [
            arm
            for (end, arm), start in zip(runs, [0, *(end for end, _ in runs)], strict=False)
            for _ in range(start, end)
        ]
        lowest = [-(-(slot << 64) // SLOTS) for slot in range(SLOTS)]  # the smallest draw of each slot
        assert [table.pick(draw) for draw in lowest] == owners
        assert [table.pick(draw - 1) for draw in lowest[1:]] == owners[:-1]
    assert table.pick(2**64 - 1) == owners[-1]


@UNHURRIED
@given(WEIGHTS, st.lists(U64, max_size=50))
def test_an_arm_with_no_weight_is_never_picked(weights: list[int], draws: list[int]) -> None:
    table = split.Splitter(first_table(weights).runs())
    for draw in [0, 2**64 - 1, *draws]:
        assert weights[table.pick(draw)] > 0


@UNHURRIED
@given(SALTS, st.lists(KEYS, max_size=20), WEIGHTS)
def test_a_key_keeps_its_arm(salt: bytes, keys: list[bytes], weights: list[int]) -> None:
    runs = first_table(weights).runs()
    arms = split.Splitter(runs, salt).arms(keys)
    assert split.Splitter(runs, salt).arms(keys) == arms
    assert [split.arm_of(runs, salt, key)[2] for key in keys] == arms


@UNHURRIED
@given(st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3).filter(any), min_size=2, max_size=5))
def test_a_change_of_weights_moves_only_keys_of_moved_slots(steps: list[list[int]]) -> None:
    keys = [b"key-%d" % i for i in range(300)]
    table = first_table(steps[0])
    for weights in steps[1:]:
        after = move(table, weights)
        old, new = table.owners(), after.owners()
        before, now = split.Splitter(table.runs(), b"s"), split.Splitter(after.runs(), b"s")
        for key in keys:
            _, slot, arm = before.assign(key)
            assert arm == old[slot]
            assert now.assign(key)[1:] == (slot, new[slot])
        table = after


def chi2(counts: list[int], expected: list[float]) -> float:
    return sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))


@pytest.mark.parametrize("form", ["user-%d", "%d", "%032x", "a-long-prefix-that-all-of-them-share/%d"])
def test_keys_spread_evenly_over_slots_arms_and_buckets(form: str) -> None:
    """Fixed keys, so this passes or fails the same each time; bounds at 1 in a million of a fair hash."""
    weights, count = [5, 3, 2], 100_000
    table = split.Splitter(first_table(weights).runs(), b"salt")
    keys = [(form % i).encode() for i in range(count)]
    found = [table.assign(key) for key in keys]
    arms = [sum(arm == i for _, _, arm in found) for i in range(3)]
    assert chi2(arms, [count * share / SLOTS for share in shares(weights)]) < 27.6
    hundredths = [0] * 100
    for _, slot, _ in found:
        hundredths[slot // 100] += 1
    assert chi2(hundredths, [count / 100] * 100) < 177
    buckets = [[0] * 256 for _ in range(3)]
    for key, (_, _, arm) in zip(keys, found, strict=True):
        buckets[arm][table.bucket(key)] += 1
    for arm in range(3):  # the bucket knows nothing of the arm
        assert chi2(buckets[arm], [arms[arm] / 256] * 256) < 374


def test_two_salts_split_the_same_keys_independently() -> None:
    keys = [b"user-%d" % i for i in range(40_000)]
    runs = first_table([1, 1]).runs()
    one, two = split.Splitter(runs, b"one").arms(keys), split.Splitter(runs, b"two").arms(keys)
    both = [sum(a == i and b == j for a, b in zip(one, two, strict=True)) for i in (0, 1) for j in (0, 1)]
    assert chi2(both, [10_000.0] * 4) < 30.7


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [(9_999, 0)],
        [(5_000, 0), (5_000, 1), (SLOTS, 0)],
        [(6_000, 0), (5_000, 1), (SLOTS, 0)],
        [(0, 0), (SLOTS, 1)],
        [(SLOTS, 0), (SLOTS + 1, 1)],
        [(SLOTS + 1, 0)],
        [(-1, 0), (SLOTS, 0)],
        [(SLOTS, 256)],
        [(SLOTS, -1)],
    ],
)
def test_tables_that_are_none_are_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="runs"):
        split.Splitter(runs)


def test_salts_and_keys_have_limits() -> None:
    assert split.arm_of([(SLOTS, 0)], b"s" * 1024, b"k" * 1024)[0] == xxhash.xxh3_64_intdigest(
        b"s" * 1024 + b"\0" + b"k" * 1024
    )
    with pytest.raises(ValueError, match="salt has 1025"):
        split.Splitter([(SLOTS, 0)], b"s" * 1025)
    with pytest.raises(ValueError, match="key has 1025"):
        split.Splitter([(SLOTS, 0)]).assign(b"k" * 1025)
