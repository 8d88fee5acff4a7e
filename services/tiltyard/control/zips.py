"""Takes a zip archive of a stranger apart: names checked before anything is written, sizes while it is written."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiltyard.control.safenames import SafeNames, is_noise
from tiltyard.errors import LimitError, ModelUploadError

_CHUNK = 256 * 1024
# The one large read of zipfile is the archive's directory, all of it before the first name is looked at. 10,000
# entries with long names fit in this; an archive that claims more is refused before it costs memory.
_MAX_READ = 8 * 1024 * 1024
# Below this a high ratio is no bomb: a small SavedModel of mostly zeros packs that well.
_RATIO_FREE = 1024 * 1024
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """What one upload may cost."""

    max_bytes: int = 4 * 1024**3
    """Most bytes of an archive, and most bytes of content; the two are counted apart."""
    max_ratio: int = 100
    """Most bytes of content for each byte of archive."""
    max_entries: int = 10_000
    """Most files and folders."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a content that was written.

    Attributes:
        path: within the content, parts joined by ``/``.
        size: in bytes.
        sha256: of its bytes.
    """

    path: str
    size: int
    sha256: bytes


class Stopped(Exception):  # noqa: N818 - no error: the uploader went away
    """The work was told to stop."""


def too_large(limits: UploadLimits) -> LimitError:
    """The error for an upload over ``limits.max_bytes``."""
    return LimitError(f"the upload is larger than {limits.max_bytes} bytes, the most this service takes")


def unpack(archive: Path, target: Path, limits: UploadLimits, stop: threading.Event) -> list[StoredFile]:
    """Write the files of a zip archive under ``target``, which must be an empty folder.

    Returns:
        The files written, archive noise left out.

    Raises:
        ModelUploadError: when the archive is unsafe or damaged. What was written until then is the caller's to remove.
        LimitError: when it has too many entries or too many bytes.
        Stopped: when ``stop`` was set.
    """
    packed = archive.stat().st_size
    try:
        with _BoundedFile(archive) as raw, zipfile.ZipFile(raw) as opened:
            wanted = _check_entries(opened, limits)
            budget = _Budget(limits, packed)
            budget.look_ahead(sum(info.file_size for info, _ in wanted))
            return [_extract(opened, info, path, target, budget, stop) for info, path in wanted]
    except _DAMAGED as error:
        raise ModelUploadError(f"the upload is no zip archive that can be read: {error}") from error


class _BoundedFile(io.FileIO):
    """Reads of the length an archive asks for, up to a bound: zipfile believes what the archive says of itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_READ:
            raise LimitError("the zip archive's directory is too large; a SavedModel has far fewer entries")
        return super().read(-1 if size is None else size) or b""


class _Budget:
    """Counts the bytes really written, over all entries."""

    def __init__(self, limits: UploadLimits, packed: int) -> None:
        self._limits = limits
        self._by_ratio = max(packed * limits.max_ratio, _RATIO_FREE)
        self._written = 0

    def look_ahead(self, declared: int) -> None:
        """Refuse at once what says of itself that it will be too much."""
        if declared > self._limits.max_bytes:
            raise too_large(self._limits)
        if declared > self._by_ratio:
            raise ModelUploadError(
                f"unsafe upload: the archive unpacks to more than {self._limits.max_ratio} times its size"
            )

    def spend(self, count: int) -> None:
        self._written += count
        self.look_ahead(self._written)


def _check_entries(opened: zipfile.ZipFile, limits: UploadLimits) -> list[tuple[zipfile.ZipInfo, str]]:
    names = SafeNames(limits.max_entries)
    wanted: list[tuple[zipfile.ZipInfo, str]] = []
    for info in opened.infolist():
        name = info.orig_filename  # as the archive has it; `filename` is cut at a NUL
        folder = name.endswith("/")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
            raise ModelUploadError(f"unsafe upload: {name!r} is no plain file or folder (a link or a device)")
        path = names.add(name, folder=folder)
        if info.flag_bits & 0x1:
            raise ModelUploadError(f"the zip archive is encrypted ({name!r}); pack it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelUploadError(f"{name!r} is packed by a method other than deflate; pack it again with plain zip")
        if not folder and not is_noise(path):
            wanted.append((info, path))
    return wanted


def _extract(
    opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: str, target: Path, budget: _Budget, stop: threading.Event
) -> StoredFile:
    size, digest = 0, hashlib.sha256()
    with opened.open(info) as packed, create_file(target, path) as out:
        while chunk := packed.read(_CHUNK):
            if stop.is_set():
                raise Stopped
            budget.spend(len(chunk))
            out.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return StoredFile(path, size, digest.digest())


def create_file(root: Path, path: str) -> BinaryIO:
    """Open a new file under ``root`` for writing, its folders made; an existing file is an error."""
    where = root.joinpath(*path.split("/"))
    where.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return where.open("xb")
