"""Keeps routers' counters in a database: of each cell of each boot the value of the highest sequence.

So a report may come twice, late, out of order or never, and the totals are right as soon as a later one arrives. One
process writes; what it has written lately it also holds in memory, so a report costs no reading.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import alembic.command
import alembic.config
import alembic.util
import numpy as np
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tiltyard.cells import BlockKey, Values, cells_in_use
from tiltyard.errors import ConfigError
from tiltyard.outcomes.ingest import Ack, BlockReport, BootReport
from tiltyard.outcomes.report import BlockRow, BootRow

__all__ = ["SqlStore"]

_CACHED_BOOTS: Final = 256

_metadata = sa.MetaData()
# The migrations make these tables; here is what the queries need to know.
_boots = sa.Table(
    "boots",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("boot_id", sa.LargeBinary),
    sa.Column("router", sa.String),
    sa.Column("heard", sa.Float),
    sa.Column("sequence", sa.BigInteger),
    sa.Column("closed_through", sa.BigInteger),
    sa.Column("final", sa.Boolean),
    sa.Column("uncounted", sa.BigInteger),
)
_deployments = sa.Table(
    "deployments",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("pipeline", sa.String),
    sa.Column("uid", sa.String),
)
_blocks = sa.Table(
    "blocks",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("boot", sa.Integer),
    sa.Column("deployment", sa.Integer),
    sa.Column("epoch", sa.BigInteger),
    sa.Column("arm", sa.String),
    sa.Column("arm_index", sa.Integer),
    sa.Column("share_slots", sa.Integer),
    sa.Column("metrics", sa.String),
    sa.Column("cells", sa.LargeBinary),
    sa.Column("sequences", sa.LargeBinary),
    sa.Column("changed", sa.Float),
)


@dataclass(slots=True)
class _Block:
    """One block as stored: the cells, live then closed, and for each the sequence its value came with."""

    id: int | None
    deployment: int
    values: Values
    sequences: Values

    def merge(self, report: BlockReport, sequence: int) -> bool:
        """Take newer values in; true when that changed anything."""
        newer = self.sequences[report.places] < sequence
        places = report.places[newer]
        self.values[places] = report.values[newer]
        self.sequences[places] = sequence
        return len(places) > 0


@dataclass(slots=True)
class _Boot:
    id: int
    sequence: int
    closed_through: int
    final: bool
    uncounted: int
    blocks: dict[BlockKey, _Block] = field(default_factory=dict)


class SqlStore:
    """The counters, on SQLite.

    Args:
        path: the database file.
        clock: unix time.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        self._cache: OrderedDict[bytes, _Boot] = OrderedDict()
        self._deployment_ids: dict[tuple[str, str], int] = {}
        sa.event.listen(self._engine.sync_engine, "connect", _on_connect)
        sa.event.listen(self._engine.sync_engine, "begin", _on_begin)

    async def open(self) -> None:
        """Bring the database to the newest schema.

        Raises:
            ConfigError: the file is no database, or was made by a newer release, or the disk is full.
        """
        try:
            async with self._engine.begin() as connection:
                await connection.run_sync(_migrate)
        except (sa.exc.DBAPIError, alembic.util.CommandError) as error:
            raise ConfigError(f"the outcomes database cannot be used: {error}", path=str(self._path)) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    # -- writing ---------------------------------------------------------------------------------------------------

    async def ingest(self, reports: list[BootReport]) -> list[Ack]:
        """Store reports in one transaction; back when it is on disk. Only one call may run at a time."""
        try:
            async with self._engine.begin() as connection:
                acks = [await self._take(connection, report) for report in reports]
        except BaseException:
            # What is in memory may be ahead of the database now.
            self._cache.clear()
            self._deployment_ids.clear()
            raise
        while len(self._cache) > _CACHED_BOOTS:
            self._cache.popitem(last=False)
        return acks

    async def _take(self, connection: AsyncConnection, report: BootReport) -> Ack:
        boot = await self._boot(connection, report.boot_id)
        have = 0 if boot is None else boot.sequence
        if report.base_sequence > have:
            # It builds on something this database does not hold; taken in it would look complete and be not.
            return Ack(have, send_all=True)
        if boot is None:
            boot = await self._new_boot(connection, report)
        now = self._clock()
        changed: list[dict[str, Any]] = []
        for part in report.blocks:
            block = boot.blocks.get(part.key) or await self._new_block(connection, part.key)
            boot.blocks[part.key] = block
            if not block.merge(part, report.sequence) and block.id is not None:
                continue
            cells = {"cells": block.values.tobytes(), "sequences": block.sequences.tobytes(), "changed": now}
            if block.id is None:
                insert = sa.insert(_blocks).values(cells | _key_columns(boot.id, block.deployment, part.key))
                block.id = (await connection.execute(insert.returning(_blocks.c.id))).scalar_one()
            else:
                changed.append(cells | {"row": block.id})
        if changed:
            names: dict[str, Any] = {name: sa.bindparam(name) for name in ("cells", "sequences", "changed")}
            update = sa.update(_blocks).where(_blocks.c.id == sa.bindparam("row")).values(names)
            await connection.execute(update, changed)
        await self._update_boot(connection, boot, report, now)
        return Ack(boot.sequence, send_all=False)

    async def _boot(self, connection: AsyncConnection, boot_id: bytes) -> _Boot | None:
        boot = self._cache.get(boot_id)
        if boot is not None:
            self._cache.move_to_end(boot_id)
            return boot
        row = (await connection.execute(sa.select(_boots).where(_boots.c.boot_id == boot_id))).one_or_none()
        if row is None:
            return None
        blocks = await self._blocks_of(connection, row.id)
        boot = _Boot(row.id, row.sequence, row.closed_through, row.final, row.uncounted, blocks)
        self._cache[boot_id] = boot
        return boot

    async def _new_boot(self, connection: AsyncConnection, report: BootReport) -> _Boot:
        insert = sa.insert(_boots).values(
            boot_id=report.boot_id,
            router=report.router,
            heard=0.0,
            sequence=0,
            closed_through=0,
            final=False,
            uncounted=0,
        )
        result = await connection.execute(insert.returning(_boots.c.id))
        boot = _Boot(result.scalar_one(), 0, 0, False, 0)
        self._cache[report.boot_id] = boot
        return boot

    async def _update_boot(self, connection: AsyncConnection, boot: _Boot, report: BootReport, now: float) -> None:
        boot.sequence = max(boot.sequence, report.sequence)
        boot.closed_through = max(boot.closed_through, report.closed_through)
        boot.final = boot.final or report.final
        boot.uncounted = max(boot.uncounted, report.uncounted)
        update = sa.update(_boots).where(_boots.c.id == boot.id)
        await connection.execute(
            update.values(
                router=report.router,
                heard=now,
                sequence=boot.sequence,
                closed_through=boot.closed_through,
                final=boot.final,
                uncounted=boot.uncounted,
            )
        )

    async def _new_block(self, connection: AsyncConnection, key: BlockKey) -> _Block:
        name = (key.pipeline, key.deployment_uid)
        deployment = self._deployment_ids.get(name)
        if deployment is None:
            where = (_deployments.c.pipeline == name[0], _deployments.c.uid == name[1])
            found = await connection.execute(sa.select(_deployments.c.id).where(*where))
            deployment = found.scalar_one_or_none()
        if deployment is None:
            insert = sa.insert(_deployments).values(pipeline=name[0], uid=name[1])
            deployment = (await connection.execute(insert.returning(_deployments.c.id))).scalar_one()
        self._deployment_ids[name] = deployment
        n = 2 * cells_in_use(len(key.metrics))
        return _Block(None, deployment, np.zeros(n, np.uint64), np.zeros(n, np.uint64))

    async def _blocks_of(self, connection: AsyncConnection, boot: int) -> dict[BlockKey, _Block]:
        return {
            _key(row): _Block(row.id, row.deployment, _array(row.cells), _array(row.sequences))
            for row in await connection.execute(_select_blocks().where(_blocks.c.boot == boot))
        }

    # -- reading ---------------------------------------------------------------------------------------------------

    async def pipelines(self) -> list[str]:
        """Names of all pipelines with counts, sorted."""
        async with self._engine.connect() as connection:
            names = sa.select(_deployments.c.pipeline).distinct().order_by(_deployments.c.pipeline)
            return list((await connection.execute(names)).scalars())

    async def newest_deployment(self, pipeline: str) -> str | None:
        """Identifier of the deployment of the pipeline that was heard of last."""
        async with self._engine.connect() as connection:
            newest = sa.select(_deployments.c.uid).where(_deployments.c.pipeline == pipeline)
            found = await connection.execute(newest.order_by(_deployments.c.id.desc()).limit(1))
            return found.scalar_one_or_none()

    async def blocks(self, pipeline: str, uid: str) -> tuple[list[BlockRow], dict[int, BootRow]]:
        """All blocks of one deployment, in the order they were first heard of, and their boots."""
        where = (_deployments.c.pipeline == pipeline, _deployments.c.uid == uid)
        async with self._engine.connect() as connection:
            found = await connection.execute(_select_blocks().where(*where).order_by(_blocks.c.id))
            blocks = [BlockRow(row.boot, _key(row), _array(row.cells), row.changed) for row in found]
            boots_used = sa.select(_blocks.c.boot).join(_deployments, _blocks.c.deployment == _deployments.c.id)
            found = await connection.execute(sa.select(_boots).where(_boots.c.id.in_(boots_used.where(*where))))
            boots = {row.id: BootRow(row.heard, row.closed_through, row.final, row.uncounted) for row in found}
        return blocks, boots


