"""The cells that routers count in: what each of them means, in the counters file, on the wire and in the store.

One *set* of cells counts one arm over some stretch of time. Each block (one arm in one weight epoch) has a *live* set,
by completion, and a *closed* set, of the assignment seconds that are complete. docs/counters.md has the same as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "CLOSED",
    "MAX_METRICS",
    "REASONS",
    "BlockKey",
    "Counts",
    "MetricCounts",
    "Values",
    "add_up",
    "cells_in_use",
    "decode",
    "is_float",
]

ASSIGNED: Final = 0
COMPLETED: Final = 1
FIRST_STATUS: Final = 2
STATUSES: Final = 17
FIRST_METRIC: Final = FIRST_STATUS + STATUSES
REASONS: Final = ("error", "missing", "dtype", "index", "nan", "malformed", "limit")
"""Why a completed request gave no value, in the order of the cells."""

METRIC_CELLS: Final = 3 + len(REASONS)
MAX_METRICS: Final = 8

CLOSED: Final = 128
"""On the wire cell ``i`` of the live set has number ``i``, of the closed set ``CLOSED + i``."""

Values = npt.NDArray[np.uint64]
"""Cells as 64-bit words: unsigned integers, or the bits of a double where ``is_float`` says so."""


@dataclass(frozen=True, slots=True)
class BlockKey:
    """What one block of cells counts.

    Attributes:
        pipeline: resource name, or the plain name of a pipeline that comes from a file.
        deployment_uid: the deployment.
        epoch: weight epoch.
        arm: name of the arm.
        arm_index: 0 is the champion.
        share_slots: slots of 10,000 the arm held.
        metrics: names of the metrics, in the order of their cells.
    """

    pipeline: str
    deployment_uid: str
    epoch: int
    arm: str
    arm_index: int
    share_slots: int
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricCounts:
    """What one metric gave: ``scored`` values, their sum and the sum of their squares, and the rest by reason."""

    metric: str
    scored: int
    total: float
    sum_of_squares: float
    unscored: Mapping[str, int]

    @property
    def mean(self) -> float | None:
        """Mean over the scored requests; ``None`` when there are none."""
        return self.total / self.scored if self.scored else None


@dataclass(frozen=True, slots=True)
class Counts:
    """One set of cells by name; ``statuses`` and ``unscored`` hold what is not zero."""

    assigned: int
    completed: int
    statuses: Mapping[int, int]
    metrics: tuple[MetricCounts, ...]


def cells_in_use(n_metrics: int) -> int:
    """Length of a set of cells with so many metrics."""
    return FIRST_METRIC + METRIC_CELLS * n_metrics


def is_float(n_metrics: int) -> npt.NDArray[np.bool_]:
    """For each cell of a set whether it is a double."""
    mask = np.zeros(cells_in_use(n_metrics), dtype=np.bool_)
    mask[FIRST_METRIC + 1 :: METRIC_CELLS] = True
    mask[FIRST_METRIC + 2 :: METRIC_CELLS] = True
    return mask


def add_up(values: Sequence[Values], n_metrics: int) -> Values:
    """Sum of sets of cells.

    Args:
        values: at least one, shape ``(k * cells_in_use(n_metrics),)`` each: ``k`` sets on end.
        n_metrics: number of metrics.
    """
    stack = np.stack(values)
    floats = np.tile(is_float(n_metrics), stack.shape[1] // cells_in_use(n_metrics))
    out: Values = stack.sum(axis=0, dtype=np.uint64)
    out[floats] = stack[:, floats].view(np.float64).sum(axis=0).view(np.uint64)
    return out


def decode(values: Values, metrics: tuple[str, ...]) -> Counts:
    """Name the cells of one set, shape ``(cells_in_use(len(metrics)),)``."""
    ints = values.tolist()
    floats = values.view(np.float64)
    counts = []
    for number, metric in enumerate(metrics):
        at = FIRST_METRIC + METRIC_CELLS * number
        reasons = ints[at + 3 : at + METRIC_CELLS]
        counts.append(
            MetricCounts(
                metric=metric,
                scored=ints[at],
                total=float(floats[at + 1]),
                sum_of_squares=float(floats[at + 2]),
                unscored={name: n for name, n in zip(REASONS, reasons, strict=True) if n},
            )
        )
    statuses = ints[FIRST_STATUS:FIRST_METRIC]
    return Counts(
        assigned=ints[ASSIGNED],
        completed=ints[COMPLETED],
        statuses={status: n for status, n in enumerate(statuses) if n},
        metrics=tuple(counts),
    )
