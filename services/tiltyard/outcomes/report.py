"""Adds routers' counters up to what a report says. Plain functions on plain values: no messages, no sockets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tiltyard.cells import BlockKey, Counts, MetricCounts, Values, add_up, cells_in_use, decode
from tiltyard.errors import InvalidArgumentError

__all__ = [
    "ArmReport",
    "BlockRow",
    "BootRow",
    "EpochReport",
    "Report",
    "build_report",
    "find_pipeline",
]

_Key = TypeVar("_Key")

HEARD_S = 30.0
"""A router that was not heard from for longer does not hold ``closed_through`` back."""


@dataclass(frozen=True, slots=True)
class BootRow:
    """What is known of one boot: when it was last heard from (unix time), and how far its counts are closed."""

    heard: float
    closed_through: int
    final: bool
    uncounted: int


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One block of one boot: live cells then closed ones, shape ``(2 * cells_in_use(...),)``."""

    boot: int
    key: BlockKey
    values: Values
    changed: float


@dataclass(frozen=True, slots=True)
class ArmReport:
    """Counts of one arm over some blocks."""

    arm: str
    arm_index: int
    share_slots: int
    live: Counts
    closed: Counts
    lost: int


@dataclass(frozen=True, slots=True)
class EpochReport:
    """Counts of one weight epoch; the champion first."""

    epoch: int
    arms: tuple[ArmReport, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Counts of one deployment of one pipeline. Times are unix seconds."""

    pipeline: str
    deployment_uid: str
    arms: tuple[ArmReport, ...]
    epochs: tuple[EpochReport, ...]
    closed_through: int
    changed: float
    boots: int
    uncounted: int


def find_pipeline(wanted: str, known: Sequence[str]) -> str | None:
    """Which of the known pipelines ``wanted`` means: its full name, ``workspace/name``, or the plain name.

    Raises:
        InvalidArgumentError: a plain name that several workspaces have.
    """
    if wanted in known:
        return wanted
    workspace, slash, name = wanted.partition("/")
    if slash:
        full = f"workspaces/{workspace}/pipelines/{name}"
        return full if full in known else None
    # Both `workspaces/w/pipelines/p` and a routes file's `w/p`.
    found = [pipeline for pipeline in known if pipeline.rpartition("/")[2] == wanted]
    if len(found) > 1:
        raise InvalidArgumentError(f"several pipelines are called {wanted!r}; say which: {', '.join(sorted(found))}")
    return found[0] if found else None


def build_report(
    pipeline: str, deployment_uid: str, blocks: Sequence[BlockRow], boots: Mapping[int, BootRow], *, now: float
) -> Report:
    """Add up the blocks of one deployment, over boots.

    Args:
        pipeline: the pipeline's name.
        deployment_uid: the deployment.
        blocks: at least one.
        boots: the boots of the blocks, at least.
        now: unix time.
    """
    used = {number: boots[number] for number in {block.boot for block in blocks}}
    by_epoch: dict[int, list[BlockRow]] = {}
    for block in blocks:
        by_epoch.setdefault(block.key.epoch, []).append(block)
    return Report(
        pipeline=pipeline,
        deployment_uid=deployment_uid,
        arms=_arms(blocks, used),
        epochs=tuple(EpochReport(epoch, _arms(rows, used)) for epoch, rows in sorted(by_epoch.items())),
        closed_through=_closed_through(used.values(), now),
        changed=max(block.changed for block in blocks),
        boots=len(used),
        uncounted=sum(boot.uncounted for boot in used.values()),
    )


def _closed_through(boots: Iterable[BootRow], now: float) -> int:
    """The smallest of the routers heard from lately; without any of these the largest there ever was."""
    boots = list(boots)
    heard = [boot.closed_through for boot in boots if not boot.final and now - boot.heard <= HEARD_S]
    return min(heard) if heard else max(boot.closed_through for boot in boots)


def _arms(blocks: Sequence[BlockRow], boots: Mapping[int, BootRow]) -> tuple[ArmReport, ...]:
    by_arm: dict[tuple[int, str], list[BlockRow]] = {}
    for block in blocks:
        by_arm.setdefault((block.key.arm_index, block.key.arm), []).append(block)
    return tuple(_arm(rows, boots) for _, rows in sorted(by_arm.items(), key=lambda item: item[0]))


def _arm(blocks: Sequence[BlockRow], boots: Mapping[int, BootRow]) -> ArmReport:
    live, closed = _totals(blocks)
    ended = [block for block in blocks if boots[block.boot].final]
    lost = 0
    if ended:
        ended_live, ended_closed = _totals(ended)
        lost = ended_live.assigned - ended_closed.assigned
    newest = max(blocks, key=lambda block: (block.key.epoch, block.changed))
    return ArmReport(
        arm=newest.key.arm,
        arm_index=newest.key.arm_index,
        share_slots=newest.key.share_slots,
        live=live,
        closed=closed,
        lost=lost,
    )


def _totals(blocks: Sequence[BlockRow]) -> tuple[Counts, Counts]:
    """Live and closed counts of some blocks."""
    by_metrics: dict[tuple[str, ...], list[Values]] = {}
    for block in blocks:
        by_metrics.setdefault(block.key.metrics, []).append(block.values)
    live: list[Counts] = []
    closed: list[Counts] = []
    for metrics, values in by_metrics.items():
        total = add_up(values, len(metrics))
        in_use = cells_in_use(len(metrics))
        live.append(decode(total[:in_use], metrics))
        closed.append(decode(total[in_use:], metrics))
    return _sum_counts(live), _sum_counts(closed)


def _sum_counts(parts: Sequence[Counts]) -> Counts:
    """Add up counts whose metrics may differ; same names belong together."""
    if len(parts) == 1:
        return parts[0]
    metrics: dict[str, MetricCounts] = {}
    for metric in (metric for part in parts for metric in part.metrics):
        before = metrics.get(metric.metric)
        metrics[metric.metric] = metric if before is None else _sum_metric(before, metric)
    return Counts(
        assigned=sum(part.assigned for part in parts),
        completed=sum(part.completed for part in parts),
        statuses=_merged([part.statuses for part in parts]),
        metrics=tuple(metrics.values()),
    )


def _sum_metric(left: MetricCounts, right: MetricCounts) -> MetricCounts:
    return MetricCounts(
        metric=left.metric,
        scored=left.scored + right.scored,
        total=left.total + right.total,
        sum_of_squares=left.sum_of_squares + right.sum_of_squares,
        unscored=_merged([left.unscored, right.unscored]),
    )


def _merged(parts: Sequence[Mapping[_Key, int]]) -> dict[_Key, int]:
    out: dict[_Key, int] = {}
    for part in parts:
        for key, count in part.items():
            out[key] = out.get(key, 0) + count
    return out
