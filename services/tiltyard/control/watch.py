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

    def __init__(self, router: str) -> None:
        self.router = router
        self.answered = 0  # the newest revision it took or refused
        self.error = ""  # why it refused that one
        self.news = asyncio.Event()
        self.closed = False


class RouteHub:
    """The snapshot in force and the routers that watch it. Belongs to one event loop."""

    def __init__(self) -> None:
        self._snapshot: routes_pb2.RouteSnapshot | None = None
        self._sessions: set[_Session] = set()
        self._answers = asyncio.Condition()
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
            async with asyncio.timeout(timeout_s), self._answers:
                await self._answers.wait_for(lambda: all(s.answered >= revision for s in self._sessions))
        troubles = []
        for session in sorted(self._sessions, key=lambda session: session.router):
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

    async def join(self, router: str) -> _Session:
        """A router came; an older stream of the same router is ended."""
        for other in self._sessions:
            if other.router == router:
                other.closed = True
                other.news.set()
        session = _Session(router)
        session.closed = self._closed
        session.news.set()
        self._sessions.add(session)
        log.info("router connected", extra={"router": router})
        return session

    async def leave(self, session: _Session) -> None:
        """A router went; nobody waits for it any more."""
        self._sessions.discard(session)
        log.info("router disconnected", extra={"router": session.router})
        async with self._answers:
            self._answers.notify_all()

    async def answer(self, session: _Session, revision: int, error: str) -> None:
        """A router took a revision, or refused it and says why."""
        if revision >= session.answered:
            session.answered, session.error = revision, error
        if error:
            log.error("router refused routes: %s", error, extra={"router": session.router, "revision": revision})
        async with self._answers:
            self._answers.notify_all()

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
        session = await self._hub.join(hello.router)
        reader = asyncio.create_task(self._read(requests, session))
        try:
            async for snapshot in self._hub.snapshots(session):
                yield routes_pb2.WatchRoutesResponse(snapshot=snapshot)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await self._hub.leave(session)

    async def _read(self, requests: AsyncIterator[routes_pb2.WatchRoutesRequest], session: _Session) -> None:
        try:
            async for message in requests:
                if message.revision:
                    await self._hub.answer(session, message.revision, message.error)
        finally:  # the router has said its last word: end the stream
            session.closed = True
            session.news.set()
