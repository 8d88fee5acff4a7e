"""The data folder: who may read it, who holds it, where sockets and logs lie in it.

up.lock      held by one `tiltyard up` at a time; says which
logs/        one file for each child, and those of earlier starts
run/         UNIX sockets; elsewhere when the path is too long for one
control/ outcomes/ router/     one folder for each child that keeps something
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from tiltyard.errors import ConfigError, FailedPreconditionError

__all__ = ["DataFolder", "open_folder"]

LOCK = "up.lock"

SOCKETS = ("control.sock", "control-router.sock", "outcomes.sock", "outcomes-router.sock")
"""The sockets that will lie in ``DataFolder.sockets``."""

_LOGS_KEPT = 5
_MAX_SOCKET_PATH = 107  # of sockaddr_un, without the closing zero
_SOCKET_NAME_ROOM = 1 + max(map(len, SOCKETS))
# gRPC reads `unix:PATH` as a URI, in which other characters can mean something.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.-]+")
_SHORT_PREFIX = "tiltyard-"
_SHORT_PARENT = Path("/tmp")  # noqa: S108 - mkdtemp below makes a folder of mode 0700 with a name nobody can foresee


@dataclass(frozen=True, slots=True)
class _Holder:
    """Who holds a folder, as it wrote itself down."""

    pid: int = 0
    since: str = ""
    listen: str = ""
    sockets: str = ""


class DataFolder:
    """A data folder held by this process; made by ``open_folder``.

    Attributes:
        path: absolute.
        sockets: folder for UNIX sockets, its path short and plain enough.
    """

    def __init__(self, path: Path, lock_fd: int, sockets: Path, *, since: str = "") -> None:
        self.path = path
        self.sockets = sockets
        self._lock_fd = lock_fd
        self._since = since

    def say_holder(self, listen: str) -> None:
        """Write down for others who want the folder who holds it, and the address it serves."""
        holder = _Holder(pid=os.getpid(), since=self._since, listen=listen, sockets=str(self.sockets))
        text = json.dumps(asdict(holder)).encode() + b"\n"
        os.pwrite(self._lock_fd, text, 0)  # first: whoever reads in between finds it whole, or no JSON
        os.ftruncate(self._lock_fd, len(text))

    def close(self) -> None:
        """Remove the sockets and let go of the folder. May be called twice."""
        if self._lock_fd < 0:
            return
        shutil.rmtree(self.sockets, ignore_errors=True)
        os.ftruncate(self._lock_fd, 0)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def make(self, name: str) -> Path:
        """A folder in it, made with mode 0700 when it is not there."""
        made = self.path / name
        made.mkdir(mode=0o700, exist_ok=True)
        return made

    def rotate_log(self, name: str) -> Path:
        """Where the log of ``name`` goes from this start on; those of earlier starts become ``.1`` (newest) to
        ``.5``."""
        log = self.make("logs") / f"{name}.log"
        for number in range(_LOGS_KEPT - 1, 0, -1):
            _move(log.with_suffix(f".log.{number}"), log.with_suffix(f".log.{number + 1}"))
        _move(log, log.with_suffix(".log.1"))
        return log


def open_folder(path: Path, *, listen: str, now: datetime, say: Callable[[str], None]) -> DataFolder:
    """Make the folder if need be, and hold it.

    Args:
        path: where it is.
        listen: the address this ``up`` is to serve, for others who want the folder; ``say_holder`` tells them the one
            it got.
        now: the time, for the same.
        say: takes what the user should know.

    Raises:
        ConfigError: it is no folder, or not this user's, or others may read it and it does not look like ours.
        FailedPreconditionError: another process holds it; the message says which.
    """
    path = path.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()
        _check_private(path, say)
        lock_fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"--data-dir {path} cannot be used: {error.strerror}") from error
    try:
        before = _take_lock(lock_fd, path)
        _remove_left_sockets(before.sockets)
        sockets = _socket_folder(path)
        since = now.astimezone().isoformat(sep=" ", timespec="seconds")
        folder = DataFolder(path, lock_fd, sockets, since=since)
        folder.say_holder(listen)
    except BaseException:
        os.close(lock_fd)
        raise
    return folder


def _check_private(path: Path, say: Callable[[str], None]) -> None:
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        raise ConfigError(f"--data-dir {path} belongs to another user; choose another folder")
    if not mode & 0o077:
        return
    entries = os.listdir(path)
    # A folder with other things in it may be anything, a home folder even: its mode is not ours to change.
    if entries and LOCK not in entries:
        raise ConfigError(
            f"--data-dir {path} is open to other users (mode {mode:04o}) and holds other things; "
            f"choose another folder, or run: chmod 700 {path}"
        )
    path.chmod(0o700)
    say(f"{path} was open to other users (mode {mode:04o}); its mode is 0700 now")


def _take_lock(lock_fd: int, path: Path) -> _Holder:
    """Lock, and give back what the last holder left; the kernel unlocks when the process ends, however it ends."""
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(lock_fd)
        who = "another `tiltyard up`"
        if holder.pid:
            who += f" (process {holder.pid}, since {holder.since}, serving {holder.listen})"
        stop = f"stop it (kill {holder.pid})" if holder.pid else "stop it"
        raise FailedPreconditionError(
            f"the data folder {path} is held by {who}; use that one, {stop}, or choose another folder with --data-dir"
        ) from None
    return _holder(lock_fd)


def _holder(lock_fd: int) -> _Holder:
    try:
        return _Holder(**json.loads(os.pread(lock_fd, 65536, 0)))
    except (ValueError, TypeError):  # still empty, or written by another version
        return _Holder()


def _socket_folder(path: Path) -> Path:
    wanted = path / "run"
    text = str(wanted)
    if len(os.fsencode(text)) + _SOCKET_NAME_ROOM <= _MAX_SOCKET_PATH and _PLAIN_PATH.fullmatch(text):
        shutil.rmtree(wanted, ignore_errors=True)  # sockets of a start that was killed
        wanted.mkdir(mode=0o700)
        return wanted
    return Path(tempfile.mkdtemp(prefix=_SHORT_PREFIX, dir=_SHORT_PARENT))


def _remove_left_sockets(text: str) -> None:
    """A start that was killed could not remove its folder under /tmp; nothing else is ever removed there."""
    left = Path(text)
    if left.parent == _SHORT_PARENT and left.name.startswith(_SHORT_PREFIX):
        try:
            if not left.is_symlink() and left.stat().st_uid == os.geteuid():
                shutil.rmtree(left)
        except OSError:
            return


def _move(old: Path, new: Path) -> None:
    if old.exists():
        old.replace(new)
