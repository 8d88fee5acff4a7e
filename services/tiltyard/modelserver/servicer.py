"""TensorFlow Serving's gRPC services: bytes in, bytes out; decisions are made in ``predict`` and ``store``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tiltyard.api.tfs.v1.config_pb2 import ReloadConfigRequest, ReloadConfigResponse
from tiltyard.api.tfs.v1.metadata_pb2 import GetModelMetadataRequest, GetModelMetadataResponse
from tiltyard.api.tfs.v1.predict_pb2 import PredictRequest, PredictResponse
from tiltyard.api.tfs.v1.status_pb2 import GetModelStatusRequest, GetModelStatusResponse, ModelVersionStatus
from tiltyard.errors import InvalidArgumentError, TiltyardError
from tiltyard.modelserver.predict import predict
from tiltyard.modelserver.store.config import read_config
from tiltyard.modelserver.store.versions import ModelStore

MAX_MESSAGE_BYTES = 1024
"""Longer error texts are cut: they travel in a header, and headers have a limit."""


class Servicer:
    """Translates between the wire and the store; ``pool`` runs as many predictions at a time as it has threads."""

    def __init__(self, store: ModelStore, pool: Executor) -> None:
        self._store = store
        self._pool = pool

    def handlers(self) -> list[grpc.GenericRpcHandler[Any, Any]]:
        """The services, to be added to a server."""
        predictions = {
            "Predict": _method(PredictRequest, self.predict),
            "GetModelMetadata": _method(GetModelMetadataRequest, self.metadata),
        }
        models = {
            "GetModelStatus": _method(GetModelStatusRequest, self.status),
            "HandleReloadConfigRequest": _method(ReloadConfigRequest, self.reload),
        }
        return [
            grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", predictions),
            grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", models),
        ]

    async def predict(self, request: PredictRequest, context: Any) -> PredictResponse:
        """``PredictionService/Predict``, on a thread of the pool."""
        left = context.time_remaining()
        deadline = None if left is None or left > 1e9 else time.monotonic() + left  # gRPC says 9e15 s for no limit
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._predict, request, deadline)

    def _predict(self, request: PredictRequest, deadline: float | None) -> PredictResponse:
        with self._store.hold(*_choice(request)) as (version, session):
            response = predict(session, request, deadline)
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        return response

    async def metadata(self, request: GetModelMetadataRequest, context: Any) -> GetModelMetadataResponse:
        """``PredictionService/GetModelMetadata``."""
        if set(request.metadata_field) != {"signature_def"}:
            raise InvalidArgumentError(f"metadata_field must be signature_def, not {list(request.metadata_field)}")
        response = GetModelMetadataResponse()
        with self._store.hold(*_choice(request)) as (version, session):
            response.metadata["signature_def"].value = session.signature_defs.SerializeToString()
        response.metadata["signature_def"].type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        return response

    async def status(self, request: GetModelStatusRequest, context: Any) -> GetModelStatusResponse:
        """``ModelService/GetModelStatus``."""
        if not request.HasField("model_spec"):
            raise InvalidArgumentError("Missing ModelSpec")
        spec, response = request.model_spec, GetModelStatusResponse()
        number = spec.version.value if spec.HasField("version") else None
        for version, state, error in self._store.status(spec.name, number):
            entry = response.model_version_status.add(version=version, state=ModelVersionStatus.State.ValueType(state))
            entry.status.SetInParent()
            if error is not None:
                entry.status.error_code = error.status.value[0]
                entry.status.error_message = error.message
        return response

    async def reload(self, request: ReloadConfigRequest, context: Any) -> ReloadConfigResponse:
        """``ModelService/HandleReloadConfigRequest``; answers when the new models are available."""
        await self._store.reload(read_config(request.config))
        response = ReloadConfigResponse()
        response.status.SetInParent()
        return response


def _method(kind: Any, handler: Callable[[Any, Any], Awaitable[Any]]) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of bytes: undecodable ones are INTERNAL, error texts are cut to ``MAX_MESSAGE_BYTES``."""

    async def call(raw: bytes, context: Any) -> Any:
        try:
            return (await handler(kind.FromString(raw), context)).SerializeToString()
        except DecodeError as error:
            raise TiltyardError(f"the request is no {kind.DESCRIPTOR.full_name}") from error
        except TiltyardError as error:
            text = error.message.encode("utf-8", "replace")
            if len(text) > MAX_MESSAGE_BYTES:
                error.message = text[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"
            raise

    return grpc.unary_unary_rpc_method_handler(call)


def _choice(request: Any) -> tuple[str, int | None, str | None]:
    """The model that a request names, with the version's number or label if it names one."""
    if not request.HasField("model_spec"):
        raise InvalidArgumentError("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise InvalidArgumentError("ModelSpec has no model name specified.")
    number = spec.version.value if spec.HasField("version") else None
    return spec.name, number, spec.version_label if spec.WhichOneof("version_choice") == "version_label" else None
