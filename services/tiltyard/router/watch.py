"""The control plane's route stream: takes whole snapshots, puts them in force, says so; comes back when it breaks."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from tiltyard.api.router.v1 import routes_pb2, routes_pb2_grpc
from tiltyard.errors import TiltyardError
from tiltyard.router.snapshot import spec_of
from tiltyard.router.spec import RouteSpec
from tiltyard.rpc import CHANNEL_OPTIONS

__all__ = ["Backoff", "RouteWatch"]

log = logging.getLogger(__name__)

_OPTIONS = (
    *CHANNEL_OPTIONS,
    # The stream has no deadline: pings find out that the other side is gone, a cut cable included.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt to connect may take
)
_MAX_ERROR_CHARS = 1_000


@dataclass
class Backoff:
    """Pauses between attempts: doubling from ``first_s`` to ``most_s``, each shortened by up to half at random.

    Routers that lost one control plane at one moment must not all come back at another.
    """

    first_s: float = 0.2
    most_s: float = 5.0
    rng: random.Random = random.SystemRandom()  # noqa: RUF009 - has no state
    _next_s: float = 0.0

    def reset(self) -> None:
        """The last attempt did well: begin again from ``first_s``."""
        self._next_s = 0.0

    def pause_s(self) -> float:
        """How long to wait now."""
        self._next_s = min(self.most_s, max(self.first_s, 2 * self._next_s))
        return self._next_s * self.rng.uniform(0.5, 1.0)


class RouteWatch:
    """Keeps one ``WatchRoutes`` stream open.

    Args:
        address: the control plane's router-facing address, ``host:port`` or ``unix:PATH``.
        router: this router's name, stable over its restarts.
        apply: puts a table in force and returns once it is; raises ``ValueError``, ``TypeError`` or a
            ``TiltyardError`` when it cannot be, and then the one before stays in force.
        backoff: pauses between attempts.
    """

    def __init__(
        self,
        address: str,
        router: str,
        apply: Callable[[RouteSpec], Awaitable[None]],
        *,
        backoff: Backoff | None = None,
    ) -> None:
        self._address = address
        self._router = router
        self._instance = secrets.token_hex(8)  # tells this start from other routers of the same name
        self._apply = apply
        self._backoff = backoff or Backoff()
        self._revision = 0  # in force
        self._said_lost = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self._watch_once()
                reason = "the control plane ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except asyncio.InvalidStateError:  # written to a stream that had just ended
                reason = "the stream ended"
            except Exception as error:  # a fault of ours must not leave the router without new routes for good
                log.exception("route stream failed")
                reason = repr(error)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError  # came while the stream was ending, and gRPC reported that end instead
            if not self._said_lost:  # one line for an outage, not one for each attempt
                kept = f"revision {self._revision} stays in force" if self._revision else "there are no routes yet"
                log.warning("route stream from %s lost, %s; trying again (%s)", self._address, kept, reason)
                self._said_lost = True
            await asyncio.sleep(self._backoff.pause_s())

    async def _watch_once(self) -> None:
        # A channel of its own for each attempt: a used one would add its own pauses to ours.
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            # The type stubs know only streams fed by an iterator; one that is written to leaves no task behind.
            open_stream: Any = routes_pb2_grpc.RouteServiceStub(channel).WatchRoutes
            call = open_stream()
            try:
                await call.write(routes_pb2.WatchRoutesRequest(router=self._router, instance=self._instance))
                async for response in call:
                    if self._said_lost or not self._revision:
                        log.info("route stream from %s is up", self._address)
                    self._said_lost = False
                    self._backoff.reset()
                    answer = await self._take(response.snapshot)
                    if answer is not None:
                        await call.write(answer)
            finally:
                call.cancel()

    async def _take(self, snapshot: routes_pb2.RouteSnapshot) -> routes_pb2.WatchRoutesRequest | None:
        """Put one snapshot in force; the answer to it, or None when it gets none."""
        revision = snapshot.revision
        if revision < self._revision:
            log.warning("ignored route revision %d: %d is in force", revision, self._revision)
            return None
        if revision == self._revision and revision:
            return routes_pb2.WatchRoutesRequest(router=self._router, revision=revision)
        try:
            await self._apply(spec_of(snapshot))
        except (ValueError, TypeError, TiltyardError) as error:
            log.error("refused route revision %d, %d stays in force: %s", revision, self._revision, error)
            reason = str(error)[:_MAX_ERROR_CHARS]
            return routes_pb2.WatchRoutesRequest(router=self._router, revision=revision, error=reason)
        except Exception:  # a fault of ours; the router serves on all the same
            log.exception("route revision %d not in force, %d stays", revision, self._revision)
            reason = "internal error; the router's log has the detail"
            return routes_pb2.WatchRoutesRequest(router=self._router, revision=revision, error=reason)
        self._revision = revision
        return routes_pb2.WatchRoutesRequest(router=self._router, revision=revision)
