"""Where models live: received into a staging folder, checked there, and moved into place in one step.

    <data>/staging/<upload>/            one upload under way; everything in it goes when it ends, well or badly
    <data>/models/<workspace>.<model>/<version>/     one version, as model servers read it; never changes

A reader that keeps models elsewhere (an object store) replaces this one class.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from tiltyard.control.names import ModelRef
from tiltyard.control.safenames import SafeNames, is_noise
from tiltyard.control.savedmodel import read_signatures
from tiltyard.control.zips import StoredFile, UploadLimits, create_file, too_large, unpack
from tiltyard.errors import InvalidArgumentError, LimitError, ModelUploadError

log = logging.getLogger(__name__)

_GRAPH = "saved_model.pb"
_TARGET = "target"  # in a staging folder: where its content is being moved


@dataclass(frozen=True, slots=True)
class Content:
    """A checked SavedModel, still in staging.

    Attributes:
        folder: the folder that holds ``saved_model.pb``.
        digest: SHA-256 in hex over the content, see ``digest_of``.
        size_bytes: of all files.
        signatures: bytes of a ``SignatureDefMap``.
    """

    folder: Path
    digest: str
    size_bytes: int
    signatures: bytes


def digest_of(files: Iterable[StoredFile]) -> str:
    """SHA-256 in hex over a content: for each file in the order of its path's bytes, the path's length (8 bytes,
    big-endian), the path in UTF-8, the size (8 bytes, big-endian) and the SHA-256 of the bytes."""
    total = hashlib.sha256()
    for path, file in sorted((file.path.encode(), file) for file in files):
        total.update(len(path).to_bytes(8) + path + file.size.to_bytes(8) + file.sha256)
    return total.hexdigest()


class Upload:
    """One upload on its way in. Blocking: call from a thread. ``discard`` it at the end, whatever came of it."""

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        folder.mkdir(mode=0o700)
        self._folder = folder
        self._limits = limits
        self._content = folder / "content"
        self._content.mkdir(mode=0o700)
        self._received = 0
        self.stop = threading.Event()
        """Set it to make a running ``finish_zip`` give up."""

    @property
    def folder(self) -> Path:
        """The staging folder."""
        return self._folder

    def discard(self) -> None:
        """Remove everything of it that is still in staging."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _count(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if self._received > self._limits.max_bytes:
            raise too_large(self._limits)


class ZipUpload(Upload):
    """An upload that is one zip archive."""

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        super().__init__(folder, limits)
        self._archive = folder / "archive.zip"
        self._out: BinaryIO = self._archive.open("xb")

    def begin_file(self, path: str) -> None:
        """Refused: an archive brings its own names."""
        raise InvalidArgumentError(f"a zip upload has no file parts (got one for {path!r}); send the archive as chunks")

    def chunk(self, data: bytes) -> None:
        """The archive's next bytes; raises ``LimitError`` when they are too many."""
        self._count(data)
        with _disk():
            self._out.write(data)

    def finish(self) -> Content:
        """Unpack and check; raises ``ModelUploadError`` or ``LimitError``."""
        with _disk():
            self._out.close()
            return _checked(self._content, unpack(self._archive, self._content, self._limits, self.stop))

    def discard(self) -> None:
        """Remove everything of it that is still in staging."""
        with contextlib.suppress(OSError):
            self._out.close()
        super().discard()


