"""What people see while a slow call runs: one line, rewritten in place, and only after two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress", "watched"]

QUIET_S = 2.0
"""Calls shorter than this say nothing."""


def watched() -> bool:
    """Whether somebody looks: stderr is a terminal, or this runs in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Progress:
    """One line about one call. Used from one thread.

    Args:
        text: what is being done, for example "uploading model 'fraud'".
        out: where to write, or ``None`` to stay silent.
        state: gives the rest of the line each time it is drawn, for example "12 of 40 MB".
        clock: monotonic seconds.
    """

    def __init__(
        self,
        text: str,
        *,
        out: TextIO | None,
        state: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text = text
        self._out = out
        self._state = state
        self._clock = clock
        self._start = clock()
        self._width = 0

    def draw(self) -> None:
        """Rewrite the line when the call has been running long enough."""
        elapsed = self._clock() - self._start
        if self._out is None or elapsed < QUIET_S:
            return
        state = self._state() if self._state is not None else f"{elapsed:.0f} s"
        self._write(f"{self._text}: {state}")

    def finish(self, word: str) -> None:
        """End the line with ``word`` ("ok", "failed") when there is one."""
        if self._width:
            self._write(f"{self._text}: {word}")
            if self._out is not None:
                self._out.write("\n")
                self._out.flush()

    def _write(self, line: str) -> None:
        if self._out is None:
            return
        self._out.write("\r" + line.ljust(self._width))
        self._out.flush()
        self._width = max(self._width, len(line))
