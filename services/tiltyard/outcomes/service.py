"""What routers and users can call. Only translates: checks are in ``ingest``, sums in ``report``, rows in ``store``."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc.aio

from tiltyard.api.common.v1.metric_pb2 import ArmCounts, MetricCounts
from tiltyard.api.outcomes.v1 import outcome_pb2 as pb
from tiltyard.api.outcomes.v1.outcome_pb2_grpc import OutcomeServiceServicer
from tiltyard.api.router.v1.counters_pb2 import ReportCountersRequest, ReportCountersResponse
from tiltyard.api.router.v1.counters_pb2_grpc import CounterServiceServicer
from tiltyard.cells import Counts
from tiltyard.errors import EntityNotFoundError, InvalidArgumentError, UnavailableError
from tiltyard.outcomes.ingest import Ingestor, check_report
from tiltyard.outcomes.report import ArmReport, Report, build_report, find_pipeline
from tiltyard.outcomes.store import SqlStore

__all__ = ["Changes", "CounterServicer", "OutcomeServicer"]

WATCH_INTERVAL_S: Final = 1.0
_DEFAULT_PAGE: Final = 100
_LARGEST_PAGE: Final = 1_000

_Context = grpc.aio.ServicerContext[Any, Any]


class Changes:
    """Wakes those who wait for the next commit."""

    def __init__(self) -> None:
        self._version = 0
        self._closed = False
        self._condition = asyncio.Condition()

    @property
    def version(self) -> int:
        """Rises with each commit."""
        return self._version

    async def announce(self) -> None:
        """Something was committed."""
        async with self._condition:
            self._version += 1
            self._condition.notify_all()

    async def close(self) -> None:
        """Let all who wait go."""
        async with self._condition:
            self._closed = True
            self._condition.notify_all()

    async def wait(self, seen: int) -> None:
        """Wait for a version above ``seen``.

        Raises:
            UnavailableError: the service is stopping.
        """
        async with self._condition:
            await self._condition.wait_for(lambda: self._closed or self._version > seen)
            if self._closed:
                raise UnavailableError("the outcomes service is stopping; call again in a moment")


class CounterServicer(CounterServiceServicer):
    """Takes counters from routers."""

    def __init__(self, ingestor: Ingestor, changes: Changes) -> None:
        self._ingestor = ingestor
        self._changes = changes

    async def ReportCounters(  # noqa: N802
        self, request: ReportCountersRequest, context: _Context
    ) -> ReportCountersResponse:
        """Store one report; the answer says that it is on disk."""
        ack = await self._ingestor.put(check_report(request))
        await self._changes.announce()
        return ReportCountersResponse(sequence=ack.sequence, send_all=ack.send_all)


class OutcomeServicer(OutcomeServiceServicer):
    """Answers what came of requests."""

    def __init__(self, store: SqlStore, changes: Changes, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._changes = changes
        self._clock = clock

    async def GetReport(  # noqa: N802
        self, request: pb.GetReportRequest, context: _Context
    ) -> pb.GetReportResponse:
        """Read the counts of one deployment."""
        report = await self._report(request.pipeline, request.deployment_uid)
        if report is None:
            what = f"deployment {request.deployment_uid!r} of " if request.deployment_uid else ""
            raise EntityNotFoundError(
                f"no counts for {what}pipeline {request.pipeline!r}: no router has reported a request of it yet"
            )
        return pb.GetReportResponse(report=_report(report))

    async def WatchReport(  # noqa: N802
        self, request: pb.WatchReportRequest, context: _Context
    ) -> AsyncIterator[pb.WatchReportResponse]:
        """Stream the report whenever it changed, at most once a second."""
        sent: pb.Report | None = None
        while True:
            seen = self._changes.version
            report = await self._report(request.pipeline, "")
            if report is not None:
                message = _report(report)
                if message != sent:
                    sent = message
                    sent_at = time.monotonic()
                    yield pb.WatchReportResponse(report=message)
                    await asyncio.sleep(max(0.0, sent_at + WATCH_INTERVAL_S - time.monotonic()))
            await self._changes.wait(seen)

    async def ListReports(  # noqa: N802
        self, request: pb.ListReportsRequest, context: _Context
    ) -> pb.ListReportsResponse:
        """List the newest report of each pipeline."""
        if request.page_size < 0:
            raise InvalidArgumentError("page_size must not be negative")
        size = min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
        after = _page_start(request.page_token)
        names = [name for name in await self._store.pipelines() if name > after]
        reports = [await self._report(name, "") for name in names[:size]]
        return pb.ListReportsResponse(
            reports=[_report(report) for report in reports if report is not None],
            next_page_token=_page_token(names[size - 1]) if len(names) > size else "",
        )

    async def _report(self, wanted: str, uid: str) -> Report | None:
        if not wanted:
            raise InvalidArgumentError("pipeline is required: its name, workspace/name, or resource name")
        pipeline = find_pipeline(wanted, await self._store.pipelines())
        if pipeline is None:
            return None
        newest = uid or await self._store.newest_deployment(pipeline)
        if newest is None:
            return None
        blocks, boots = await self._store.blocks(pipeline, newest)
        if not blocks:
            return None
        return build_report(pipeline, newest, blocks, boots, now=self._clock())


def _page_token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _page_start(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise InvalidArgumentError("page_token is none that this service gave out") from None


def _report(report: Report) -> pb.Report:
    message = pb.Report(
        pipeline=report.pipeline,
        deployment_uid=report.deployment_uid,
        arms=[_arm(arm) for arm in report.arms],
        boots=report.boots,
        epochs=[
            pb.EpochReport(
                epoch=epoch.epoch,
                arms=[_arm(arm) for arm in epoch.arms],
                share_slots=[arm.share_slots for arm in epoch.arms],
            )
            for epoch in report.epochs
        ],
        uncounted=report.uncounted,
    )
    message.closed_through_time.FromSeconds(report.closed_through)
    message.report_time.FromMicroseconds(int(report.changed * 1e6))
    return message


def _arm(arm: ArmReport) -> pb.ArmReport:
    return pb.ArmReport(
        arm=arm.arm,
        live=_counts(arm.live),
        closed=_counts(arm.closed),
        lost=arm.lost,
        means=[pb.MetricMean(metric=metric.metric, mean=metric.mean) for metric in arm.live.metrics],
    )


def _counts(counts: Counts) -> ArmCounts:
    return ArmCounts(
        assigned=counts.assigned,
        completed=counts.completed,
        statuses=counts.statuses,
        metrics=[
            MetricCounts(
                metric=metric.metric,
                scored=metric.scored,
                sum=metric.total,
                sum_of_squares=metric.sum_of_squares,
                unscored=metric.unscored,
            )
            for metric in counts.metrics
        ],
    )
