"""One model upload from its first message to the version that comes of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from tiltyard.api.control.v1 import model_pb2
from tiltyard.control.artifacts import ArtifactStore, Content, FolderUpload, ZipUpload
from tiltyard.control.names import ModelRef, check_id, parse_workspace
from tiltyard.control.records import ModelVersionRecord
from tiltyard.control.store import Store
from tiltyard.errors import DeadlineError, InvalidArgumentError, LimitError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_MAX_FILE_NAME = 255


class Uploads:
    """Takes uploads in, a bounded number at a time.

    Args:
        store: where versions are entered.
        artifacts: where their content goes.
        at_once: most uploads at the same time.
        idle_s: longest silence of an uploader, in seconds.
    """

    def __init__(self, store: Store, artifacts: ArtifactStore, *, at_once: int, idle_s: float) -> None:
        self._store = store
        self._artifacts = artifacts
        self._at_once = at_once
        self._idle_s = idle_s
        self._running = 0
        self._entering = asyncio.Lock()  # a version's number is drawn and taken as one
        self._tasks: set[asyncio.Task[Any]] = set()

    async def receive(self, requests: AsyncIterator[model_pb2.UploadModelRequest]) -> ModelVersionRecord:
        """Receive, check and enter one version. On any error, and when the caller goes away, nothing of it stays.

        Raises:
            InvalidArgumentError: when messages come in a wrong order or name something impossible.
            ModelUploadError: when the content is unsafe or no SavedModel.
            LimitError: when it is too large, or too many uploads are under way.
            EntityNotFoundError: when there is no such workspace.
            DeadlineError: when the uploader falls silent.
        """
        header = await self._header(requests)
        if self._running >= self._at_once:
            raise LimitError(f"{self._at_once} uploads are under way; try again when one is done")
        self._running += 1
        try:
            return await self._receive(header, requests)
        finally:
            self._running -= 1

    async def _header(self, requests: AsyncIterator[model_pb2.UploadModelRequest]) -> model_pb2.UploadHeader:
        first = await self._next(requests)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgumentError("the first message of an upload must be its header")
        header = first.header
        workspace = parse_workspace(header.parent)
        check_id("model", header.model_id)
        if header.format not in (model_pb2.UPLOAD_FORMAT_ZIP, model_pb2.UPLOAD_FORMAT_FOLDER):
            raise InvalidArgumentError("the header's format must say how the content is packed: zip or folder")
        if len(header.file_name) > _MAX_FILE_NAME:
            raise InvalidArgumentError(f"file_name has more than {_MAX_FILE_NAME} characters")
        await self._store.get_workspace(workspace)
        return header

    async def _receive(
        self, header: model_pb2.UploadHeader, requests: AsyncIterator[model_pb2.UploadModelRequest]
    ) -> ModelVersionRecord:
        is_zip = header.format == model_pb2.UPLOAD_FORMAT_ZIP
        upload = self._artifacts.receive_zip() if is_zip else self._artifacts.receive_folder()
        try:
            while (message := await self._next(requests)) is not None:
                await _in_thread(_take, upload, message)
            content = await _in_thread(upload.finish, on_cancel=upload.stop.set)
            # From here it goes through even when the caller is gone: the version exists whole, or not at all.
            task = asyncio.create_task(self._enter(header, upload, content))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                await asyncio.wait({task})
                raise
        finally:
            upload.discard()

    async def _enter(
        self, header: model_pb2.UploadHeader, upload: ZipUpload | FolderUpload, content: Content
    ) -> ModelVersionRecord:
        workspace = parse_workspace(header.parent)
        async with self._entering:
            version = await self._store.next_model_version(workspace, header.model_id)
            ref = ModelRef(workspace, header.model_id, version)
            await asyncio.to_thread(self._artifacts.put, upload, content, ref)
            try:
                added = await self._store.add_model_version(
                    ref,
                    digest=content.digest,
                    size_bytes=content.size_bytes,
                    file_name=header.file_name,
                    signatures=content.signatures,
                )
            except BaseException:
                self._artifacts.take_back(ref)
                raise
        log.info("uploaded %s, %d bytes, digest %s", ref, content.size_bytes, content.digest)
        return added

    async def _next(self, requests: AsyncIterator[model_pb2.UploadModelRequest]) -> model_pb2.UploadModelRequest | None:
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(requests, None)
        except TimeoutError:
            raise DeadlineError(f"the upload was silent for {self._idle_s:g} s and was given up") from None


def _take(upload: ZipUpload | FolderUpload, message: model_pb2.UploadModelRequest) -> None:
    part = message.WhichOneof("part")
    if part == "chunk":
        upload.chunk(message.chunk)
    elif part == "file":
        upload.begin_file(message.file.path)
    else:
        raise InvalidArgumentError("after the header an upload has only files and chunks")


async def _in_thread(work: Callable[..., _T], *args: Any, on_cancel: Callable[[], None] | None = None) -> _T:
    """Run in a thread; when cancelled, wait for the thread before going on, so that nothing runs behind our back."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen; the cancellation is what counts
        raise
