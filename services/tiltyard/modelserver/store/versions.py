"""The life of each version: loading, answering, unloading once the requests that hold it are done.

Threads: ``reload`` runs on the event loop, one at a time; loading and closing happen on one thread of their own;
``acquire`` and ``release`` are called by the threads that run requests. ``_lock`` guards the versions' states and
reference counts and is held for look-ups only.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tiltyard.errors import EntityNotFoundError, FailedPreconditionError, InvalidArgumentError, TiltyardError
from tiltyard.modelserver.session import Session
from tiltyard.modelserver.store.config import PLATFORM, ModelEntry, scan

log = logging.getLogger(__name__)


class State(enum.IntEnum):
    """Where a version is in its life; the numbers are those of ModelVersionStatus."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class NotAvailableError(TiltyardError):
    """A configuration is in force, but some of its new models did not become available."""

    status = grpc.StatusCode.UNKNOWN


@dataclass(slots=True)
class Version:
    """One load of one version. Loading it again makes a new one."""

    model: str
    number: int
    state: State = State.START
    error: TiltyardError | None = None
    session: Session | None = None
    """Owned; closed when the state is UNLOADING and ``holders`` falls to zero."""
    holders: int = 0


class ModelStore:
    """All versions ever seen, by model and number.

    Args:
        load: opens the SavedModel in a folder.
        load_limit_s: how long ``reload`` waits for loads, in seconds.
    """

    def __init__(self, *, load: Callable[[Path], Session], load_limit_s: float) -> None:
        self._load = load
        self._load_limit_s = load_limit_s
        self._lock = threading.Lock()
        self._reload_lock = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()
        self._worker = ThreadPoolExecutor(1, "tiltyard-load")
        self._entries: Mapping[str, ModelEntry] = {}
        self._labels: Mapping[tuple[str, str], int] = {}
        self._versions: dict[str, dict[int, Version]] = {}

    @contextmanager
    def hold(self, name: str, number: int | None = None, label: str | None = None) -> Iterator[tuple[int, Session]]:
        """Find a version and keep it loaded inside the ``with`` block; safe in any thread.

        Raises:
            InvalidArgumentError: the model has no such label.
            EntityNotFoundError: the version, or any version of the model, is not available.
        """
        with self._lock:
            version, session = self._find(name, number, label)
            version.holders += 1
        try:
            yield version.number, session
        finally:
            with self._lock:
                version.holders -= 1
                last = version.state is State.UNLOADING and version.holders == 0
            if last:
                _end(version)

    def _find(self, name: str, number: int | None, label: str | None) -> tuple[Version, Session]:
        if label is not None:
            if (name, label) not in self._labels:
                raise InvalidArgumentError(f"Unrecognized servable version label: {label}")
            number = self._labels[name, label]
        available = self._available(name)
        wanted = max(available, default=None) if number is None else number
        if wanted is None or wanted not in available:
            asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise EntityNotFoundError(f"Servable not found for request: {asked}")
        version = available[wanted]
        if version.session is None:
            raise RuntimeError(f"version {wanted} of model {name} is available without a session")
        return version, version.session

    def _available(self, name: str) -> dict[int, Version]:
        versions = self._versions.get(name, {})
        return {number: version for number, version in versions.items() if version.state is State.AVAILABLE}

    def status(self, name: str, number: int | None = None) -> list[tuple[int, State, TiltyardError | None]]:
        """Number, state and error of all versions of a model ever seen, greatest first, or of one of them.

        Raises:
            EntityNotFoundError: never seen.
        """
        with self._lock:
            seen = self._versions.get(name, {})
            versions = [seen[key] for key in sorted(seen, reverse=True) if number in (None, key)]
            if versions:
                return [(version.number, version.state, version.error) for version in versions]
        if number is None:
            raise EntityNotFoundError(f"Could not find any versions of model {name}")
        raise EntityNotFoundError(f"Could not find version {number} of model {name}")

    async def reload(self, entries: Mapping[str, ModelEntry]) -> None:
        """Make ``entries`` the complete configuration: load what is new in it, then unload what is not in it.

        Returns when every load has ended. What is unloaded may still be answering the requests that hold it.

        Raises:
            InvalidArgumentError, FailedPreconditionError: refused; nothing has changed.
            NotAvailableError: in force, but new models failed to load or did not within the limit.
        """
        # The caller may go away, the transition must not: it runs as a task of its own.
        task = asyncio.create_task(self._reload(entries))
        self._reloads.add(task)
        task.add_done_callback(self._reload_done)
        done, _ = await asyncio.wait({task}, timeout=self._load_limit_s)
        if not done:
            raise NotAvailableError(f"the configuration is not in force after {self._load_limit_s:g} s; still loading")
        await task

    def _reload_done(self, task: asyncio.Task[None]) -> None:
        self._reloads.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.warning("reload failed: %s", error)

    async def _reload(self, entries: Mapping[str, ModelEntry]) -> None:
        async with self._reload_lock:
            self._check_entries(entries)
            on_disk = {name: scan(entry.base_path) for name, entry in entries.items()}
            new = entries.keys() - self._entries.keys()
            for name in sorted(new):
                _check_folders(entries[name], on_disk[name])
            aspired = {name: self._aspired(entry, on_disk[name]) for name, entry in entries.items()}
            self._entries = entries
            loads = self._start(aspired)
            for version, path in loads:
                await asyncio.get_running_loop().run_in_executor(self._worker, self._load_version, version, path)
            failures = self._failures(version for version, _ in loads if version.model in new)
            if not failures:
                self._labels = {(e.name, label): number for e in entries.values() for label, number in e.labels.items()}
            self._unload(aspired)
        if failures:
            raise NotAvailableError(
                f"{len(failures)} model(s) did not become available: " + "; ".join(failures.values())
            )

    def _check_entries(self, entries: Mapping[str, ModelEntry]) -> None:
        """The checks that need to know what is served now, in TensorFlow Serving's order."""
        for name, entry in entries.items():
            if name in self._entries and self._entries[name].platform != entry.platform:
                raise InvalidArgumentError(
                    f"model {name} has platform {self._entries[name].platform!r}, which cannot become "
                    f"{entry.platform!r} while it is served"
                )
        with self._lock:
            for name, entry in entries.items():
                for label, number in entry.labels.items():
                    if number not in self._available(name):
                        raise FailedPreconditionError(
                            f"label {label} of model {name} points to version {number}, which is not available; "
                            "load the version first, then give it the label in a second reload"
                        )
        for name, entry in entries.items():
            if entry.platform != PLATFORM:
                raise InvalidArgumentError(
                    f"model {name} has platform {entry.platform!r}; the only one supported is {PLATFORM!r}"
                )

    def _aspired(self, entry: ModelEntry, on_disk: Mapping[int, Path] | None) -> dict[int, Path | None]:
        """The versions to serve and their folders, greatest first; no folder for one that is served already."""
        with self._lock:
            served = self._available(entry.name)
        if on_disk is None:  # as TensorFlow Serving: without the folder nothing changes
            log.warning("base path is gone, its versions stay", extra={"model": entry.name, "path": entry.base_path})
            return dict.fromkeys(sorted(served, reverse=True))
        for number in (entry.specific or frozenset()).difference(on_disk):
            log.warning("version is not on disk", extra={"model": entry.name, "version": number})
        return {number: None if number in served else on_disk[number] for number in entry.choose(on_disk)}

    def _start(self, aspired: Mapping[str, Mapping[int, Path | None]]) -> list[tuple[Version, Path]]:
        """Enter the versions to be loaded, model by model, greatest first."""
        loads = [
            (Version(name, number), path)
            for name, paths in aspired.items()
            for number, path in paths.items()
            if path is not None
        ]
        with self._lock:
            for version, _ in loads:
                self._versions.setdefault(version.model, {})[version.number] = version
        return loads

    def _load_version(self, version: Version, path: Path) -> None:
        where = {"model": version.model, "version": version.number, "path": str(path)}
        version.state = State.LOADING
        try:
            session = self._load(path)
        except TiltyardError as error:
            log.warning("load failed: %s", error.message, extra=where)
            with self._lock:
                version.state, version.error = State.END, error
            return
        with self._lock:
            version.session, version.state = session, State.AVAILABLE
        log.info("version is available", extra=where)

    def _failures(self, loaded: Iterable[Version]) -> dict[str, str]:
        """Why, for each model of these that has no version available."""
        with self._lock:
            failed = [version for version in loaded if not self._available(version.model)]
        return {version.model: f"{version.model}: {version.error.message}" for version in failed if version.error}

    def _unload(self, aspired: Mapping[str, Mapping[int, Path | None]]) -> None:
        """Unload what is no longer aspired; a model whose new versions all failed keeps its old ones."""
        idle: list[Version] = []
        with self._lock:
            for name in self._versions:
                available = self._available(name)
                wanted = aspired.get(name, {}).keys()
                if wanted and not wanted & available.keys():
                    continue
                for number in available.keys() - wanted:
                    available[number].state = State.UNLOADING
                    if available[number].holders == 0:
                        idle.append(available[number])
        for version in idle:
            self._worker.submit(_end, version)

    def close(self) -> None:
        """Close all sessions at once: runs that still go on fail."""
        self._worker.shutdown(cancel_futures=True)
        with self._lock:
            versions = [version for seen in self._versions.values() for version in seen.values()]
        for version in versions:
            if version.session is not None:
                version.session.close()


def _check_folders(entry: ModelEntry, on_disk: Mapping[int, Path] | None) -> None:
    """Refuse a new model that could never become available."""
    if on_disk is None:
        raise FailedPreconditionError(f"base_path {entry.base_path} of model {entry.name} is no folder")
    if not entry.choose(on_disk):
        wanted = "no version" if entry.specific is None else f"none of the versions {sorted(entry.specific)}"
        raise FailedPreconditionError(f"base_path {entry.base_path} of model {entry.name} holds {wanted}")


def _end(version: Version) -> None:
    """Close a version that nothing holds any more."""
    session, version.session = version.session, None
    if session is not None:
        session.close()
    version.state = State.END
    log.info("version is unloaded", extra={"model": version.model, "version": version.number})
