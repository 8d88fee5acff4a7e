"""What Predict does with a loaded version, in TensorFlow Serving's order and with its statuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tiltyard.errors import FailedPreconditionError, InvalidArgumentError
from tiltyard.modelserver.runtime import predict_pb2
from tiltyard.modelserver.session import Session, Signature
from tiltyard.modelserver.tensors import emit_tensor, parse_tensor

DEFAULT_SIGNATURE = "serving_default"


def predict(session: Session, request: Any, remaining_ms: Callable[[], int | None]) -> Any:
    """Answer a PredictRequest; of the answer's ``model_spec`` only the signature's name is set.

    Args:
        session: the version to run.
        request: a PredictRequest.
        remaining_ms: the caller's time left, asked when all is ready to run; None means no limit.

    Raises:
        TiltyardError: with the status and text that the client gets.
    """
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = session.signatures.get(name)
    if signature is None:
        raise FailedPreconditionError(f'Serving signature key "{name}" not found.')
    feeds = _feeds(signature, request.inputs)
    aliases = _outputs(signature, request.output_filter)
    for alias in aliases:
        if signature.outputs[alias].output is None:
            raise InvalidArgumentError(f"output {alias} of signature {name} is no dense tensor and cannot be fetched")
    values = session.run(feeds, [signature.outputs[alias].output for alias in aliases], remaining_ms())
    response = predict_pb2.PredictResponse()
    response.model_spec.signature_name = name
    for alias, value in zip(aliases, values, strict=True):
        try:
            emit_tensor(value, signature.outputs[alias].dtype, response.outputs[alias])
        except ValueError as error:
            raise InvalidArgumentError(f"output {alias}: {error}") from error
    return response


def _feeds(signature: Signature, inputs: Any) -> dict[Any, Any]:
    """Arrays by graph output, from the request and the signature's defaults."""
    wanted, sent = signature.inputs.keys(), inputs.keys()
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not signature.defaults):
        raise InvalidArgumentError(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_names(sent)})!=len({_names(wanted)}). Sent extra: {_names(sent - wanted)}. "
            f"Missing but required: {_names(wanted - sent - signature.defaults.keys())}."
        )
    feeds: dict[Any, Any] = {}
    for alias, endpoint in signature.inputs.items():
        proto = inputs[alias] if alias in inputs else signature.defaults.get(alias)
        if proto is None:
            raise InvalidArgumentError(
                f"input {alias} (fed to {endpoint.tensor_name}) is missing and has no default. "
                f"Sent: {_names(sent)}; the signature takes {_names(wanted)}."
            )
        if endpoint.output is None:
            raise InvalidArgumentError(f"input {alias} (fed to {endpoint.tensor_name}) is no dense tensor")
        try:
            feeds[endpoint.output] = parse_tensor(proto)
        except ValueError as error:
            raise InvalidArgumentError(f"tensor parsing error: {alias} ({error})") from error
    unknown = sent - wanted
    if unknown:
        raise InvalidArgumentError(f"invalid name of input: {_names(unknown)}; the signature takes {_names(wanted)}.")
    return feeds


def _outputs(signature: Signature, output_filter: Iterable[str]) -> list[str]:
    """The outputs to compute: those the request names, or all."""
    aliases: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise InvalidArgumentError(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_names(signature.outputs)}."
            )
        if alias in aliases:
            raise InvalidArgumentError(f"duplicate output tensor alias: {alias}")
        aliases.append(alias)
    return aliases or list(signature.outputs)


def _names(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
