"""What a deployment is doing, as the plain values of ``Pipeline.status()``."""

from __future__ import annotations

from typing import Any

from tiltyard.api.control.v1 import deployment_pb2
from tiltyard.client import names

__all__ = ["serves", "status_of"]

_STATES = {
    deployment_pb2.DEPLOYMENT_STATE_DEPLOYING: "Starting",
    deployment_pb2.DEPLOYMENT_STATE_RUNNING: "Running",
    deployment_pb2.DEPLOYMENT_STATE_UNDEPLOYING: "Stopping",
    deployment_pb2.DEPLOYMENT_STATE_FAILED: "Error",
}


def serves(deployment: deployment_pb2.Deployment) -> bool:
    """Whether requests are answered: also while another version is being deployed, by the one before."""
    if deployment.state == deployment_pb2.DEPLOYMENT_STATE_DEPLOYING:
        return bool(deployment.pipeline_version and deployment.arms)
    return deployment.state == deployment_pb2.DEPLOYMENT_STATE_RUNNING and bool(deployment.arms)


def status_of(deployment: deployment_pb2.Deployment, pipeline: str) -> dict[str, Any]:
    """The status people see.

    Args:
        deployment: what the control plane says.
        pipeline: the pipeline's name.
    """
    state = _STATES.get(deployment.state)
    if state is None:
        return {"status": f"Pipeline {pipeline} is not deployed"}
    return {
        "status": state,
        "details": [deployment.error] if deployment.error else [],
        "engines": _engines(deployment, pipeline, state),
        "arms": [_arm(arm) for arm in deployment.arms],
        "pipeline_version": names.version_of(deployment.pipeline_version)[1],
        "epoch": deployment.epoch,
        "request_names": list(deployment.request_names),
    }


def _arm(arm: deployment_pb2.DeployedArm) -> dict[str, Any]:
    model, version = names.version_of(arm.model_version)
    return {"name": arm.name, "model": model, "version": version, "weight": arm.weight, "share": arm.slots / 10_000}


def _engines(deployment: deployment_pb2.Deployment, pipeline: str, state: str) -> list[dict[str, Any]]:
    """The same by model server."""
    engines: dict[str, dict[str, Any]] = {}
    for arm in deployment.arms:
        name, version = names.version_of(arm.model_version)
        for backend in arm.backends:
            engine = engines.setdefault(
                backend.address,
                {
                    "name": backend.address,
                    "status": "Running",
                    "details": [],
                    "pipeline_statuses": {"pipelines": [{"id": pipeline, "status": state}]},
                    "model_statuses": {"models": []},
                },
            )
            model = {"name": name, "version": version, "status": backend.state}
            if model not in engine["model_statuses"]["models"]:
                engine["model_statuses"]["models"].append(model)
            if backend.state != "AVAILABLE":
                engine["status"] = "Unreachable" if backend.state == "UNREACHABLE" else "Error"
            if backend.error and backend.error not in engine["details"]:
                engine["details"].append(backend.error)
    return list(engines.values())
