"""The slot table: shares, first tables, changes of weights."""

from __future__ import annotations

import heapq
import json
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiltyard.errors import InvalidArgumentError
from tiltyard.slots import SLOTS, SlotTable, exact_weights, first_table, move, moved_slots, shares

UNHURRIED = settings(deadline=None)  # the machine may be busy; the rules do not depend on time
# Every weight above zero is at least 1/640 of the total, so none rounds to no slot.
MANY = st.integers(2, 16).flatmap(lambda n: st.lists(st.integers(0, 40), min_size=n, max_size=n).filter(any))
PATHS = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 40), min_size=n, max_size=n).filter(any), min_size=2, max_size=6)
)


def champion_slots(table: SlotTable) -> list[int]:
    return [slot for slot, arm in enumerate(table.owners()) if arm == 0]


def by_the_book(table: SlotTable, weights: list[int]) -> SlotTable:
    """The rule of a change, one slot at a time: slow, and written without a look at the module."""
    stacks = [list(slots) for slots in table.taken]
    free = [-slot for slot in champion_slots(table)]
    heapq.heapify(free)
    wanted = shares(weights)
    for arm in range(1, table.arms):
        while len(stacks[arm]) > wanted[arm]:
            heapq.heappush(free, -stacks[arm].pop())
    for arm in range(1, table.arms):
        while len(stacks[arm]) < wanted[arm]:
            stacks[arm].append(-heapq.heappop(free))
    return SlotTable(tuple(tuple(stack) for stack in stacks))


@UNHURRIED
@given(MANY)
def test_shares_add_up_and_are_within_one_slot_of_exact(weights: list[int]) -> None:
    counts = shares(weights)
    assert sum(counts) == SLOTS
    for count, weight in zip(counts, weights, strict=True):
        assert abs(Fraction(SLOTS * weight, sum(weights)) - count) < 1
        assert (count > 0) == (weight > 0)


@UNHURRIED
@given(MANY)
def test_a_first_table_is_contiguous_in_the_order_of_the_arms(weights: list[int]) -> None:
    table = first_table(weights)
    owners = table.owners()
    assert len(owners) == SLOTS
    assert list(owners) == sorted(owners)
    assert tuple(owners.count(arm) for arm in range(len(weights))) == shares(weights) == table.counts()
    for slots in table.taken[1:]:
        assert list(slots) == sorted(slots, reverse=True)


def test_known_tables() -> None:
    assert first_table([2, 1]).runs() == [(6667, 0), (10_000, 1)]
    assert first_table([90, 10]).runs() == [(9000, 0), (10_000, 1)]
    assert first_table([1, 1, 1]).runs() == [(3334, 0), (6667, 1), (10_000, 2)]  # the tie goes to the earlier arm
    assert first_table([0, 1]).runs() == [(10_000, 1)]
    assert first_table([7]).runs() == [(10_000, 0)]


def test_last_in_first_out_by_hand() -> None:
    table = first_table([8, 1, 1])
    assert table.runs() == [(8000, 0), (9000, 1), (10_000, 2)]
    table = move(table, [79, 11, 10])  # the first challenger takes the champion's highest
    assert table.runs() == [(7900, 0), (9000, 1), (10_000, 2)]
    table = move(table, [78, 11, 11])
    assert table.runs() == [(7800, 0), (7900, 2), (9000, 1), (10_000, 2)]
    table = move(table, [80, 9, 11])  # its last-taken 100 are 7999 .. 7900, then its lowest of the first table
    assert table.runs() == [(7800, 0), (7900, 2), (8100, 0), (9000, 1), (10_000, 2)]
    table = move(table, [79, 10, 11])  # takes back the champion's highest: those it gave last
    assert table.runs() == [(7800, 0), (7900, 2), (8000, 0), (9000, 1), (10_000, 2)]
    assert table.taken[1][-1] == 8000
    assert table.taken[2][-100:] == tuple(range(7899, 7799, -1))


@UNHURRIED
@given(PATHS)
def test_a_change_moves_exactly_the_difference_of_each_challenger(path: list[list[int]]) -> None:
    table = first_table(path[0])
    for weights in path[1:]:
        after = move(table, weights)
        assert after.counts() == shares(weights)
        grown = shrunk = 0
        for old, new in zip(table.taken[1:], after.taken[1:], strict=True):
            lost, gained = set(old) - set(new), set(new) - set(old)
            assert not (lost and gained)
            assert len(lost) == max(0, len(old) - len(new))
            assert new[: min(len(old), len(new))] == old[: min(len(old), len(new))]  # last in, first out
            grown, shrunk = grown + len(gained), shrunk + len(lost)
        if not grown or not shrunk:  # all slots come from the champion, or all go to it: nothing smaller is possible
            assert moved_slots(table, after) == grown + shrunk
        assert max(grown, shrunk) <= moved_slots(table, after) <= grown + shrunk
        table = after


