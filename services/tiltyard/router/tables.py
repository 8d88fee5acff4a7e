"""From routes files to tables: which slots move, and which weight epoch each pipeline is in.

A table is planned, put in force by whoever owns the core, and only then committed: a plan that fails leaves nothing
behind, and its epochs were never used.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from tiltyard.router.routes_file import PipelineRoutes, RoutesFile
from tiltyard.router.spec import PipelineSpec, ReceiptKey, RouteSpec
from tiltyard.slots import SlotTable, Weight, exact_weights, first_table, move, shares

__all__ = ["FileTables", "Plan", "file_uid"]

Runs = tuple[tuple[int, int], ...]
State = list[list[list[int]]]


@dataclass(frozen=True, slots=True)
class _InForce:
    """What must be remembered of one pipeline: its spec, and the order in which its challengers took their slots."""

    spec: PipelineSpec
    state: State


@dataclass(frozen=True, slots=True)
class Plan:
    """A table that could be put in force."""

    spec: RouteSpec
    in_force: dict[str, _InForce]


class FileTables:
    """The tables of one router process in file mode; ``plan`` and ``commit`` are called by one thread at a time.

    Args:
        receipt_key: the key that signs inference ids.
        clock: unix time in seconds. A reload's epochs are numbered by it: another process that started with the same
            file and was given another one later must not use the same number for other shares.
    """

    def __init__(self, receipt_key: ReceiptKey, *, clock: Callable[[], float] = time.time) -> None:
        self._receipt_key = receipt_key
        self._clock = clock
        self._revision = 0
        self._in_force: dict[str, _InForce] = {}
        self._epochs: dict[str, int] = {}  # by pipeline, the last one used; kept when the pipeline goes
        self._uids: dict[str, str] = {}  # by pipeline, from its first table on; kept too

    def plan(self, file: RoutesFile) -> Plan:
        """The table this file makes of the one in force.

        A pipeline whose arms and salt stay has its slots moved as the weights say; another one starts with its first
        table. Where anything changes that counts depend on, the pipeline enters a new epoch.
        """
        first: dict[tuple[int, ...], tuple[Runs, State]] = {}  # most pipelines of a file share their weights
        entries = {pipeline.name: self._pipeline(pipeline, first) for pipeline in file.pipelines}
        spec = RouteSpec(self._revision + 1, tuple(entry.spec for entry in entries.values()), self._receipt_key)
        return Plan(spec, entries)

    def commit(self, plan: Plan) -> None:
        """The plan's table is in force now."""
        self._revision = plan.spec.revision
        self._in_force = plan.in_force
        self._epochs.update((spec.key, spec.epoch) for spec in plan.spec.pipelines)
        self._uids.update((spec.key, spec.uid) for spec in plan.spec.pipelines)

    def _pipeline(self, wanted: PipelineRoutes, first: dict[tuple[int, ...], tuple[Runs, State]]) -> _InForce:
        before = self._in_force.get(wanted.name)
        runs, state = _slots(wanted, before, first)
        spec = PipelineSpec(
            key=wanted.name,
            uid="",
            request_names=(wanted.name,),
            arms=wanted.arms,
            slots=runs,
            epoch=self._next_epoch(wanted.name),
            hash_key=wanted.hash_key,
            salt=wanted.salt,
            metrics=wanted.metrics,
            timeout_s=wanted.timeout_s,
        )
        if before is not None and _counts_as(before.spec) == _counts_as(spec):
            spec = replace(spec, epoch=before.spec.epoch)
        return _InForce(replace(spec, uid=self._uids.get(wanted.name) or file_uid(spec)), state)

    def _next_epoch(self, name: str) -> int:
        last = self._epochs.get(name, 0)
        return 1 if last == 0 else max(last + 1, int(self._clock()))


def _slots(
    wanted: PipelineRoutes, before: _InForce | None, first: dict[tuple[int, ...], tuple[Runs, State]]
) -> tuple[Runs, State]:
    if wanted.slots is not None:
        table = SlotTable.from_runs(wanted.slots, len(wanted.arms))
        return tuple(table.runs()), table.to_state()
    weights: tuple[Weight, ...] = wanted.weights
    if before is not None and _split_of(before.spec) == (wanted.arm_names, wanted.salt):
        if shares(weights) == _counts(before.spec):
            return before.spec.slots, before.state
        table = move(SlotTable.from_state(before.state), weights, wanted.arm_names)
        return tuple(table.runs()), table.to_state()
    exact = exact_weights(weights)
    if exact not in first:
        table = first_table(exact)
        first[exact] = (tuple(table.runs()), table.to_state())
    return first[exact]


def _split_of(spec: PipelineSpec) -> tuple[tuple[str, ...], bytes]:
    """What a slot table belongs to: while this stays, keys keep their arms."""
    return tuple(arm.name for arm in spec.arms), spec.salt


def _counts(spec: PipelineSpec) -> tuple[int, ...]:
    """Slots of each arm."""
    counts = [0] * len(spec.arms)
    start = 0
    for end, arm in spec.slots:
        counts[arm] += end - start
        start = end
    return tuple(counts)


def file_uid(spec: PipelineSpec) -> str:
    """The deployment's name in the counts of a pipeline that comes from a file.

    A digest of what its first table in this process counts: epochs begin at 1 with every start, and counts of a file
    that was edited meanwhile must not be added to those of the old one. Routers started with the same file agree.
    """
    return "file-" + hashlib.sha256(repr(_counts_as(spec)).encode()).hexdigest()[:12]


def _counts_as(spec: PipelineSpec) -> tuple[object, ...]:
    """What one epoch's counts are counts of. (Not the backends and the time-out: they serve the same models.)"""
    models = tuple((arm.name, arm.model, arm.version) for arm in spec.arms)
    return models, spec.slots, spec.salt, spec.hash_key, spec.metrics
