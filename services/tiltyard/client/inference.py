"""Asking a deployed pipeline: what requests must look like, sending them, and what went wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from tiltyard.api.tfs.v1 import predict_pb2
from tiltyard.client.connection import is_unreachable
from tiltyard.client.inputs import Metadata, Pairs, Prepared, check_metadata, check_timeout, metadata_of, prepare
from tiltyard.client.results import InferenceResult, ResultList, receipt_epoch, receipt_has_key
from tiltyard.client.signatures import Signature, signature_of
from tiltyard.client.status import serves
from tiltyard.errors import (
    DeadlineError,
    FailedPreconditionError,
    InferenceError,
    InvalidArgumentError,
    UnavailableError,
)

if TYPE_CHECKING:
    from tiltyard.client.client import Client

__all__ = ["Inference"]

REREAD_TIMEOUT_S = 5.0
"""How long to wait for news of a deployment that is known already."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What requests must look like for the deployment in force."""

    hash_key: str
    signature: Signature
    epoch: int


class Inference:
    """Sends requests to one pipeline. Safe to use from several threads.

    What is deployed is read once and remembered until an answer shows that it changed: a receipt of another weight
    epoch, a key that was not used, a failure, or inputs that do not fit.

    Args:
        client: whose connection to use.
        pipeline: resource name of the pipeline.
    """

    def __init__(self, client: Client, pipeline: str) -> None:
        self._client = client
        self._resource = pipeline
        _, self._workspace, _, self._name = pipeline.split("/")
        # Both are replaced whole and never changed, so threads need no lock.
        self._target: _Target | None = None
        self._last: _Target | None = None

    def forget(self) -> None:
        """What is deployed is about to change: read it anew for the next request."""
        self._target = self._last = None

    def infer(
        self,
        rows: list[Mapping[str, Any]],
        *,
        key: str | bytes | int | None,
        metadata: Metadata | None,
        timeout_s: float,
    ) -> ResultList:
        """Send one request for each row, one after the other; see ``Pipeline.infer``."""
        timeout_s, given = check_timeout(timeout_s), check_metadata(metadata)  # before anything is sent or read
        target = self._target or self._read()
        try:
            requests = self._prepare(rows, target, key)
        except InvalidArgumentError:
            # Somebody else may have deployed another version since this was read; look again before refusing.
            fresh = self._read()
            if fresh == target:
                raise
            target, requests = fresh, self._prepare(rows, fresh, key)
        sent = [metadata_of(given, target.hash_key, request.key) for request in requests]
        results = ResultList()
        for i, (request, pairs) in enumerate(zip(requests, sent, strict=True)):
            place = f" (request {i + 1} of {len(requests)})" if len(requests) > 1 else ""
            try:
                results.append(self._ask(request, pairs, target, timeout_s, place))
            except InferenceError as error:
                error.results = tuple(results)
                raise
        return results

    def _read(self) -> _Target:
        last = self._last
        try:
            deployment = self._client._deployment(self._resource, REREAD_TIMEOUT_S if last else None)
            if not serves(deployment):
                why = f" ({deployment.error})" if deployment.error else ""
                raise FailedPreconditionError(f"pipeline {self._name!r} is not deployed{why}; call deploy() first")
            signature = signature_of(self._client._model_version(deployment.arms[0].model_version))
        except (UnavailableError, DeadlineError):
            # The router serves on without a control plane, and so do we with what we knew.
            if last is None:
                raise
            return last
        self._target = self._last = _Target(deployment.hash_key, signature, deployment.epoch)
        return self._target

    def _prepare(self, rows: list[Mapping[str, Any]], target: _Target, key: str | bytes | int | None) -> list[Prepared]:
        prepared = []
        for i, row in enumerate(rows):
            try:
                prepared.append(prepare(row, target.signature, pipeline=self._name, hash_key=target.hash_key, key=key))
            except InvalidArgumentError as error:
                if len(rows) == 1:
                    raise
                raise InvalidArgumentError(f"element [{i}]: {error.message}") from error
        return prepared

    def _ask(
        self, request: Prepared, metadata: Pairs, target: _Target, timeout_s: float, place: str
    ) -> InferenceResult:
        connection = self._client._connection
        message = predict_pb2.PredictRequest(inputs=request.tensors)
        message.model_spec.name = f"{self._workspace}/{self._name}"
        message.model_spec.signature_name = target.signature.key
        connection.check_open()
        time_ms = time.time_ns() // 1_000_000
        start = time.perf_counter_ns()
        try:
            response, call = connection.predict.with_call(message, timeout=timeout_s, metadata=tuple(metadata))
        except grpc.RpcError as error:
            self._failed(error, timeout_s, place)
        elapsed_ns = time.perf_counter_ns() - start
        answered = _texts(call.initial_metadata())
        inference_id = answered.get("tiltyard-inference-id", "")
        if receipt_epoch(inference_id) != target.epoch or (request.key and not receipt_has_key(inference_id)):
            self._target = None
        return InferenceResult(
            response,
            pipeline=self._name,
            original=request.original,
            inference_id=inference_id,
            arm=answered.get("tiltyard-arm", ""),
            time_ms=time_ms,
            elapsed_ns=elapsed_ns,
        )

    def _failed(self, error: grpc.RpcError, timeout_s: float, place: str) -> NoReturn:
        self._target = None
        call: Any = error  # every error a stub raises is a grpc.Call too
        code: grpc.StatusCode = call.code()
        detail = call.details() or code.name
        answered = {**_texts(call.initial_metadata()), **_texts(call.trailing_metadata())}
        advice = _advice(code, is_unreachable(error), self._client._connection.address, timeout_s)
        raise InferenceError(
            f"infer from pipeline {self._name!r}{place} failed: [{code.name}] {detail}; {advice}",
            code=code,
            inference_id=answered.get("tiltyard-inference-id", ""),
            arm=answered.get("tiltyard-arm", ""),
        ) from error


def _advice(code: grpc.StatusCode, unreachable: bool, address: str, timeout_s: float) -> str:
    if unreachable:
        return f"nobody answers at {address}, is `tiltyard up` running there?"
    return {
        grpc.StatusCode.DEADLINE_EXCEEDED: f"there was no answer within {timeout_s:g} s, allow more with timeout=",
        grpc.StatusCode.INVALID_ARGUMENT: "the inputs were refused, correct them",
        grpc.StatusCode.NOT_FOUND: "call deploy() if somebody undeployed it",
        grpc.StatusCode.RESOURCE_EXHAUSTED: "send fewer rows in one request",
        grpc.StatusCode.UNAVAILABLE: "status() tells how its model servers are, try again when they are up",
    }.get(code, "status() tells how its model servers are")


def _texts(pairs: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    return {name: value for name, value in pairs or () if isinstance(value, str)}
