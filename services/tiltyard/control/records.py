"""What the store gives out: plain frozen values, free of sessions and tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tiltyard.control.names import ModelRef, PipelineRef
from tiltyard.control.pipelines import ArmSpec, PipelineSpec
from tiltyard.slots import SlotTable


@dataclass(frozen=True, slots=True)
class WorkspaceRecord:
    """A workspace."""

    id: int
    name: str
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionRecord:
    """A version of a model. ``signatures`` are the bytes of a ``SignatureDefMap``."""

    ref: ModelRef
    digest: str
    size_bytes: int
    file_name: str
    signatures: bytes
    created: datetime


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model with its newest version."""

    workspace: str
    name: str
    created: datetime
    latest: ModelVersionRecord


@dataclass(frozen=True, slots=True)
class PipelineVersionRecord:
    """A version of a pipeline."""

    ref: PipelineRef
    version: int
    spec: PipelineSpec
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRecord:
    """A pipeline.

    Attributes:
        last_epoch: greatest weight epoch ever used; 0 before the first deploy.
        deploy_error: why the last deploy failed, or ``""``.
    """

    ref: PipelineRef
    created: datetime
    updated: datetime
    latest: PipelineVersionRecord | None
    deployed: bool
    last_epoch: int
    deploy_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord:
    """A pipeline version in force.

    Attributes:
        version: the pipeline version's number.
        uid: new with every deploy.
        weights: current weights, one for each arm.
        table: current slots.
        salt: of the split.
        epoch: current weight epoch.
        bare_name: whether requests may name it without its workspace.
        deployed: when it came into force.
    """

    ref: PipelineRef
    version: int
    spec: PipelineSpec
    uid: str
    weights: tuple[int, ...]
    table: SlotTable
    salt: bytes
    epoch: int
    bare_name: bool
    deployed: datetime

    @property
    def arms(self) -> tuple[ArmSpec, ...]:
        """The arms, the champion first."""
        return self.spec.step.arms

    @property
    def arm_names(self) -> tuple[str, ...]:
        """Names of the arms in order."""
        return tuple(arm.name for arm in self.arms)

    @property
    def models(self) -> frozenset[ModelRef]:
        """Every model version it needs."""
        return frozenset(arm.model for arm in self.arms)

    @property
    def request_names(self) -> tuple[str, ...]:
        """Names under which requests may ask for it."""
        full = f"{self.ref.workspace}/{self.ref.pipeline}"
        return (self.ref.pipeline, full) if self.bare_name else (full,)
