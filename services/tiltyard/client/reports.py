"""What came of a pipeline's requests, per arm, as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import grpc

from tiltyard.api.common.v1 import metric_pb2
from tiltyard.api.outcomes.v1 import outcome_pb2
from tiltyard.client.tables import html_table, text_table, when

__all__ = ["ArmReport", "Counts", "MetricReport", "Report", "report_from"]

_STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class MetricReport:
    """One metric on one arm.

    Attributes:
        name: the metric's name.
        scored: requests with a value.
        mean: mean of the values, ``None`` when there are none.
        deviation: their standard deviation, ``None`` with fewer than two.
        unscored: completed requests without a value, by reason.
    """

    name: str
    scored: int
    mean: float | None
    deviation: float | None
    unscored: dict[str, int]


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one arm.

    Attributes:
        assigned: requests whose arm was drawn to be this one.
        completed: those that have ended: answered, failed or cancelled.
        statuses: completed requests by the name of their gRPC status.
        metrics: in the pipeline's order.
    """

    assigned: int
    completed: int
    statuses: dict[str, int]
    metrics: tuple[MetricReport, ...]

    @property
    def ok(self) -> int:
        """Requests that were answered."""
        return self.statuses.get("OK", 0)

    @property
    def failed(self) -> int:
        """Completed requests that were not answered."""
        return self.completed - self.ok


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm.

    Attributes:
        name: the arm's name.
        live: counts by completion, as they come.
        closed: counts of the seconds in which every request has ended, which verdicts will be made of.
        lost: requests of seconds that were open when a router ended; they are in no verdict.
    """

    name: str
    live: Counts
    closed: Counts
    lost: int


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one deployment's requests; the champion is the first arm.

    Attributes:
        pipeline: the pipeline's resource name.
        deployment_uid: identifies the deployment.
        arms: in the pipeline's order.
        closed_through: second through which the closed counts are complete, ``None`` before the first.
        reported: when the newest counts arrived, ``None`` when none did.
        boots: starts of routers that contributed.
    """

    pipeline: str
    deployment_uid: str
    arms: tuple[ArmReport, ...]
    closed_through: datetime | None
    reported: datetime | None
    boots: int

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can hold; times in ISO 8601."""
        found = asdict(self)
        for name in ("closed_through", "reported"):
            time = found[name]
            found[name] = time.isoformat() if time is not None else None
        return found

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Header and rows of the table people see."""
        metrics: list[str] = []
        for arm in self.arms:
            metrics += [metric.name for metric in arm.live.metrics if metric.name not in metrics]
        header = ["arm", "assigned", "answered", "failed", "in flight"]
        for metric in metrics:
            header += [f"{metric} (mean)", "unscored"]
        return header, [_row(arm, metrics) for arm in self.arms]

    def __str__(self) -> str:
        return text_table(*self.table())

    def _repr_html_(self) -> str:
        return html_table(*self.table())


def report_from(report: outcome_pb2.Report) -> Report:
    """The report of a message."""
    return Report(
        pipeline=report.pipeline,
        deployment_uid=report.deployment_uid,
        arms=tuple(ArmReport(arm.arm, _counts(arm.live), _counts(arm.closed), arm.lost) for arm in report.arms),
        closed_through=when(report.closed_through_time) if report.HasField("closed_through_time") else None,
        reported=when(report.report_time) if report.HasField("report_time") else None,
        boots=report.boots,
    )


def _counts(counts: metric_pb2.ArmCounts) -> Counts:
    statuses = {_STATUS_NAMES.get(number, str(number)): n for number, n in sorted(counts.statuses.items())}
    return Counts(counts.assigned, counts.completed, statuses, tuple(_metrics(counts.metrics)))


def _metrics(metrics: Iterable[metric_pb2.MetricCounts]) -> Iterable[MetricReport]:
    for metric in metrics:
        n = metric.scored
        mean = metric.sum / n if n else None
        deviation = None
        if mean is not None and n > 1:
            deviation = math.sqrt(max(0.0, metric.sum_of_squares - n * mean * mean) / (n - 1))
        yield MetricReport(metric.metric, n, mean, deviation, dict(sorted(metric.unscored.items())))


def _row(arm: ArmReport, metrics: list[str]) -> list[object]:
    live = arm.live
    row: list[object] = [arm.name, live.assigned, live.ok, live.failed, live.assigned - live.completed]
    by_name = {metric.name: metric for metric in live.metrics}
    for name in metrics:
        metric = by_name.get(name)
        mean = metric.mean if metric else None
        row.append("-" if mean is None else f"{mean:.4f}")
        row.append(sum(metric.unscored.values()) if metric else 0)
    return row
