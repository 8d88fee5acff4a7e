"""Ledger: what a client saw, to be held against the router's counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from wirebench.client import Answer
from wirebench.routers import BlockCounts


@dataclass
class Ledger:
    """Calls by (arm, epoch) and status; forced ones stand apart, for they are never counted."""

    statuses: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    forced: int = 0
    unassigned: int = 0

    def add(self, answer: Answer) -> None:
        """One call that ended with a status."""
        if answer.get("tiltyard-inference-id") is None:
            self.unassigned += 1
            return
        receipt = answer.receipt
        if receipt.flags & 0x10:
            self.forced += 1
            return
        assert answer.arm is not None
        self.statuses[answer.arm, receipt.epoch, answer.status] += 1

    def lost(self, arm: str, status: int, epoch: int = 1) -> None:
        """One call that the client gave up, by the arm it is known to have had."""
        self.statuses[arm, epoch, status] += 1

    def check(self, counted: BlockCounts, pipeline: str = "p") -> None:
        """Raise an AssertionError unless the counters say the same."""
        seen = Counter(
            {
                (arm, epoch, status): n
                for (name, arm, epoch), cells in counted.items()
                if name == pipeline
                for status, n in cells.statuses.items()
            }
        )
        assert seen == self.statuses
        for (_, arm, epoch), cells in counted.items():
            total = sum(n for (a, e, _), n in self.statuses.items() if (a, e) == (arm, epoch))
            assert (cells.assigned, cells.completed) == (total, total), (arm, epoch)