@UNHURRIED
@given(
    st.integers(2, 4).flatmap(
        lambda n: st.lists(st.lists(st.integers(1, 9), min_size=n, max_size=n), min_size=2, max_size=3)
    )
)
def test_a_change_is_the_written_rule(path: list[list[int]]) -> None:
    table = first_table(path[0])
    for weights in path[1:]:
        after = move(table, weights)
        assert after == by_the_book(table, weights)
        table = after


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).filter(any), min_size=2, max_size=8))
def test_with_two_arms_the_table_depends_on_the_weights_alone(path: list[tuple[int, int]]) -> None:
    table = first_table(path[0])
    for weights in path[1:]:
        table = move(table, weights)
    assert table == first_table(path[-1])


@UNHURRIED
@given(PATHS)
def test_the_same_shares_move_nothing(path: list[list[int]]) -> None:
    table = first_table(path[0])
    for weights in path[1:]:
        table = move(table, weights)
    assert move(table, [3 * weight for weight in path[-1]]) is table


@UNHURRIED
@given(PATHS)
def test_state_and_runs_come_back_the_same(path: list[list[int]]) -> None:
    table = first_table(path[0])
    for weights in path[1:]:
        table = move(table, weights)
    assert SlotTable.from_state(json.loads(json.dumps(table.to_state()))) == table
    outright = SlotTable.from_runs(table.runs(), table.arms)
    assert outright.owners() == table.owners()
    for slots in outright.taken:
        assert list(slots) == sorted(slots, reverse=True)


@UNHURRIED
@given(MANY)
def test_a_first_table_given_outright_is_the_first_table(weights: list[int]) -> None:
    table = first_table(weights)
    assert SlotTable.from_runs(table.runs(), table.arms) == table


@pytest.mark.parametrize(
    ("given_weights", "exact"),
    [
        ((0.9, 0.1), (9, 1)),
        ((2, 1), (2, 1)),
        ((4, 2), (4, 2)),
        ((0.1, 0.2, 0.7), (1, 2, 7)),
        ((Fraction(1, 3), Fraction(2, 3)), (1, 2)),
        ((Decimal("0.25"), 0.75), (1, 3)),
        ((1e-3, 1), (1, 1000)),
        ((2.0, 1), (2, 1)),
    ],
)
def test_weights_convert_by_their_decimal_text(given_weights: tuple[float, ...], exact: tuple[int, ...]) -> None:
    assert exact_weights(given_weights) == exact


@UNHURRIED
@given(st.lists(st.decimals(0, 100, places=3), min_size=2, max_size=5).filter(any))
def test_floats_weigh_what_they_say(weights: list[Decimal]) -> None:
    exact = exact_weights([float(weight) for weight in weights])
    assert all(
        Fraction(a) * exact[0] == Fraction(weights[0]) * b for a, b in zip(weights, exact, strict=True) if exact[0]
    )


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, -1], "'b'"),
        ([1, float("nan")], "'b'"),
        ([1, float("inf")], "'b'"),
        ([1, True], "'b'"),
        ([1, "2"], "'b'"),
        ([100_000, 1], "'b': a weight of 1 rounds to none"),
        ([0, 0], "all weights are 0"),
        ([], "0 arms"),
        ([1] * 17, "17 arms"),
        ([1e-300, 1], "63 bits"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: list[int], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        first_table(weights, names=("a", "b"))


def test_a_tie_over_the_last_slot_goes_to_the_earlier_arm() -> None:
    assert shares([19_998, 2]) == (9999, 1)
    assert shares([1, 19_999]) == (1, 9999)  # a tie of half a slot each: the earlier arm has it
    with pytest.raises(InvalidArgumentError, match="rounds to none"):
        shares([19_999, 1])


def test_a_change_needs_a_weight_for_each_arm() -> None:
    with pytest.raises(InvalidArgumentError, match="3 weights for 2 arms"):
        move(first_table([1, 1]), [1, 1, 1])


@pytest.mark.parametrize(
    "runs", [[], [(10_000, 2)], [(5000, 0)], [(5000, 0), (5000, 1), (10_000, 0)], [(10_001, 0)], [(0, 0), (10_000, 1)]]
)
def test_runs_that_are_no_table_are_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(InvalidArgumentError, match="slots:"):
        SlotTable.from_runs(runs, 2)


@pytest.mark.parametrize("state", [[[[5, 4]], []], [[], [[5, 4], [4, 3]]], [[], [[10_000, 9_999]]]])
def test_a_damaged_state_is_refused(state: list[list[list[int]]]) -> None:
    with pytest.raises(InvalidArgumentError, match="damaged"):
        SlotTable.from_state(state)
