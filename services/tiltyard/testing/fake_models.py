"""Stand-ins for tests that need no TensorFlow: small SavedModels, and a scripted model server."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tiltyard.api.tfs.v1 import config_pb2, saved_model_pb2, status_pb2, tensor_pb2
from tiltyard.rpc import SERVER_OPTIONS

FLOAT = tensor_pb2.DATA_TYPE_FLOAT
_State = status_pb2.ModelVersionStatus
_OK = grpc.StatusCode.OK.value[0]


def saved_model_bytes(
    inputs: Mapping[str, tensor_pb2.DataType.ValueType] | None = None,
    outputs: Mapping[str, tensor_pb2.DataType.ValueType] | None = None,
    *,
    tag: str = "serve",
    mark: str = "",
    row: int = 1,
) -> bytes:
    """A ``saved_model.pb`` with one signature and no graph.

    Args:
        inputs: types by name; default one float ``x``.
        outputs: types by name; default one float ``main``.
        tag: of its one graph.
        mark: anything that makes it another content.
        row: elements in a row of each output.
    """
    model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = model.meta_graphs.add()
    graph.meta_info_def.tags.append(tag)
    graph.meta_info_def.meta_graph_version = mark
    signature = graph.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    for name, dtype in (inputs or {"x": FLOAT}).items():
        signature.inputs[name].dtype = dtype
        signature.inputs[name].tensor_shape.dim.add(size=-1)
    for name, dtype in (outputs or {"main": FLOAT}).items():
        signature.outputs[name].dtype = dtype
        signature.outputs[name].tensor_shape.dim.add(size=-1)
        signature.outputs[name].tensor_shape.dim.add(size=row)
    return model.SerializeToString(deterministic=True)


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """A zip archive of these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


async def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until a condition holds; raises ``TimeoutError`` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {timeout_s:g} s")
        await asyncio.sleep(0.01)


class FakeModelServer:
    """TensorFlow Serving's ModelService with a scripted loader. Belongs to one event loop.

    Attributes:
        configs: every configuration it took, as served name -> versions.
        failing: messages of the loads that fail, by (served name, version).
        load_s: how long a load takes.
        refuse: when set, every reload is refused with INVALID_ARGUMENT and this message.
    """

    def __init__(self) -> None:
        self.configs: list[dict[str, tuple[int, ...]]] = []
        self.failing: dict[tuple[str, int], str] = {}
        self.load_s = 0.0
        self.refuse = ""
        self.address = ""
        self._states: dict[tuple[str, int], tuple[_State.State.ValueType, str]] = {}
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve; on the same address again after a ``stop``."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        methods = {
            "HandleReloadConfigRequest": grpc.unary_unary_rpc_method_handler(
                self._reload,
                request_deserializer=config_pb2.ReloadConfigRequest.FromString,
                response_serializer=config_pb2.ReloadConfigResponse.SerializeToString,
            ),
            "GetModelStatus": grpc.unary_unary_rpc_method_handler(
                self._status,
                request_deserializer=status_pb2.GetModelStatusRequest.FromString,
                response_serializer=status_pb2.GetModelStatusResponse.SerializeToString,
            ),
        }
        handler = grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", methods)
        self._server.add_generic_rpc_handlers((handler,))
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Die, and forget every model."""
        if self._server is not None:
            await self._server.stop(None)
        self._states.clear()

    @property
    def available(self) -> set[tuple[str, int]]:
        """What it serves, as (served name, version)."""
        return {key for key, (state, _) in self._states.items() if state == _State.STATE_AVAILABLE}

    async def _reload(self, request: config_pb2.ReloadConfigRequest, context: Any) -> config_pb2.ReloadConfigResponse:
        if self.refuse:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuse)
        models = request.config.model_config_list.config
        config = {model.name: tuple(model.model_version_policy.specific.versions) for model in models}
        self.configs.append(config)
        wanted = {(name, version) for name, versions in config.items() for version in versions}
        for key in self.available - wanted:
            self._states[key] = (_State.STATE_END, "")
        loads = wanted - self.available
        for key in loads:
            self._states[key] = (_State.STATE_LOADING, "")
        await asyncio.sleep(self.load_s)
        paths = {model.name: Path(model.base_path) for model in models}
        failures = []
        for name, version in sorted(loads):
            there = await asyncio.to_thread((paths[name] / str(version) / "saved_model.pb").is_file)
            error = self.failing.get((name, version), "" if there else "no saved_model.pb")
            state = _State.STATE_END if error else _State.STATE_AVAILABLE
            self._states[name, version] = (state, error)
            failures += [error] if error else []
        if failures:
            text = f"{len(failures)} model(s) did not become available: {'; '.join(failures)}"
            await context.abort(grpc.StatusCode.UNKNOWN, text)
        return config_pb2.ReloadConfigResponse()

    async def _status(
        self, request: status_pb2.GetModelStatusRequest, context: Any
    ) -> status_pb2.GetModelStatusResponse:
        response = status_pb2.GetModelStatusResponse()
        for (name, version), (state, error) in sorted(self._states.items(), reverse=True):
            if name == request.model_spec.name:
                added = response.model_version_status.add(version=version, state=state)
                added.status.error_code = grpc.StatusCode.INVALID_ARGUMENT.value[0] if error else _OK
                added.status.error_message = error
        if not response.model_version_status:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no versions of {request.model_spec.name}")
        return response