class FolderUpload(Upload):
    """An upload that is the files of a folder, one after another."""

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        super().__init__(folder, limits)
        self._names = SafeNames(limits.max_entries)
        self._files: list[StoredFile] = []
        self._path = ""
        self._out: BinaryIO | None = None
        self._sha256 = hashlib.sha256()
        self._size = 0

    def begin_file(self, path: str) -> None:
        """The next file begins; raises ``ModelUploadError`` when its path is unsafe."""
        checked = self._names.add(path)
        self._end_file()
        self._path, self._sha256, self._size = checked, hashlib.sha256(), 0
        if not is_noise(checked):
            with _disk():
                self._out = create_file(self._content, checked)

    def chunk(self, data: bytes) -> None:
        """The file's next bytes; raises ``LimitError`` when they are too many."""
        if not self._path:
            raise InvalidArgumentError("a folder upload begins with a file part, then that file's chunks")
        self._count(data)
        if self._out is not None:
            with _disk():
                self._out.write(data)
            self._sha256.update(data)
            self._size += len(data)

    def finish(self) -> Content:
        """Check the whole; raises ``ModelUploadError``."""
        with _disk():
            self._end_file()
            return _checked(self._content, self._files)

    def discard(self) -> None:
        """Remove everything of it that is still in staging."""
        if self._out is not None:
            with contextlib.suppress(OSError):
                self._out.close()
        super().discard()

    def _end_file(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None
            self._files.append(StoredFile(self._path, self._size, self._sha256.digest()))


class ArtifactStore:
    """The models on local disk.

    Args:
        data_dir: the data folder; must exist.
        limits: of one upload.
    """

    def __init__(self, data_dir: Path, limits: UploadLimits) -> None:
        self._staging = data_dir / "staging"
        self._models = data_dir / "models"
        self._limits = limits
        for folder in (self._staging, self._models):
            folder.mkdir(mode=0o700, exist_ok=True)

    def receive_zip(self) -> ZipUpload:
        """Begin an upload of a zip archive."""
        with _disk():
            return ZipUpload(self._staging / uuid4().hex, self._limits)

    def receive_folder(self) -> FolderUpload:
        """Begin an upload of a folder."""
        with _disk():
            return FolderUpload(self._staging / uuid4().hex, self._limits)

    def base_path(self, served_name: str) -> Path:
        """The folder of a model: one folder for each version, named by its number."""
        return self._models / served_name

    def path(self, ref: ModelRef) -> Path:
        """The folder of a version."""
        return self.base_path(ref.served_name) / str(ref.version)

    def put(self, upload: Upload, content: Content, ref: ModelRef) -> None:
        """Move a checked content to its place.

        The staging folder says where it goes before it goes, so that a crash between this and the row that makes the
        version exist leaves nothing behind: ``clean`` reads it.
        """
        with _disk():
            target = self.path(ref)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            note = upload.folder / _TARGET
            note.write_text(f"{ref.served_name}/{ref.version}")
            _sync(note)
            _sync(upload.folder)
            for file in content.folder.rglob("*"):
                _sync(file)
            content.folder.rename(target)
            _sync(target.parent)

    def take_back(self, ref: ModelRef) -> None:
        """Remove a version that did not come to exist after all."""
        shutil.rmtree(self.path(ref), ignore_errors=True)

    def clean(self, exists: Iterable[ModelRef]) -> int:
        """Remove what uploads of an earlier process left behind.

        Args:
            exists: every version that exists; none of them is touched.

        Returns:
            How many uploads were cleaned away.
        """
        kept = {f"{ref.served_name}/{ref.version}" for ref in exists}
        left = list(self._staging.iterdir())
        for folder in left:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                target = (folder / _TARGET).read_text()
                if target not in kept and target.count("/") == 1 and ".." not in target:
                    shutil.rmtree(self._models / target, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
        return len(left)


def _checked(root: Path, files: list[StoredFile]) -> Content:
    """Find the SavedModel in what was written: at the top, or in the one folder there is."""
    paths = {file.path for file in files}
    prefix = ""
    if _GRAPH not in paths:
        tops = {path.partition("/")[0] for path in paths}
        prefix = f"{tops.pop()}/" if len(tops) == 1 else ""
        if not prefix or prefix + _GRAPH not in paths:
            text = any(path.endswith("saved_model.pbtxt") for path in paths)
            raise ModelUploadError(
                "there is no saved_model.pb at the top of the upload or in a single folder at its top"
                + ("; a saved_model.pbtxt is not read, save it in binary form" if text else "")
            )
    inner = [StoredFile(file.path.removeprefix(prefix), file.size, file.sha256) for file in files]
    folder = root / prefix if prefix else root
    return Content(
        folder=folder,
        digest=digest_of(inner),
        size_bytes=sum(file.size for file in inner),
        signatures=read_signatures(folder / _GRAPH),
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """A full disk is a limit that was reached, not a bug."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise LimitError("the disk of the control plane is full; free some space and upload again") from error
        raise
