"""The store: its schema, and what it keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from tiltyard.control.names import ModelRef, PipelineRef
from tiltyard.control.pipelines import ArmSpec, PipelineSpec, StepSpec
from tiltyard.control.records import DeploymentRecord
from tiltyard.control.store import Store
from tiltyard.control.store.store import sqlite_url
from tiltyard.control.store.tables import Base
from tiltyard.errors import AlreadyExistsError, EntityNotFoundError
from tiltyard.slots import first_table, move

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
REF = PipelineRef("default", "p")
SPEC = PipelineSpec(
    (StepSpec(split=True, arms=tuple(ArmSpec(n, ModelRef("default", n, 1), 1) for n in "ab"), hash_key="id"),)
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(sqlite_url(tmp_path / "control.db"), lambda: NOW)
    await opened.open()
    yield opened
    await opened.close()


def deployment(**changes: object) -> DeploymentRecord:
    record = DeploymentRecord(
        ref=REF,
        version=1,
        spec=SPEC,
        uid="u" * 32,
        weights=(1, 1),
        table=first_table([1, 1]),
        salt=b"s" * 16,
        epoch=1,
        bare_name=True,
        deployed=NOW,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


async def add_model(store: Store, name: str, workspace: str = "default", digest: str = "d") -> ModelRef:
    ref = ModelRef(workspace, name, await store.next_model_version(workspace, name))
    await store.add_model_version(ref, digest=digest, size_bytes=3, file_name="f.zip", signatures=b"sig")
    return ref


async def test_the_migrations_make_exactly_the_tables(store: Store) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    async with store._engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        assert (await connection.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
        assert (await connection.execute(text("PRAGMA foreign_keys"))).scalar_one() == 1
        assert (await connection.execute(text("PRAGMA busy_timeout"))).scalar_one() == 5000


async def test_opening_twice_changes_nothing(store: Store, tmp_path: Path) -> None:
    await store.create_workspace("mine")
    again = Store(sqlite_url(tmp_path / "control.db"), lambda: NOW)
    await again.open()
    assert [w.name for w in await again.list_workspaces("", 10)] == ["default", "mine"]
    await again.close()


async def test_workspaces(store: Store) -> None:
    made = await store.create_workspace("mine")
    assert (made.id, made.created) == (2, NOW)
    assert await store.get_workspace("mine") == made
    with pytest.raises(AlreadyExistsError, match="'mine' exists already"):
        await store.create_workspace("mine")
    with pytest.raises(EntityNotFoundError, match="no workspace 'yours'"):
        await store.get_workspace("yours")
    assert [w.name for w in await store.list_workspaces("default", 10)] == ["mine"]


async def test_models_and_versions(store: Store) -> None:
    await store.create_workspace("mine")
    refs = [await add_model(store, name) for name in ("b", "a", "a", "a")]
    other = await add_model(store, "a", "mine")
    assert [ref.version for ref in (*refs, other)] == [1, 1, 2, 3, 1]
    listed = await store.list_models("default", "", 10)
    assert [(m.name, m.latest.ref.version) for m in listed] == [("a", 3), ("b", 1)]
    assert [v.ref.version for v in await store.list_model_versions("default", "a", 3, 1)] == [2]
    assert set(await store.all_model_versions()) == {*refs, other}
    assert (await store.get_model_versions([other]))[other].signatures == b"sig"
    for missing in (ModelRef("default", "a", 4), ModelRef("default", "c", 1), ModelRef("nowhere", "a", 1)):
        with pytest.raises(EntityNotFoundError, match=str(missing)):
            await store.get_model_versions([missing])
    with pytest.raises(EntityNotFoundError):
        await store.list_models("nowhere", "", 10)
    with pytest.raises(EntityNotFoundError):
        await store.get_model("default", "c")


async def test_pipelines_and_versions(store: Store) -> None:
    await store.create_workspace("mine")
    for ref in (PipelineRef("mine", "p"), REF, PipelineRef("default", "q")):
        made = await store.create_pipeline(ref)
        assert (made.latest, made.deployed, made.last_epoch) == (None, False, 0)
    with pytest.raises(AlreadyExistsError):
        await store.create_pipeline(REF)
    with pytest.raises(EntityNotFoundError):
        await store.create_pipeline(PipelineRef("nowhere", "p"))
    assert [(await store.add_pipeline_version(REF, SPEC)).version for _ in range(3)] == [1, 2, 3]
    found = await store.get_pipeline_version(REF, 2)
    assert found.spec == SPEC
    assert [v.version for v in await store.list_pipeline_versions(REF, 3, 10)] == [2, 1]
    everything = [p.ref for p in await store.list_pipelines("-", ("", ""), 10)]
    assert everything == [REF, PipelineRef("default", "q"), PipelineRef("mine", "p")]
    assert [p.ref for p in await store.list_pipelines("-", ("default", "q"), 1)] == [PipelineRef("mine", "p")]
    assert [p.ref for p in await store.list_pipelines("mine", ("", ""), 10)] == [PipelineRef("mine", "p")]
    with pytest.raises(EntityNotFoundError):
        await store.get_pipeline_version(REF, 4)


async def test_deployments_come_back_whole(store: Store) -> None:
    await store.create_pipeline(REF)
    await store.add_pipeline_version(REF, SPEC)
    assert await store.get_deployment(REF) is None
    await store.set_deploy_error(REF, "it did not load")
    assert (await store.get_pipeline(REF)).deploy_error == "it did not load"
    first = deployment()
    assert await store.put_deployment(first) == 1
    assert await store.get_deployment(REF) == first
    pipeline = await store.get_pipeline(REF)
    assert (pipeline.deployed, pipeline.last_epoch, pipeline.deploy_error) == (True, 1, "")

    moved = replace(first, weights=(3, 1), table=move(first.table, [3, 1]), epoch=2)
    assert await store.put_weights(moved) == 2
    assert await store.get_deployment(REF) == moved
    assert await store.put_weights(replace(moved, weights=(6, 2))) is None  # the same shares: no new routes

    assert await store.salt(REF, 0, ["b", "a"]) == first.salt
    assert await store.salt(REF, 0, ["a"]) is None
    assert await store.list_deployments() == [replace(moved, weights=(6, 2))]
    assert await store.remove_deployment(REF) == 3
    assert await store.list_deployments() == []
    pipeline = await store.get_pipeline(REF)
    assert (pipeline.deployed, pipeline.last_epoch) == (False, 2)
    assert await store.salt(REF, 0, ["a", "b"]) == first.salt


async def test_a_failed_transaction_leaves_nothing_of_itself(store: Store) -> None:
    for ref in (REF, PipelineRef("default", "q")):
        await store.create_pipeline(ref)
        await store.add_pipeline_version(ref, SPEC)
    await store.put_deployment(deployment())
    with pytest.raises(Exception, match="UNIQUE"):  # the uid is taken
        await store.put_deployment(deployment(ref=PipelineRef("default", "q"), bare_name=False, epoch=9))
    assert (await store.get_pipeline(PipelineRef("default", "q"))).last_epoch == 0
    assert await store.next_revision() == 2
