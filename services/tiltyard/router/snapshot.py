"""From the control plane's snapshot to a route spec."""

from __future__ import annotations

from tiltyard.api.common.v1 import metric_pb2
from tiltyard.api.router.v1 import routes_pb2
from tiltyard.router.addresses import address_fault
from tiltyard.router.spec import ArmSpec, MetricSpec, PipelineSpec, ReceiptKey, RouteSpec

__all__ = ["spec_of"]


def spec_of(snapshot: routes_pb2.RouteSnapshot) -> RouteSpec:
    """Translate a snapshot. Sizes and ranges are checked where the table is built, by ``RouteTable``.

    Raises:
        ValueError: what only a snapshot can get wrong; the message says what.
    """
    if not 1 <= len(snapshot.receipt_keys) <= 2:
        raise ValueError(f"{len(snapshot.receipt_keys)} receipt keys; a snapshot brings 1 or 2")
    first = snapshot.receipt_keys[0]
    pipelines = tuple(_pipeline(pipeline) for pipeline in snapshot.pipelines)
    return RouteSpec(snapshot.revision, pipelines, ReceiptKey(number=first.number, secret=first.secret))


def _pipeline(pipeline: routes_pb2.PipelineRoute) -> PipelineSpec:
    timeout_s = 0.0
    if pipeline.HasField("timeout"):
        timeout_s = pipeline.timeout.seconds + pipeline.timeout.nanos / 1e9
        if timeout_s <= 0:
            raise ValueError(f"pipeline {pipeline.pipeline!r}: timeout is {timeout_s} s; it must be above 0")
    return PipelineSpec(
        key=pipeline.pipeline,
        uid=pipeline.deployment_uid,
        request_names=tuple(pipeline.request_names),
        arms=tuple(_arm(arm, pipeline.pipeline) for arm in pipeline.arms),
        slots=tuple((run.end, run.arm) for run in pipeline.slots),
        epoch=pipeline.epoch,
        hash_key=pipeline.hash_key,
        salt=pipeline.salt,
        metrics=tuple(_metric(metric) for metric in pipeline.metrics),
        timeout_s=timeout_s,
    )


def _arm(arm: routes_pb2.ArmRoute, pipeline: str) -> ArmSpec:
    for address in arm.backends:
        if reason := address_fault(address):
            raise ValueError(f"pipeline {pipeline!r}: arm {arm.name!r}: backend {address!r} is not HOST:PORT: {reason}")
    return ArmSpec(arm.name, arm.model, arm.version, tuple(arm.backends))


def _metric(metric: metric_pb2.Metric) -> MetricSpec:
    above = metric.above if metric.HasField("above") else None
    return MetricSpec(metric.name, metric.output, metric.index, above)
