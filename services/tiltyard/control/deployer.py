"""Carries deploys, undeploys and changes of weights out: models first, then one transaction, then the routes.

The transaction is the point of no return. Before it nothing is written, so a crash leaves what was in force before;
after it the new state is in force, and a process that starts again places and publishes it from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar
from uuid import uuid4

from tiltyard.control.names import ANY_WORKSPACE, PipelineRef
from tiltyard.control.placement import Placement
from tiltyard.control.records import DeploymentRecord, PipelineRecord, PipelineVersionRecord
from tiltyard.control.rollout import SALT_BYTES, DeployPlan, Fresh, plan_deploy, plan_weights
from tiltyard.control.routes import snapshot_of
from tiltyard.control.store import Store
from tiltyard.control.watch import RouteHub
from tiltyard.errors import DeployError, FailedPreconditionError, TiltyardError

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Phase(Enum):
    """Whether a pipeline serves; the names are those of ``DeploymentState``."""

    UNDEPLOYED = "UNDEPLOYED"
    DEPLOYING = "DEPLOYING"
    RUNNING = "RUNNING"
    UNDEPLOYING = "UNDEPLOYING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployerSettings:
    """Times of a rollout, in seconds."""

    ack_s: float = 5.0
    """How long routers may take to take new routes."""
    grace_s: float = 0.5
    """Between the routes' change and the unloading of models, for requests on their way to a model server."""
    unload_s: float = 5.0
    """How long an undeploy waits for the unloading; it goes on after that."""
    start_s: float = 10.0
    """How long a starting control plane waits for the models in force before it publishes the routes all the same."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a pipeline stands: what is in force (if anything), its phase, and why the last deploy failed."""

    ref: PipelineRef
    phase: Phase
    deployment: DeploymentRecord | None
    error: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A pipeline's new status, and what the user should hear about it."""

    status: Status
    warnings: tuple[str, ...] = ()


