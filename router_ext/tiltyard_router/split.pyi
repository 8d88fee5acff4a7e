"""Which arm a request belongs to. The rule stands in docs/assignment.md, to the letter."""

from collections.abc import Iterable
from typing import Final, Self, final

SLOTS: Final[int]
MAX_KEY: Final[int]

@final
class Splitter:
    """One split: its salt and its table of slots.

    Args:
        runs: ``(end, arm)``, ``end`` the first slot after the run; the last ends at 10,000.
        salt: at most 1,024 bytes.

    Raises:
        ValueError: the runs or the salt are not like that.
        MemoryError: memory is out.
    """

    def __new__(cls, runs: Iterable[tuple[int, int]], salt: bytes = b"") -> Self: ...
    def assign(self, key: bytes) -> tuple[int, int, int]:
        """Hash, slot and arm index of a key.

        Raises:
            ValueError: the key has more than 1,024 bytes.
        """

    def arms(self, keys: Iterable[bytes]) -> list[int]:
        """Arm index of each key.

        Raises:
            ValueError: a key has more than 1,024 bytes.
        """

    def pick(self, draw: int) -> int:
        """Arm index for a request without a key, by a 64-bit random number."""

    def bucket(self, key: bytes) -> int:
        """Analysis bucket of a key, 0 to 255.

        Raises:
            ValueError: the key has more than 1,024 bytes.
        """

    def assign_many(self, key: bytes, count: int) -> int:
        """Find the arm of a key ``count`` times, and drop it: for measuring."""

def arm_of(runs: Iterable[tuple[int, int]], salt: bytes, key: bytes) -> tuple[int, int, int]:
    """Hash, slot and arm index of one key.

    Raises:
        ValueError: what ``Splitter`` and its ``assign`` raise.
    """
