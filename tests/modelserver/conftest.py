"""A model server process, small SavedModels for it to serve, and a client that speaks TensorFlow Serving's protos.

Everything here is black box: a command line that prints one ready line, and gRPC. Other implementations take the same
tests: set ``TILTYARD_TEST_MODELSERVER`` to a command (the flags are added to it), or ``TILTYARD_TEST_BACKENDS`` to the
addresses ``host:port,...`` of servers that run already, on this machine because they load the models made here.
"""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

START_LIMIT_S = 90.0
CALL_LIMIT_S = 60.0


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited {limit_s} s for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def tfs() -> SimpleNamespace:
    """TensorFlow and the real messages and stubs of tensorflow-serving-api."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own warnings are not ours to fail on
        pytest.importorskip("tensorflow_serving", reason="needs the [serve] extra")
        modules = {"tf": importlib.import_module("tensorflow")}
        modules["tf"].get_logger().setLevel("ERROR")
        for name in (
            "classification_pb2",
            "get_model_metadata_pb2",
            "get_model_status_pb2",
            "inference_pb2",
            "model_management_pb2",
            "model_service_pb2_grpc",
            "predict_pb2",
            "prediction_service_pb2_grpc",
            "regression_pb2",
        ):
            modules[name] = importlib.import_module(f"tensorflow_serving.apis.{name}")
    return SimpleNamespace(**modules)


class Process:
    """A model server process; stderr goes to a file, for the message when something fails."""

    def __init__(self, *flags: str) -> None:
        command = os.environ.get("TILTYARD_TEST_MODELSERVER", f"{shlex.quote(sys.executable)} -m tiltyard modelserver")
        self.address = ""
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self.popen = subprocess.Popen(
            [*shlex.split(command), "--port=0", *flags], stdout=subprocess.PIPE, stderr=self.stderr, text=True
        )

    def ready(self) -> str:
        """Wait for the ready line and return the address in it."""
        timer = subprocess.TimeoutExpired(self.popen.args, START_LIMIT_S)
        assert self.popen.stdout is not None
        os.set_blocking(self.popen.stdout.fileno(), False)
        line = ""
        end = time.monotonic() + START_LIMIT_S
        while not line.endswith("\n"):
            if time.monotonic() > end:
                raise timer
            line += self.popen.stdout.readline() or ""
            if self.popen.poll() is not None:
                raise AssertionError(f"exited with {self.popen.returncode}: {self.errors()}")
            time.sleep(0.02)
        prefix = "tiltyard: modelserver ready on "
        assert line.startswith(prefix), line
        self.address = line.removeprefix(prefix).strip()
        return self.address

    def errors(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(30)
        finally:
            self.close()

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        self.stderr.close()


class Client:
    """Calls a model server with the real stubs. Values are numpy arrays or ready TensorProtos."""

    def __init__(self, tfs: SimpleNamespace, address: str) -> None:
        self.tfs = tfs
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options=limits)
        self.prediction: Any = tfs.prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model: Any = tfs.model_service_pb2_grpc.ModelServiceStub(self.channel)

    wait_until = staticmethod(wait_until)

    def raw(self, method: str, request: bytes) -> bytes:
        """Call a method by its full name, bytes in, bytes out."""
        call: Any = self.channel.unary_unary
        answer: bytes = call(method)(request, timeout=CALL_LIMIT_S)
        return answer

    def tensor(self, value: Any) -> Any:
        return value if hasattr(value, "SerializeToString") else self.tfs.tf.make_tensor_proto(value)

    def request(
        self,
        name: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        outputs: tuple[str, ...] = (),
    ) -> Any:
        request = self.tfs.predict_pb2.PredictRequest(output_filter=outputs)
        self.spec(request.model_spec, name, version=version, label=label)
        request.model_spec.signature_name = signature
        for alias, value in (inputs or {}).items():
            request.inputs[alias].CopyFrom(self.tensor(value))
        return request

    def spec(self, spec: Any, name: str, *, version: int | None = None, label: str | None = None) -> None:
        spec.name = name
        if version is not None:
            spec.version.value = version
        if label is not None:
            spec.version_label = label

    def predict(self, name: str, inputs: Mapping[str, Any] | None = None, **choice: Any) -> Any:
        """The PredictResponse."""
        return self.prediction.Predict(self.request(name, inputs, **choice), timeout=CALL_LIMIT_S)

    def y(self, name: str, x: float = 1.0, **choice: Any) -> float:
        """Output ``y`` of a model for one number ``x``."""
        response = self.predict(name, {"x": np.array([[x]], np.float32)}, **choice)
        return float(response.outputs["y"].float_val[0])

    def config(self, *models: Mapping[str, Any]) -> Any:
        """A ReloadConfigRequest of models given as keywords of ModelConfig; platform ``tensorflow`` unless given."""
        request = self.tfs.model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.SetInParent()
        for model in models:
            fields = {"model_platform": "tensorflow", **model}
            fields["base_path"] = str(fields.get("base_path", ""))
            versions, latest = fields.pop("versions", None), fields.pop("latest", None)
            config = request.config.model_config_list.config.add(**fields)
            if versions == "all":
                config.model_version_policy.all.SetInParent()
            elif versions is not None:
                config.model_version_policy.specific.versions.extend(versions)
            elif latest is not None:
                config.model_version_policy.latest.num_versions = latest
        return request

    def reload(self, *models: Mapping[str, Any]) -> Any:
        """HandleReloadConfigRequest with these models as the complete configuration."""
        return self.model.HandleReloadConfigRequest(self.config(*models), timeout=CALL_LIMIT_S)

    def status(self, name: str, **choice: Any) -> dict[int, tuple[str, int, str]]:
        """State name, error code and error text by version, in the answer's order."""
        request = self.tfs.get_model_status_pb2.GetModelStatusRequest()
        self.spec(request.model_spec, name, **choice)
        answer = self.model.GetModelStatus(request, timeout=CALL_LIMIT_S)
        state = self.tfs.get_model_status_pb2.ModelVersionStatus.State
        return {
            entry.version: (state.Name(entry.state), entry.status.error_code, entry.status.error_message)
            for entry in answer.model_version_status
        }

    def state(self, name: str, version: int) -> str:
        """The state's name; empty for a version never seen."""
        try:
            return self.status(name, version=version)[version][0]
        except grpc.RpcError as error:
            if failure(error)[0] is not grpc.StatusCode.NOT_FOUND:
                raise
            return ""

    def wait_state(self, name: str, version: int, state: str) -> None:
        wait_until(lambda: self.state(name, version) == state, f"{name} version {version} to be {state}")

    def close(self) -> None:
        self.channel.close()


