"""``tiltyard weights``: change the shares of a deployed split."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import click
import grpc

from tiltyard.api.control.v1 import deployment_pb2, deployment_pb2_grpc
from tiltyard.cli.pipelines_cmd import arms_text
from tiltyard.errors import from_rpc_error
from tiltyard.slots import exact_weights

_TIMEOUT_S = 30.0


@click.command()
@click.argument("pipeline")
@click.argument("weights", nargs=-1, required=True, metavar="ARM=WEIGHT...")
@click.option("--address", default="127.0.0.1:8500", show_default=True, metavar="HOST:PORT", help="Where Tiltyard is.")
def command(pipeline: str, weights: tuple[str, ...], address: str) -> None:
    """Change the shares of a deployed split.

    PIPELINE is NAME or WORKSPACE/NAME (NAME alone: in the workspace "default"). Give every arm its weight, as in
    "champion=0.9 challenger=0.1"; 0 sends an arm nothing. Keys move only where they must.
    """
    workspace, slash, name = pipeline.partition("/")
    if not slash:
        workspace, name = "default", pipeline
    arms = [_parse(text) for text in weights]
    names = [arm for arm, _ in arms]
    exact = exact_weights([weight for _, weight in arms], names)
    request = deployment_pb2.SetWeightsRequest(pipeline=f"workspaces/{workspace}/pipelines/{name}")
    for arm, weight in zip(names, exact, strict=True):
        request.weights.add(arm=arm, weight=weight)
    with grpc.insecure_channel(address) as channel:
        try:
            answer = deployment_pb2_grpc.DeploymentServiceStub(channel).SetWeights(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error, what=f"change the weights of {pipeline!r}") from error
    click.echo(f"{pipeline}: {arms_text(answer.deployment)}")
    click.echo(f"{answer.moved_slots} of 10000 slots moved; weight epoch {answer.deployment.epoch}")


def _parse(text: str) -> tuple[str, Decimal]:
    arm, equals, weight = text.rpartition("=")
    try:
        if equals and arm:
            return arm, Decimal(weight)
    except InvalidOperation:
        pass
    raise click.BadParameter(f"{text!r} is not ARM=WEIGHT, for example champion=9")
