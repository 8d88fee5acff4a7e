"""``tiltyard up`` put together: settings in, everything running on one machine out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tiltyard.errors import DeadlineError, UnavailableError
from tiltyard.rpc import check_listen
from tiltyard.supervisor.children import STOP_ORDER, ChildSpec, plan_children
from tiltyard.supervisor.folder import DataFolder, open_folder
from tiltyard.supervisor.ports import HeldPort, hold_port
from tiltyard.supervisor.ready import wait_until_serving
from tiltyard.supervisor.requirements import check_installed
from tiltyard.supervisor.supervise import Child

__all__ = ["Up", "UpSettings", "build_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings:
    """What one ``tiltyard up`` is told."""

    data_dir: Path = Path("~/.local/share/tiltyard")
    """Folder for everything that is kept; made with mode 0700, held by one ``up`` at a time."""
    listen: str = "127.0.0.1:8500"
    """``HOST:PORT`` of the router; port 0 picks a free one: read it back from ``Up.address``."""
    insecure_listen: bool = False
    """Serve plaintext on an address other than loopback."""
    drain_limit_s: float = 30.0
    """How long calls in flight may run on after a stop signal, in seconds."""
    start_limit_s: float = 180.0
    """How long all of it may take to serve, in seconds; TensorFlow alone takes several."""


def utc_now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


def build_up(settings: UpSettings, *, say: Callable[[str], None], clock: Callable[[], datetime] = utc_now) -> Up:
    """Check everything, take the port and the data folder; nothing is started yet.

    Args:
        settings: what to run.
        say: takes what people should know while it runs, a line or several at a time.
        clock: the time in UTC.

    Raises:
        ConfigError: the address or the folder cannot be used.
        UnsupportedError: a part is not installed; the message says how to install it.
        FailedPreconditionError: another ``up`` holds the data folder.
    """
    check_listen(settings.listen, insecure=settings.insecure_listen)
    check_installed()
    with contextlib.ExitStack() as undo:
        # The folder first: who starts a second one by mistake should hear of the first, not of its port.
        folder = open_folder(settings.data_dir, listen=settings.listen, now=clock(), say=say)
        undo.callback(folder.close)
        front = hold_port(settings.listen)
        undo.callback(front.close)
        folder.say_holder(front.address)  # port 0 has become a real one
        model_server = hold_port("127.0.0.1:0")
        undo.callback(model_server.close)
        specs = plan_children(
            folder,
            listen=front.address,
            model_server=model_server.address,
            insecure_listen=settings.insecure_listen,
            drain_limit_s=settings.drain_limit_s,
        )
        undo.pop_all()
    return Up(settings, folder, front, model_server, specs, say)


class Up:
    """All of Tiltyard on one machine, ready to serve once. Made by ``build_up``.

    ``stop`` is called on the event loop that runs ``serve``; signal handlers of asyncio do.
    """

    def __init__(
        self,
        settings: UpSettings,
        folder: DataFolder,
        front: HeldPort,
        model_server: HeldPort,
        specs: list[ChildSpec],
        say: Callable[[str], None],
        *,
        until_serving: Callable[[str, str], Coroutine[Any, Any, None]] = wait_until_serving,
    ) -> None:
        self.address = front.address
        """``HOST:PORT`` that is served."""
        self.data_dir = folder.path
        """The data folder, absolute."""
        self._settings = settings
        self._folder = folder
        self._front = front
        self._model_server = model_server
        self._say = say
        self._until_serving = until_serving
        self._children = {spec.name: Child(spec, say=say) for spec in specs}
        self._stop_asked = asyncio.Event()
        self._hurry = False

    def stop(self) -> None:
        """First call: stop everything in order. Second call: kill everything."""
        if not self._stop_asked.is_set():
            self._say("stopping; once more to stop without waiting for calls in flight")
            self._stop_asked.set()
            return
        self._hurry = True
        for child in self._children.values():
            child.kill()

    async def serve(self, on_ready: Callable[[str], None]) -> bool:
        """Run until stopped.

        Args:
            on_ready: called with the address once everything serves.

        Returns:
            Whether everything ended by itself, nothing having to be killed.

        Raises:
            UnavailableError: a child could not start; what it said has been passed on.
            DeadlineError: it did not serve in time.
        """
        try:
            for child in self._children.values():
                child.start()
            await self._first_of(self._start(), self._stop_asked.wait())
            if not self._stop_asked.is_set():
                on_ready(self.address)
                await self._stop_asked.wait()
        finally:
            ended_well = await self._end()
        return ended_well

    async def _start(self) -> None:
        """Wait until everything serves."""
        failures = [child.failed.wait() for child in self._children.values()]
        try:
            async with asyncio.timeout(self._settings.start_limit_s):
                await self._first_of(self._all_serve(), *failures)
        except TimeoutError:
            late = [name for name, child in self._children.items() if not child.ready.is_set()]
            where = f"{self._folder.path / 'logs'} may say why"
            what = f"{', '.join(late)} not ready" if late else "the router has no routes, or does not pass calls on"
            raise DeadlineError(f"{what} after {self._settings.start_limit_s:g} s; the logs in {where}") from None
        for name, child in self._children.items():
            if child.failed.is_set():
                raise UnavailableError(f"{name} could not start, so nothing is served; its last lines stand above")

    async def _all_serve(self) -> None:
        for child in self._children.values():
            await child.ready.wait()
        await self._until_serving(self._front.connect_address, self._model_server.connect_address)

    @staticmethod
    async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
        """Wait until one of them ends; raises what that one raises, and cancels the others."""
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _end(self) -> bool:
        """Stop the children in order; whether they all ended by themselves."""
        well = True
        for names in STOP_ORDER:
            ends = await asyncio.gather(*(self._children[name].stop() for name in names))
            well = all(ends) and well
        self._folder.close()
        self._front.close()
        self._model_server.close()
        return well and not self._hurry
