"""The process: its flags, its ready line, its end; and that nobody else loads TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.modelserver.conftest import Client, Gate, Process

pytestmark = pytest.mark.serve


def _answers(client: Client) -> bool:
    """Whether the server takes new calls; gRPC cancels those that cross with the stop and refuses those after it."""
    try:
        client.status("held")
    except grpc.RpcError as error:
        call: Any = error
        assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        return False
    return True


@pytest.fixture
def start(process: Process) -> Iterator[type[Process]]:
    """Start more processes; they end with the test."""
    started: list[Process] = []

    class Started(type(process)):  # type: ignore[misc]
        def __init__(self, *flags: str) -> None:
            super().__init__(*flags)
            started.append(self)

    yield Started
    for each in started:
        each.close()


@pytest.fixture
def connect(client: Client) -> Iterator[type[Client]]:
    """Open more clients; they close with the test."""
    opened: list[Client] = []

    class Opened(type(client)):  # type: ignore[misc]
        def __init__(self, tfs: SimpleNamespace, address: str) -> None:
            super().__init__(tfs, address)
            opened.append(self)

    yield Opened
    for each in opened:
        each.close()


def test_one_model_from_the_start_and_a_graceful_end(
    start: type[Process], connect: type[Client], tfs: SimpleNamespace, models: Path, tmp_path: Path, gate: Gate
) -> None:
    """A model by flags, a UNIX socket, and SIGTERM with a request in flight: it finishes, the exit status is 0."""
    socket = tmp_path / "socket"
    process = start("--model_name=held", f"--model_base_path={models / 'gate'}", f"--grpc_socket_path={socket}")
    client = connect(tfs, process.ready())
    assert client.status("held") == {2: ("AVAILABLE", 0, "")}
    local = connect(tfs, f"unix:{socket}")
    held = local.prediction.Predict.future(local.request("held", gate.inputs), timeout=60)
    gate.wait_started()
    process.popen.terminate()
    client.wait_until(lambda: not _answers(client), "new calls to be refused")
    assert process.popen.poll() is None
    gate.open()
    assert held.result().model_spec.version.value == 2
    assert process.popen.wait(30) == 0


def test_a_model_that_cannot_be_loaded_ends_the_process(start: type[Process], models: Path, tmp_path: Path) -> None:
    processes = [
        start("--model_name=gone", f"--model_base_path={tmp_path / 'gone'}"),
        start("--model_name=broken", f"--model_base_path={models / 'broken'}"),
        start("--model_name=alone"),
    ]
    for process, word in zip(processes, ("gone", "broken", "--model_base_path"), strict=True):
        assert process.popen.wait(90) not in (0, None)
        assert process.popen.stdout is not None
        assert process.popen.stdout.read() == ""
        assert word in process.errors()
        assert "Traceback" not in process.errors()


def test_plaintext_for_the_world_must_be_asked_for(start: type[Process]) -> None:
    process = start("--host=0.0.0.0")
    assert process.popen.wait(90) not in (0, None)
    assert "--insecure-listen" in process.errors()


def test_a_taken_port_is_an_error(start: type[Process], client: Client, process: Process) -> None:
    address = process.address
    other = start(f"--port={address.rpartition(':')[2]}")
    assert other.popen.wait(90) not in (0, None)
    assert address in other.errors()
    assert client.channel is not None


@pytest.mark.parametrize("module", ["tiltyard", "tiltyard.client", "tiltyard.cli.main", "tiltyard.cli.modelserver_cmd"])
def test_nobody_else_loads_tensorflow(module: str) -> None:
    code = f"import sys, {module}; print([name for name in sys.modules if name.split('.')[0].startswith('tensorflow')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_arrays_of_strings_survive(client: Client, models: Path) -> None:
    client.reload({"name": "echo", "base_path": models / "echo"})
    values = np.array([[b"", b"\0"], [b"\xff", b"long" * 10_000]], object)
    answer = client.predict("echo", {"x": values}, signature="string").outputs["y"]
    assert list(answer.string_val) == values.ravel().tolist()
