"""Keeps model servers loaded with what is held: TensorFlow Serving's own ModelService, nothing else.

Every model is placed on every server. What a server shall have is the union of what is *held*; each configuration
that is sent is complete, because a model that is left out is unloaded. A loop watches the servers and sends the
configuration again to one that lost its models, so a restarted model server has them back within seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from tiltyard.api.tfs.v1 import config_pb2, status_pb2
from tiltyard.control.names import ModelRef
from tiltyard.errors import DeployError
from tiltyard.rpc import CHANNEL_OPTIONS

log = logging.getLogger(__name__)

_RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_PLATFORM = "tensorflow"
# A server is asked again soon after it came back, so a connection is tried again within a second.
_OPTIONS = tuple({**dict(CHANNEL_OPTIONS), "grpc.max_reconnect_backoff_ms": 1000}.items())
# These say that the configuration itself is wrong: nothing changed, and sending it again would not help.
_REFUSED = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)

UNKNOWN = "UNKNOWN"
AVAILABLE = "AVAILABLE"
END = "END"
UNREACHABLE = "UNREACHABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSettings:
    """Times of the placement, in seconds."""

    watch_s: float = 2.0
    """Between two looks at a server that has all its models."""
    watch_soon_s: float = 0.5
    """Between two looks at a server that has not."""
    status_timeout_s: float = 2.0
    """Deadline of one GetModelStatus."""
    reload_timeout_s: float = 30.0
    """Deadline of a configuration sent by the watch loop."""
    poll_s: float = 0.1
    """Between two looks while a deploy waits."""
    stale_s: float = 3.0
    """For this long after a configuration was sent a failure that was there before may be the old one."""
    retry_s: float = 30.0
    """Longest time between two tries to load a model that fails."""


@dataclass(frozen=True, slots=True)
class VersionState:
    """What a server says of a version: TensorFlow Serving's state name, or UNREACHABLE, and why."""

    state: str
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.state == END and bool(self.error)


def server_config(refs: Iterable[ModelRef], base_path: Callable[[str], str]) -> config_pb2.ModelServerConfig:
    """The complete configuration that serves exactly these versions.

    Args:
        refs: the versions.
        base_path: absolute folder of a model, by the name it is served under.
    """
    versions: dict[str, list[int]] = {}
    for ref in sorted(set(refs)):
        versions.setdefault(ref.served_name, []).append(ref.version)
    config = config_pb2.ModelServerConfig()
    config.model_config_list.SetInParent()  # an empty list unloads everything; no list is refused
    for name, numbers in versions.items():
        entry = config.model_config_list.config.add(name=name, base_path=base_path(name), model_platform=_PLATFORM)
        entry.model_version_policy.specific.versions.extend(numbers)
    return config


