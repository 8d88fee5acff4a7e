"""The routes file: what a router without a control plane shall do. The reference is docs/routes-file.md.

``load_routes`` checks all that can be checked without the tables in force; ``tables.py`` makes the route tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from tiltyard.errors import ConfigError, InvalidArgumentError
from tiltyard.hash_key import check_hash_key
from tiltyard.router.addresses import address_fault
from tiltyard.router.plain_yaml import Mapping, Node, Scalar, Sequence, parse_plain_yaml, read_text
from tiltyard.router.spec import ArmSpec, MetricSpec
from tiltyard.slots import MAX_ARMS, SLOTS, SlotTable, shares

__all__ = [
    "MAX_BACKENDS",
    "MAX_METRICS",
    "MAX_PIPELINES",
    "PipelineRoutes",
    "RoutesFile",
    "load_routes",
    "parse_routes",
]

MAX_PIPELINES = 20_000
MAX_METRICS = 8
MAX_BACKENDS = 64
"""Most backends of one arm."""

_PIPELINE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,127}(?:/[A-Za-z0-9_.-]{1,127})?")
_ARM_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY_NAME = re.compile(r"[a-z0-9_.-]{1,64}")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNIT_S = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60)}
_MAX_TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True)
class PipelineRoutes:
    """One pipeline of a routes file.

    Attributes:
        line: where it stands.
        weights: exact, one for each arm; empty when ``slots`` is given.
        slots: the table outright, as runs ``(end, arm index)``; ``None`` when the weights make it.
        timeout_s: longest a request may take; 0 when the file does not say.
    """

    line: int
    name: str
    hash_key: str
    salt: bytes
    arms: tuple[ArmSpec, ...]
    weights: tuple[Decimal, ...]
    slots: tuple[tuple[int, int], ...] | None
    metrics: tuple[MetricSpec, ...]
    timeout_s: float

    @property
    def arm_names(self) -> tuple[str, ...]:
        """The arms' names in order."""
        return tuple(arm.name for arm in self.arms)


@dataclass(frozen=True, slots=True)
class RoutesFile:
    """A routes file that passed every check.

    Attributes:
        path: where it was read from.
        pipelines: in the order of the file.
        warnings: what is allowed but may not be meant, ``path:line: text`` each.
    """

    path: str
    pipelines: tuple[PipelineRoutes, ...]
    warnings: tuple[str, ...] = ()


def load_routes(path: str | Path) -> RoutesFile:
    """Read and check a routes file.

    Raises:
        ConfigError: it cannot be read or is wrong; ``path:line: reason``.
    """
    return parse_routes(read_text(Path(path)), str(path))


def parse_routes(text: str, path: str) -> RoutesFile:
    """Check the text of a routes file; raises ``ConfigError`` as ``load_routes`` does.

    Args:
        text: the whole file.
        path: its name, for messages.
    """
    return _Reader(path).file(parse_plain_yaml(text, path))


