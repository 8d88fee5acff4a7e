"""Real processes on free ports, for end-to-end tests and benchmarks. Everything started here ends with its starter.

with start_up(tmp_path / "data") as cluster:            # tiltyard up, ready
    with tiltyard.Client(cluster.address) as client: ...
    cluster.kill_child("router")                        # kill -9; the supervisor starts another

with start_modelserver(folder=tmp_path) as backend, start_router(routes, folder=tmp_path) as router:
    with open_predict(router.address) as predict:
        answer, metadata = predict(predict_message("aloha", {"x": array}), metadata={"session_id": "a"})
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.errors import DeadlineError, EntityNotFoundError, InvalidArgumentError
from tiltyard.rpc import CHANNEL_OPTIONS
from tiltyard.supervisor.process import Process
from tiltyard.supervisor.spawn import tiltyard_command

__all__ = [
    "CHILDREN",
    "Cluster",
    "Predict",
    "Process",
    "Service",
    "float_output",
    "free_port",
    "health",
    "open_predict",
    "predict_message",
    "start_control",
    "start_modelserver",
    "start_outcomes",
    "start_router",
    "start_up",
    "wait_until",
]

CHILDREN = ("modelserver", "control", "outcomes", "router")
"""The children of ``tiltyard up``."""

PREDICT = "/tensorflow.serving.PredictionService/Predict"

START_LIMIT_S = 120.0

_DTYPES: Mapping[str, tensor_pb2.DataType.ValueType] = {
    "float32": tensor_pb2.DATA_TYPE_FLOAT,
    "float64": tensor_pb2.DATA_TYPE_DOUBLE,
    "int32": tensor_pb2.DATA_TYPE_INT32,
    "int64": tensor_pb2.DATA_TYPE_INT64,
}


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago. Better: give a process port 0 and read its ready line."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    """Ask until ``condition`` holds.

    Raises:
        DeadlineError: it did not within ``limit_s`` seconds.
    """
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise DeadlineError(f"waited {limit_s:g} s for {what}")
        time.sleep(0.02)


# -- processes ---------------------------------------------------------------------------------------------------------


class Service(Process):
    """A Tiltyard process that serves; ``address`` is known once it is ready."""

    address: str = ""

    def ready(self, limit_s: float = START_LIMIT_S) -> str:
        """Wait for its ready line; gives the address in it. Raises what ``wait_line`` raises."""
        self.address = self.wait_line(f"tiltyard: {self.name} ready on ", limit_s)
        return self.address


@contextmanager
def start_modelserver(*flags: str, folder: Path, port: int = 0) -> Iterator[Service]:
    """A model server; it takes seconds to load TensorFlow.

    Args:
        flags: such as ``--model_name=...``.
        folder: takes its output.
        port: 0 picks a free one.
    """
    with _served("modelserver", ["--port", str(port), *flags], folder=folder) as service:
        yield service


@contextmanager
def start_control(*flags: str, folder: Path, model_servers: Sequence[str] = ()) -> Iterator[Service]:
    """A control plane with its data in ``folder/control``, serving routers at ``control-router.sock`` in there.

    Args:
        flags: more of its flags.
        folder: takes its output and data.
        model_servers: ``host:port`` of each.
    """
    given = [flag for address in model_servers for flag in ("--model-server", address)]
    data = ["--listen", "127.0.0.1:0", "--data-dir", str(folder / "control")]
    with _served("control", [*data, *given, *flags], folder=folder) as service:
        yield service


@contextmanager
def start_outcomes(*flags: str, folder: Path) -> Iterator[Service]:
    """An outcomes service with its data in ``folder/outcomes``, serving routers at ``outcomes.sock`` in there."""
    with _served("outcomes", ["--data-dir", str(folder / "outcomes"), *flags], folder=folder) as service:
        yield service


@contextmanager
def start_router(routes: str | None, *flags: str, folder: Path, port: int = 0) -> Iterator[Service]:
    """A router with its data in ``folder/router``.

    Args:
        routes: text of its routes file, which is written to ``folder/routes.yaml``; None: ``flags`` say where from.
        flags: more of its flags.
        folder: takes its output, data and routes file.
        port: 0 picks a free one.
    """
    arguments = ["--listen", f"127.0.0.1:{port}", "--data-dir", str(folder / "router"), *flags]
    if routes is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "routes.yaml"
        file.write_text(routes)
        arguments += ["--routes", str(file)]
    with _served("router", arguments, folder=folder) as service:
        yield service


@contextmanager
def _served(name: str, arguments: Sequence[str], *, folder: Path) -> Iterator[Service]:
    with Service(tiltyard_command(name, *arguments), name=name, folder=folder) as service:
        service.ready()
        yield service


class Cluster(Process):
    """A ``tiltyard up`` process; made by ``start_up``.

    Attributes:
        data_dir: its data folder.
        address: where it serves, once ready.
    """

    def __init__(self, data_dir: Path, *flags: str, listen: str = "127.0.0.1:0") -> None:
        self.data_dir = data_dir
        self.address = ""
        command = tiltyard_command("up", "--data-dir", str(data_dir), "--listen", listen, *flags)
        super().__init__(command, name="up", folder=data_dir.parent / f"{data_dir.name}-output")

    def ready(self, limit_s: float = START_LIMIT_S) -> str:
        """Wait until it serves; gives its address. Raises what ``wait_line`` raises."""
        self.address = self.wait_line("tiltyard: ready on ", limit_s)
        return self.address

    def children(self) -> dict[str, int]:
        """Process ids of its children that live now, by name."""
        return {name: pid for pid, name in _tiltyard_children(self.pid)}

    def child(self, name: str) -> int:
        """Process id of a child.

        Raises:
            EntityNotFoundError: it does not live at the moment.
        """
        try:
            return self.children()[name]
        except KeyError:
            raise EntityNotFoundError(f"`tiltyard up` has no child {name!r} now\n{self.said()}") from None

    def kill_child(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a child a signal, SIGKILL unless another is given; its process id."""
        pid = self.child(name)
        os.kill(pid, number)
        return pid

    def wait_new_child(self, name: str, old_pid: int, limit_s: float = 30.0) -> int:
        """Wait until another process has taken the place of ``old_pid``; its id. It may not serve yet."""
        wait_until(lambda: self.children().get(name, old_pid) != old_pid, f"a new {name}", limit_s)
        return self.child(name)


