"""Puts the outcomes service together."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiltyard.api.outcomes.v1.outcome_pb2_grpc import add_OutcomeServiceServicer_to_server
from tiltyard.api.router.v1.counters_pb2_grpc import add_CounterServiceServicer_to_server
from tiltyard.errors import ConfigError
from tiltyard.outcomes.ingest import Ingestor
from tiltyard.outcomes.service import Changes, CounterServicer, OutcomeServicer
from tiltyard.outcomes.store import SqlStore
from tiltyard.rpc import bind, check_listen, create_server

__all__ = ["Outcomes", "OutcomesSettings", "build_outcomes"]

_MAX_SOCKET_PATH = 107  # of sockaddr_un, without the closing zero


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomesSettings:
    """How the outcomes service runs."""

    data_dir: Path
    """Folder for the database; made with mode 0700 when it is missing."""
    listen: str = "127.0.0.1:0"
    """Address for users. Port 0 picks a free one; read it back from ``Outcomes.address``."""
    router_listen: str | None = None
    """Where routers report, ``unix:PATH``; default: ``outcomes.sock`` in the data folder."""
    insecure_listen: bool = False
    """Whether plaintext on another address than loopback is wanted."""
    drain_grace_s: float = 2.0
    """How long calls in flight may run on after a stop signal."""


class Outcomes:
    """The running service. ``start`` and ``stop`` are called once each."""

    def __init__(self, settings: OutcomesSettings, *, clock: Callable[[], float], store: SqlStore | None) -> None:
        self._settings = settings
        self._clock = clock
        self._store = store or SqlStore(settings.data_dir / "outcomes.db", clock=clock)
        self._changes = Changes()
        self._ingestor = Ingestor(self._store)
        self._writer: asyncio.Task[None] | None = None
        self._lock_fd = -1
        self.address = ""
        """Where users reach it, once started."""
        self.router_address = settings.router_listen or f"unix:{settings.data_dir / 'outcomes.sock'}"
        """Where routers reach it."""

    async def start(self) -> None:
        """Serve.

        Raises:
            ConfigError: an address or the data folder cannot be used.
        """
        settings = self._settings
        check_listen(settings.listen, insecure=settings.insecure_listen)
        _check_router_listen(self.router_address)
        self._lock_fd = _lock(settings.data_dir)
        await self._store.open()
        self._front = create_server()
        self._back = create_server()
        servicer = OutcomeServicer(self._store, self._changes, clock=self._clock)
        add_OutcomeServiceServicer_to_server(servicer, self._front)
        add_CounterServiceServicer_to_server(CounterServicer(self._ingestor, self._changes), self._back)
        self.address = bind(self._front, settings.listen)
        bind(self._back, self.router_address)
        self._writer = asyncio.create_task(self._ingestor.run(), name="outcomes writer")
        await self._front.start()
        await self._back.start()

    async def stop(self) -> None:
        """Let calls in flight end, then close the database."""
        await self._changes.close()
        await asyncio.gather(
            self._front.stop(self._settings.drain_grace_s), self._back.stop(self._settings.drain_grace_s)
        )
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
        await self._store.close()
        os.close(self._lock_fd)


def build_outcomes(
    settings: OutcomesSettings, *, clock: Callable[[], float] = time.time, store: SqlStore | None = None
) -> Outcomes:
    """Wire the service; nothing runs until ``start``.

    Args:
        settings: addresses and folders.
        clock: unix time.
        store: where counters are kept; default: SQLite in the data folder.
    """
    return Outcomes(settings, clock=clock, store=store)


def _check_router_listen(address: str) -> None:
    path = address.removeprefix("unix:")
    if path == address:
        raise ConfigError(
            f"--router-listen {address}: routers are not authenticated yet, so their listener is a UNIX socket; "
            "for example unix:/var/lib/tiltyard/outcomes.sock"
        )
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ConfigError(
            f"--router-listen {address}: the path of a UNIX socket has at most {_MAX_SOCKET_PATH} bytes; "
            "choose a data folder with a shorter path"
        )


def _lock(data_dir: Path) -> int:
    """Make the data folder and hold it: two writers on one database would each miss what the other wrote."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(data_dir / "outcomes.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"--data-dir {data_dir}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConfigError(f"--data-dir {data_dir}: another outcomes service is using it") from None
    return fd
