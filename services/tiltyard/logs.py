"""How every Tiltyard process writes its log: one line an event, on stderr, the event's facts at its end."""

from __future__ import annotations

import logging
import sys

__all__ = ["OneLineFormatter", "log_to_stderr"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class OneLineFormatter(logging.Formatter):
    """``time level logger: message key=value ...``; line breaks, those of a traceback too, become `` | ``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The message with what ``extra=`` brought."""
        facts = (f" {key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        return super().formatMessage(record) + "".join(facts)

    def format(self, record: logging.LogRecord) -> str:
        """The whole event as one line."""
        return " | ".join(line for line in super().format(record).splitlines() if line.strip())


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send this process's log to stderr, from now on and instead of anywhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
