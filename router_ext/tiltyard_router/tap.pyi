"""Counters of one loop in one mmap file per boot; the layout stands in docs/counters.md."""

from collections.abc import Sequence
from os import PathLike
from typing import Self, final

@final
class Block:
    """Cells of one arm of one weight epoch; lives as long as its tap."""

@final
class Call:
    """One assigned request; it must be completed once."""

@final
class Tap:
    """One counters file, driven by hand.

    Args:
        path: the file to make; ``None`` counts in memory only.
        boot_id: 6 bytes.
        max_bytes: largest size of the file; at least two pages.

    Raises:
        OSError: the file could not be made.
        MemoryError: memory is out.
        ValueError: ``max_bytes`` or the boot id is too small.
    """

    def __new__(cls, path: str | PathLike[str] | None, boot_id: bytes, max_bytes: int = 268_435_456) -> Self: ...
    def end(self) -> None:
        """End as the loop does at a clean stop; the file stays."""

    def abandon(self) -> None:
        """End as a crash does: nothing more is written, and the lock is free."""

    def block(
        self, pipeline: str, uid: str, epoch: int, arm: str, arm_index: int, share_slots: int, metrics: list[str]
    ) -> Block | None:
        """The block of a key, made at first use; ``None`` when the file is full or the names do not fit."""

    def assign(self, block: Block, second: int) -> Call:
        """One request for the block's arm in this second."""

    def complete(self, call: Call, status: int, values: Sequence[float | int] = ()) -> None:
        """What came of it. A value is a float, or an int that says why there is none (``TY_UNSCORED_*``)."""

    def close(self, now: int) -> None:
        """Close what can be closed before ``now``."""

    def uncounted(self) -> None:
        """One request whose block could not be had."""

    def drive(self, blocks: list[Block], start: int, seconds: int, per_second: int) -> None:
        """Assign and complete ``per_second`` requests a second, in turn on ``blocks``, one of them a second late.

        Runs in one go without the GIL: for crash tests and for measuring what one request costs.
        """
