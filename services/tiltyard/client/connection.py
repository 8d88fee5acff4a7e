"""The one channel of a client: stubs, deadlines, and errors that say what to do."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import grpc

from tiltyard.api.control.v1 import deployment_pb2_grpc, model_pb2_grpc, pipeline_pb2_grpc, workspace_pb2_grpc
from tiltyard.api.outcomes.v1 import outcome_pb2_grpc
from tiltyard.api.tfs.v1 import predict_pb2
from tiltyard.client.progress import Progress, watched
from tiltyard.errors import (
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    TiltyardError,
    UnavailableError,
    UnsupportedError,
    from_rpc_error,
)
from tiltyard.rpc.channel import CHANNEL_OPTIONS

__all__ = ["Connection", "is_unreachable", "pages"]

PREDICT = "/tensorflow.serving.PredictionService/Predict"

PAGE_SIZE = 1000

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)
Item = TypeVar("Item")


class _Call(Protocol[Request, Response]):
    """What the SDK uses of ``grpc.UnaryUnaryMultiCallable`` and ``StreamUnaryMultiCallable``."""

    def __call__(self, request: Request, /, timeout: float | None = None) -> Response: ...

    def future(self, request: Request, /, timeout: float | None = None) -> Any: ...


class Connection:
    """Owns the channel and the stubs. Safe to use from several threads.

    Args:
        address: ``host:port`` or ``unix:PATH`` of the router.
        timeout_s: deadline of every call that says nothing else, in seconds.
        interactive: show progress of slow calls on stderr; ``None`` when a terminal or notebook is there.

    Raises:
        InvalidArgumentError: the address is none.
    """

    def __init__(self, address: str, *, timeout_s: float, interactive: bool | None) -> None:
        self.address = _check_address(address)
        self.timeout_s = timeout_s
        self._interactive = interactive
        self._closed = False
        self._channel = grpc.insecure_channel(address, options=_options(address))
        self.workspaces = workspace_pb2_grpc.WorkspaceServiceStub(self._channel)
        self.models = model_pb2_grpc.ModelServiceStub(self._channel)
        self.pipelines = pipeline_pb2_grpc.PipelineServiceStub(self._channel)
        self.deployments = deployment_pb2_grpc.DeploymentServiceStub(self._channel)
        self.outcomes = outcome_pb2_grpc.OutcomeServiceStub(self._channel)
        self.predict = self._channel.unary_unary(
            PREDICT,
            request_serializer=predict_pb2.PredictRequest.SerializeToString,
            response_deserializer=predict_pb2.PredictResponse.FromString,
        )

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled. May be called twice."""
        self._closed = True
        self._channel.close()

    def check_open(self) -> None:
        """Refuse to go on after ``close``.

        Raises:
            FailedPreconditionError: the client was closed.
        """
        if self._closed:
            raise FailedPreconditionError("this client was closed; make a new tiltyard.Client(...)")

    def call(
        self, method: _Call[Request, Response], request: Request, *, what: str, timeout_s: float | None = None
    ) -> Response:
        """Make one short call.

        Args:
            method: of one of the stubs.
            request: its message.
            what: the thing that is being done, for messages ("get model 'fraud'").
            timeout_s: deadline in seconds instead of the client's.

        Raises:
            TiltyardError: the call failed; its class says how.
        """
        self.check_open()
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self.explain(error, what=what, timeout_s=timeout_s) from error

    def call_patiently(
        self,
        method: _Call[Request, Response],
        request: Request,
        *,
        what: str,
        timeout_s: float,
        state: Callable[[], str] | None = None,
    ) -> Response:
        """Make one call that may take long, showing that it is still going on; Ctrl-C cancels it.

        Args:
            method: of one of the stubs.
            request: its message, or an iterator of them.
            what: the thing that is being done, for messages.
            timeout_s: deadline in seconds.
            state: gives how far it is, for people.

        Raises:
            TiltyardError: the call failed; its class says how.
        """
        self.check_open()
        shown = watched() if self._interactive is None else self._interactive
        progress = Progress(what, out=sys.stderr if shown else None, state=state)
        call = method.future(request, timeout=timeout_s)
        word = "failed"
        try:
            while True:
                try:
                    response: Response = call.result(timeout=0.2)
                except grpc.FutureTimeoutError:
                    progress.draw()
                else:
                    word = "ok"
                    return response
        except grpc.RpcError as error:
            raise self.explain(error, what=what, timeout_s=timeout_s) from error
        finally:
            call.cancel()  # does nothing once the call has ended
            progress.finish(word)

    def explain(self, error: grpc.RpcError, *, what: str, timeout_s: float) -> TiltyardError:
        """The error of this project for a failed call, with what to do about it."""
        found = from_rpc_error(error, what=what)
        if isinstance(found, UnavailableError) and is_unreachable(error):
            return UnavailableError(
                f"{what}: nobody answers at {self.address}; is `tiltyard up` running there? "
                f"({found.message.removeprefix(what + ': ')})"
            )
        if isinstance(found, DeadlineError):
            return DeadlineError(
                f"{what}: no answer from {self.address} within {timeout_s:g} s; it may still be done there"
            )
        if isinstance(found, UnsupportedError):
            return UnsupportedError(f"{found.message} (is {self.address} the address that `tiltyard up` printed?)")
        return found


def is_unreachable(error: grpc.RpcError) -> bool:
    """Whether the call failed because no connection could be made, so that nothing was sent."""
    call: Any = error
    details = call.details() if hasattr(call, "details") else ""
    return str(details).startswith(("failed to connect", "Failed to connect", "DNS resolution failed"))


def pages(fetch: Callable[[str], tuple[list[Item], str]]) -> Iterator[Item]:
    """All items of a paged list.

    Args:
        fetch: takes a page token and gives the items and the next token.
    """
    token = ""
    while True:
        items, token = fetch(token)
        yield from items
        if not token:
            return


def _check_address(address: str) -> str:
    if address.startswith("unix:"):
        return address
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidArgumentError(f"{address!r} is no address; write HOST:PORT, for example 127.0.0.1:8500")
    return address


def _options(address: str) -> list[tuple[str, int]]:
    # Only what the router never saw may be sent again by gRPC itself (it does so on its own); nobody's DNS may add a
    # retry policy, for a prediction sent twice counts twice.
    options = [*CHANNEL_OPTIONS, ("grpc.service_config_disable_resolution", 1)]
    if _is_local(address):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return address.startswith("unix:") or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
