"""The router process around the compiled core: settings, sockets, tables, counters, signals' meaning.

Threads: the main thread runs an asyncio loop (signals, the route stream), the core runs in one of its own with the GIL
released, the reporter of counters in another. Only ``Router.apply`` and ``Router.stop`` cross over to the core.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiltyard.errors import ConfigError, DeadlineError, TiltyardError, UnavailableError, UnsupportedError
from tiltyard.router.addresses import check_service_address, open_listeners
from tiltyard.router.counters import counters_path, remove_old
from tiltyard.router.keys import load_key, own_key
from tiltyard.router.report import Reporter
from tiltyard.router.routes_file import RoutesFile, load_routes
from tiltyard.router.spec import RouteSpec
from tiltyard.router.tables import FileTables
from tiltyard.rpc import check_listen

if TYPE_CHECKING:
    from tiltyard_router.core import Router
    from tiltyard_router.routes import RouteTable

__all__ = ["RouterProcess", "RouterSettings", "build_router"]

log = logging.getLogger(__name__)

_IN_FORCE_LIMIT_S = 5.0
_POLL_S = 0.002
_FLUSH_LIMIT_S = 2.0
_FLUSH_HURRY_S = 0.3
_KEPT_COUNTERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """What one router process is told. Exactly one of ``routes`` and ``watch`` says where routes come from."""

    listen: str = "127.0.0.1:8500"
    """``HOST:PORT``; port 0 picks a free one: read it back from ``RouterProcess.address``."""
    routes: Path | None = None
    """A routes file."""
    watch: str = ""
    """The control plane's router-facing address, ``HOST:PORT`` or ``unix:PATH``."""
    control: str = ""
    """Where calls of ``tiltyard.api.control`` go; empty: they are refused."""
    outcomes: str = ""
    """Where calls of ``tiltyard.api.outcomes`` go; empty: they are refused."""
    outcomes_report: str = ""
    """The outcomes service's router-facing address; empty: counts stay in the data folder."""
    data_dir: Path
    """Folder for the counters and the receipt key; made with mode 0700."""
    receipt_key_file: Path | None = None
    """The key that signs inference ids; ``None``: one made in the data folder. With ``watch`` a snapshot brings it."""
    name: str = ""
    """The router's name in reports, stable over its restarts; empty: the host's name and the port that is served."""
    drain_limit_s: float = 30.0
    """How long calls in flight may run on after a stop signal."""
    insecure_listen: bool = False
    """Serve plaintext on an address other than loopback."""


def build_router(settings: RouterSettings) -> RouterProcess:
    """Check everything, read the routes, take the port.

    Raises:
        ConfigError: a setting or the routes file is wrong, or the port is taken.
        UnsupportedError: this installation has no compiled router.
        OSError: the core could not be set up.
    """
    core, table = _compiled()
    _check(settings)
    file = load_routes(settings.routes) if settings.routes is not None else None
    counters_dir = _make_folder(settings.data_dir)
    tables = None
    if file is not None:
        key_file = settings.receipt_key_file
        tables = FileTables(own_key(settings.data_dir) if key_file is None else load_key(key_file))
    boot_id = os.urandom(6)
    listeners, address = open_listeners(settings.listen)
    if not settings.name:  # two routers of one host differ in the port
        settings = replace(settings, name=f"{socket.gethostname()}:{address.rpartition(':')[2]}")
    try:
        router = core(
            listen_fds=[listener.fileno() for listener in listeners],
            boot_id=boot_id,
            counters_path=str(counters_path(counters_dir, boot_id)),
            control=settings.control or None,
            outcomes=settings.outcomes or None,
            drain_limit_s=settings.drain_limit_s,
        )
    except BaseException:
        _close(listeners)
        raise
    reporter = None
    if not settings.outcomes_report:
        if removed := remove_old(counters_dir, _KEPT_COUNTERS):
            log.info("removed counters of %d earlier starts; the newest %d stay", removed, _KEPT_COUNTERS)
    else:
        reporter = Reporter(counters_dir, own_boots=[boot_id], address=settings.outcomes_report, router=settings.name)
    return RouterProcess(settings, router, table, listeners, address, reporter, tables, file)