class _Server:
    """One model server: its channel, what it was last told, and what it last said."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lock = asyncio.Lock()  # one configuration at a time
        self.applied: frozenset[ModelRef] | None = None  # the last one it took; None: not known
        self.states: Mapping[ModelRef, VersionState] = {}
        self.attempted: frozenset[ModelRef] | None = None  # the last one it was sent
        self.lacking: list[ModelRef] = []
        self.next_retry = 0.0  # earliest time to send the same again
        self.retry_pause = 1.0
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._reload: Any = self._channel.unary_unary(
            _RELOAD,
            request_serializer=config_pb2.ReloadConfigRequest.SerializeToString,
            response_deserializer=config_pb2.ReloadConfigResponse.FromString,
        )
        self._status: Any = self._channel.unary_unary(
            _STATUS,
            request_serializer=status_pb2.GetModelStatusRequest.SerializeToString,
            response_deserializer=status_pb2.GetModelStatusResponse.FromString,
        )

    async def close(self) -> None:
        await self._channel.close(None)

    async def reload(self, config: config_pb2.ModelServerConfig, timeout_s: float) -> None:
        await self._reload(config_pb2.ReloadConfigRequest(config=config), timeout=timeout_s)

    async def look(self, refs: Iterable[ModelRef], timeout_s: float) -> dict[ModelRef, VersionState]:
        """The states of these versions now; never raises because of the server."""
        wanted = list(refs)
        names = sorted({ref.served_name for ref in wanted})
        answers = dict(zip(names, await asyncio.gather(*(self._ask(name, timeout_s) for name in names)), strict=True))
        found = {}
        for ref in wanted:
            answer = answers[ref.served_name]
            found[ref] = answer if isinstance(answer, VersionState) else answer.get(ref.version, VersionState(UNKNOWN))
        self.states = {**self.states, **found}
        return found

    async def _ask(self, name: str, timeout_s: float) -> dict[int, VersionState] | VersionState:
        request = status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        try:
            response = await self._status(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return VersionState(UNKNOWN)
            return VersionState(UNREACHABLE, _words(error))
        return {status.version: _version_state(status) for status in response.model_version_status}


class Placement:
    """All model servers.

    Args:
        addresses: of the servers, ``host:port``.
        base_path: absolute folder of a model, by the name it is served under.
        on_disk: whether a version's folder is there. A version without one is left out, because a configuration
            that names it would be refused whole.
        settings: times.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        base_path: Callable[[str], str],
        on_disk: Callable[[ModelRef], bool],
        settings: PlacementSettings,
    ) -> None:
        self._servers = [_Server(address) for address in addresses]
        self._base_path = base_path
        self._on_disk = on_disk
        self._settings = settings
        self._held: dict[Hashable, frozenset[ModelRef]] = {}
        self._kick = asyncio.Event()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses of the servers."""
        return tuple(server.address for server in self._servers)

    async def close(self) -> None:
        """Close the channels. End ``watch`` first."""
        for server in self._servers:
            await server.close()

    def hold(self, holder: Hashable, refs: Iterable[ModelRef]) -> None:
        """From now on these versions are wanted for ``holder``, in the place of what it held before."""
        self._held[holder] = frozenset(refs)
        self._kick.set()

    def release(self, holder: Hashable) -> None:
        """``holder`` wants nothing any more; versions nobody else holds go at the next look."""
        if self._held.pop(holder, None) is not None:
            self._kick.set()

    def states(self, ref: ModelRef) -> dict[str, VersionState]:
        """What each server last said of a version, by address."""
        return {server.address: server.states.get(ref, VersionState(UNKNOWN)) for server in self._servers}

    async def refresh(self, refs: Iterable[ModelRef], timeout_s: float = 1.0) -> None:
        """Ask the servers for the states of these versions."""
        wanted = list(refs)
        await asyncio.gather(*(server.look(wanted, timeout_s) for server in self._servers))

    async def place(self, refs: Iterable[ModelRef], wait_s: float) -> None:
        """Wait until held versions are available on every server.

        Raises:
            DeployError: when one cannot be loaded, or is not available after ``wait_s``.
        """
        wanted = frozenset(refs)
        if not self._servers:
            raise DeployError("no model server is known; start the control plane with --model-server HOST:PORT")
        missing = sorted(ref for ref in wanted if not self._on_disk(ref))
        if missing:
            raise DeployError(f"the files of {missing[0]} are gone from the data folder; upload the model again")
        deadline = time.monotonic() + wait_s
        tasks = [asyncio.create_task(self._place_on(server, wanted, deadline)) for server in self._servers]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self, wait_s: float) -> None:
        """Try to bring every server to what is held now, for at most ``wait_s``; the watch loop goes on with it."""
        tasks = [asyncio.create_task(self._tend(server)) for server in self._servers]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=wait_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def watch(self) -> None:
        """Look after the servers until cancelled."""
        while True:
            self._kick.clear()
            well = await asyncio.gather(*(self._tend(server) for server in self._servers))
            pause = self._settings.watch_s if all(well) else self._settings.watch_soon_s
            try:
                async with asyncio.timeout(pause):
                    await self._kick.wait()
            except TimeoutError:
                pass

    def _wanted(self) -> frozenset[ModelRef]:
        return frozenset(ref for refs in self._held.values() for ref in refs if self._on_disk(ref))

    async def _send(self, server: _Server, timeout_s: float) -> None:
        """Send what is held now, unless it is in force; raises what the call raises, or ``TimeoutError``."""
        async with asyncio.timeout(timeout_s), server.lock:
            wanted = self._wanted()
            if server.applied == wanted:  # somebody else sent it while we waited
                return
            server.applied, server.attempted = None, wanted
            await server.reload(server_config(wanted, self._base_path), timeout_s)
            server.applied = wanted

    async def _place_on(self, server: _Server, refs: frozenset[ModelRef], deadline: float) -> None:
        before = await server.look(refs, min(self._settings.status_timeout_s, max(0.1, deadline - time.monotonic())))
        fresh = await self._send_until(server, deadline)
        sent = time.monotonic()
        while True:
            states = await server.look(refs, self._settings.status_timeout_s)
            late = {ref: state for ref, state in states.items() if state.state != AVAILABLE}
            if not late:
                return
            settled = fresh or time.monotonic() - sent > self._settings.stale_s
            for ref, state in sorted(late.items()):
                if state.failed and (settled or not before[ref].failed):
                    raise DeployError(f"model server {server.address} cannot load {ref}: {state.error}")
                before[ref] = state
            if time.monotonic() >= deadline:
                ref, state = min(late.items())
                why = f" ({state.error})" if state.error else ""
                raise DeployError(f"{ref} is {state.state} on model server {server.address}{why}; gave up waiting")
            await asyncio.sleep(self._settings.poll_s)

    async def _send_until(self, server: _Server, deadline: float) -> bool:
        """Send until the server took it; True when it said that a load failed just now."""
        while True:
            left = deadline - time.monotonic()
            try:
                await self._send(server, max(left, 0.1))
            except TimeoutError:
                return False  # the states say how far it came
            except grpc.aio.AioRpcError as error:
                if error.code() in _REFUSED:
                    raise DeployError(
                        f"model server {server.address} refuses the configuration: {_words(error)}"
                    ) from error
                if error.code() is grpc.StatusCode.UNKNOWN:
                    return True
                if left <= self._settings.poll_s:
                    return False
                await asyncio.sleep(self._settings.poll_s)
            else:
                return False

    async def _tend(self, server: _Server) -> bool:
        """Look at one server and send what it lacks; True when it has everything."""
        try:
            wanted = self._wanted()
            if server.applied == wanted:
                states = await server.look(wanted, self._settings.status_timeout_s)
                lost = sorted(ref for ref, state in states.items() if state.state in (UNKNOWN, END, UNREACHABLE))
                if lost != server.lacking:
                    server.lacking = lost
                    log.log(
                        logging.WARNING if lost else logging.INFO,
                        "model server %s lacks %d models",
                        server.address,
                        len(lost),
                        extra={"server": server.address, "models": [str(ref) for ref in lost]},
                    )
                if not lost:
                    server.retry_pause = 1.0
                    server.states = states
                    return all(state.state == AVAILABLE for state in states.values())
                server.applied = None
            if wanted == server.attempted and time.monotonic() < server.next_retry:
                return False
            server.next_retry = time.monotonic() + server.retry_pause
            server.retry_pause = min(server.retry_pause * 2, self._settings.retry_s)
            await self._send(server, self._settings.reload_timeout_s)
            await server.look(wanted, self._settings.status_timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                server.retry_pause = 1.0  # nobody is there: asking again costs nothing
                server.next_retry = 0.0
                await server.look(self._wanted(), self._settings.status_timeout_s)
            else:
                log.warning(
                    "model server %s did not take its models: %s",
                    server.address,
                    _words(error),
                    extra={"server": server.address},
                )
        except TimeoutError:
            log.warning(
                "model server %s is still loading after %g s",
                server.address,
                self._settings.reload_timeout_s,
                extra={"server": server.address},
            )
        except Exception:  # the loop must outlive any surprise
            log.exception("looking after a model server failed", extra={"server": server.address})
        return False


def _version_state(status: status_pb2.ModelVersionStatus) -> VersionState:
    kind = status_pb2.ModelVersionStatus.State
    known = status.state in kind.values() and status.state
    name = kind.Name(status.state).removeprefix("STATE_") if known else UNKNOWN
    error = ""
    if status.status.error_code:
        error = status.status.error_message or f"status {status.status.error_code}"
    return VersionState(name, error)


def _words(error: grpc.aio.AioRpcError) -> str:
    return error.details() or error.code().name
