"""One process for as long as a ``with`` block lasts: the demo, tests and benchmarks start theirs with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tiltyard.errors import DeadlineError, FailedPreconditionError, UnavailableError
from tiltyard.supervisor.spawn import describe_exit, tied_to_parent
from tiltyard.supervisor.supervise import tail

__all__ = ["Process"]

_POLL_S = 0.02
_SHOWN_LINES = 40


class Process:
    """A process that ends with its starter, at the latest; what it prints goes to files.

    Start it from a thread that outlives it: to the kernel that thread is its parent.

    Args:
        command: program and arguments.
        name: for messages and files.
        folder: where ``<name>.out`` and ``<name>.err`` go; made when it is not there.
        env: variables to add to this process's own.
        stop_limit_s: how long ``terminate`` waits, in seconds, before it kills.

    Attributes:
        stdout: file that takes what it prints.
        stderr: file that takes what it says beside that.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        folder: Path,
        env: Mapping[str, str] | None = None,
        stop_limit_s: float = 60.0,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.stdout = folder / f"{name}.out"
        self.stderr = folder / f"{name}.err"
        self._folder = folder
        self._env = dict(env or {})
        self._stop_limit_s = stop_limit_s
        self._popen: subprocess.Popen[bytes] | None = None
        self._began_at = 0  # byte of stdout at which this life began

    def start(self) -> Self:
        """Start it; a process that has ended may be started again, and adds to the same files.

        Raises:
            FailedPreconditionError: it runs already.
        """
        if self.alive():
            raise FailedPreconditionError(f"{self.name} (process {self.pid}) runs already")
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.stdout.open("ab") as out, self.stderr.open("ab") as err:
            self._began_at = out.tell()
            self._popen = subprocess.Popen(
                tied_to_parent(self.command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | self._env,
                start_new_session=True,  # Ctrl-C is for us: we end it in our time
            )
        return self

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            FailedPreconditionError: it was never started.
        """
        return self._started().pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen is not None and self._popen.poll() is None

    def returncode(self) -> int | None:
        """How it ended, as ``subprocess`` says it; None while it runs."""
        return self._started().poll()

    def wait_line(self, prefix: str, limit_s: float = 120.0) -> str:
        """Wait for the first line on stdout, since its start, that begins with ``prefix``; the rest of that line.

        Raises:
            UnavailableError: it ended first; shows what it said.
            DeadlineError: ``limit_s`` seconds went by; shows what it said.
        """
        end = time.monotonic() + limit_s
        while True:
            ended = not self.alive()  # before the look: what it printed last must not be missed
            with self.stdout.open("rb") as file:
                file.seek(self._began_at)
                lines = file.read().decode(errors="replace").splitlines(keepends=True)
            for line in lines:
                if line.startswith(prefix) and line.endswith("\n"):
                    return line.removeprefix(prefix).rstrip("\n")
            if ended:
                how = describe_exit(self._started().returncode)
                raise UnavailableError(f"{self.name} ended ({how}) before it printed {prefix!r}\n{self.said()}")
            if time.monotonic() > end:
                raise DeadlineError(f"{self.name} did not print {prefix!r} within {limit_s:g} s\n{self.said()}")
            time.sleep(_POLL_S)

    def said(self) -> str:
        """The last lines of both files, for messages."""
        shown = []
        for path in (self.stdout, self.stderr):
            shown += [f"  {path.name}| {line}" for line in tail(path, lines=_SHOWN_LINES)]
        return "\n".join(shown)

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._started().send_signal(number)

    def wait(self, limit_s: float) -> int:
        """Wait for its end; its return code.

        Raises:
            DeadlineError: it still runs after ``limit_s`` seconds.
        """
        try:
            return self._started().wait(limit_s)
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"{self.name} still runs after {limit_s:g} s\n{self.said()}") from None

    def terminate(self) -> int:
        """Send SIGTERM and wait for its end; SIGKILL when that takes too long. Its return code."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(self._stop_limit_s)
        except DeadlineError:
            self.kill()
            raise

    def kill(self) -> int:
        """Send SIGKILL and wait for its end; its return code."""
        self.signal(signal.SIGKILL)
        return self._started().wait()

    def close(self) -> None:
        """End it if it runs. May be called twice."""
        if self.alive():
            self.terminate()

    def __enter__(self) -> Self:
        return self if self.alive() else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.alive():  # a failure is on its way up: do not hide it behind another
            with contextlib.suppress(DeadlineError):
                self.close()
        else:
            self.close()

    def __repr__(self) -> str:
        return f"Process({self.name!r}, {' '.join(self.command)!r})"

    def _started(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise FailedPreconditionError(f"{self.name} was not started")
        return self._popen
