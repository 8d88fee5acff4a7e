"""Translates deployments in force into what routers are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tiltyard.api.router.v1 import routes_pb2
from tiltyard.control.records import DeploymentRecord


def snapshot_of(
    deployments: Iterable[DeploymentRecord], *, revision: int, backends: Sequence[str], receipt_key: bytes
) -> routes_pb2.RouteSnapshot:
    """Everything a router needs, whole.

    Args:
        deployments: what is in force.
        revision: number of this snapshot.
        backends: addresses of the model servers; every arm is on all of them.
        receipt_key: 32 bytes; key number 0.
    """
    snapshot = routes_pb2.RouteSnapshot(revision=revision)
    snapshot.receipt_keys.add(number=0, secret=receipt_key)
    for deployment in deployments:
        snapshot.pipelines.append(_route(deployment, backends))
    return snapshot


def _route(deployment: DeploymentRecord, backends: Sequence[str]) -> routes_pb2.PipelineRoute:
    spec = deployment.spec
    route = routes_pb2.PipelineRoute(
        pipeline=str(deployment.ref),
        deployment_uid=deployment.uid,
        request_names=deployment.request_names,
        hash_key=spec.step.hash_key,
        salt=deployment.salt,
        epoch=deployment.epoch,
    )
    for arm in deployment.arms:
        route.arms.add(name=arm.name, model=arm.model.served_name, version=arm.model.version, backends=backends)
    for end, owner in deployment.table.runs():
        route.slots.add(end=end, arm=owner)
    for metric in spec.metrics:
        route.metrics.add(name=metric.name, output=metric.output, index=metric.index, above=metric.above)
    if spec.timeout_ns is not None:
        route.timeout.FromNanoseconds(spec.timeout_ns)
    return route
