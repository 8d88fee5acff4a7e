"""What a model takes and gives, as its SavedModel declares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tiltyard.api.control.v1 import model_pb2
from tiltyard.api.tfs.v1 import saved_model_pb2, tensor_pb2
from tiltyard.client.dtypes import by_number
from tiltyard.errors import FailedPreconditionError, InvalidArgumentError, UnsupportedError

__all__ = ["DEFAULT_SIGNATURE", "Signature", "TensorSpec", "check_arms_agree", "signature_of"]

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the name requests and answers use.
        number: TensorFlow's number of the element type.
        shape: sizes of the dimensions, ``None`` where any will do; ``None`` when any number of dimensions will do.
        optional: an input that may be left out.
    """

    name: str
    number: int
    shape: tuple[int | None, ...] | None
    optional: bool = False

    @property
    def dtype(self) -> str:
        """TensorFlow's name of the element type ("float32")."""
        try:
            return by_number(self.number).name
        except UnsupportedError:
            return f"type {self.number}"

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}, {show_shape(self.shape)})"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of ``shape`` can be this input."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            wanted in (None, size) for size, wanted in zip(shape, self.shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a model.

    Attributes:
        key: its name; ``""`` stands for ``serving_default``.
        inputs: by name.
        outputs: by name.
    """

    key: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def signature_of(version: model_pb2.ModelVersion) -> Signature:
    """The signature requests run: ``serving_default``, or the only one there is.

    Raises:
        FailedPreconditionError: the model has no signature that could be meant.
    """
    callable_ = {key: found for key, found in version.signatures.items() if not key.startswith("__")}
    if DEFAULT_SIGNATURE in callable_:
        return _signature("", callable_[DEFAULT_SIGNATURE])
    if len(callable_) == 1:
        return _signature(*next(iter(callable_.items())))
    have = ", ".join(sorted(callable_)) or "none"
    raise FailedPreconditionError(
        f"{version.name} has no signature {DEFAULT_SIGNATURE!r} (it has: {have}); "
        f"save the model with signatures={{{DEFAULT_SIGNATURE!r}: ...}} and upload it again"
    )


def check_arms_agree(versions: list[model_pb2.ModelVersion]) -> None:
    """Refuse arms that cannot answer the requests made for the champion, the first of them.

    Raises:
        InvalidArgumentError: an arm lacks one of the champion's inputs, has it in another type, or needs one more.
    """
    champion = signature_of(versions[0])
    for version in versions[1:]:
        arm = signature_of(version)
        for name, spec in champion.inputs.items():
            other = arm.inputs.get(name)
            if other is None or other.number != spec.number:
                problem = f"has it as {other}" if other else f"takes {_list(arm.inputs)}"
                raise InvalidArgumentError(
                    f"{version.name} cannot answer requests made for {versions[0].name}: the champion takes {spec}, "
                    f"the arm {problem}; arms of one split take the same inputs"
                )
        extra = [spec for name, spec in arm.inputs.items() if name not in champion.inputs and not spec.optional]
        if extra:
            raise InvalidArgumentError(
                f"{version.name} cannot answer requests made for {versions[0].name}: it also needs "
                f"{', '.join(map(str, extra))}; arms of one split take the same inputs"
            )


def show_shape(shape: tuple[int | None, ...] | None) -> str:
    """A shape for people: ``[?, 50]``."""
    if shape is None:
        return "any shape"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _list(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(str(specs[name]) for name in sorted(specs)) or "no inputs"


def _signature(key: str, found: saved_model_pb2.SignatureDef) -> Signature:
    return Signature(
        key,
        {name: _spec(name, info, name in found.defaults) for name, info in sorted(found.inputs.items())},
        {name: _spec(name, info, False) for name, info in sorted(found.outputs.items())},
    )


def _spec(name: str, info: saved_model_pb2.TensorInfo, optional: bool) -> TensorSpec:
    return TensorSpec(name, int(info.dtype), _shape(info), optional)


def _shape(info: saved_model_pb2.TensorInfo) -> tuple[int | None, ...] | None:
    shape: tensor_pb2.TensorShape = info.tensor_shape
    if not info.HasField("tensor_shape") or shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
