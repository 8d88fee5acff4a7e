"""Which arm each of the 10,000 slots of a split belongs to, and how that changes with the weights.

Pure functions on plain Python values: the control plane, the router's file mode and the published test vectors all
build their tables here, so a key belongs to the same arm everywhere. The rules:

* First table: shares by largest remainder (ties to the earlier arm), arms in order, contiguous from slot 0. A weight
  above zero that rounds to no slot is refused.
* A change gives back first, then takes, arms in order. A shrinking challenger returns its last-taken slots to the
  champion; a growing one takes the champion's highest-numbered ones, highest first.
* Slots of a first table, also of one given outright, count as taken from the highest down.

So a challenger loses or gains exactly the difference of its shares, a challenger whose share stays keeps every slot,
and with two arms the table depends on the weights alone, whatever way led to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real

from tiltyard.errors import InvalidArgumentError

__all__ = ["MAX_ARMS", "SLOTS", "SlotTable", "Weight", "exact_weights", "first_table", "move", "moved_slots", "shares"]

SLOTS = 10_000
"""Slots of a split: the grain of a share is one in ten thousand."""

MAX_ARMS = 16
"""Most arms of a split; the receipt has four bits for the arm."""

_MAX_WEIGHT = 2**63 - 1

Weight = int | float | Decimal | Fraction
"""A relative weight. Floats and decimals count by their decimal text, so 0.1 is one tenth."""


@dataclass(frozen=True, slots=True)
class SlotTable:
    """One table slot -> arm, with the order in which challengers took their slots.

    Attributes:
        taken: for each arm its slots in the order it took them, the last-taken one last. The champion's entry (the
            first) is empty: it holds every slot that no challenger has.
    """

    taken: tuple[tuple[int, ...], ...]

    @property
    def arms(self) -> int:
        """Number of arms."""
        return len(self.taken)

    def owners(self) -> bytes:
        """The table itself: ``SLOTS`` bytes, each the index of the arm that holds the slot."""
        owner = bytearray(SLOTS)
        for arm, slots in enumerate(self.taken):
            for slot in slots:
                owner[slot] = arm
        return bytes(owner)

    def counts(self) -> tuple[int, ...]:
        """Slots each arm holds; they add up to ``SLOTS``."""
        challengers = tuple(len(slots) for slots in self.taken[1:])
        return (SLOTS - sum(challengers), *challengers)

    def runs(self) -> list[tuple[int, int]]:
        """Run-length code: ``(end, arm)`` with ``end`` the first slot after the run; the last ends at ``SLOTS``."""
        owner = self.owners()
        ends = [slot for slot in range(1, SLOTS) if owner[slot] != owner[slot - 1]]
        return [(end, owner[end - 1]) for end in (*ends, SLOTS)]

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[int, int]], arms: int) -> SlotTable:
        """A first table given outright as ``(end, arm)`` runs; its slots count as taken from the highest down.

        Raises:
            InvalidArgumentError: when ends do not rise to ``SLOTS``, or an arm is none of ``0 .. arms - 1``.
        """
        _check_arms(arms)
        taken: list[list[int]] = [[] for _ in range(arms)]
        start = 0
        for end, arm in runs:
            if not start < end <= SLOTS:
                raise InvalidArgumentError(f"slots: end {end} after {start}; ends must rise and stop at {SLOTS}")
            if not 0 <= arm < arms:
                raise InvalidArgumentError(f"slots: arm {arm} does not exist; there are {arms} arms, from 0")
            if arm:
                taken[arm].extend(range(start, end))
            start = end
        if start != SLOTS:
            raise InvalidArgumentError(f"slots: the last run ends at {start}; it must end at {SLOTS}")
        return cls(tuple(tuple(reversed(slots)) for slots in taken))

    def to_state(self) -> list[list[list[int]]]:
        """The table as plain lists fit for JSON: for each arm its falling stretches ``[from, to]``, both included."""
        return [_stretches(slots) for slots in self.taken]

    @classmethod
    def from_state(cls, state: Sequence[Sequence[Sequence[int]]]) -> SlotTable:
        """The table that ``to_state`` wrote.

        Raises:
            InvalidArgumentError: when the state is none that ``to_state`` writes.
        """
        _check_arms(len(state))
        taken = tuple(tuple(slot for high, low in arm for slot in range(high, low - 1, -1)) for arm in state)
        every = [slot for slots in taken for slot in slots]
        if taken[0] or len(set(every)) != len(every) or any(not 0 <= slot < SLOTS for slot in every):
            raise InvalidArgumentError("slots: the stored state is damaged; it names a slot twice or outside the table")
        return cls(taken)


def exact_weights(weights: Sequence[Weight], names: Sequence[str] = ()) -> tuple[int, ...]:
    """Relative weights as integers in exactly the same proportion: ``(0.9, 0.1)`` is ``(9, 1)``; integers stay.

    Args:
        weights: one for each arm.
        names: the arms' names, for the message of an error.

    Raises:
        InvalidArgumentError: when a weight is negative, no number, or too fine for 63 bits.
    """
    parts = [_fraction(weight, _arm_name(arm, names)) for arm, weight in enumerate(weights)]
    scale = math.lcm(*(part.denominator for part in parts)) if parts else 1
    whole = tuple(int(part * scale) for part in parts)
    if any(weight > _MAX_WEIGHT for weight in whole):
        raise InvalidArgumentError("weights are too far apart or too fine for 63 bits; give them as small integers")
    return whole


def shares(weights: Sequence[Weight], names: Sequence[str] = ()) -> tuple[int, ...]:
    """Slots of each arm by largest remainder, ties to the earlier arm; they add up to ``SLOTS``.

    Raises:
        InvalidArgumentError: when a weight is negative or no number, all are zero, one above zero rounds to no slot,
            or there are not 1 to ``MAX_ARMS`` of them.
    """
    _check_arms(len(weights))
    whole = exact_weights(weights, names)
    total = sum(whole)
    if total == 0:
        raise InvalidArgumentError("all weights are 0; give at least one arm a weight above 0")
    parts = [divmod(SLOTS * weight, total) for weight in whole]
    counts = [count for count, _ in parts]
    by_remainder = sorted(range(len(parts)), key=lambda arm: -parts[arm][1])  # stable: ties to the earlier arm
    for arm in by_remainder[: SLOTS - sum(counts)]:
        counts[arm] += 1
    for arm, (count, weight) in enumerate(zip(counts, whole, strict=True)):
        if weight and not count:
            raise InvalidArgumentError(
                f"{_arm_name(arm, names)}: a weight of {weights[arm]} rounds to none of the {SLOTS} slots and "
                "would never be drawn; give it a larger weight, or 0"
            )
    return tuple(counts)


def first_table(weights: Sequence[Weight], names: Sequence[str] = ()) -> SlotTable:
    """The table a split starts with; raises what ``shares`` raises.

    Args:
        weights: one for each arm, the champion's first.
        names: the arms' names, for the message of an error.
    """
    taken: list[tuple[int, ...]] = [()]
    start, *counts = shares(weights, names)
    for count in counts:
        taken.append(tuple(range(start + count - 1, start - 1, -1)))
        start += count
    return SlotTable(tuple(taken))


def move(table: SlotTable, weights: Sequence[Weight], names: Sequence[str] = ()) -> SlotTable:
    """The table after a change of weights; the same object when no share changes.

    Args:
        table: what is in force.
        weights: one for each arm of ``table``.
        names: the arms' names, for the message of an error.

    Raises:
        InvalidArgumentError: what ``shares`` raises, or another number of weights than arms.
    """
    if len(weights) != table.arms:
        raise InvalidArgumentError(f"{len(weights)} weights for {table.arms} arms; give one for each arm")
    wanted = shares(weights, names)
    if wanted == table.counts():
        return table
    kept = tuple(slots[:count] for slots, count in zip(table.taken, wanted, strict=True))  # the last-taken go back
    champion = [slot for slot, arm in enumerate(SlotTable(kept).owners()) if arm == 0]  # its highest is the last
    taken: list[tuple[int, ...]] = [()]
    for slots, count in zip(kept[1:], wanted[1:], strict=True):
        taken.append((*slots, *(champion.pop() for _ in range(count - len(slots)))))
    return SlotTable(tuple(taken))


def moved_slots(before: SlotTable, after: SlotTable) -> int:
    """Slots whose arm differs between two tables."""
    return sum(a != b for a, b in zip(before.owners(), after.owners(), strict=True))


def _fraction(weight: Weight, name: str) -> Fraction:
    if isinstance(weight, bool) or not isinstance(weight, Real | Decimal):
        raise InvalidArgumentError(f"{name}: weight {weight!r} is no number")
    if not math.isfinite(weight):
        raise InvalidArgumentError(f"{name}: weight {weight} is no finite number")
    if weight < 0:
        raise InvalidArgumentError(f"{name}: weight {weight} is negative; use 0 to send an arm nothing")
    return Fraction(weight) if isinstance(weight, Rational) else Fraction(str(weight))


def _arm_name(arm: int, names: Sequence[str]) -> str:
    return f"arm {names[arm]!r}" if arm < len(names) else f"arm {arm + 1}"


def _check_arms(arms: int) -> None:
    if not 1 <= arms <= MAX_ARMS:
        raise InvalidArgumentError(f"{arms} arms; a split has 2 to {MAX_ARMS}, a single model 1")


def _stretches(slots: Sequence[int]) -> list[list[int]]:
    stretches: list[list[int]] = []
    for slot in slots:
        if stretches and stretches[-1][1] == slot + 1:
            stretches[-1][1] = slot
        else:
            stretches.append([slot, slot])
    return stretches
