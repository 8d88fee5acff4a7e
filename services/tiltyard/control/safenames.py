"""Names inside an upload: only plain relative paths, and no two that one disk could take for the same."""

from __future__ import annotations

import re
import unicodedata

from tiltyard.errors import LimitError, ModelUploadError

_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_PART_BYTES = 255
_MAX_PATH_BYTES = 1024


def is_noise(path: str) -> bool:
    """Whether archivers put this file there by themselves, and it is no part of the model."""
    parts = path.split("/")
    return "__MACOSX" in parts or parts[-1] == ".DS_Store"


class SafeNames:
    """Takes the names of one upload, one after another, and refuses the whole upload at the first unsafe one.

    Args:
        max_entries: most entries (files and folders) an upload may have.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries = 0
        self._files: set[str] = set()
        self._folders: dict[str, bool] = {}  # folded path -> an entry of its own named it
        self._spelling: dict[str, str] = {}  # folded path -> as written

    def add(self, name: str, *, folder: bool = False) -> str:
        """Check one entry and return its path, parts joined by ``/``.

        Args:
            name: as the upload writes it; a folder's may end in ``/``.
            folder: whether the entry is a folder.

        Raises:
            ModelUploadError: when the name is unsafe or clashes with one before.
            LimitError: when there are too many entries.
        """
        self._entries += 1
        if self._entries > self._max_entries:
            raise LimitError(f"the upload has more than {self._max_entries} entries; a SavedModel needs far fewer")
        path = name[:-1] if folder and name.endswith("/") else name
        parts = path.split("/")
        _check(name, parts)
        for depth in range(1, len(parts)):
            self._claim_folder("/".join(parts[:depth]), name, own=False)
        if folder:
            self._claim_folder(path, name, own=True)
        else:
            self._claim_file(path, name)
        return path

    def _claim_folder(self, path: str, name: str, *, own: bool) -> None:
        folded = self._fold(path, name)
        if folded in self._files:
            raise ModelUploadError(f"unsafe upload: {path!r} is a file and a folder")
        if own and self._folders.get(folded):
            raise ModelUploadError(f"unsafe upload: {name!r} occurs twice")
        self._folders[folded] = own or self._folders.get(folded, False)

    def _claim_file(self, path: str, name: str) -> None:
        folded = self._fold(path, name)
        if folded in self._files:
            raise ModelUploadError(f"unsafe upload: {name!r} occurs twice")
        if folded in self._folders:
            raise ModelUploadError(f"unsafe upload: {path!r} is a file and a folder")
        self._files.add(folded)

    def _fold(self, path: str, name: str) -> str:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        written = self._spelling.setdefault(folded, path)
        if written != path:
            raise ModelUploadError(
                f"unsafe upload: {name!r} and {written!r} differ only in case or in how letters are encoded"
            )
        return folded


def _check(name: str, parts: list[str]) -> None:
    if not name or _CONTROL.search(name):
        raise ModelUploadError(f"unsafe upload: {name!r} is no file name")
    if "\\" in name:
        raise ModelUploadError(f"unsafe upload: {name!r} has a backslash; pack it with '/' between folders")
    if name.startswith("/"):
        raise ModelUploadError(f"unsafe upload: {name!r} is an absolute path")
    if any(_DRIVE.match(part) for part in parts):
        raise ModelUploadError(f"unsafe upload: {name!r} names a drive")
    if any(part in ("", ".", "..") for part in parts):
        raise ModelUploadError(f"unsafe upload: {name!r} has an empty, '.' or '..' part")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise ModelUploadError(f"unsafe upload: {name!r} is not valid Unicode") from None
    if max(sizes) > _MAX_PART_BYTES or sum(sizes) + len(sizes) > _MAX_PATH_BYTES:
        raise ModelUploadError(f"unsafe upload: the name {name[:60]!r}... is too long")