class Deployer:
    """Changes what is in force, one change of a pipeline at a time.

    Args:
        store: where what is in force is kept.
        placement: the model servers.
        hub: the routers.
        receipt_key: 32 bytes that sign receipts.
        clock: the time in UTC.
        settings: times.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        hub: RouteHub,
        *,
        receipt_key: bytes,
        clock: Callable[[], datetime],
        settings: DeployerSettings,
    ) -> None:
        self._store = store
        self._placement = placement
        self._hub = hub
        self._receipt_key = receipt_key
        self._clock = clock
        self._settings = settings
        self._locks: dict[PipelineRef, asyncio.Lock] = {}
        self._phases: dict[PipelineRef, Phase] = {}
        self._committing = asyncio.Lock()  # plan, write and publish as one: epochs, bare names and revisions
        self._background: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Take up what is in force: have it placed again, and publish it once it is, or after ``start_s``."""
        deployments = await self._store.list_deployments()
        for deployment in deployments:
            self._placement.hold(deployment.ref, deployment.models)
        if deployments:
            self._spawn(self._publish_when_placed(deployments))
        else:
            await self._publish_first()

    async def stop(self) -> None:
        """End what runs in the background; the next start takes it up."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def deploy(self, version: PipelineVersionRecord, *, wait_s: float, reshuffle: bool) -> Outcome:
        """Put a version in force.

        Raises:
            DeployError: when its models could not be placed; what was in force before stays.
        """
        ref, models = version.ref, frozenset(arm.model for arm in version.spec.step.arms)
        async with self._alone(ref, Phase.DEPLOYING):
            pending = ("deploy", uuid4())
            self._placement.hold(pending, models)
            try:
                await self._placement.place(models, wait_s)
            except BaseException as error:
                self._placement.release(pending)
                if isinstance(error, DeployError):
                    await self._store.set_deploy_error(ref, error.message)
                raise
            revision, plan = await self._finish(self._put_in_force(version, reshuffle, pending))
            troubles = await self._hub.wait_taken(revision, self._settings.ack_s)
        return Outcome(await self.status(ref), (*plan.warnings, *troubles))

    async def undeploy(self, ref: PipelineRef) -> Status:
        """Take a pipeline out: routes first, then its models. Does nothing when it is not deployed."""
        await self._store.get_pipeline(ref)
        async with self._alone(ref, Phase.UNDEPLOYING):
            before = await self._store.get_deployment(ref)
            if before is not None:
                drained = await self._finish(self._take_out(before))
                await asyncio.shield(drained)
                await self._placement.settle(self._settings.unload_s)
            else:
                await self._store.set_deploy_error(ref, "")
        return await self.status(ref)

    async def set_weights(self, ref: PipelineRef, weights: Iterable[tuple[str, int]]) -> tuple[Status, int]:
        """Give a deployment's split new weights; returns its status and how many slots moved.

        Raises:
            FailedPreconditionError: when the pipeline is not deployed or has no split.
            InvalidArgumentError: when the weights make no sense.
        """
        wanted = list(weights)
        await self._store.get_pipeline(ref)
        async with self._lock(ref):
            revision, moved = await self._finish(self._put_weights(ref, wanted))
            if revision is not None:
                for trouble in await self._hub.wait_taken(revision, self._settings.ack_s):
                    log.warning("%s", trouble)
        return await self.status(ref), moved

    async def status(self, ref: PipelineRef) -> Status:
        """How a pipeline stands; raises ``EntityNotFoundError`` without the pipeline."""
        return self._status(await self._store.get_pipeline(ref), await self._store.get_deployment(ref))

    def status_of(self, deployment: DeploymentRecord) -> Status:
        """How a pipeline stands of which this is in force."""
        return Status(deployment.ref, self._phases.get(deployment.ref, Phase.RUNNING), deployment, "")

    # one transaction each, never interrupted

    async def _put_in_force(
        self, version: PipelineVersionRecord, reshuffle: bool, pending: Hashable
    ) -> tuple[int, DeployPlan]:
        ref, arms = version.ref, version.spec.step.arms
        try:
            models = await self._store.get_model_versions(arm.model for arm in arms)
            async with self._committing:
                in_force = await self._store.list_deployments()
                plan = plan_deploy(
                    await self._store.get_pipeline(ref),
                    version,
                    in_force=in_force,
                    kept_salt=await self._store.salt(ref, 0, (arm.name for arm in arms)),
                    reshuffle=reshuffle,
                    digests={model.ref: model.digest for model in models.values()},
                    fresh=Fresh(uid=uuid4().hex, salt=secrets.token_bytes(SALT_BYTES), now=self._clock()),
                )
                revision = await self._store.put_deployment(plan.deployment)
                before = next((deployment for deployment in in_force if deployment.ref == ref), None)
                if before is not None:
                    self._drain(before, revision)
                self._placement.hold(ref, plan.deployment.models)
                await self._publish(revision)
            log.info("deployed %s version %d, weight epoch %d", ref, version.version, plan.deployment.epoch)
        finally:
            self._placement.release(pending)
        return revision, plan

    async def _take_out(self, before: DeploymentRecord) -> asyncio.Task[None]:
        async with self._committing:
            revision = await self._store.remove_deployment(before.ref)
            drained = self._drain(before, revision)
            self._placement.release(before.ref)
            await self._publish(revision)
        log.info("undeployed %s", before.ref)
        return drained

    async def _put_weights(self, ref: PipelineRef, weights: Iterable[tuple[str, int]]) -> tuple[int | None, int]:
        async with self._committing:
            pipeline = await self._store.get_pipeline(ref)
            deployment = await self._store.get_deployment(ref)
            if deployment is None:
                raise FailedPreconditionError(f"{ref} is not deployed; deploy it, then change its weights")
            plan = plan_weights(deployment, pipeline.last_epoch, weights)
            revision = await self._store.put_weights(plan.deployment)
            if revision is not None:
                await self._publish(revision)
        log.info("weights of %s are %s, weight epoch %d", ref, plan.deployment.weights, plan.deployment.epoch)
        return revision, plan.moved

    async def _publish(self, revision: int) -> None:
        deployments = await self._store.list_deployments(ANY_WORKSPACE)
        if deployments and not self._placement.addresses:
            # Routes without a backend would take everything down; routers keep what they have.
            log.error("no routes are published: no model server is known; start with --model-server HOST:PORT")
            return
        self._hub.publish(
            snapshot_of(
                deployments,
                revision=revision,
                backends=self._placement.addresses,
                receipt_key=self._receipt_key,
            )
        )

    # in the background

    async def _publish_when_placed(self, deployments: list[DeploymentRecord]) -> None:
        models = frozenset(ref for deployment in deployments for ref in deployment.models)
        try:
            await self._placement.place(models, self._settings.start_s)
        except DeployError as error:
            log.warning("routes are published although models are missing: %s", error.message)
        await self._publish_first()

    async def _publish_first(self) -> None:
        # A new revision: the model servers' addresses may be others than before the restart.
        async with self._committing:
            await self._publish(await self._store.next_revision())

    def _drain(self, before: DeploymentRecord, revision: int) -> asyncio.Task[None]:
        """Hold on to what a change took out of force until requests on their way to it have arrived."""
        holder = ("drain", before.uid)
        self._placement.hold(holder, before.models)

        async def release() -> None:
            for trouble in await self._hub.wait_taken(revision, self._settings.ack_s):
                log.warning("%s", trouble)
            await asyncio.sleep(self._settings.grace_s)
            self._placement.release(holder)

        return self._spawn(release())

    # inside

    def _lock(self, ref: PipelineRef) -> asyncio.Lock:
        return self._locks.setdefault(ref, asyncio.Lock())

    @contextlib.asynccontextmanager
    async def _alone(self, ref: PipelineRef, phase: Phase) -> AsyncIterator[None]:
        """No other deploy, undeploy or change of weights of this pipeline runs inside."""
        async with self._lock(ref):
            self._phases[ref] = phase
            try:
                yield
            finally:
                del self._phases[ref]

    async def _finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run to the end even when the caller goes away."""
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, TiltyardError):
            log.error("a rollout failed", exc_info=error)

    def _status(self, pipeline: PipelineRecord, deployment: DeploymentRecord | None) -> Status:
        phase = self._phases.get(pipeline.ref)
        if phase is None:
            idle = Phase.FAILED if pipeline.deploy_error else Phase.UNDEPLOYED
            phase = idle if deployment is None else Phase.RUNNING
        return Status(pipeline.ref, phase, deployment, pipeline.deploy_error)
