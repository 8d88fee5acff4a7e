"""Child processes that never outlive their parent, not even one that is killed with SIGKILL."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["describe_exit", "tied_to_parent", "tiltyard_command"]

# Runs in the child before the program itself does. The request survives execve; the parent may have died before it was
# made, hence the look afterwards. A `preexec_fn` would do the same, but runs Python in the forked copy of a process
# that has threads (gRPC's), which can deadlock.
_GUARD = (
    "import ctypes, os, sys\n"
    "set_parent_death_signal = 1\n"
    "ctypes.CDLL(None).prctl(set_parent_death_signal, int(sys.argv[1]), 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[2]): os._exit(1)\n"
    "os.execvp(sys.argv[3], sys.argv[3:])\n"
)


def tied_to_parent(command: Sequence[str], *, with_signal: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command that runs ``command`` and has the kernel kill it when the caller's process ends.

    Start it from a thread that lives as long as the process should: to the kernel the parent is that thread.
    The process keeps the id that the starter sees.

    Args:
        command: program and arguments.
        with_signal: what the child gets when its parent has ended.
    """
    return [sys.executable, "-I", "-S", "-c", _GUARD, str(int(with_signal)), str(os.getpid()), *command]


def tiltyard_command(*arguments: str) -> list[str]:
    """The command that runs ``tiltyard ARGUMENTS`` with this Python; the current folder is not searched for modules."""
    return [sys.executable, "-P", "-m", "tiltyard", *arguments]


def describe_exit(status: int) -> str:
    """``exit status 1`` or ``killed by SIGKILL``, from a return code as ``subprocess`` gives it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
