"""The one class that reads and writes the control plane's database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from tiltyard.control.names import ANY_WORKSPACE, ModelRef, PipelineRef
from tiltyard.control.pipelines import PipelineSpec
from tiltyard.control.records import (
    DeploymentRecord,
    ModelRecord,
    ModelVersionRecord,
    PipelineRecord,
    PipelineVersionRecord,
    WorkspaceRecord,
)
from tiltyard.control.store.tables import (
    CounterRow,
    DeploymentRow,
    ModelRow,
    ModelVersionRow,
    PipelineRow,
    PipelineVersionRow,
    SaltRow,
    WorkspaceRow,
)
from tiltyard.errors import AlreadyExistsError, EntityNotFoundError
from tiltyard.slots import SlotTable

DEFAULT_WORKSPACE = "default"
_REVISION = "route_revision"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def sqlite_url(path: Path) -> str:
    """The database URL of a SQLite file."""
    return f"sqlite+aiosqlite:///{path}"


class Store:
    """Workspaces, models, pipelines, deployments. One process writes at a time; readers never wait.

    Args:
        url: SQLAlchemy URL with an asyncio driver.
        clock: the time in UTC.
    """

    def __init__(self, url: str, clock: Callable[[], datetime]) -> None:
        self._engine = create_async_engine(url)
        self._clock = clock
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._writing = asyncio.Lock()
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _set_up_sqlite)

    async def open(self) -> None:
        """Bring the schema up to date and make sure the default workspace is there."""
        async with self._engine.connect() as connection:
            await connection.run_sync(_migrate)
            await connection.commit()
        async with self._write() as session:
            if await session.scalar(select(WorkspaceRow).where(WorkspaceRow.name == DEFAULT_WORKSPACE)) is None:
                session.add(WorkspaceRow(name=DEFAULT_WORKSPACE, created_us=self._now()))

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    # workspaces

    async def create_workspace(self, name: str) -> WorkspaceRecord:
        """Add a workspace; raises ``AlreadyExistsError`` when the name is taken."""
        try:
            async with self._write() as session:
                row = WorkspaceRow(name=name, created_us=self._now())
                session.add(row)
        except IntegrityError:
            raise AlreadyExistsError(f"workspace {name!r} exists already; choose another name or use it") from None
        return _workspace(row)

    async def get_workspace(self, name: str) -> WorkspaceRecord:
        """Read a workspace; raises ``EntityNotFoundError``."""
        async with self._sessions() as session:
            return _workspace(await _find_workspace(session, name))

    async def list_workspaces(self, after: str, limit: int) -> list[WorkspaceRecord]:
        """The next ``limit`` workspaces by name, after ``after``."""
        async with self._sessions() as session:
            found = select(WorkspaceRow).where(WorkspaceRow.name > after).order_by(WorkspaceRow.name).limit(limit)
            return [_workspace(row) for row in await session.scalars(found)]

    # models

    async def next_model_version(self, workspace: str, model: str) -> int:
        """The number a new version of the model will get; raises ``EntityNotFoundError`` without the workspace."""
        async with self._sessions() as session:
            space = await _find_workspace(session, workspace)
            newest = await session.scalar(
                select(func.max(ModelVersionRow.version))
                .join(ModelRow, ModelRow.id == ModelVersionRow.model_id)
                .where(ModelRow.workspace_id == space.id, ModelRow.name == model)
            )
            return (newest or 0) + 1

    async def add_model_version(
        self, ref: ModelRef, *, digest: str, size_bytes: int, file_name: str, signatures: bytes
    ) -> ModelVersionRecord:
        """Make a version exist, and its model when it is the first."""
        async with self._write() as session:
            space = await _find_workspace(session, ref.workspace)
            model = await session.scalar(
                select(ModelRow).where(ModelRow.workspace_id == space.id, ModelRow.name == ref.model)
            )
            if model is None:
                model = ModelRow(workspace_id=space.id, name=ref.model, created_us=self._now())
                session.add(model)
                await session.flush()
            row = ModelVersionRow(
                model_id=model.id,
                version=ref.version,
                digest=digest,
                size_bytes=size_bytes,
                file_name=file_name,
                signatures=signatures,
                created_us=self._now(),
            )
            session.add(row)
        return _model_version(ref.workspace, ref.model, row)

    async def get_model(self, workspace: str, model: str) -> ModelRecord:
        """Read a model with its newest version; raises ``EntityNotFoundError``."""
        async with self._sessions() as session:
            found = await self._models(session, _models_query().where(_in(workspace), ModelRow.name == model))
        if not found:
            raise EntityNotFoundError(f"there is no model {model!r} in workspace {workspace!r}; upload it first")
        return found[0]

    async def list_models(self, workspace: str, after: str, limit: int) -> list[ModelRecord]:
        """The next ``limit`` models of a workspace by name; raises ``EntityNotFoundError`` without the workspace."""
        async with self._sessions() as session:
            await _find_workspace(session, workspace)
            query = _models_query().where(_in(workspace), ModelRow.name > after).order_by(ModelRow.name).limit(limit)
            return await self._models(session, query)

    async def get_model_versions(self, refs: Iterable[ModelRef]) -> dict[ModelRef, ModelVersionRecord]:
        """Read several versions; raises ``EntityNotFoundError`` naming the first that does not exist."""
        found: dict[ModelRef, ModelVersionRecord] = {}
        async with self._sessions() as session:
            for ref in refs:
                row = await session.scalar(
                    _versions_query().where(
                        _in(ref.workspace), ModelRow.name == ref.model, ModelVersionRow.version == ref.version
                    )
                )
                if row is None:
                    raise EntityNotFoundError(f"there is no {ref}; upload it, or see the model's versions")
                found[ref] = _model_version(ref.workspace, ref.model, row)
        return found

    async def list_model_versions(
        self, workspace: str, model: str, before: int | None, limit: int
    ) -> list[ModelVersionRecord]:
        """The next ``limit`` versions of a model, newest first, older than ``before``."""
        await self.get_model(workspace, model)
        async with self._sessions() as session:
            query = _versions_query().where(_in(workspace), ModelRow.name == model)
            if before is not None:
                query = query.where(ModelVersionRow.version < before)
            rows = await session.scalars(query.order_by(ModelVersionRow.version.desc()).limit(limit))
            return [_model_version(workspace, model, row) for row in rows]

    async def all_model_versions(self) -> list[ModelRef]:
        """Every version there is."""
        async with self._sessions() as session:
            rows = await session.execute(
                select(WorkspaceRow.name, ModelRow.name, ModelVersionRow.version)
                .join(ModelRow, ModelRow.id == ModelVersionRow.model_id)
                .join(WorkspaceRow, WorkspaceRow.id == ModelRow.workspace_id)
            )
            return [ModelRef(workspace, model, version) for workspace, model, version in rows]

    # pipelines

    async def create_pipeline(self, ref: PipelineRef) -> PipelineRecord:
        """Add a pipeline without versions; raises ``AlreadyExistsError``, ``EntityNotFoundError``."""
        try:
            async with self._write() as session:
                space = await _find_workspace(session, ref.workspace)
                row = PipelineRow(
                    workspace_id=space.id,
                    name=ref.pipeline,
                    created_us=self._now(),
                    updated_us=self._now(),
                    last_epoch=0,
                    deploy_error="",
                )
                session.add(row)
        except IntegrityError:
            raise AlreadyExistsError(
                f"pipeline {ref.pipeline!r} exists already in workspace {ref.workspace!r}; add a version to it"
            ) from None
        return _pipeline(ref, row, None, deployed=False)

    async def get_pipeline(self, ref: PipelineRef) -> PipelineRecord:
        """Read a pipeline with its newest version; raises ``EntityNotFoundError``."""
        async with self._sessions() as session:
            return await _read_pipeline(session, ref, await _find_pipeline(session, ref))

    async def list_pipelines(self, workspace: str, after: Sequence[str], limit: int) -> list[PipelineRecord]:
        """The next ``limit`` pipelines by (workspace, name), after ``after``; ``-`` means all workspaces."""
        async with self._sessions() as session:
            rows = await session.execute(await _page(session, _pipelines_query(), workspace, after, limit))
            return [await _read_pipeline(session, PipelineRef(space, row.name), row) for row, space in rows.all()]

    async def add_pipeline_version(self, ref: PipelineRef, spec: PipelineSpec) -> PipelineVersionRecord:
        """Add a version; raises ``EntityNotFoundError``."""
        async with self._write() as session:
            row = await _find_pipeline(session, ref)
            newest = await _newest_version(session, row)
            added = PipelineVersionRow(
                pipeline_id=row.id,
                version=1 if newest is None else newest.version + 1,
                spec=spec.to_json(),
                created_us=self._now(),
            )
            row.updated_us = self._now()
            session.add(added)
        return _pipeline_version(ref, added)

    async def get_pipeline_version(self, ref: PipelineRef, version: int) -> PipelineVersionRecord:
        """Read a version; raises ``EntityNotFoundError``."""
        async with self._sessions() as session:
            row = await _find_pipeline(session, ref)
            found = await session.get(PipelineVersionRow, (row.id, version))
        if found is None:
            raise EntityNotFoundError(f"{ref} has no version {version}")
        return _pipeline_version(ref, found)

    async def list_pipeline_versions(
        self, ref: PipelineRef, before: int | None, limit: int
    ) -> list[PipelineVersionRecord]:
        """The next ``limit`` versions, newest first, older than ``before``."""
        async with self._sessions() as session:
            row = await _find_pipeline(session, ref)
            query = select(PipelineVersionRow).where(PipelineVersionRow.pipeline_id == row.id)
            if before is not None:
                query = query.where(PipelineVersionRow.version < before)
            found = await session.scalars(query.order_by(PipelineVersionRow.version.desc()).limit(limit))
            return [_pipeline_version(ref, version) for version in found]

    # deployments

    async def get_deployment(self, ref: PipelineRef) -> DeploymentRecord | None:
        """What is in force of a pipeline; raises ``EntityNotFoundError`` without the pipeline."""
        async with self._sessions() as session:
            row = await _find_pipeline(session, ref)
            found = await session.get(DeploymentRow, row.id)
            return None if found is None else await _read_deployment(session, ref, found)

    async def list_deployments(
        self, workspace: str = ANY_WORKSPACE, after: Sequence[str] = (), limit: int | None = None
    ) -> list[DeploymentRecord]:
        """Deployments in force by (workspace, pipeline), after ``after``; ``-`` means all workspaces."""
        query = _pipelines_query().join(DeploymentRow, DeploymentRow.pipeline_id == PipelineRow.id)
        async with self._sessions() as session:
            rows = await session.execute(await _page(session, query, workspace, after, limit))
            found = []
            for row, space in rows.all():
                deployment = await session.get_one(DeploymentRow, row.id)
                found.append(await _read_deployment(session, PipelineRef(space, row.name), deployment))
            return found

    async def salt(self, ref: PipelineRef, step: int, arms: Iterable[str]) -> bytes | None:
        """The salt of a split that was deployed before, whatever the order of its arms."""
        async with self._sessions() as session:
            row = await _find_pipeline(session, ref)
            found = await session.get(SaltRow, (row.id, step, _arms_key(arms)))
            return None if found is None else found.salt

    async def put_deployment(self, deployment: DeploymentRecord) -> int:
        """Put a deployment in force in the place of what was; returns the new revision of the routes."""
        async with self._write() as session:
            row = await _find_pipeline(session, deployment.ref)
            row.last_epoch, row.updated_us, row.deploy_error = deployment.epoch, self._now(), ""
            await session.merge(
                SaltRow(pipeline_id=row.id, step=0, arms=_arms_key(deployment.arm_names), salt=deployment.salt)
            )
            await session.merge(
                DeploymentRow(
                    pipeline_id=row.id,
                    version=deployment.version,
                    uid=deployment.uid,
                    weights=json.dumps(deployment.weights),
                    slots=json.dumps(deployment.table.to_state()),
                    salt=deployment.salt,
                    epoch=deployment.epoch,
                    bare_name=deployment.ref.pipeline if deployment.bare_name else None,
                    deployed_us=_to_us(deployment.deployed),
                )
            )
            return await _next_revision(session)

    async def put_weights(self, deployment: DeploymentRecord) -> int | None:
        """Keep weights, slots and epoch of a deployment in force; returns the new revision when the epoch is new."""
        async with self._write() as session:
            row = await _find_pipeline(session, deployment.ref)
            kept = await session.get_one(DeploymentRow, row.id)
            changed = kept.epoch != deployment.epoch
            kept.weights = json.dumps(deployment.weights)
            kept.slots = json.dumps(deployment.table.to_state())
            kept.epoch = row.last_epoch = deployment.epoch
            return await _next_revision(session) if changed else None

    async def remove_deployment(self, ref: PipelineRef) -> int:
        """Take a deployment out of force; returns the new revision of the routes."""
        async with self._write() as session:
            row = await _find_pipeline(session, ref)
            found = await session.get(DeploymentRow, row.id)
            if found is not None:
                await session.delete(found)
            row.updated_us, row.deploy_error = self._now(), ""
            return await _next_revision(session)

    async def set_deploy_error(self, ref: PipelineRef, error: str) -> None:
        """Remember why a deploy failed; what is in force stays."""
        async with self._write() as session:
            (await _find_pipeline(session, ref)).deploy_error = error

    async def next_revision(self) -> int:
        """A revision of the routes greater than every one before."""
        async with self._write() as session:
            return await _next_revision(session)

    # inside

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncSession]:
        """One transaction; committed at the end, rolled back on an error."""
        async with self._writing, self._sessions() as session, session.begin():
            yield session

    def _now(self) -> int:
        return _to_us(self._clock())

    async def _models(self, session: AsyncSession, query: Any) -> list[ModelRecord]:
        found = []
        for row, workspace in (await session.execute(query)).all():
            newest = (
                await session.scalars(
                    select(ModelVersionRow)
                    .where(ModelVersionRow.model_id == row.id)
                    .order_by(ModelVersionRow.version.desc())
                    .limit(1)
                )
            ).one()
            created = _from_us(row.created_us)
            found.append(ModelRecord(workspace, row.name, created, _model_version(workspace, row.name, newest)))
        return found


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _in(workspace: str) -> Any:
    return WorkspaceRow.name == workspace


def _models_query() -> Any:
    return select(ModelRow, WorkspaceRow.name).join(WorkspaceRow, WorkspaceRow.id == ModelRow.workspace_id)


def _versions_query() -> Any:
    return (
        select(ModelVersionRow)
        .join(ModelRow, ModelRow.id == ModelVersionRow.model_id)
        .join(WorkspaceRow, WorkspaceRow.id == ModelRow.workspace_id)
    )


def _pipelines_query() -> Any:
    return select(PipelineRow, WorkspaceRow.name).join(WorkspaceRow, WorkspaceRow.id == PipelineRow.workspace_id)


async def _page(
    session: AsyncSession,
    query: Any,
    workspace: str,
    after: Sequence[str],
    limit: int | None,
) -> Any:
    if workspace != ANY_WORKSPACE:
        await _find_workspace(session, workspace)
        query = query.where(_in(workspace))
    if after:
        query = query.where(tuple_(WorkspaceRow.name, PipelineRow.name) > tuple(after))
    return query.order_by(WorkspaceRow.name, PipelineRow.name).limit(limit)


async def _find_workspace(session: AsyncSession, name: str) -> WorkspaceRow:
    row = await session.scalar(select(WorkspaceRow).where(WorkspaceRow.name == name))
    if row is None:
        raise EntityNotFoundError(f"there is no workspace {name!r}; create it, or list the ones there are")
    return row


async def _find_pipeline(session: AsyncSession, ref: PipelineRef) -> PipelineRow:
    space = await _find_workspace(session, ref.workspace)
    row = await session.scalar(
        select(PipelineRow).where(PipelineRow.workspace_id == space.id, PipelineRow.name == ref.pipeline)
    )
    if row is None:
        raise EntityNotFoundError(f"there is no pipeline {ref.pipeline!r} in workspace {ref.workspace!r}")
    return row


async def _newest_version(session: AsyncSession, row: PipelineRow) -> PipelineVersionRow | None:
    found = await session.scalars(
        select(PipelineVersionRow)
        .where(PipelineVersionRow.pipeline_id == row.id)
        .order_by(PipelineVersionRow.version.desc())
        .limit(1)
    )
    return found.one_or_none()


async def _read_pipeline(session: AsyncSession, ref: PipelineRef, row: PipelineRow) -> PipelineRecord:
    newest = await _newest_version(session, row)
    deployed = await session.get(DeploymentRow, row.id) is not None
    return _pipeline(ref, row, None if newest is None else _pipeline_version(ref, newest), deployed=deployed)


async def _read_deployment(session: AsyncSession, ref: PipelineRef, row: DeploymentRow) -> DeploymentRecord:
    version = await session.get_one(PipelineVersionRow, (row.pipeline_id, row.version))
    return DeploymentRecord(
        ref=ref,
        version=row.version,
        spec=PipelineSpec.from_json(version.spec),
        uid=row.uid,
        weights=tuple(json.loads(row.weights)),
        table=SlotTable.from_state(json.loads(row.slots)),
        salt=row.salt,
        epoch=row.epoch,
        bare_name=row.bare_name is not None,
        deployed=_from_us(row.deployed_us),
    )


async def _next_revision(session: AsyncSession) -> int:
    counter = await session.get(CounterRow, _REVISION)
    if counter is None:
        counter = CounterRow(name=_REVISION, value=0)
        session.add(counter)
    counter.value += 1
    return counter.value


def _workspace(row: WorkspaceRow) -> WorkspaceRecord:
    return WorkspaceRecord(row.id, row.name, _from_us(row.created_us))


def _model_version(workspace: str, model: str, row: ModelVersionRow) -> ModelVersionRecord:
    return ModelVersionRecord(
        ref=ModelRef(workspace, model, row.version),
        digest=row.digest,
        size_bytes=row.size_bytes,
        file_name=row.file_name,
        signatures=row.signatures,
        created=_from_us(row.created_us),
    )


def _pipeline(
    ref: PipelineRef, row: PipelineRow, latest: PipelineVersionRecord | None, *, deployed: bool
) -> PipelineRecord:
    return PipelineRecord(
        ref=ref,
        created=_from_us(row.created_us),
        updated=_from_us(row.updated_us),
        latest=latest,
        deployed=deployed,
        last_epoch=row.last_epoch,
        deploy_error=row.deploy_error,
    )


def _pipeline_version(ref: PipelineRef, row: PipelineVersionRow) -> PipelineVersionRecord:
    return PipelineVersionRecord(ref, row.version, PipelineSpec.from_json(row.spec), _from_us(row.created_us))


def _arms_key(arms: Iterable[str]) -> str:
    return json.dumps(sorted(arms))


def _to_us(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)


def _from_us(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)
