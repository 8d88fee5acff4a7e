"""Puts the control plane together; all wiring is here.

cli/client > servicers > deployer > placement (model servers), watch (routers)
                       > uploads > artifacts
             store under all of them; rollout, pipelines and slots decide and touch nothing
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio

from tiltyard.api.control.v1 import (
    deployment_pb2_grpc,
    model_pb2_grpc,
    pipeline_pb2_grpc,
    workspace_pb2_grpc,
)
from tiltyard.api.router.v1 import routes_pb2_grpc
from tiltyard.control.artifacts import ArtifactStore
from tiltyard.control.deployer import Deployer, DeployerSettings
from tiltyard.control.placement import Placement, PlacementSettings
from tiltyard.control.servicers import DeploymentServicer, ModelServicer, PipelineServicer, WorkspaceServicer
from tiltyard.control.store import Store
from tiltyard.control.store.store import sqlite_url
from tiltyard.control.uploads import Uploads
from tiltyard.control.watch import RouteHub, RouteServicer
from tiltyard.control.zips import UploadLimits
from tiltyard.errors import ConfigError
from tiltyard.router.addresses import check_service_address
from tiltyard.rpc import bind, check_listen, create_server

log = logging.getLogger(__name__)

_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """How a control plane runs."""

    data_dir: Path
    """Folder for the database, the models and the receipt key; made with mode 0700 when it is not there."""
    listen: str = "127.0.0.1:0"
    """Address to serve on. Port 0 picks a free one; read it back from ``Control.address``."""
    router_listen: str = ""
    """Where routers are served; a UNIX socket, by default ``control-router.sock`` in the data folder."""
    insecure_listen: bool = False
    """Whether plaintext may be served on addresses other than loopback, and to routers on TCP."""
    model_servers: tuple[str, ...] = ()
    """Addresses of the model servers; every model is placed on all of them."""
    drain_grace_s: float = 10.0
    """How long calls in flight may run on after a stop signal."""
    uploads_at_once: int = 8
    """Most uploads at the same time."""
    upload_idle_s: float = 60.0
    """Longest silence of an uploader."""
    upload_limits: UploadLimits = field(default_factory=UploadLimits)
    """What one upload may cost."""
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    """Times of the placement."""
    deployer: DeployerSettings = field(default_factory=DeployerSettings)
    """Times of a rollout."""


def utc_now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


class Control:
    """A control plane: ``start`` it, then ``stop`` it; ``build_control`` makes one."""

    def __init__(self, settings: ControlSettings, *, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._clock = clock
        self._lock: int | None = None
        self._store: Store | None = None
        self._placement: Placement | None = None
        self._deployer: Deployer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._hub = RouteHub()
        self._servers: list[grpc.aio.Server] = []
        self.address = ""
        """Where it serves, once started."""
        self.router_address = ""
        """Where it serves routers, once started."""

    async def start(self) -> None:
        """Recover what an earlier process left, then serve.

        Raises:
            ConfigError: when a setting is wrong, an address is taken, or another control plane has the data folder.
        """
        settings = self._settings
        check_listen(settings.listen, insecure=settings.insecure_listen)
        for address in settings.model_servers:
            check_service_address("--model-server", address)
        router_listen = settings.router_listen or f"unix:{settings.data_dir.absolute() / 'control-router.sock'}"
        _check_router_listen(router_listen, insecure=settings.insecure_listen)
        data_dir = await asyncio.to_thread(_open_data_dir, settings.data_dir)
        self._lock = _lock(data_dir)
        receipt_key = _receipt_key(data_dir / "receipt.key")
        self._store = store = Store(sqlite_url(data_dir / "control.db"), self._clock)
        await store.open()
        artifacts = ArtifactStore(data_dir, settings.upload_limits)
        cleaned = await asyncio.to_thread(artifacts.clean, await store.all_model_versions())
        if cleaned:
            log.info("removed %d unfinished uploads", cleaned)
        self._placement = placement = Placement(
            settings.model_servers,
            base_path=lambda name: str(artifacts.base_path(name)),
            on_disk=lambda ref: artifacts.path(ref).is_dir(),
            settings=settings.placement,
        )
        self._deployer = deployer = Deployer(
            store, placement, self._hub, receipt_key=receipt_key, clock=self._clock, settings=settings.deployer
        )
        await deployer.start()
        self._watching = asyncio.create_task(placement.watch())
        uploads = Uploads(store, artifacts, at_once=settings.uploads_at_once, idle_s=settings.upload_idle_s)
        await self._serve(store, uploads, deployer, placement, router_listen)

    async def _serve(
        self, store: Store, uploads: Uploads, deployer: Deployer, placement: Placement, router_listen: str
    ) -> None:
        public, routers = create_server(), create_server()
        workspace_pb2_grpc.add_WorkspaceServiceServicer_to_server(WorkspaceServicer(store), public)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(store, uploads), public)
        pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(PipelineServicer(store), public)
        deployments = DeploymentServicer(store, deployer, placement)
        deployment_pb2_grpc.add_DeploymentServiceServicer_to_server(deployments, public)
        routes_pb2_grpc.add_RouteServiceServicer_to_server(RouteServicer(self._hub), routers)
        self.router_address = bind(routers, router_listen)
        self.address = bind(public, self._settings.listen)
        for server in (routers, public):
            await server.start()
            self._servers.append(server)
        if router_listen.startswith("unix:"):
            os.chmod(router_listen.removeprefix("unix:"), 0o600)

    async def stop(self) -> None:
        """Let calls in flight end, at most ``drain_grace_s``, then close everything. Safe after a failed ``start``."""
        self._hub.close()
        await asyncio.gather(*(server.stop(self._settings.drain_grace_s) for server in self._servers))
        if self._deployer is not None:
            await self._deployer.stop()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._placement is not None:
            await self._placement.close()
        if self._store is not None:
            await self._store.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def build_control(settings: ControlSettings, *, clock: Callable[[], datetime] = utc_now) -> Control:
    """Build a control plane.

    Args:
        settings: how it runs.
        clock: the time in UTC.
    """
    return Control(settings, clock=clock)


def _check_router_listen(address: str, *, insecure: bool) -> None:
    """What routers are told holds the keys that sign receipts, so a TCP port is no place for it in plaintext."""
    if not address.startswith("unix:") and not insecure:
        raise ConfigError(
            f"--router-listen {address}: routers are served on a UNIX socket (unix:PATH); "
            "add --insecure-listen to use plaintext TCP on a network you trust"
        )


def _open_data_dir(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"--data-dir {path} cannot be used: {error.strerror}") from error
    return path.resolve()  # model servers are told absolute paths


def _lock(data_dir: Path) -> int:
    """Take the folder for this process; the kernel gives it back when the process ends, however it ends."""
    handle = os.open(data_dir / "control.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise ConfigError(f"--data-dir {data_dir} is used by another control plane (process {holder})") from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _receipt_key(path: Path) -> bytes:
    """The key that signs receipts: made once, readable by the owner alone."""
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, secrets.token_bytes(_KEY_BYTES))
            os.fsync(handle)
        finally:
            os.close(handle)
        fresh.rename(path)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{path} holds {len(key)} bytes, not {_KEY_BYTES}; restore it, or remove it for a new key")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
    return key
