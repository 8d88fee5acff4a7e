"""Reads the counters file that a router's loop writes, live or left behind by a crash. Layout: docs/counters.md.

The writer never waits for a reader. A reader takes, for each block, the verdict copy with the largest stamp that is not
beyond ``closed_through``, and starts again when that copy changed under it, which happens at most once a second.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from tiltyard.cells import BlockKey, Values, cells_in_use
from tiltyard.errors import TiltyardError

__all__ = ["SUFFIX", "BlockCells", "CountersError", "CountersFile", "Snapshot", "counters_path", "remove_old"]

log = logging.getLogger(__name__)

SUFFIX: Final = ".counters"
"""Ending of a counters file's name; the name before it is the boot id in hexadecimal."""

_MAGIC = b"TILTCNT\x01"
_VERSION = 1
_HEADER = struct.Struct("<8s6I6s2xqqQQQQ")
_CREATED = 40
_CLOSED_THROUGH = 48
_BLOCKS_USED = 56
_REPORT_SEQUENCE = 88
_PAGE = 4096
_KEY = struct.Struct("<4I2q16H")
_STAMPS = struct.Struct("<2q")
_STAMPS_AT = 16
_STRINGS_AT = 64
_KEY_BYTES = 1024
_SET_BYTES = 1024
_Q = struct.Struct("<q")
_U = struct.Struct("<Q")
_TRIES = 100


class CountersError(TiltyardError):
    """A file is no counters file of this version, or is damaged."""


