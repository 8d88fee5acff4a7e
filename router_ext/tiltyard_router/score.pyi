"""Numbers that metrics ask for, read from the bytes of a PredictResponse as they stream by."""

from collections.abc import Iterable, Sequence

REASONS: dict[int, str]

def read(pieces: Iterable[bytes], metrics: Sequence[tuple[bytes, int, float | None]]) -> list[float | str]:
    """What each metric ``(output, index, above)`` reads from a PredictResponse that comes in these pieces.

    Returns:
        A float, or the name of the reason why there is none.
    """

def read_many(message: bytes, metrics: Sequence[tuple[bytes, int, float | None]], count: int) -> float:
    """Read a message ``count`` times, and drop what it says: for measuring."""