def failure(error: Any) -> tuple[grpc.StatusCode, str]:
    """Code and text of a failed call."""
    return error.code(), error.details()


@pytest.fixture(scope="session")
def refused() -> Callable[[Callable[[], Any]], tuple[grpc.StatusCode, str]]:
    """Make a call that must fail; returns its code and text."""

    def call(action: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            action()
        return failure(caught.value)

    return call


def _save(tf: Any, path: Path, build: Callable[[Any], Mapping[str, Any]]) -> None:
    """Write the SavedModel whose signatures ``build`` makes in a fresh graph."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        signatures = {name: _signature(tf, *parts) for name, parts in build(tf).items()}
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


def _signature(
    tf: Any,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    method: str = "tensorflow/serving/predict",
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    info = tf.compat.v1.saved_model.build_tensor_info
    signature = tf.compat.v1.saved_model.build_signature_def(
        {alias: info(tensor) for alias, tensor in inputs.items()},
        {alias: info(tensor) for alias, tensor in outputs.items()},
        method,
    )
    for alias, value in (defaults or {}).items():
        signature.defaults[alias].CopyFrom(tf.make_tensor_proto(value))
    return signature


def _plus(number: int) -> Callable[[Any], Mapping[str, Any]]:
    """y = x / 2 + number."""

    def build(tf: Any) -> Mapping[str, Any]:
        v1 = tf.compat.v1
        x = v1.placeholder(tf.float32, [None, 1], name="x")
        half, offset = v1.get_variable("a", initializer=0.5), v1.get_variable("b", initializer=float(number))
        y = tf.add(tf.multiply(x, half), offset, name="y")
        return {
            "serving_default": ({"x": x}, {"y": y}),
            "regress": ({"inputs": x}, {"outputs": y}, "tensorflow/serving/regress"),
        }

    return build


ECHO_DTYPES = """
    float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool string float16 bfloat16 complex64 complex128
"""


def _echo(tf: Any) -> Mapping[str, Any]:
    """One signature for each dtype: y = x."""
    signatures = {}
    for name in ECHO_DTYPES.split():
        x = tf.compat.v1.placeholder(getattr(tf, name), None, name=f"x_{name}")
        signatures[name] = ({"x": x}, {"y": tf.identity(x, name=f"y_{name}")})
    return signatures


def _many(tf: Any) -> Mapping[str, Any]:
    """Several inputs and outputs, defaults, examples, an op that can fail; no ``serving_default``."""
    place = tf.compat.v1.placeholder
    a, b = place(tf.float32, [None, 2], name="a"), place(tf.float32, [None, 2], name="b")
    examples = place(tf.string, [None], name="examples")
    parsed = tf.io.parse_example(examples, {"value": tf.io.FixedLenFeature([], tf.float32)})
    total, product = tf.add(a, b, name="sum"), tf.multiply(a, b, name="product")
    outputs = {"sum": total, "product": product, "matmul": tf.matmul(a, b, transpose_b=True, name="matmul")}
    default_b = np.array([[10, 20]], np.float32)
    return {
        "both": ({"a": a, "b": b}, outputs),
        "defaults": ({"a": a, "b": b}, {"sum": total}, "tensorflow/serving/predict", {"b": default_b}),
        "matmul": ({"a": a, "b": b}, {"c": outputs["matmul"]}),
        "examples": ({"inputs": examples}, {"outputs": parsed["value"]}, "tensorflow/serving/regress"),
    }


def _counter(tf: Any) -> Mapping[str, Any]:
    """A signature without inputs: counts its calls."""
    count = tf.compat.v1.get_variable("count", initializer=np.int64(0), use_resource=True)
    return {"serving_default": ({}, {"count": tf.identity(count.assign_add(1), name="next")})}


def _gate(tf: Any) -> Mapping[str, Any]:
    """Makes the file ``started``, then runs until the file ``gate`` exists: a request the test can hold in flight."""
    place = tf.compat.v1.placeholder
    started, gate = place(tf.string, [], name="started"), place(tf.string, [], name="gate")
    with tf.control_dependencies([tf.io.write_file(started, "")]):
        turns = tf.while_loop(
            lambda turn: tf.equal(tf.size(tf.io.matching_files(gate)), 0), lambda turn: [turn + 1], [tf.constant(0)]
        )[0]
    return {"serving_default": ({"started": started, "gate": gate}, {"turns": tf.identity(turns, name="turns")})}


class Gate:
    """Holds requests to the model ``gate`` in flight until ``open``."""

    def __init__(self, folder: Path) -> None:
        self.started = folder / "started"
        self.gate = folder / "gate"
        self.inputs = {"started": np.array(str(self.started), object), "gate": np.array(str(self.gate), object)}

    def wait_started(self) -> None:
        wait_until(self.started.exists, "the request to run")

    def open(self) -> None:
        self.gate.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


@pytest.fixture(scope="session")
def models(tfs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of base paths: plus/{1,2,9,10}, echo/1, many/1, counter/1, gate/{1,2}, broken/1."""
    root = tmp_path_factory.mktemp("models")
    builders: list[tuple[str, Callable[[Any], Mapping[str, Any]]]] = [
        ("echo/1", _echo),
        ("many/1", _many),
        ("counter/1", _counter),
        ("gate/1", _gate),
        ("gate/2", _gate),
        *((f"plus/{number}", _plus(number)) for number in (1, 2, 9, 10)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, build in builders:
            _save(tfs.tf, root / path, build)
    broken = root / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "saved_model.pb").write_bytes(b"this is no SavedModel")
    return root


@pytest.fixture(scope="session")
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.close()


RUNNING = [address for address in os.environ.get("TILTYARD_TEST_BACKENDS", "").split(",") if address]


@pytest.fixture(scope="session", params=RUNNING or ["our own"])
def client(request: pytest.FixtureRequest, tfs: SimpleNamespace) -> Iterator[Client]:
    client = Client(tfs, request.param if RUNNING else request.getfixturevalue("process").ready())
    yield client
    client.close()
