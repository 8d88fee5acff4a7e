"""What a pipeline version says, and whether it makes sense. Pure: no message, no socket, no store."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tiltyard.control.names import ModelRef, PipelineRef
from tiltyard.errors import InvalidArgumentError
from tiltyard.hash_key import check_hash_key
from tiltyard.slots import MAX_ARMS, shares

MAX_METRICS = 8
DEFAULT_SIGNATURE = "serving_default"
MAX_TIMEOUT_NS = 3600 * 10**9

_KEY = re.compile(r"[a-z0-9_.-]{1,64}", re.ASCII)
_ARM = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_MAX_WEIGHT = 2**63 - 1
_INTEGERS = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
_NUMBERS = _INTEGERS | {"HALF", "BFLOAT16", "FLOAT", "DOUBLE"}


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One arm: its name (empty until ``check`` gives it one), its model, its starting weight."""

    name: str
    model: ModelRef
    weight: int


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One number read from every answer; the fields are those of ``tiltyard.api.common.v1.Metric``."""

    name: str
    output: str
    index: int = 0
    above: float | None = None


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One step.

    Attributes:
        split: whether it is a random split; else a model step, which has one arm.
        arms: the first is the champion.
        hash_key: key that makes requests sticky, or ``""``.
    """

    split: bool
    arms: tuple[ArmSpec, ...]
    hash_key: str = ""


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """What a pipeline version says.

    Attributes:
        steps: in order.
        metrics: numbers read from every answer.
        timeout_ns: longest a request may take in nanoseconds; ``None`` is the router's own default.
    """

    steps: tuple[StepSpec, ...]
    metrics: tuple[MetricSpec, ...] = ()
    timeout_ns: int | None = None

    @property
    def step(self) -> StepSpec:
        """The one step of a checked version."""
        return self.steps[0]

    def to_json(self) -> str:
        """As text for the store."""
        steps = [
            {
                "split": step.split,
                "hash_key": step.hash_key,
                "arms": [
                    {
                        "name": arm.name,
                        "workspace": arm.model.workspace,
                        "model": arm.model.model,
                        "version": arm.model.version,
                        "weight": arm.weight,
                    }
                    for arm in step.arms
                ],
            }
            for step in self.steps
        ]
        metrics = [
            {"name": metric.name, "output": metric.output, "index": metric.index, "above": metric.above}
            for metric in self.metrics
        ]
        return json.dumps({"steps": steps, "metrics": metrics, "timeout_ns": self.timeout_ns}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PipelineSpec:
        """What ``to_json`` wrote."""
        stored: dict[str, Any] = json.loads(text)
        steps = tuple(
            StepSpec(
                split=step["split"],
                hash_key=step["hash_key"],
                arms=tuple(
                    ArmSpec(arm["name"], ModelRef(arm["workspace"], arm["model"], arm["version"]), arm["weight"])
                    for arm in step["arms"]
                ),
            )
            for step in stored["steps"]
        )
        metrics = tuple(MetricSpec(**metric) for metric in stored["metrics"])
        return cls(steps, metrics, stored["timeout_ns"])


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
        dtype: its type by TensorFlow's name without ``DT_``, such as ``FLOAT``.
        shape: sizes, -1 where one may vary; ``None`` when even their number may.
    """

    dtype: str
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of one signature, by the names requests use."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


Signatures = Mapping[str, Signature]


def check(ref: PipelineRef, spec: PipelineSpec, models: Mapping[ModelRef, Signatures]) -> PipelineSpec:
    """Check a new version and give arms without a name theirs.

    Args:
        ref: the pipeline it is for.
        spec: what was asked for.
        models: the signatures of every model version it names.

    Raises:
        InvalidArgumentError: when it makes no sense; the message says what to change.
    """
    if len(spec.steps) != 1:
        raise InvalidArgumentError(
            f"{len(spec.steps)} steps; a pipeline has exactly one for now: a model step or a random split"
        )
    step = _check_step(spec.step, ref)
    _check_metric_names(spec.metrics)
    if spec.timeout_ns is not None and not 10**6 <= spec.timeout_ns <= MAX_TIMEOUT_NS:
        raise InvalidArgumentError("timeout must be from 1 millisecond to 1 hour; leave it unset for 60 seconds")
    if step.split or spec.metrics:
        arms = {arm.name: _serving(arm, models[arm.model]) for arm in step.arms}
        _check_inputs(arms)
        _check_hash_key_input(step.hash_key, arms)
        for metric in spec.metrics:
            _check_metric(metric, arms)
    return replace(spec, steps=(step,))


def _check_step(step: StepSpec, ref: PipelineRef) -> StepSpec:
    for arm in step.arms:
        if arm.model.workspace != ref.workspace:
            raise InvalidArgumentError(
                f"{arm.model} is in another workspace; upload the model to {ref.workspace!r}, where the pipeline is"
            )
    if not step.split:
        return replace(step, arms=(replace(step.arms[0], name=step.arms[0].model.model, weight=1),))
    if not 2 <= len(step.arms) <= MAX_ARMS:
        raise InvalidArgumentError(f"{len(step.arms)} arms; a random split has 2 to {MAX_ARMS}")
    arms = _named(step.arms)
    for arm in arms:
        if not 0 <= arm.weight <= _MAX_WEIGHT:
            raise InvalidArgumentError(f"arm {arm.name!r}: weight {arm.weight} is negative; use 0 to send it nothing")
    shares([arm.weight for arm in arms], [arm.name for arm in arms])
    if step.hash_key:
        check_hash_key(step.hash_key)
    return replace(step, arms=arms)


def _named(arms: Sequence[ArmSpec]) -> tuple[ArmSpec, ...]:
    of_model = Counter(arm.model.model for arm in arms)
    named = tuple(arm if arm.name else replace(arm, name=_default_name(arm.model, of_model)) for arm in arms)
    for arm in named:
        if not _ARM.fullmatch(arm.name):
            raise InvalidArgumentError(
                f"arm name {arm.name!r}: use ASCII letters, digits, dashes and underscores, at most 64 characters"
            )
    for name, times in Counter(arm.name for arm in named).items():
        if times > 1:
            raise InvalidArgumentError(f"{times} arms are named {name!r}; give each arm a name of its own")
    return named


def _default_name(model: ModelRef, of_model: Counter[str]) -> str:
    return f"{model.model}-v{model.version}" if of_model[model.model] > 1 else model.model


def _check_metric_names(metrics: Sequence[MetricSpec]) -> None:
    if len(metrics) > MAX_METRICS:
        raise InvalidArgumentError(f"{len(metrics)} metrics; a pipeline has at most {MAX_METRICS}")
    for metric in metrics:
        if not _KEY.fullmatch(metric.name):
            raise InvalidArgumentError(
                f"metric name {metric.name!r}: use lower-case letters, digits, '_', '.' and '-', at most 64 characters"
            )
        if not metric.output:
            raise InvalidArgumentError(f"metric {metric.name!r} names no output; say which output tensor it reads")
        if metric.index < 0:
            raise InvalidArgumentError(f"metric {metric.name!r}: index {metric.index} is negative; it counts from 0")
        if metric.above is not None and not math.isfinite(metric.above):
            raise InvalidArgumentError(f"metric {metric.name!r}: 'above' must be a finite number")
    for name, times in Counter(metric.name for metric in metrics).items():
        if times > 1:
            raise InvalidArgumentError(f"{times} metrics are named {name!r}; give each a name of its own")


def _serving(arm: ArmSpec, signatures: Signatures) -> Signature:
    if DEFAULT_SIGNATURE not in signatures:
        found = ", ".join(sorted(name for name in signatures if not name.startswith("__"))) or "none"
        raise InvalidArgumentError(
            f"arm {arm.name!r}: {arm.model} has no signature {DEFAULT_SIGNATURE!r} (it has {found}); export it with one"
        )
    return signatures[DEFAULT_SIGNATURE]


def _check_inputs(arms: Mapping[str, Signature]) -> None:
    (champion, wanted), *challengers = arms.items()
    for name, signature in challengers:
        missing = sorted(set(wanted.inputs) - set(signature.inputs))
        extra = sorted(set(signature.inputs) - set(wanted.inputs))
        if missing or extra:
            raise InvalidArgumentError(
                f"arm {name!r} cannot answer the requests of arm {champion!r}: its inputs are "
                f"{sorted(signature.inputs)}, the champion's {sorted(wanted.inputs)}"
            )
        for tensor, spec in wanted.inputs.items():
            if signature.inputs[tensor].dtype != spec.dtype:
                raise InvalidArgumentError(
                    f"arm {name!r} cannot answer the requests of arm {champion!r}: it takes input {tensor!r} as "
                    f"{signature.inputs[tensor].dtype}, the champion as {spec.dtype}"
                )


def _check_hash_key_input(key: str, arms: Mapping[str, Signature]) -> None:
    for signature in arms.values():
        if key in signature.inputs and signature.inputs[key].dtype not in _INTEGERS | {"STRING"}:
            raise InvalidArgumentError(
                f"hash_key {key!r} is a model input of type {signature.inputs[key].dtype}; only strings and integers "
                "identify somebody (round-off would deal one key to two arms): use another key"
            )


def _check_metric(metric: MetricSpec, arms: Mapping[str, Signature]) -> None:
    for arm, signature in arms.items():
        output = signature.outputs.get(metric.output)
        if output is None:
            raise InvalidArgumentError(
                f"metric {metric.name!r}: arm {arm!r} has no output {metric.output!r}; it has "
                + ", ".join(sorted(signature.outputs))
            )
        if output.dtype not in _NUMBERS:
            raise InvalidArgumentError(
                f"metric {metric.name!r}: output {metric.output!r} of arm {arm!r} is {output.dtype}, not a number"
            )
        row = output.shape[1:] if output.shape else None
        if row is not None and all(size >= 0 for size in row) and metric.index >= math.prod(row):
            raise InvalidArgumentError(
                f"metric {metric.name!r}: index {metric.index} is outside output {metric.output!r} of arm {arm!r}, "
                f"which has {math.prod(row)} elements a row"
            )
