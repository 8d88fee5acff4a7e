"""The stream of route snapshots to routers, and who has taken which."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from tiltyard.api.router.v1 import routes_pb2, routes_pb2_grpc
from tiltyard.errors import DeadlineError, InvalidArgumentError

log = logging.getLogger(__name__)

_HELLO_S = 10.0


class _Session:
    """One router on one stream."""

    def __init__(self, router: str, instance: str) -> None:
        self.router = router
        self.instance = instance  # one start of it; two routers may have one name
        self.answered = 0  # the newest revision it took or refused
        self.error = ""  # why it refused that one
        self.news = asyncio.Event()
        self.closed = False


class RouteHub:
    """The snapshot in force and the routers that watch it. Belongs to one event loop."""

    def __init__(self) -> None:
        self._snapshot: routes_pb2.RouteSnapshot | None = None
        self._sessions: set[_Session] = set()
        self._changed = asyncio.Event()  # an answer came, or a router went
        self._closed = False

    @property
    def routers(self) -> tuple[str, ...]:
        """Names of the routers that are connected."""
        return tuple(sorted(session.router for session in self._sessions))

    def publish(self, snapshot: routes_pb2.RouteSnapshot) -> None:
        """Send a snapshot to every router, connected now or later. Older revisions are ignored."""
        if self._snapshot is None or snapshot.revision > self._snapshot.revision:
            self._snapshot = snapshot
            for session in self._sessions:
                session.news.set()

    async def wait_taken(self, revision: int, timeout_s: float) -> list[str]:
        """Wait until every router that is connected has taken or refused this revision or a newer one.

        Returns:
            One sentence for each router that refused it or did not answer in time.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(session.answered < revision for session in self._open()):
                    self._changed.clear()
                    await self._changed.wait()
        troubles = []
        for session in sorted(self._open(), key=lambda session: session.router):
            if session.answered < revision:
                troubles.append(f"Router {session.router!r} has not taken the new routes after {timeout_s:g} s.")
            elif session.error:
                troubles.append(f"Router {session.router!r} refused the new routes: {session.error}")
        return troubles

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for session in self._sessions:
            session.closed = True
            session.news.set()

    def _open(self) -> list[_Session]:
        return [session for session in self._sessions if not session.closed]

    def join(self, router: str, instance: str = "") -> _Session:
        """A router came; an older stream of the same start of it is ended.

        Not one of another start that has the same name: two routers named alike would end each other's for ever.
        """
        for other in list(self._sessions):
            if (other.router, other.instance) == (router, instance):
                self.leave(other)
        session = _Session(router, instance)
        session.closed = self._closed
        session.news.set()
        self._sessions.add(session)
        log.info("router connected", extra={"router": router})
        return session

    def leave(self, session: _Session) -> None:
        """A router went, or its stream must end; nobody waits for it any more. May be called again.

        Waits for nothing: it is called while the call is being cancelled, where any ``await`` may be the last.
        """
        session.closed = True
        session.news.set()
        if session in self._sessions:
            self._sessions.remove(session)
            log.info("router disconnected", extra={"router": session.router})
        self._changed.set()

    def answer(self, session: _Session, revision: int, error: str) -> None:
        """A router took a revision, or refused it and says why."""
        if revision >= session.answered:
            session.answered, session.error = revision, error
        if error:
            log.error("router refused routes: %s", error, extra={"router": session.router, "revision": revision})
        self._changed.set()

    async def snapshots(self, session: _Session) -> AsyncIterator[routes_pb2.RouteSnapshot]:
        """The snapshot in force, and the newest one after each change; ends when the session is closed."""
        sent = 0
        while True:
            await session.news.wait()
            session.news.clear()
            if session.closed:
                return
            if self._snapshot is not None and self._snapshot.revision > sent:
                sent = self._snapshot.revision
                yield self._snapshot


class RouteServicer(routes_pb2_grpc.RouteServiceServicer):
    """``tiltyard.api.router.v1.RouteService``."""

    def __init__(self, hub: RouteHub) -> None:
        self._hub = hub

    async def WatchRoutes(  # noqa: N802 - the contract's name
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[routes_pb2.WatchRoutesResponse]:
        """Serve one router for as long as it stays."""
        requests: AsyncIterator[routes_pb2.WatchRoutesRequest] = aiter(request_iterator)
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = await anext(requests, None)
        except TimeoutError:
            raise DeadlineError(f"no hello within {_HELLO_S:g} s; a router says its name first") from None
        if hello is None or not hello.router:
            raise InvalidArgumentError("the first message must be a hello with the router's name")
        session = self._hub.join(hello.router, hello.instance)
        reader = asyncio.create_task(self._read(requests, session))
        try:
            async for snapshot in self._hub.snapshots(session):
                yield routes_pb2.WatchRoutesResponse(snapshot=snapshot)
        finally:
            self._hub.leave(session)  # first: what waits may be cancelled
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[routes_pb2.WatchRoutesRequest], session: _Session) -> None:
        try:
            async for message in requests:
                if message.revision:
                    self._hub.answer(session, message.revision, message.error)
        finally:  # the router has said its last word: end the stream, even if its other half hangs in a write
            self._hub.leave(session)
