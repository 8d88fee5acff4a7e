"""``tiltyard pipelines``: what pipelines there are, and what of them is deployed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import click
import grpc
from rich.console import Console
from rich.table import Table

from tiltyard.api.control.v1 import deployment_pb2, deployment_pb2_grpc, pipeline_pb2, pipeline_pb2_grpc
from tiltyard.errors import from_rpc_error
from tiltyard.slots import SLOTS

_TIMEOUT_S = 10.0
_PIPE_WIDTH = 1000


@click.command()
@click.option("--address", default="127.0.0.1:8500", show_default=True, metavar="HOST:PORT", help="Where Tiltyard is.")
@click.option("--workspace", default="-", metavar="NAME", help="Only this workspace; default: all.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(address: str, workspace: str, output: str) -> None:
    """List the pipelines and what is deployed."""
    parent = f"workspaces/{workspace}"
    with grpc.insecure_channel(address) as channel:
        try:
            deployed = {d.name.removesuffix("/deployment"): d for d in _deployments(channel, parent)}
            pipelines = list(_pipelines(channel, parent))
        except grpc.RpcError as error:
            raise from_rpc_error(error, what=f"list pipelines at {address}") from error
    if output == "json":
        rows = [_as_json(pipeline, deployed.get(pipeline.name)) for pipeline in pipelines]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, header_style="bold")
    for title in ("workspace", "pipeline", "version", "state", "epoch", "key", "arms"):
        table.add_column(title, overflow="fold")  # a name that is cut short is no name
    for pipeline in pipelines:
        table.add_row(*_as_row(pipeline, deployed.get(pipeline.name)))
    # A pipe has no width: one line a pipeline, so that grep finds all of it.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table if pipelines else "There are no pipelines yet.")


def _pipelines(channel: grpc.Channel, parent: str) -> Iterator[pipeline_pb2.Pipeline]:
    stub, token = pipeline_pb2_grpc.PipelineServiceStub(channel), ""
    while True:
        request = pipeline_pb2.ListPipelinesRequest(parent=parent, page_token=token)
        page = stub.ListPipelines(request, timeout=_TIMEOUT_S)
        yield from page.pipelines
        if not (token := page.next_page_token):
            return


def _deployments(channel: grpc.Channel, parent: str) -> Iterator[deployment_pb2.Deployment]:
    stub, token = deployment_pb2_grpc.DeploymentServiceStub(channel), ""
    while True:
        request = deployment_pb2.ListDeploymentsRequest(parent=parent, page_token=token)
        page = stub.ListDeployments(request, timeout=_TIMEOUT_S)
        yield from page.deployments
        if not (token := page.next_page_token):
            return


def state_name(deployment: deployment_pb2.Deployment | None) -> str:
    """The state in small letters, as people read it."""
    if deployment is None:
        return "undeployed"
    return deployment_pb2.DeploymentState.Name(deployment.state).removeprefix("DEPLOYMENT_STATE_").lower()


def arms_text(deployment: deployment_pb2.Deployment) -> str:
    """Arms with weight and share, the champion first."""
    return ", ".join(f"{arm.name} {arm.weight} ({100 * arm.slots / SLOTS:g} %)" for arm in deployment.arms)


def _as_row(pipeline: pipeline_pb2.Pipeline, deployment: deployment_pb2.Deployment | None) -> list[str]:
    _, workspace, _, name = pipeline.name.split("/")
    latest = str(pipeline.latest_version.version) if pipeline.HasField("latest_version") else "-"
    if deployment is None:
        return [workspace, name, latest, "undeployed", "-", "-", "-"]
    version = deployment.pipeline_version.rpartition("/")[2]
    return [
        workspace,
        name,
        version,
        state_name(deployment),
        str(deployment.epoch),
        deployment.hash_key or "-",
        arms_text(deployment),
    ]


def _as_json(pipeline: pipeline_pb2.Pipeline, deployment: deployment_pb2.Deployment | None) -> dict[str, object]:
    _, workspace, _, name = pipeline.name.split("/")
    row: dict[str, object] = {
        "workspace": workspace,
        "pipeline": name,
        "latest_version": pipeline.latest_version.version or None,
        "state": state_name(deployment),
    }
    if deployment is not None:
        row |= {
            "version": int(deployment.pipeline_version.rpartition("/")[2]),
            "epoch": deployment.epoch,
            "uid": deployment.uid,
            "request_names": list(deployment.request_names),
            "hash_key": deployment.hash_key or None,
            "arms": [
                {"name": arm.name, "model_version": arm.model_version, "weight": arm.weight, "slots": arm.slots}
                for arm in deployment.arms
            ],
        }
    return row
