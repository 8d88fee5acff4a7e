"""The latency histogram of the load generator."""

from collections.abc import Iterable, Sequence

def quantiles(values: Iterable[int], wanted: Sequence[float]) -> list[int]:
    """What the histogram says of these values.

    Args:
        values: nanoseconds, whole numbers from 0 to 2**64 - 1.
        wanted: quantiles, each from 0 to 1.

    Returns:
        The quantiles in nanoseconds, each within 0.8 % of the exact one.
    """