@dataclass(frozen=True, slots=True)
class BlockCells:
    """One block's cells: shape ``(cells_in_use(len(key.metrics)),)`` each."""

    key: BlockKey
    live: Values
    closed: Values


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one file said at one moment.

    Attributes:
        boot_id: 6 bytes.
        created: unix seconds.
        closed_through: the assignment second through which the closed cells are complete; 0: none.
        ended: whether the loop stopped cleanly.
        uncounted: requests that had no room in the file.
        blocks: in the order they were made; a block keeps its place.
    """

    boot_id: bytes
    created: int
    closed_through: int
    ended: bool
    uncounted: int
    blocks: tuple[BlockCells, ...]


class _MovedError(Exception):
    """The writer folded a second into the copy being read."""


def counters_path(folder: Path, boot_id: bytes) -> Path:
    """Where the counters of a boot stand."""
    return folder / (boot_id.hex() + SUFFIX)


def remove_old(folder: Path, keep: int) -> int:
    """Remove the files of dead boots but the ``keep`` that were made last.

    For a router that reports to nobody: each start leaves a file. Files of live boots stay, files that a report was
    made from (the rest waits for the outcomes service), and files that cannot be read.

    Returns:
        How many were removed.
    """
    found: list[tuple[int, str]] = []
    removed = 0
    for path in folder.glob("*" + SUFFIX):
        try:
            with CountersFile(path) as file:
                found.append((file.created, path.name))
        except (CountersError, OSError) as error:
            log.warning("counters file cannot be read; it stays", extra={"file": str(path), "reason": str(error)})
    dead = 0
    for _, name in sorted(found, reverse=True):
        try:
            with CountersFile(folder / name) as file:
                if file.report_sequence() or not file.try_lock():
                    continue
                dead += 1
                if dead > keep:
                    file.path.unlink(missing_ok=True)
                    removed += 1
        except (CountersError, OSError):  # another router was faster, or this user may not
            continue
    return removed


class CountersFile:
    """One counters file, open for reading. Use it as a context manager, or call ``close``.

    Raises:
        CountersError: the file is no counters file of this version.
        OSError: it could not be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: list[BlockKey] = []
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = self._mapped()
            self._check()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> CountersFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def boot_id(self) -> bytes:
        """The boot's 6 bytes."""
        return self._map[32:38]

    @property
    def created(self) -> int:
        """When the boot made the file, unix seconds."""
        (value,) = _Q.unpack_from(self._map, _CREATED)
        return int(value)

    def close(self) -> None:
        """Give file, mapping and lock back."""
        self._map.close()
        os.close(self._fd)

    def try_lock(self) -> bool:
        """Whether the loop that wrote the file is gone; the lock is then ours until ``close``."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def report_sequence(self) -> int:
        """Sequence of the newest report made from this file; 0: none yet."""
        (value,) = _U.unpack_from(self._map, _REPORT_SEQUENCE)
        return int(value)

    def next_report_sequence(self) -> int:
        """Count one report. The number is kept in the file, so a successor goes on from there."""
        value = self.report_sequence() + 1
        _U.pack_into(self._map, _REPORT_SEQUENCE, value)
        return value

    def read(self) -> Snapshot:
        """All blocks, the closed cells of all of them as of one ``closed_through``.

        Raises:
            CountersError: the file is damaged.
        """
        for _ in range(_TRIES):
            try:
                return self._read()
            except _MovedError:
                continue
        raise CountersError(f"{self.path}: no consistent state in {_TRIES} readings; the file is damaged")

    def _mapped(self) -> mmap.mmap:
        if os.fstat(self._fd).st_size < _PAGE:
            raise CountersError(f"{self.path}: too short for a counters file")
        return mmap.mmap(self._fd, 0)

    def _check(self) -> None:
        magic, version, header_bytes, block_bytes, set_bytes, *_ = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or version != _VERSION:
            raise CountersError(f"{self.path}: no counters file of version {_VERSION}")
        if (header_bytes, block_bytes, set_bytes) != (_PAGE, _PAGE, _SET_BYTES):
            raise CountersError(f"{self.path}: sizes in the header are wrong; the file is damaged")

    def _read(self) -> Snapshot:
        # The header comes first: once it says "ended", or "closed through" some second, the blocks say so too.
        *_, boot_id, created, _, _, _, uncounted, ended = _HEADER.unpack_from(self._map)
        (closed_through,) = _Q.unpack_from(self._map, _CLOSED_THROUGH)
        (used,) = _U.unpack_from(self._map, _BLOCKS_USED)
        if len(self._map) < (used + 1) * _PAGE:
            self._grow(used)
        blocks = tuple(self._block(number, closed_through) for number in range(used))
        return Snapshot(
            boot_id=boot_id,
            created=created,
            closed_through=closed_through,
            ended=bool(ended),
            uncounted=uncounted,
            blocks=blocks,
        )

    def _grow(self, used: int) -> None:
        if os.fstat(self._fd).st_size < (used + 1) * _PAGE:
            raise CountersError(f"{self.path}: shorter than its {used} blocks; the file is damaged")
        fresh = self._mapped()
        self._map.close()
        self._map = fresh

    def _block(self, number: int, closed_through: int) -> BlockCells:
        at = (number + 1) * _PAGE
        if number == len(self._keys):
            self._keys.append(self._key(at))
        key = self._keys[number]
        size = 8 * cells_in_use(len(key.metrics))
        stamps = _STAMPS.unpack_from(self._map, at + _STAMPS_AT)
        readable = [(stamp, copy) for copy, stamp in enumerate(stamps) if stamp <= closed_through]
        if not readable:
            raise _MovedError
        stamp, copy = max(readable)
        cells_at = at + _KEY_BYTES + _SET_BYTES * (copy + 1)
        closed = self._map[cells_at : cells_at + size]
        if _STAMPS.unpack_from(self._map, at + _STAMPS_AT)[copy] != stamp:
            raise _MovedError
        # The live cells move on while they are copied: `assigned` is read last, so it is never below `completed`.
        live_at = at + _KEY_BYTES
        rest = self._map[live_at + 8 : live_at + size]
        live = self._map[live_at : live_at + 8] + rest
        return BlockCells(key, np.frombuffer(live, dtype="<u8"), np.frombuffer(closed, dtype="<u8"))

    def _key(self, at: int) -> BlockKey:
        epoch, arm_index, share_slots, n_metrics, _, _, *lengths = _KEY.unpack_from(self._map, at)
        texts = []
        where = at + _STRINGS_AT
        if n_metrics > 8 or sum(lengths) > _KEY_BYTES - _STRINGS_AT:
            raise CountersError(f"{self.path}: the key of the block at byte {at} is damaged")
        for length in lengths[: 3 + n_metrics]:
            texts.append(self._map[where : where + length].decode("utf-8", "replace"))
            where += length
        pipeline, uid, arm, *metrics = texts
        return BlockKey(pipeline, uid, epoch, arm, arm_index, share_slots, tuple(metrics))