class RouterProcess:
    """One router, built and ready to serve once. Made by ``build_router``.

    ``stop`` and ``reload`` are called on the event loop that runs ``serve``; signal handlers of asyncio do.
    """

    def __init__(
        self,
        settings: RouterSettings,
        core: Router,
        table: type[RouteTable],
        listeners: list[socket.socket],
        address: str,
        reporter: Reporter | None,
        tables: FileTables | None,
        file: RoutesFile | None,
    ) -> None:
        self.address = address
        """``HOST:PORT`` that is served."""
        self._settings = settings
        self._core: Router | None = core  # None once it has ended and been freed
        self._table = table
        self._listeners = listeners
        self._reporter = reporter
        self._reporting = False
        self._tables = tables
        self._file = file
        self._stops = 0
        self._in_a_hurry = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._core_ended = asyncio.Event()
        self._core_failure: BaseException | None = None

    def stop(self) -> None:
        """First call: say goodbye to clients and let calls in flight finish. Second call: end at once."""
        self._stops += 1
        log.info("stopping%s", "" if self._stops == 1 else " at once")
        if self._stops > 1:
            self._in_a_hurry.set()
        if self._core is not None:
            self._core.stop()

    def reload(self) -> None:
        """Read the routes file again; soon, and off this thread."""
        if self._tables is None:
            log.warning("nothing to read again: routes come from %s", self._settings.watch)
        else:
            self._reload_wanted.set()

    async def serve(self, on_ready: Callable[[str], None]) -> bool:
        """Serve until stopped.

        Args:
            on_ready: called with the address once requests are served (with ``watch``: once it listens).

        Returns:
            Whether the end was asked for; if not, the log says what happened.

        Raises:
            TiltyardError: the first table did not come into force.
        """
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run_core, args=(loop,), name="tiltyard-core", daemon=True).start()
        _close(self._listeners)  # the core has duplicates; ours would keep the port open after it lets go
        tasks: list[asyncio.Task[None]] = []
        try:
            if self._tables is not None:
                if self._file is not None:
                    await self._put_in_force(self._tables, self._file)
                    self._file = None  # it may be large
                tasks.append(asyncio.create_task(self._reload_when_wanted(self._tables)))
            else:
                from tiltyard.router.watch import RouteWatch

                watch = RouteWatch(self._settings.watch, self._settings.name, self._apply)
                tasks.append(asyncio.create_task(watch.run()))
            if self._reporter is not None:
                self._reporter.start()
                self._reporting = True
            on_ready(self.address)
            await self._core_ended.wait()
        except UnavailableError:  # before the first table was in force; why stands below
            await self._core_ended.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end()
        if self._core_failure is not None:
            log.error("the router loop ended: %s", self._core_failure)
        elif not self._stops:
            log.error("the router loop ended without being asked to")
        return self._core_failure is None and self._stops > 0

    def _running(self) -> Router:
        if self._core is None:
            raise UnavailableError("the router loop has ended")
        return self._core

    def _run_core(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._running().run()
        except BaseException as error:  # any error ends the process; serve() sees to it
            self._core_failure = error.with_traceback(None)  # whose frames would keep the core alive
        loop.call_soon_threadsafe(self._core_ended.set)

    async def _end(self) -> None:
        """End the core if it still runs, then send the last counts, within bounds."""
        if self._core is not None and not self._core_ended.is_set():
            self._core.stop()
            self._core.stop()
            await self._core_ended.wait()
        self._core = None  # frees it, which marks the counters file as ended: the last report can be the final one
        if self._reporter is None or not self._reporting:
            return
        # Not in asyncio's pool of threads: a second stop signal must not have to wait for it.
        sent = asyncio.Event()
        loop = asyncio.get_running_loop()
        limit_s = _FLUSH_LIMIT_S if self._stops < 2 else _FLUSH_HURRY_S
        threading.Thread(target=self._flush, args=(self._reporter, limit_s, loop, sent), daemon=True).start()
        waits = [asyncio.create_task(sent.wait()), asyncio.create_task(self._in_a_hurry.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not sent.is_set():
            await asyncio.wait(waits[:1], timeout=_FLUSH_HURRY_S)
        for wait in waits:
            wait.cancel()

    @staticmethod
    def _flush(reporter: Reporter, limit_s: float, loop: asyncio.AbstractEventLoop, sent: asyncio.Event) -> None:
        reporter.stop(limit_s)
        with contextlib.suppress(RuntimeError):  # the process did not wait, and its event loop is closed
            loop.call_soon_threadsafe(sent.set)

    async def _reload_when_wanted(self, tables: FileTables) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            assert self._settings.routes is not None  # noqa: S101 - tables come with it
            try:
                file = await asyncio.to_thread(load_routes, self._settings.routes)
                await self._put_in_force(tables, file)
            except (TiltyardError, ValueError, TypeError) as error:
                revision = self._running().applied_revision()
                log.error("routes refused, revision %d stays in force: %s", revision, error)
            except Exception:  # whatever it is, the old table serves
                log.exception("routes not read again")

    async def _put_in_force(self, tables: FileTables, file: RoutesFile) -> None:
        plan = await asyncio.to_thread(tables.plan, file)
        await self._hand_over(plan.spec)
        tables.commit(plan)  # even if the core is slow to take it: an epoch that may have been used is used
        await self._in_force(plan.spec)
        for warning in file.warnings:
            log.warning("%s", warning)

    async def _apply(self, spec: RouteSpec) -> None:
        """Hand a table to the core and wait until it is in force; raises what the two steps raise."""
        await self._hand_over(spec)
        await self._in_force(spec)

    async def _hand_over(self, spec: RouteSpec) -> None:
        """Give the core the table that this spec makes.

        Raises:
            ValueError, TypeError: the spec makes no sense.
        """
        table = await asyncio.to_thread(self._table, spec)
        self._running().apply(table)

    async def _in_force(self, spec: RouteSpec) -> None:
        """Wait until the core serves by the spec's table.

        Raises:
            DeadlineError: it did not take it in time.
            UnavailableError: the core has ended.
        """
        loop = asyncio.get_running_loop()
        limit = loop.time() + _IN_FORCE_LIMIT_S
        while self._running().applied_revision() < spec.revision:
            if self._core_ended.is_set():
                raise UnavailableError("the router loop has ended")
            if loop.time() > limit:
                raise DeadlineError(f"route revision {spec.revision} was not in force after {_IN_FORCE_LIMIT_S:g} s")
            await asyncio.sleep(_POLL_S)
        log.info("routes revision %d in force, pipelines: %d", spec.revision, len(spec.pipelines))


def _compiled() -> tuple[type[Router], type[RouteTable]]:
    try:
        from tiltyard_router.core import Router
        from tiltyard_router.routes import RouteTable
    except ImportError as error:
        raise UnsupportedError(
            "this installation has no compiled router (tiltyard_router). Install a C compiler and the libraries "
            "libuv, libnghttp2, openssl, libxxhash and zlib (Debian: apt-get install gcc pkg-config libuv1-dev "
            f"libnghttp2-dev libssl-dev libxxhash-dev zlib1g-dev), then build tiltyard again ({error})"
        ) from error
    return Router, RouteTable


def _check(settings: RouterSettings) -> None:
    if (settings.routes is None) == (not settings.watch):
        raise ConfigError("say where routes come from: either --routes FILE or --watch ADDRESS")
    if settings.listen.startswith("unix:"):
        raise ConfigError(f"--listen {settings.listen}: the router listens on TCP; give HOST:PORT")
    check_listen(settings.listen, insecure=settings.insecure_listen)
    for flag, address in (
        ("--watch", settings.watch),
        ("--control", settings.control),
        ("--outcomes", settings.outcomes),
        ("--outcomes-report", settings.outcomes_report),
    ):
        if address:
            check_service_address(flag, address)
    if settings.watch and settings.receipt_key_file is not None:
        raise ConfigError("--receipt-key-file goes with --routes; with --watch the key comes from the control plane")


def _make_folder(data_dir: Path) -> Path:
    """The data folder and the counters' folder in it; returns the latter."""
    counters = data_dir / "counters"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        counters.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--data-dir {data_dir}: cannot be made: {error.strerror or error}") from error
    if not os.access(counters, os.W_OK | os.X_OK):
        raise ConfigError(f"--data-dir {data_dir}: this user may not write there")
    return counters


def _close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()
