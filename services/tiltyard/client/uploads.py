"""A model on disk becomes the messages of an upload."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tiltyard.api.control.v1 import model_pb2
from tiltyard.errors import ModelUploadError

__all__ = ["CHUNK_BYTES", "Source", "find_source", "upload_requests"]

CHUNK_BYTES = 1024 * 1024
"""Most bytes in one message of an upload."""


@dataclass(frozen=True, slots=True)
class Source:
    """What will be uploaded.

    Attributes:
        path: the zip file or the SavedModel folder.
        format: how the content is packed.
        files: for a folder its files with their path within it; for a zip the file itself, with an empty path.
        size_bytes: size of all files.
    """

    path: Path
    format: model_pb2.UploadFormat.ValueType
    files: tuple[tuple[str, Path], ...]
    size_bytes: int


def find_source(path: str | os.PathLike[str]) -> Source:
    """Look at a zip file or SavedModel folder; a folder that only holds one (TensorFlow Serving's ``1/``) will do.

    Raises:
        ModelUploadError: there is nothing, or no SavedModel, or a link within it: where it leads may be anything.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return Source(place, model_pb2.UPLOAD_FORMAT_ZIP, (("", place),), place.stat().st_size)
    if not place.is_dir():
        raise ModelUploadError(f"there is no file or folder {str(path)!r}; give a SavedModel's zip file or folder")
    root = _saved_model_folder(place)
    files = tuple(_files(root))
    size = sum(file.stat().st_size for _, file in files)
    return Source(place, model_pb2.UPLOAD_FORMAT_FOLDER, files, size)


def upload_requests(
    source: Source, *, parent: str, model_id: str, sent: Callable[[int], None]
) -> Iterator[model_pb2.UploadModelRequest]:
    """The messages of an upload.

    Args:
        source: what to upload.
        parent: resource name of the workspace.
        model_id: name of the model.
        sent: told the size of every chunk taken.
    """
    header = model_pb2.UploadHeader(
        parent=parent, model_id=model_id, format=source.format, file_name=source.path.resolve().name
    )
    yield model_pb2.UploadModelRequest(header=header)
    for name, file in source.files:
        if name:
            yield model_pb2.UploadModelRequest(file=model_pb2.UploadFile(path=name))
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield model_pb2.UploadModelRequest(chunk=chunk)
                sent(len(chunk))


def _saved_model_folder(place: Path) -> Path:
    if (place / "saved_model.pb").is_file():
        return place
    inner = [child for child in place.iterdir() if (child / "saved_model.pb").is_file()]
    if len(inner) == 1:
        _check_no_link(inner[0])
        return inner[0]
    found = "several folders" if inner else "no folder"
    raise ModelUploadError(
        f"{str(place)!r} holds no saved_model.pb, and {found} in it does; "
        "give the folder that tf.saved_model.save wrote"
    )


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        here = Path(folder)
        for subfolder in subfolders:
            _check_no_link(here / subfolder)
        for name in sorted(names):
            _check_no_link(here / name)
            if not (here / name).is_file():
                raise ModelUploadError(f"{str(here / name)!r} is no regular file; remove it from the model's folder")
            yield (here / name).relative_to(root).as_posix(), here / name


def _check_no_link(place: Path) -> None:
    if place.is_symlink():
        raise ModelUploadError(
            f"{str(place)!r} is a link, and links are not followed; put there what it leads to (cp -rL copies so)"
        )