class _Reader:
    """Turns nodes into values; every method raises ``ConfigError`` with the line of what is wrong."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._warnings: list[str] = []

    def _refuse(self, line: int, reason: str) -> ConfigError:
        return ConfigError(reason, path=self._path, line=line)

    # ---- the schema

    def file(self, root: Node) -> RoutesFile:
        fields = self._fields(root, "the file", required=("pipelines",))
        items = self._items(fields["pipelines"], "pipelines")
        if len(items) > MAX_PIPELINES:
            raise self._refuse(items[MAX_PIPELINES].line, f"{len(items)} pipelines; at most {MAX_PIPELINES}")
        pipelines = tuple(self._pipeline(item) for item in items)
        self._unique([(pipeline.name, pipeline.line) for pipeline in pipelines], "pipeline")
        return RoutesFile(self._path, pipelines, tuple(self._warnings))

    def _pipeline(self, node: Node) -> PipelineRoutes:
        optional = ("hash_key", "salt", "slots", "metrics", "timeout")
        fields = self._fields(node, "a pipeline", required=("name", "arms"), optional=optional)
        name = self._name(fields["name"], "pipeline name", _PIPELINE_NAME, "letters, digits, _ . -, and at most one /")
        hash_key = ""
        if "hash_key" in fields:
            hash_key = self._hash_key(fields["hash_key"])
        salt = name.encode()
        if "salt" in fields:
            salt = self._text(fields["salt"], "salt", most=256, empty=True).encode()
        arms, weights, lines = self._arms(fields["arms"], slots_given="slots" in fields)
        names = [arm.name for arm in arms]
        slots = self._slots(fields["slots"], names) if "slots" in fields else None
        if slots is None:
            self._check_shares(weights, names, lines)
        elif len(weights) == len(arms):
            self._compare(fields["slots"].line, slots, weights, names)
        metrics: tuple[MetricSpec, ...] = ()
        if "metrics" in fields:
            metrics = self._metrics(fields["metrics"])
        timeout_s = self._duration(fields["timeout"]) if "timeout" in fields else 0.0
        return PipelineRoutes(
            line=node.line,
            name=name,
            hash_key=hash_key,
            salt=salt,
            arms=arms,
            weights=weights if slots is None else (),
            slots=slots,
            metrics=metrics,
            timeout_s=timeout_s,
        )

    def _arms(self, node: Node, *, slots_given: bool) -> tuple[tuple[ArmSpec, ...], tuple[Decimal, ...], list[int]]:
        items = self._items(node, "arms")
        if not 1 <= len(items) <= MAX_ARMS:
            line = items[MAX_ARMS].line if items else node.line
            raise self._refuse(line, f"{len(items)} arms; a split has 2 to {MAX_ARMS}, a plain model 1")
        arms: list[ArmSpec] = []
        weights: list[Decimal] = []
        for item in items:
            required = ("name", "model", "version", "backends")
            fields = self._fields(item, "an arm", required=required, optional=("weight",))
            name = self._name(fields["name"], "arm name", _ARM_NAME, "1 to 64 letters, digits, _ . -")
            model = self._text(fields["model"], "model", most=256)
            version = self._integer(fields["version"], "version", 1, 2**63 - 1)
            arms.append(ArmSpec(name, model, version, self._backends(fields["backends"])))
            if "weight" in fields:
                weights.append(self._weight(fields["weight"]))
            elif len(items) == 1:
                weights.append(Decimal(1))
            elif not slots_given:
                raise self._refuse(item.line, f"arm {name!r} has no weight")
        lines = [item.line for item in items]
        self._unique(list(zip((arm.name for arm in arms), lines, strict=True)), "arm")
        return tuple(arms), tuple(weights), lines

    def _check_shares(self, weights: Seq[Decimal], names: Seq[str], lines: Seq[int]) -> None:
        try:
            shares(weights, names)
        except InvalidArgumentError as error:
            # An arm's own fault is shown at the arm.
            at = next((line for name, line in zip(names, lines, strict=True) if repr(name) in error.message), lines[0])
            raise self._refuse(at, error.message) from error

    def _slots(self, node: Node, names: Seq[str]) -> tuple[tuple[int, int], ...]:
        runs: list[tuple[int, int]] = []
        for item in self._items(node, "slots"):
            pair = self._items(item, "a run of slots")
            if len(pair) != 2:
                raise self._refuse(item.line, f"a run of slots is [end, arm]; this one has {len(pair)} entries")
            end = self._integer(pair[0], "the end of a run of slots", 1, SLOTS)
            if end <= (runs[-1][0] if runs else 0):
                raise self._refuse(pair[0].line, f"a run of slots ends at {end} after {runs[-1][0]}; ends must rise")
            arm = self._text(pair[1], "the arm of a run of slots", most=64)
            if arm not in names:
                raise self._refuse(pair[1].line, f"slots name {arm!r}, but the arms are {', '.join(names)}")
            runs.append((end, names.index(arm)))
        if not runs or runs[-1][0] != SLOTS:
            last = runs[-1][0] if runs else 0
            raise self._refuse(node.line, f"the last run of slots ends at {last}; it must end at {SLOTS}")
        return tuple(runs)

    def _compare(self, line: int, slots: Seq[tuple[int, int]], weights: Seq[Decimal], names: Seq[str]) -> None:
        """Warn when weights stand beside a slot table that says something else."""
        given = SlotTable.from_runs(slots, len(names)).counts()
        try:
            wanted: tuple[int, ...] | None = shares(weights, names)
        except InvalidArgumentError:
            wanted = None
        if given != wanted:
            self._warnings.append(f"{self._path}:{line}: slots decide; the weights beside them say something else")

    def _metrics(self, node: Node) -> tuple[MetricSpec, ...]:
        items = self._items(node, "metrics")
        if len(items) > MAX_METRICS:
            raise self._refuse(items[MAX_METRICS].line, f"{len(items)} metrics; at most {MAX_METRICS}")
        metrics: list[MetricSpec] = []
        for item in items:
            fields = self._fields(item, "a metric", required=("name", "output"), optional=("index", "above"))
            metrics.append(
                MetricSpec(
                    name=self._name(fields["name"], "metric name", _KEY_NAME, "1 to 64 of a-z 0-9 _ . -"),
                    output=self._text(fields["output"], "output", most=256),
                    index=self._integer(fields["index"], "index", 0, 2**63 - 1) if "index" in fields else 0,
                    above=float(self._number(fields["above"], "above")) if "above" in fields else None,
                )
            )
        self._unique([(metric.name, item.line) for metric, item in zip(metrics, items, strict=True)], "metric")
        return tuple(metrics)

    def _backends(self, node: Node) -> tuple[str, ...]:
        items = self._items(node, "backends")
        if not 1 <= len(items) <= MAX_BACKENDS:
            raise self._refuse(node.line, f"{len(items)} backends; an arm has 1 to {MAX_BACKENDS}")
        backends = [(self._text(item, "a backend", most=300), item.line) for item in items]
        for address, line in backends:
            if reason := address_fault(address):
                raise self._refuse(line, f"backend {address!r} is not HOST:PORT: {reason}")
        self._unique(backends, "backend")
        return tuple(address for address, _ in backends)

    # ---- shapes and scalars

    def _fields(self, node: Node, what: str, *, required: Seq[str], optional: Seq[str] = ()) -> dict[str, Node]:
        if not isinstance(node, Mapping):
            raise self._refuse(node.line, f"{what} must be a mapping (key: value), not {node.kind}")
        for key, (line, _) in node.entries.items():
            if key not in required and key not in optional:
                raise self._refuse(
                    line, f"unknown key {key!r} in {what}; known are {', '.join((*required, *optional))}"
                )
        for key in required:
            if key not in node.entries:
                raise self._refuse(node.line, f"{what} has no {key!r}")
        return {key: value for key, (_, value) in node.entries.items()}

    def _items(self, node: Node, what: str) -> tuple[Node, ...]:
        if not isinstance(node, Sequence):
            raise self._refuse(node.line, f"{what} must be a list, not {node.kind}")
        return node.items

    def _scalar(self, node: Node, what: str, wanted: str) -> Scalar:
        if not isinstance(node, Scalar):
            raise self._refuse(node.line, f"{what} must be {wanted}, not {node.kind}")
        return node

    def _text(self, node: Node, what: str, *, most: int, empty: bool = False) -> str:
        scalar = self._scalar(node, what, "text")
        if scalar.kind == "empty":
            raise self._refuse(node.line, f"{what} is empty")
        if scalar.kind != "text":
            raise self._refuse(node.line, f"{what} must be text, not {scalar.kind}; put {scalar.text!r} in quotes")
        size = len(scalar.text.encode())
        if size > most or (not size and not empty):
            raise self._refuse(node.line, f"{what} has {size} bytes; it must have {0 if empty else 1} to {most}")
        if _CONTROL.search(scalar.text):
            raise self._refuse(node.line, f"{what} {scalar.text!r} holds a control character")
        return scalar.text

    def _name(self, node: Node, what: str, form: re.Pattern[str], rule: str) -> str:
        text = self._text(node, what, most=256)
        if not form.fullmatch(text):
            raise self._refuse(node.line, f"{what} {text!r} is not allowed; use {rule}")
        return text

    def _hash_key(self, node: Node) -> str:
        text = self._text(node, "hash_key", most=256)
        try:
            check_hash_key(text)
        except InvalidArgumentError as error:
            raise self._refuse(node.line, error.message) from error
        return text

    def _integer(self, node: Node, what: str, low: int, high: int) -> int:
        scalar = self._scalar(node, what, "a whole number")
        if scalar.quoted or not _INTEGER.fullmatch(scalar.text):
            written = f"{scalar.text!r} in quotes" if scalar.quoted else repr(scalar.text)
            raise self._refuse(node.line, f"{what} must be a whole number, not {written}")
        value = int(scalar.text)
        if not low <= value <= high:
            raise self._refuse(node.line, f"{what} is {value}; it must be {low} to {high}")
        return value

    def _number(self, node: Node, what: str) -> Decimal:
        scalar = self._scalar(node, what, "a number")
        if scalar.quoted or not _NUMBER.fullmatch(scalar.text) or len(scalar.text) > 64:
            written = f"{scalar.text!r} in quotes" if scalar.quoted else repr(scalar.text)
            raise self._refuse(node.line, f"{what} must be a number, not {written}")
        value = Decimal(scalar.text)
        if value and not -300 <= value.adjusted() <= 300:  # what a double holds
            raise self._refuse(node.line, f"{what} is {scalar.text}; that is too large or too small")
        return value

    def _weight(self, node: Node) -> Decimal:
        value = self._number(node, "weight")
        if value < 0:
            raise self._refuse(node.line, f"weight is {value}; it must be 0 or more")
        # Exact arithmetic on 1e300 would be slow, and no share of 10,000 slots needs it.
        if value and not -18 <= value.adjusted() <= 18:
            raise self._refuse(node.line, f"weight is {value}; weights above 0 must be 1e-18 to 1e18")
        return value

    def _duration(self, node: Node) -> float:
        scalar = self._scalar(node, "timeout", "a time such as 30s")
        match = _DURATION.fullmatch(scalar.text)
        if match is None:
            raise self._refuse(node.line, f"timeout {scalar.text!r} is no time; write for example 500ms, 30s or 2m")
        seconds = Decimal(match[1]) * _UNIT_S[match[2]]
        if not Decimal("0.001") <= seconds <= _MAX_TIMEOUT_S:
            raise self._refuse(node.line, f"timeout is {scalar.text}; it must be 1ms to 60m")
        return float(seconds)

    def _unique(self, names: Seq[tuple[str, int]], what: str) -> None:
        seen: dict[str, int] = {}
        for name, line in names:
            if name in seen:
                raise self._refuse(line, f"{what} {name!r} again; line {seen[name]} has one of that name")
            seen[name] = line
