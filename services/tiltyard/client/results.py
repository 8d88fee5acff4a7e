"""What came back: one result for each request."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.api.tfs.v1 import predict_pb2
from tiltyard.client.dtypes import by_number
from tiltyard.client.tables import TableList, card
from tiltyard.client.tensors import decode

__all__ = ["InferenceResult", "ResultList", "receipt_epoch", "receipt_has_key"]

_FLAG_BY_KEY = 0x40


class InferenceResult:
    """The answer to one request, and which model gave it.

    Attributes:
        inference_id: receipt of the request; what is learnt later about it is reported under this token.
        arm: name of the arm the request was assigned to.
    """

    def __init__(
        self,
        response: predict_pb2.PredictResponse,
        *,
        pipeline: str,
        original: Mapping[str, Any],
        inference_id: str,
        arm: str,
        time_ms: int,
        elapsed_ns: int,
    ) -> None:
        self.inference_id = inference_id
        self.arm = arm
        self._pipeline = pipeline
        self._original = original
        self._time_ms = time_ms
        self._elapsed_ns = elapsed_ns
        spec = response.model_spec
        # Models are served as `workspace.model`, and neither part can hold a dot.
        self._model = (spec.name.partition(".")[2] or spec.name, str(spec.version.value))
        names = sorted(response.outputs)
        self._outputs = {name: decode(response.outputs[name]) for name in names}
        self._dtypes = {name: by_number(response.outputs[name].dtype) for name in names}

    def model(self) -> tuple[str, str]:
        """Name and version of the model that answered."""
        return self._model

    def data(self) -> list[npt.NDArray[Any]]:
        """The outputs as arrays, in alphabetical order of their names; strings are arrays of ``bytes``."""
        return list(self._outputs.values())

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name."""
        return dict(self._outputs)

    def input_data(self) -> dict[str, Any]:
        """What was given to ``infer`` for this request."""
        return dict(self._original)

    def time_elapsed(self) -> timedelta:
        """Time from sending the request to having the answer, as the client saw it."""
        return timedelta(microseconds=self._elapsed_ns / 1000)

    @cached_property
    def raw(self) -> dict[str, Any]:
        """Everything as plain values: ``raw["outputs"][7]["Float"]["data"][0]``, outputs in alphabetical order.

        ``elapsed`` is in nanoseconds, ``time`` in milliseconds since 1970. Strings are ``str``; bytes that are no
        UTF-8 become lone surrogates (Python's ``surrogateescape``).
        """
        name, version = self._model
        return {
            "check_failures": [],
            "elapsed": self._elapsed_ns,
            "model_name": name,
            "model_version": version,
            "original_data": self._original,
            "outputs": [self._raw_output(output) for output in self._outputs],
            "pipeline_name": self._pipeline,
            "shadow_data": {},
            "time": self._time_ms,
        }

    def _raw_output(self, name: str) -> dict[str, Any]:
        array, dtype = self._outputs[name], self._dtypes[name]
        data = array.reshape(-1).tolist()
        if array.dtype == np.object_:
            data = [item.decode("utf-8", "surrogateescape") for item in data]
        return {dtype.tag: {"v": 1, "dim": list(array.shape), "data": data}}

    def __repr__(self) -> str:
        name, version = self._model
        return f"InferenceResult(model={name!r}, version={version!r}, arm={self.arm!r}, outputs={list(self._outputs)})"

    def _repr_html_(self) -> str:
        name, version = self._model
        fields: list[tuple[str, object]] = [
            ("model", f"{name} (version {version})"),
            ("arm", self.arm),
            ("inference_id", self.inference_id),
            ("elapsed", f"{self._elapsed_ns / 1e6:.2f} ms"),
        ]
        return card([*fields, *((output, _short(array)) for output, array in self._outputs.items())])


class ResultList(TableList[InferenceResult]):
    """Results in the order of the requests; a table in a notebook."""

    def __init__(self, items: Iterable[InferenceResult] = ()) -> None:
        super().__init__(items, ("model", "version", "arm", "outputs", "elapsed ms"), _row)


def receipt_epoch(inference_id: str) -> int:
    """Weight epoch of a receipt (its bytes 4 to 7), 0 when the text is none."""
    return int.from_bytes(_receipt(inference_id)[4:8], "big")


def receipt_has_key(inference_id: str) -> bool:
    """Whether a receipt says that the arm was drawn by key."""
    return bool(_receipt(inference_id)[1:2] and _receipt(inference_id)[1] & _FLAG_BY_KEY)


def _receipt(inference_id: str) -> bytes:
    try:
        found = base64.urlsafe_b64decode(inference_id)
    except (binascii.Error, ValueError):
        return b""
    return found if len(found) == 48 else b""


def _row(result: InferenceResult) -> tuple[object, ...]:
    name, version = result.model()
    shown = ", ".join(f"{output}: {_short(array)}" for output, array in result.outputs().items())
    elapsed = result.time_elapsed() / timedelta(milliseconds=1)
    return name, version, result.arm, shown if len(shown) <= 200 else shown[:197] + "...", f"{elapsed:.2f}"


def _short(array: npt.NDArray[Any]) -> str:
    return str(array.reshape(-1)[0]) if array.size == 1 else np.array2string(array, threshold=8, edgeitems=2)