def _select_blocks() -> sa.Select[Any]:
    joined = _blocks.join(_deployments, _blocks.c.deployment == _deployments.c.id)
    return sa.select(_blocks, _deployments.c.pipeline, _deployments.c.uid).select_from(joined)


def _key(row: sa.Row[Any]) -> BlockKey:
    return BlockKey(
        pipeline=row.pipeline,
        deployment_uid=row.uid,
        epoch=row.epoch,
        arm=row.arm,
        arm_index=row.arm_index,
        share_slots=row.share_slots,
        metrics=tuple(json.loads(row.metrics)),
    )


def _key_columns(boot: int, deployment: int, key: BlockKey) -> dict[str, Any]:
    return {
        "boot": boot,
        "deployment": deployment,
        "epoch": key.epoch,
        "arm": key.arm,
        "arm_index": key.arm_index,
        "share_slots": key.share_slots,
        "metrics": json.dumps(key.metrics),
    }


def _array(stored: bytes) -> Values:
    return np.frombuffer(stored, dtype="<u8").copy()


def _on_connect(connection: Any, _record: Any) -> None:
    # The driver's own idea of transactions leaves out DDL; ours begin in _on_begin.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # A commit is on disk when it returns: what was acknowledged outlives a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _on_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _migrate(connection: sa.Connection) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
