"""Decides what a deploy, an undeploy or a change of weights shall lead to. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tiltyard.control.names import ModelRef, PipelineRef
from tiltyard.control.records import DeploymentRecord, PipelineRecord, PipelineVersionRecord
from tiltyard.errors import FailedPreconditionError, InvalidArgumentError
from tiltyard.slots import SlotTable, first_table, move, moved_slots

SALT_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """What a deploy may need that nobody can foresee; made by the caller, so that a decision can be replayed."""

    uid: str
    salt: bytes
    now: datetime


@dataclass(frozen=True, slots=True)
class DeployPlan:
    """What comes into force, and what the user should hear about it."""

    deployment: DeploymentRecord
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """A deployment with new weights, and how many slots change hands. The epoch is the old one when none does."""

    deployment: DeploymentRecord
    moved: int


def plan_deploy(
    pipeline: PipelineRecord,
    version: PipelineVersionRecord,
    *,
    in_force: Sequence[DeploymentRecord],
    kept_salt: bytes | None,
    reshuffle: bool,
    digests: Mapping[ModelRef, str],
    fresh: Fresh,
) -> DeployPlan:
    """What a deploy of ``version`` puts in force.

    A deploy of arms that are in force already begins at their slots and moves to the version's weights from there, so
    that people keep their arm; else, and when reshuffled, it begins with a first table.

    Args:
        pipeline: the pipeline as it is.
        version: the version of it to be deployed.
        in_force: every deployment in force, of all pipelines.
        kept_salt: salt of an earlier deployment of the same arms of this pipeline.
        reshuffle: draw a new salt all the same.
        digests: content digest of each model version it needs.
        fresh: identity, randomness and time for it.
    """
    ref, arms = version.ref, version.spec.step.arms
    names, weights = [arm.name for arm in arms], [arm.weight for arm in arms]
    before = next((deployment for deployment in in_force if deployment.ref == ref), None)
    if before is not None and not reshuffle and before.arm_names == tuple(names):
        table = move(before.table, weights, names)
    else:
        table = first_table(weights, names)
    owner = bare_name_owner(ref, in_force)
    deployment = DeploymentRecord(
        ref=ref,
        version=version.version,
        spec=version.spec,
        uid=fresh.uid,
        weights=tuple(weights),
        table=table,
        salt=fresh.salt if reshuffle or kept_salt is None else kept_salt,
        epoch=pipeline.last_epoch + 1,
        bare_name=owner is None or owner == ref,
        deployed=fresh.now,
    )
    return DeployPlan(deployment, tuple(_warnings(deployment, owner, digests)))


def bare_name_owner(ref: PipelineRef, in_force: Iterable[DeploymentRecord]) -> PipelineRef | None:
    """Whose the pipeline's name without a workspace is now; ``None`` when it is free."""
    for deployment in in_force:
        if deployment.bare_name and deployment.ref.pipeline == ref.pipeline:
            return deployment.ref
    return None


def plan_weights(deployment: DeploymentRecord, last_epoch: int, weights: Iterable[tuple[str, int]]) -> WeightsPlan:
    """What new weights lead to.

    Args:
        deployment: what is in force.
        last_epoch: the greatest epoch the pipeline ever had.
        weights: ``(arm, weight)`` for each arm, in any order.

    Raises:
        FailedPreconditionError: when the deployment has no split.
        InvalidArgumentError: when an arm is missing, unknown or named twice, or the weights make no sense.
    """
    if not deployment.spec.step.split:
        raise FailedPreconditionError(f"{deployment.ref} serves a single model; only a random split has weights")
    names = deployment.arm_names
    wanted: dict[str, int] = {}
    for arm, weight in weights:
        if arm not in names:
            raise InvalidArgumentError(f"{deployment.ref} has no arm {arm!r}; its arms are {', '.join(names)}")
        if arm in wanted:
            raise InvalidArgumentError(f"arm {arm!r} is given twice; give each arm one weight")
        wanted[arm] = weight
    missing = [name for name in names if name not in wanted]
    if missing:
        raise InvalidArgumentError(f"no weight for {', '.join(missing)}; give every arm one (0 sends it nothing)")
    ordered = tuple(wanted[name] for name in names)
    table: SlotTable = move(deployment.table, ordered, names)
    moved = moved_slots(deployment.table, table)
    epoch = last_epoch + 1 if moved else deployment.epoch
    return WeightsPlan(replace(deployment, weights=ordered, table=table, epoch=epoch), moved)


def _warnings(
    deployment: DeploymentRecord, owner: PipelineRef | None, digests: Mapping[ModelRef, str]
) -> Iterable[str]:
    same: dict[str, list[str]] = {}
    for arm in deployment.arms:
        same.setdefault(digests[arm.model], []).append(arm.name)
    for names in same.values():
        if len(names) > 1:
            yield (
                f"The arms {_listed(names)} serve byte-identical models: this is an A/A test, "
                "and any difference between them is chance."
            )
    if not deployment.bare_name:
        name = deployment.ref.pipeline
        yield (
            f"The bare name {name!r} belongs to {owner}; this deployment answers only to "
            f"'{deployment.ref.workspace}/{name}'. Undeploy the other and deploy again to take the name."
        )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
