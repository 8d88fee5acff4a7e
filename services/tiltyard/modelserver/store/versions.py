"""The life of each version: loading, answering, unloading once the requests that hold it are done.

Threads: ``reload`` runs on the event loop, one at a time; loading and closing happen on one thread of their own;
``hold`` is used by the threads that run requests. ``_lock`` guards the versions' states and is held for look-ups only.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
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


@dataclass(slots=True, eq=False)
class Version:
    """One load of one version. Loading it again makes a new one."""

    model: str
    number: int
    path: Path
    state: State = State.START
    error: TiltyardError | None = None
    session: Session | None = None
    """Owned from AVAILABLE on; closed when the state is UNLOADING and ``holders`` falls to zero."""
    holders: int = 0


class ModelStore:
    """All versions ever seen. ``load`` opens the SavedModel in a folder; ``reload`` waits ``load_limit_s`` for it."""

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
        self._open: set[Version] = set()  # those with a session, also when a new life has taken their place

    @contextmanager
    def hold(self, name: str, number: int | None = None, label: str | None = None) -> Iterator[tuple[int, Session]]:
        """Find a version, by default the greatest, and keep it loaded in the ``with`` block; safe in any thread."""
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
                self._end(version, session)

    def _find(self, name: str, number: int | None, label: str | None) -> tuple[Version, Session]:
        if label is not None:
            if (name, label) not in self._labels:
                raise InvalidArgumentError(f"Unrecognized servable version label: {label}")
            number = self._labels[name, label]
        available = self._available(name)
        version = available.get(max(available, default=-1) if number is None else number)
        if version is None or version.session is None:
            asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise EntityNotFoundError(f"Servable not found for request: {asked}")
        return version, version.session

    def _available(self, name: str) -> dict[int, Version]:
        versions = self._versions.get(name, {})
        return {number: version for number, version in versions.items() if version.state is State.AVAILABLE}

    def status(self, name: str, number: int | None = None) -> list[tuple[int, State, TiltyardError | None]]:
        """Number, state, error of all versions of a model, greatest first, or of one; EntityNotFoundError if none."""
        with self._lock:
            seen = self._versions.get(name, {})
            found = [seen[key] for key in sorted(seen, reverse=True) if number in (None, key)]
            if not found:
                what = f"any versions of model {name}" if number is None else f"version {number} of model {name}"
                raise EntityNotFoundError(f"Could not find {what}")
            return [(version.number, version.state, version.error) for version in found]

    async def reload(self, entries: Mapping[str, ModelEntry]) -> None:
        """Make ``entries`` the complete configuration: load what is new in it, then unload what is not in it.

        Returns when every load has ended. What is unloaded may still be answering the requests that hold it.
        InvalidArgumentError and FailedPreconditionError mean that it was refused and nothing has changed;
        NotAvailableError that new models failed to load, or did not within the limit.
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
        if not task.cancelled() and task.exception() is not None:
            log.warning("reload failed: %s", task.exception())

    async def _reload(self, entries: Mapping[str, ModelEntry]) -> None:
        async with self._reload_lock:
            self._check(entries)
            new = entries.keys() - self._entries.keys()
            aspired = {name: self._aspired(entry, new=name in new) for name, entry in entries.items()}
            self._entries = entries
            loads = [version for versions in aspired.values() for version in versions if version.state is State.START]
            with self._lock:
                for version in loads:
                    self._versions.setdefault(version.model, {})[version.number] = version
            for version in loads:
                await asyncio.get_running_loop().run_in_executor(self._worker, self._load_version, version)
            down = {name for name in new if not self._available(name)}
            failed = {version.model: f"{version.model}: {version.error}" for version in loads if version.model in down}
            if not failed:
                self._labels = {(e.name, label): number for e in entries.values() for label, number in e.labels.items()}
            self._unload(aspired)
        if failed:
            raise NotAvailableError(f"{len(failed)} model(s) did not become available: " + "; ".join(failed.values()))

    def _check(self, entries: Mapping[str, ModelEntry]) -> None:
        """The checks that need to know what is served now, in TensorFlow Serving's order."""
        for name, entry in entries.items():
            platform = self._entries.get(name, entry).platform
            if platform != entry.platform:
                raise InvalidArgumentError(f"model {name} is served: {platform!r} cannot become {entry.platform!r}")
        for name, entry in entries.items():
            for label, number in entry.labels.items():
                if number not in self._available(name):
                    why = f"label {label} of model {name} points to version {number}, which is not available"
                    raise FailedPreconditionError(f"{why}: load it first, then give it the label in a second reload")
        for name, entry in entries.items():
            if entry.platform != PLATFORM:
                raise InvalidArgumentError(
                    f"model {name} has platform {entry.platform!r}; only {PLATFORM!r} is supported"
                )

    def _aspired(self, entry: ModelEntry, *, new: bool) -> list[Version]:
        """The versions to serve, greatest first: as they are, or to be loaded. Refuses a new model without any."""
        name, served, on_disk = entry.name, self._available(entry.name), scan(entry.base_path)
        if on_disk is None and not new:  # as TensorFlow Serving: without the folder nothing changes
            log.warning("base path %s of model %s is gone; its versions stay", entry.base_path, name)
            return list(served.values())
        chosen = entry.choose(on_disk or {})
        if new and not chosen:
            raise FailedPreconditionError(f"base_path {entry.base_path} of model {name} holds no version to serve")
        for number in (entry.specific or frozenset()).difference(chosen):
            log.warning("version %d of model %s is not on disk", number, name)
        return [served.get(number) or Version(name, number, (on_disk or {})[number]) for number in chosen]

    def _load_version(self, version: Version) -> None:
        version.state = State.LOADING
        try:
            session = self._load(version.path)
        except TiltyardError as error:
            with self._lock:
                version.state, version.error = State.END, error
            log.warning("load failed: %s", error)
            return
        with self._lock:
            self._open.add(version)
            version.session, version.state = session, State.AVAILABLE
        log.info("version %d of model %s is available", version.number, version.model)

    def _unload(self, aspired: Mapping[str, list[Version]]) -> None:
        """Unload what is no longer aspired; a model whose new versions all failed keeps its old ones."""
        with self._lock:
            for name in self._versions:
                served, wanted = set(self._available(name).values()), set(aspired.get(name, ()))
                for version in served - wanted if served & wanted or not wanted else ():
                    version.state = State.UNLOADING
                    if version.holders == 0 and version.session is not None:
                        self._worker.submit(self._end, version, version.session)

    def _end(self, version: Version, session: Session) -> None:
        """Close a version that nothing holds any more."""
        session.close()
        with self._lock:
            self._open.discard(version)
            version.session, version.state = None, State.END
        log.info("version %d of model %s is unloaded", version.number, version.model)

    def close(self) -> None:
        """Close all sessions at once: runs that still go on fail."""
        self._worker.shutdown(cancel_futures=True)
        with self._lock:
            sessions = [version.session for version in self._open if version.session is not None]
        for session in sessions:
            session.close()