@contextmanager
def start_up(data_dir: Path, *flags: str, listen: str = "127.0.0.1:0") -> Iterator[Cluster]:
    """All of Tiltyard, serving.

    Args:
        data_dir: the data folder, made when it is not there; what ``up`` prints goes to a folder next to it.
        flags: more flags of ``tiltyard up``.
        listen: ``HOST:PORT``; port 0 picks a free one.
    """
    with Cluster(data_dir, *flags, listen=listen) as cluster:
        cluster.ready()
        yield cluster


def _tiltyard_children(parent: int) -> Iterator[tuple[int, str]]:
    """Process id and subcommand of each child that runs ``tiltyard`` (not those that are about to)."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text()
            words = Path("/proc", entry, "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        state, ppid = stat.rpartition(")")[2].split()[:2]
        if int(ppid) == parent and state != "Z" and "-m" in words[:4] and "tiltyard" in words:
            yield int(entry), words[words.index("tiltyard") + 1]


# -- requests ----------------------------------------------------------------------------------------------------------


def predict_message(
    name: str, inputs: Mapping[str, npt.NDArray[Any]], *, label: str = "", signature: str = ""
) -> predict_pb2.PredictRequest:
    """A PredictRequest.

    Args:
        name: of the pipeline; of the model when a model server is asked.
        inputs: arrays of float32, float64, int32 or int64 by name.
        label: ``version_label``: the arm to force.
        signature: signature to run; empty leaves it to the model.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if label:  # part of a oneof: an empty label is one, too
        request.model_spec.version_label = label
    request.model_spec.signature_name = signature
    for key, array in inputs.items():
        if array.dtype.name not in _DTYPES:
            raise InvalidArgumentError(f"input {key!r} is of {array.dtype}; give one of {', '.join(_DTYPES)}")
        tensor = request.inputs[key]
        tensor.dtype = _DTYPES[array.dtype.name]
        tensor.tensor_content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        for size in array.shape:
            tensor.tensor_shape.dim.add(size=size)
    return request


class Predict:
    """Calls ``PredictionService/Predict`` over one channel. Safe to use from several threads."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._call = channel.unary_unary(
            PREDICT,
            request_serializer=predict_pb2.PredictRequest.SerializeToString,
            response_deserializer=predict_pb2.PredictResponse.FromString,
        )

    def __call__(
        self,
        request: predict_pb2.PredictRequest,
        *,
        metadata: Mapping[str, str | bytes] | None = None,
        timeout_s: float = 20.0,
    ) -> tuple[predict_pb2.PredictResponse, dict[str, str | bytes]]:
        """The answer and its initial metadata; ``grpc.RpcError`` when there is none."""
        answer, call = self._call.with_call(request, timeout=timeout_s, metadata=tuple((metadata or {}).items()))
        return answer, dict(call.initial_metadata() or ())


@contextmanager
def open_predict(address: str) -> Iterator[Predict]:
    """A channel to ``address`` for predictions."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        yield Predict(channel)


def health(address: str, service: str = "", *, timeout_s: float = 5.0) -> str:
    """``SERVING``, ``NOT_SERVING``, ``UNKNOWN``, or the name of the status that the health check failed with."""
    name = service.encode()
    request = bytes((0x0A, len(name))) + name if name else b""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        check: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=None, response_deserializer=None
        )
        try:
            answer: bytes = check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            call: Any = error
            code: grpc.StatusCode = call.code()
            return code.name
    return {b"": "UNKNOWN", b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}.get(answer, answer.hex())


def float_output(answer: predict_pb2.PredictResponse, name: str) -> npt.NDArray[np.float32]:
    """A float output, flat."""
    tensor = answer.outputs[name]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, "<f4")
    return np.array(tensor.float_val, np.float32)
