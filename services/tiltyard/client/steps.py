"""The steps of a pipeline as plain values, and their forms on the wire."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from tiltyard.api.common.v1 import metric_pb2
from tiltyard.api.control.v1 import pipeline_pb2
from tiltyard.client import names
from tiltyard.errors import InvalidArgumentError, UnsupportedError
from tiltyard.hash_key import check_hash_key
from tiltyard.slots import MAX_ARMS, Weight, exact_weights, shares

if TYPE_CHECKING:
    from tiltyard.client.models import ModelVersion

__all__ = [
    "Arm",
    "MetricSpec",
    "ModelStep",
    "SplitStep",
    "Step",
    "metric_from",
    "split_step",
    "step_from",
    "whole_weights",
]

MAX_METRICS = 8

WeightedModel = tuple[Weight, "ModelVersion"] | tuple[Weight, "ModelVersion", str]


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of a split.

    Attributes:
        name: its name, unique in the split.
        model_version: resource name of the model version that answers.
        weight: starting weight relative to the other arms'.
    """

    name: str
    model_version: str
    weight: int


@dataclass(frozen=True, slots=True)
class ModelStep:
    """One model answers every request."""

    model_version: str

    @property
    def model_versions(self) -> tuple[str, ...]:
        """Resource names of the models of the step."""
        return (self.model_version,)

    def to_proto(self) -> pipeline_pb2.Step:
        """The step on the wire."""
        return pipeline_pb2.Step(model=pipeline_pb2.ModelStep(model_version=self.model_version))

    def __str__(self) -> str:
        return names.version_of(self.model_version)[0]


@dataclass(frozen=True, slots=True)
class SplitStep:
    """Each request is answered by one arm, drawn by weight; the first is the champion."""

    arms: tuple[Arm, ...]
    hash_key: str

    @property
    def model_versions(self) -> tuple[str, ...]:
        """Resource names of the models of the step, in the order of its arms."""
        return tuple(arm.model_version for arm in self.arms)

    def to_proto(self) -> pipeline_pb2.Step:
        """The step on the wire."""
        arms = [
            pipeline_pb2.SplitArm(name=arm.name, model_version=arm.model_version, weight=arm.weight)
            for arm in self.arms
        ]
        return pipeline_pb2.Step(random_split=pipeline_pb2.RandomSplitStep(arms=arms, hash_key=self.hash_key))

    def __str__(self) -> str:
        by = f" by {self.hash_key}" if self.hash_key else ""
        return f"random split{by}: " + ", ".join(f"{arm.name} {arm.weight}" for arm in self.arms)


