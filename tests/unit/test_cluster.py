"""The helpers that tests and benchmarks start processes with."""

from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.errors import DeadlineError, FailedPreconditionError, InvalidArgumentError, UnavailableError
from tiltyard.testing.cluster import Process, float_output, free_port, health, predict_message, wait_until

SLEEPS = "import time; print('tiltyard: it ready on 127.0.0.1:1', flush=True); time.sleep(600)"


def python(script: str, folder: Path, stop_limit_s: float = 10.0) -> Process:
    return Process([sys.executable, "-c", script], name="it", folder=folder, stop_limit_s=stop_limit_s)


def test_a_process_lives_as_long_as_its_block(tmp_path: Path) -> None:
    with python(SLEEPS, tmp_path) as process:
        assert process.wait_line("tiltyard: it ready on ") == "127.0.0.1:1"
        assert process.alive()
        with pytest.raises(FailedPreconditionError, match="runs already"):
            process.start()
    assert not process.alive()
    assert process.returncode() == -signal.SIGTERM


def test_a_process_that_ends_too_early_is_reported_with_what_it_said(tmp_path: Path) -> None:
    script = "import sys; print('half way'); sys.exit('out of luck')"
    with python(script, tmp_path) as process, pytest.raises(UnavailableError) as failed:
        process.wait_line("ready")
    assert "it ended (exit status 1) before it printed 'ready'" in failed.value.message
    assert "it.out| half way" in failed.value.message
    assert "it.err| out of luck" in failed.value.message


def test_the_last_line_of_a_process_that_ended_counts(tmp_path: Path) -> None:
    with python("print('result 7')", tmp_path) as process:
        assert process.wait(10) == 0
        assert process.wait_line("result ") == "7"


def test_waiting_is_bounded(tmp_path: Path) -> None:
    with python("import time; time.sleep(600)", tmp_path) as process:
        with pytest.raises(DeadlineError, match="did not print"):
            process.wait_line("ready", 0.05)
        with pytest.raises(DeadlineError, match="still runs"):
            process.wait(0.05)
    with pytest.raises(DeadlineError, match="rain"):
        wait_until(lambda: False, "rain", 0.05)


def test_a_process_that_ignores_sigterm_is_killed_and_that_is_an_error(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPS
    process = python(script, tmp_path, stop_limit_s=0.1).start()
    process.wait_line("tiltyard")
    with pytest.raises(DeadlineError):
        process.terminate()
    assert process.returncode() == -signal.SIGKILL


def test_a_second_life_is_not_taken_for_the_first(tmp_path: Path) -> None:
    process = python("import time; time.sleep(0.2); print('now', time.time(), flush=True)", tmp_path)
    lines = []
    for _ in range(2):
        with process:
            lines.append(process.wait_line("now "))
            process.wait(10)
    assert lines[0] != lines[1]


def test_the_body_s_failure_is_not_hidden_by_a_process_that_will_not_end(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPS
    process = python(script, tmp_path, stop_limit_s=0.1)

    def body() -> None:
        with process:
            process.wait_line("tiltyard")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert not process.alive()


def test_a_free_port_can_be_taken() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", free_port()))


def test_requests_hold_the_arrays_they_were_given() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    request = predict_message("shop/fraud", {"x": rows, "n": np.array([1, -2], np.int64)}, label="challenger")
    read = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert (read.model_spec.name, read.model_spec.version_label) == ("shop/fraud", "challenger")
    assert not predict_message("x", {}).model_spec.HasField("version_label")
    assert read.inputs["x"].dtype == tensor_pb2.DATA_TYPE_FLOAT
    assert [dim.size for dim in read.inputs["x"].tensor_shape.dim] == [2, 3]
    assert (np.frombuffer(read.inputs["x"].tensor_content, "<f4").reshape(2, 3) == rows).all()
    assert np.frombuffer(read.inputs["n"].tensor_content, "<i8").tolist() == [1, -2]
    with pytest.raises(InvalidArgumentError, match="complex64"):
        predict_message("x", {"x": np.zeros(1, np.complex64)})


def test_float_outputs_are_read_from_either_form() -> None:
    answer = predict_pb2.PredictResponse()
    answer.outputs["a"].float_val.extend([0.5, 0.25])
    answer.outputs["b"].tensor_content = np.array([0.5, 0.25], "<f4").tobytes()
    assert float_output(answer, "a").tolist() == float_output(answer, "b").tolist() == [0.5, 0.25]


def test_health_of_nobody_is_the_status_of_the_call() -> None:
    began = time.monotonic()
    assert health(f"127.0.0.1:{free_port()}", timeout_s=2.0) == "UNAVAILABLE"
    assert time.monotonic() - began < 10
