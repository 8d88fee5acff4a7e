"""What Predict does with a loaded version, in TensorFlow Serving's order and with its statuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tiltyard.api.tfs.v1.predict_pb2 import PredictRequest, PredictResponse
from tiltyard.api.tfs.v1.tensor_pb2 import Tensor
from tiltyard.errors import FailedPreconditionError, InvalidArgumentError
from tiltyard.modelserver.session import Session, Signature
from tiltyard.modelserver.tensors import emit_tensor, parse_tensor


def predict(session: Session, request: PredictRequest, deadline: float | None) -> PredictResponse:
    """Answer a request; of the answer's ``model_spec`` only the signature's name is set.

    Raises a TiltyardError with the status and text that the client gets.
    """
    name = request.model_spec.signature_name or "serving_default"
    signature = session.signatures.get(name)
    if signature is None:
        raise FailedPreconditionError(f'Serving signature key "{name}" not found.')
    feeds = _feeds(signature, request.inputs)
    aliases = _outputs(signature, request.output_filter)
    values = session.run(feeds, [signature.outputs[alias].output for alias in aliases], deadline)
    response = PredictResponse()
    response.model_spec.signature_name = name
    for alias, value in zip(aliases, values, strict=True):
        try:
            emit_tensor(value, signature.outputs[alias].dtype, response.outputs[alias])
        except ValueError as error:
            raise InvalidArgumentError(f"output {alias}: {error}") from error
    return response


def _feeds(signature: Signature, inputs: Mapping[str, Tensor]) -> dict[Any, Any]:
    """Arrays by graph output, from the request and the signature's defaults."""
    wanted, sent, defaults = signature.inputs.keys(), inputs.keys(), signature.defaults
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not defaults):
        raise InvalidArgumentError(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_names(sent)})!=len({_names(wanted)}). Sent extra: {_names(sent - wanted)}. "
            f"Missing but required: {_names(wanted - sent - defaults.keys())}."
        )
    feeds: dict[Any, Any] = {}
    for alias, endpoint in signature.inputs.items():
        proto = inputs[alias] if alias in inputs else defaults.get(alias)
        if proto is None:
            raise InvalidArgumentError(f"input {alias} (fed to {endpoint.tensor_name}) is missing and has no default")
        if endpoint.output is None:
            raise InvalidArgumentError(f"input {alias} is no dense tensor and cannot be fed")
        try:
            feeds[endpoint.output] = parse_tensor(proto)
        except ValueError as error:
            raise InvalidArgumentError(f"tensor parsing error: {alias} ({error})") from error
    if sent - wanted:
        raise InvalidArgumentError(f"invalid name: {_names(sent - wanted)}; the signature takes {_names(wanted)}.")
    return feeds


def _outputs(signature: Signature, output_filter: Iterable[str]) -> list[str]:
    """The outputs to compute: those the request names, or all."""
    aliases: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            known = _names(signature.outputs)
            raise InvalidArgumentError(f"output tensor alias not found in signature: {alias}; it has {known}")
        if alias in aliases:
            raise InvalidArgumentError(f"duplicate output tensor alias: {alias}")
        aliases.append(alias)
    aliases = aliases or list(signature.outputs)
    for alias in aliases:
        if signature.outputs[alias].output is None:
            raise InvalidArgumentError(f"output {alias} is no dense tensor and cannot be fetched")
    return aliases


def _names(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
