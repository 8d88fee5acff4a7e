"""The model server put together: settings in, a server that can be started and stopped out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from tiltyard.errors import ConfigError
from tiltyard.modelserver.servicer import Servicer
from tiltyard.modelserver.session import Session
from tiltyard.modelserver.store.config import ModelEntry
from tiltyard.modelserver.store.versions import ModelStore
from tiltyard.rpc import ErrorInterceptor, bind, check_listen

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),  # TensorFlow Serving's limits: 2^31-1 to receive, none to send
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # two processes on one port would each get half of the calls
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServerSettings:
    """Everything a model server can be told."""

    listen: str = "127.0.0.1:0"
    """Address to serve on. Port 0 picks a free one; read it back from ``ModelServer.address``."""
    insecure_listen: bool = False
    """Allows addresses other than loopback, in plaintext."""
    socket_path: str = ""
    """Also serve on this UNIX socket; empty means none."""
    model_name: str = ""
    """Serve this model from the start; empty means none: models come by HandleReloadConfigRequest."""
    model_base_path: str = ""
    """Its folder: one folder per version in it, of which the greatest is served."""
    load_limit_s: float = 300.0
    """How long a new configuration may take to load, in seconds, before the call that brought it fails."""
    drain_grace_s: float = 30.0
    """How long calls in flight may run on after ``stop``, in seconds."""


class ModelServer:
    """A model server; start it once, stop it once, on one event loop."""

    def __init__(self, settings: ModelServerSettings, store: ModelStore, pool: ThreadPoolExecutor) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers(Servicer(store, pool).handlers())
        self.address = ""
        """``host:port``, known after ``start``."""

    async def start(self) -> None:
        """Load the model of the settings, if any, then open the port; a TiltyardError says why that is not possible."""
        settings = self._settings
        check_listen(settings.listen, insecure=settings.insecure_listen)
        if bool(settings.model_name) != bool(settings.model_base_path):
            raise ConfigError("--model_name and --model_base_path belong together: give both or neither")
        if settings.model_name:
            entry = ModelEntry(name=settings.model_name, base_path=Path(settings.model_base_path))
            await self._store.reload({entry.name: entry})
        self.address = bind(self._server, settings.listen)
        if settings.socket_path:
            bind(self._server, f"unix:{settings.socket_path}")
        await self._server.start()

    async def stop(self) -> None:
        """Refuse new calls, let those in flight finish for ``drain_grace_s``, then free everything."""
        await self._server.stop(self._settings.drain_grace_s)
        self._store.close()
        self._pool.shutdown(cancel_futures=True)


def build_modelserver(settings: ModelServerSettings) -> ModelServer:
    """Wire a model server; nothing runs or listens yet."""
    store = ModelStore(load=Session.load, load_limit_s=settings.load_limit_s)
    pool = ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "tiltyard-run")
    return ModelServer(settings, store, pool)
