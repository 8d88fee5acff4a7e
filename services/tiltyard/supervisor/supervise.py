"""Keeps child processes running: starts them again when they die, and ends them when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiltyard.supervisor.children import ChildSpec
from tiltyard.supervisor.spawn import describe_exit, tied_to_parent

__all__ = ["Backoff", "Child", "tail"]

TAIL_LINES = 15
_TAIL_BYTES = 64 * 1024
_MAX_LINE_BYTES = 64 * 1024


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Pauses before a child is started again: doubling from ``first_s`` to ``most_s``.

    A child that lived for ``healthy_s`` seconds begins again from ``first_s``.
    """

    first_s: float = 0.2
    most_s: float = 5.0
    healthy_s: float = 30.0
    _last_s: float = 0.0

    def pause_s(self, lived_s: float) -> float:
        """How long to wait, after a life of ``lived_s`` seconds."""
        if lived_s >= self.healthy_s or not self._last_s:
            self._last_s = self.first_s
        else:
            self._last_s = min(self.most_s, 2 * self._last_s)
        return self._last_s


class Child:
    """One child process over all its lives. Belongs to one event loop, whose thread must live as long as the child.

    Args:
        spec: what to run.
        say: takes what people should know, a line or several.
        backoff: pauses between lives.
        clock: monotonic seconds.

    Attributes:
        ready: set while the child has printed its ready line and lives.
        failed: set when it ended by itself before it was ever ready; then it is not started again.
    """

    def __init__(
        self,
        spec: ChildSpec,
        *,
        say: Callable[[str], None],
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.failed = asyncio.Event()
        self._say = say
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._was_ready = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the life it leads now."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process is not None else None

    def start(self) -> None:
        """Begin to keep it running."""
        self._task = asyncio.create_task(self._keep_running(), name=f"child {self.spec.name}")

    async def stop(self) -> bool:
        """Send SIGTERM and wait; SIGKILL when that takes longer than ``stop_limit_s``.

        Returns:
            Whether it ended by itself.
        """
        self._stopping.set()
        if self._task is None:
            return True
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait([self._task], timeout=self.spec.stop_limit_s)
        if not done:
            self._say(f"{self.spec.name} did not end within {self.spec.stop_limit_s:g} s; killing it")
            self.kill()
        await self._task
        return bool(done)

    def kill(self) -> None:
        """Send SIGKILL; it is not started again."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _keep_running(self) -> None:
        while not self._stopping.is_set():
            began = self._clock()
            try:
                with self.spec.log.open("ab", buffering=0) as log:
                    start_of_life = log.tell()
                    status = await self._live(log)
            except OSError as error:  # no memory, no process, no descriptor left: may be over soon
                end, said = f"could not be started: {error}", ""
            else:
                if self._stopping.is_set():
                    return
                lines = tail(self.spec.log, start=start_of_life)
                said = "".join(f"\n  {self.spec.name}| {line}" for line in lines)
                end = f"died ({describe_exit(status)}; log: {self.spec.log})"
                if not self._was_ready and status >= 0:
                    # It decided to end: a wrong setting or a missing part. Another start would end the same way.
                    self._say(f"{self.spec.name} {end} before it was ready{said}")
                    self.failed.set()
                    return
            pause_s = self._backoff.pause_s(self._clock() - began)
            self._say(f"{self.spec.name} {end}; starting it again in {pause_s:g} s{said}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()

    async def _live(self, log: BinaryIO) -> int:
        """One life, from start to end; the return code as ``subprocess`` gives it."""
        process = await asyncio.create_subprocess_exec(
            *tied_to_parent(self.spec.command),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=log,
            limit=_MAX_LINE_BYTES,
            start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor alone, which stops all in order
        )
        self._process = process
        if self._stopping.is_set():  # asked to while it was being started
            self._signal(signal.SIGTERM)
        reading = asyncio.create_task(self._read_stdout(process, log))
        try:
            status = await process.wait()
        finally:
            self.ready.clear()
            # A grandchild may hold the pipe open; nobody waits for that.
            await asyncio.wait([reading], timeout=0.5)
            reading.cancel()
        return status

    async def _read_stdout(self, process: Process, log: BinaryIO) -> None:
        """Copy its stdout to the log, looking out for the ready line."""
        assert process.stdout is not None  # noqa: S101 - PIPE above
        prefix = self.spec.ready_prefix.encode()
        while True:
            try:
                line = await process.stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                _append(log, error.partial)
                return
            except asyncio.LimitOverrunError as error:
                line = await process.stdout.readexactly(error.consumed)
            _append(log, line)
            if line.startswith(prefix) and not self._stopping.is_set():
                if self._was_ready:
                    self._say(f"{self.spec.name} is back")
                self._was_ready = True
                self.ready.set()


def _append(log: BinaryIO, data: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk must not keep the child from writing on, and so from working
        log.write(data)


def tail(log: Path, *, start: int = 0, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log, not looking before byte ``start``."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return list(deque(text.splitlines(), maxlen=lines))