Step = ModelStep | SplitStep


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A number read from every answer.

    Attributes:
        name: its name, unique in the pipeline.
        output: the output tensor it is read from.
        index: flat index of the element within one row.
        above: when set, the element counts 1 if it is greater and 0 otherwise.
    """

    name: str
    output: str
    index: int = 0
    above: float | None = None

    def __post_init__(self) -> None:
        names.check_metric(self.name)
        if not isinstance(self.output, str) or not self.output:
            raise InvalidArgumentError(f"metric {self.name!r}: name the output it is read from, output='main'")
        if isinstance(self.index, bool) or not isinstance(self.index, int) or self.index < 0:
            raise InvalidArgumentError(
                f"metric {self.name!r}: index {self.index!r}; give the element's place in one row, from 0"
            )
        if self.above is not None and not math.isfinite(self.above):
            raise InvalidArgumentError(
                f"metric {self.name!r}: above={self.above}; give a finite number, or leave it out"
            )

    def to_proto(self) -> metric_pb2.Metric:
        """The metric on the wire."""
        return metric_pb2.Metric(name=self.name, output=self.output, index=self.index, above=self.above)


def metric_from(metric: metric_pb2.Metric) -> MetricSpec:
    """The metric of a message."""
    return MetricSpec(metric.name, metric.output, metric.index, metric.above if metric.HasField("above") else None)


def step_from(step: pipeline_pb2.Step) -> Step:
    """The step of a message.

    Raises:
        UnsupportedError: this SDK does not know the kind of step; changing the pipeline with it would lose the step.
    """
    kind = step.WhichOneof("kind")
    if kind == "model":
        return ModelStep(step.model.model_version)
    if kind == "random_split":
        arms = tuple(Arm(arm.name, arm.model_version, arm.weight) for arm in step.random_split.arms)
        return SplitStep(arms, step.random_split.hash_key)
    raise UnsupportedError("the pipeline has a kind of step this SDK does not know; install a newer tiltyard")


def split_step(weighted: Iterable[WeightedModel], hash_key: str | None) -> SplitStep:
    """A split out of ``(weight, model)`` and ``(weight, model, name)``, all of it checked.

    Raises:
        InvalidArgumentError: not 2 to 16 arms, wrong weights, names that are taken or no names, a key that is none.
    """
    arms = [_parts(item, i) for i, item in enumerate(list(weighted))]
    if not 2 <= len(arms) <= MAX_ARMS:
        raise InvalidArgumentError(
            f"a split has 2 to {MAX_ARMS} arms and this has {len(arms)}; use add_model_step for one"
        )
    labels = _names([(model, name) for _, model, name in arms])
    weights = whole_weights([weight for weight, _, _ in arms], labels)
    return SplitStep(
        tuple(
            Arm(label, model.id(), weight) for label, weight, (_, model, _) in zip(labels, weights, arms, strict=True)
        ),
        _check_hash_key(hash_key),
    )


def whole_weights(weights: list[Any], labels: list[str]) -> list[int]:
    """Weights as whole numbers in exactly the same proportion (0.9 and 0.1 become 9 and 1); integers stay.

    Raises:
        InvalidArgumentError: a weight is no number, negative, or so small that the arm would never be drawn.
    """
    numbers = [weight.item() if isinstance(weight, np.integer) else weight for weight in weights]
    # The decimal text of a narrow numpy float is its own (0.9); as a Python float it would read 0.8999999761581421.
    numbers = [Decimal(str(weight)) if isinstance(weight, np.floating) else weight for weight in numbers]
    for label, weight in zip(labels, numbers, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float | Decimal | Fraction):
            raise InvalidArgumentError(f"arm {label!r}: weight {weight!r} is no number; give for example 2 or 0.5")
    shares(numbers, labels)
    whole = exact_weights(numbers, labels)
    divisor = 1 if all(isinstance(weight, int) for weight in numbers) else math.gcd(*whole)
    return [weight // divisor for weight in whole]


def _parts(item: Any, i: int) -> tuple[Any, ModelVersion, str | None]:
    from tiltyard.client.models import ModelVersion

    parts = tuple(item) if isinstance(item, list | tuple) else ()
    if len(parts) not in (2, 3) or not isinstance(parts[1], ModelVersion):
        raise InvalidArgumentError(
            f"arm {i + 1} is {item!r:.80}; give (weight, model) or (weight, model, 'name'), "
            "with what upload_model or get_model returned"
        )
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


def _names(arms: list[tuple[ModelVersion, str | None]]) -> list[str]:
    """Names of the arms: as given, else the model's, with its version where two arms share a model."""
    unnamed = [model.name() for model, name in arms if name is None]
    labels = []
    for model, name in arms:
        if name is not None:
            labels.append(names.check_arm(name))
        elif unnamed.count(model.name()) > 1:
            labels.append(names.check_arm(f"{model.name()}-v{model.version()}"))
        else:
            labels.append(model.name())
    for label in labels:
        if labels.count(label) > 1:
            raise InvalidArgumentError(
                f"two arms would be called {label!r}; name them yourself: (weight, model, 'name')"
            )
    return labels


def _check_hash_key(hash_key: str | None) -> str:
    if not hash_key:
        return ""
    if not isinstance(hash_key, str):
        raise InvalidArgumentError(f"hash_key {hash_key!r} is no text; give the name of the key")
    check_hash_key(hash_key)
    if hash_key == "user-agent":  # the router would read it, but gRPC's Python client always writes its own
        raise InvalidArgumentError("hash_key 'user-agent' is a name gRPC uses itself; take another")
    return hash_key
