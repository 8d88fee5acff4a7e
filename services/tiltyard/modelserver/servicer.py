"""TensorFlow Serving's gRPC services: bytes in, bytes out; decisions are made in ``predict`` and ``store``."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tiltyard.errors import DeadlineError, EntityNotFoundError, InvalidArgumentError, TiltyardError
from tiltyard.modelserver.predict import predict
from tiltyard.modelserver.runtime import get_model_metadata_pb2, get_model_status_pb2, model_management_pb2, predict_pb2
from tiltyard.modelserver.store.config import read_config
from tiltyard.modelserver.store.versions import ModelStore

MAX_MESSAGE_BYTES = 1024
"""Longer error texts are cut: they travel in a header, and headers have a limit."""

_LONGEST_DEADLINE_S = 1e9  # gRPC says 9e15 seconds when there is none
_SERVING = b"\x08\x01"  # HealthCheckResponse { status: SERVING }
_HEALTH_SERVICES = (b"", b"PredictionService", b"ModelService")

Handler = Callable[[bytes, Any], Awaitable[bytes]]


class Servicer:
    """Translates between the wire and the store.

    Args:
        store: the versions served.
        pool: runs predictions; as many at a time as it has threads.
    """

    def __init__(self, store: ModelStore, pool: Executor) -> None:
        self._store = store
        self._pool = pool

    def handlers(self) -> list[grpc.GenericRpcHandler[Any, Any]]:
        """The services, to be added to a server."""
        services: dict[str, dict[str, Handler]] = {
            "tensorflow.serving.PredictionService": {
                "Predict": self.predict,
                "GetModelMetadata": self.get_model_metadata,
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": self.get_model_status,
                "HandleReloadConfigRequest": self.handle_reload_config_request,
            },
            "grpc.health.v1.Health": {"Check": self.check_health},
        }
        return [
            grpc.method_handlers_generic_handler(
                service,
                {name: grpc.unary_unary_rpc_method_handler(_cutting(handler)) for name, handler in methods.items()},
            )
            for service, methods in services.items()
        ]

    async def predict(self, raw: bytes, context: Any) -> bytes:
        """``PredictionService/Predict``: decoded, run and encoded on a thread of the pool."""
        left = context.time_remaining()
        deadline = None if left is None or left > _LONGEST_DEADLINE_S else time.monotonic() + left
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._predict, raw, deadline)

    def _predict(self, raw: bytes, deadline: float | None) -> bytes:
        request = _decode(predict_pb2.PredictRequest, raw)
        number, label = _choice(request)
        with self._store.hold(request.model_spec.name, number, label) as (version, session):
            response = predict(session, request, lambda: _remaining_ms(deadline))
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        return _encode(response)

    async def get_model_metadata(self, raw: bytes, context: Any) -> bytes:
        """``PredictionService/GetModelMetadata``."""
        request = _decode(get_model_metadata_pb2.GetModelMetadataRequest, raw)
        if not request.metadata_field:
            raise InvalidArgumentError("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise InvalidArgumentError(f"Metadata field {name} is not supported")
        number, label = _choice(request)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._store.hold(request.model_spec.name, number, label) as (version, session):
            response.metadata["signature_def"].Pack(session.signature_defs)
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        return _encode(response)

    async def get_model_status(self, raw: bytes, context: Any) -> bytes:
        """``ModelService/GetModelStatus``."""
        request = _decode(get_model_status_pb2.GetModelStatusRequest, raw)
        if not request.HasField("model_spec"):
            raise InvalidArgumentError("Missing ModelSpec")
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state, error in self._store.status(spec.name, number):
            entry = response.model_version_status.add(version=version, state=int(state))
            entry.status.SetInParent()
            if error is not None:
                entry.status.error_code = error.status.value[0]
                entry.status.error_message = error.message
        return _encode(response)

    async def handle_reload_config_request(self, raw: bytes, context: Any) -> bytes:
        """``ModelService/HandleReloadConfigRequest``; answers when the new models are available."""
        request = _decode(model_management_pb2.ReloadConfigRequest, raw)
        await self._store.reload(read_config(request.config))
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return _encode(response)

    async def check_health(self, raw: bytes, context: Any) -> bytes:
        """``Health/Check``: serving from start-up on, whatever the models, under TensorFlow Serving's names."""
        service = raw[2:] if raw[:1] == b"\x0a" else raw  # HealthCheckRequest { string service = 1; }
        if service not in _HEALTH_SERVICES:
            raise EntityNotFoundError("unknown service")
        return _SERVING


def _cutting(handler: Handler) -> Handler:
    """The same handler with error texts of at most ``MAX_MESSAGE_BYTES``."""

    async def call(raw: bytes, context: Any) -> bytes:
        try:
            return await handler(raw, context)
        except TiltyardError as error:
            text = error.message.encode("utf-8", "replace")
            if len(text) > MAX_MESSAGE_BYTES:
                error.message = text[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"
            raise

    return call


def _choice(request: Any) -> tuple[int | None, str | None]:
    """The version number or label that a request names."""
    if not request.HasField("model_spec"):
        raise InvalidArgumentError("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise InvalidArgumentError("ModelSpec has no model name specified.")
    kind = spec.WhichOneof("version_choice")
    return (
        spec.version.value if kind == "version" else None,
        spec.version_label if kind == "version_label" else None,
    )


def _remaining_ms(deadline: float | None) -> int | None:
    """Time left, rounded up; None for no limit."""
    if deadline is None:
        return None
    left = math.ceil((deadline - time.monotonic()) * 1000)
    if left <= 0:
        raise DeadlineError("timed out before the run could begin")
    return left


def _decode(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise TiltyardError(f"the request is no {kind.DESCRIPTOR.full_name}") from error


def _encode(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded
