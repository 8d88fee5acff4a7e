"""The end of a router: two-step GOAWAY, calls in flight, limits. What signals do is in test_router_process.py."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
from wirebench.backend import Call, ScriptedBackend, silence
from wirebench.benches import one_arm
from wirebench.client import RawClient
from wirebench.messages import OK, UNAVAILABLE, answer, padded, request
from wirebench.routers import CoreRouter, arm, counts, pipeline
from wirebench.wires import NO_ERROR, SLOW, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

EVERY = 2**31 - 1


class Gate:
    """A script that answers when it is told to."""

    def __init__(self) -> None:
        self.open = False

    async def __call__(self, call: Call) -> None:
        await call.request()
        await call.until(lambda: self.open)
        await call.reply(answer())


def refuses_connections(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.settimeout(2)
        return probe.connect_ex((host, int(port))) != 0
    return True


def test_a_drain_says_goodbye_twice_and_finishes_what_is_under_way() -> None:
    gate = Gate()
    with ScriptedBackend(gate) as backend:
        router = CoreRouter(pipeline(arm("a", backend.address)))
        with RawClient(router.address) as busy, RawClient(router.address) as idle:
            streams = [busy.start(request()) for _ in range(10)]
            idle.ping()
            wait_until(lambda: len(backend.calls) == 10, "the calls")
            router.stop()
            idle.wait_closed()
            assert idle.goaways == [(EVERY, NO_ERROR), (0, NO_ERROR)]
            busy.pump(lambda: len(busy.goaways) == 2)
            assert busy.goaways == [(EVERY, NO_ERROR), (streams[-1], NO_ERROR)]
            wait_until(lambda: refuses_connections(router.address), "the port to be closed")
            late = busy.start(request())  # beyond the last id: nobody will answer it
            busy.idle(0.2)
            assert len(backend.calls) == 10
            assert router.running
            gate.open = True
            backend.wake()
            assert {got.status for got in busy.finish_all(streams)} == {OK}
            busy.wait_closed()
            assert not busy.streams[late].headers
            wait_until(lambda: not router.running, "the router to end")
        router.end()


def test_calls_sent_before_the_client_heard_goodbye_are_served() -> None:
    with one_arm() as (_, router, client):
        client.ping()
        router.stop()
        # Nothing has been read since: to this client the router is as it was. Its PING is not answered yet, either.
        assert client.call(request()).status == OK
        client.wait_closed()
        assert client.goaways[0] == (EVERY, NO_ERROR)
        assert client.goaways[1][0] in (0, 1)
        wait_until(lambda: not router.running, "the router to end")


def test_a_client_that_answers_no_ping_is_not_waited_for_beyond_a_second() -> None:
    gate = Gate()
    with ScriptedBackend(gate) as backend:
        router = CoreRouter(pipeline(arm("a", backend.address)))
        with RawClient(router.address) as client:
            one = client.start(request())
            wait_until(lambda: len(backend.calls) == 1, "the call")
            client.deaf = True
            started = time.monotonic()
            router.stop()
            client.pump(lambda: len(client.goaways) == 1)
            two = client.start(request())  # between the two GOAWAYs: served
            client.pump(lambda: len(client.goaways) == 2)
            assert 0.9 <= time.monotonic() - started < 2.0 + SLOW
            assert client.goaways == [(EVERY, NO_ERROR), (two, NO_ERROR)]
            gate.open = True
            backend.wake()
            assert {got.status for got in client.finish_all([one, two])} == {OK}
            client.wait_closed()
            wait_until(lambda: not router.running, "the router to end")
        router.end()


def test_the_last_large_answer_leaves_whole() -> None:
    big = padded(answer(), 5_000_000)

    async def large(call: Call) -> None:
        await call.request()
        await call.reply(big)

    with ScriptedBackend(large) as backend:
        router = CoreRouter(pipeline(arm("a", backend.address)))
        with RawClient(router.address, window=100_000, receive_buffer=1 << 16) as client:
            stream = client.start(request())
            wait_until(lambda: router.stats()["buffered_bytes"] > 0, "the answer")
            router.stop()
            assert client.finish(stream).body == big
            client.wait_closed()
            wait_until(lambda: not router.running, "the router to end")
        router.end()


def test_calls_that_outlast_the_drain_limit_are_told_so(tmp_path: Path) -> None:
    with ScriptedBackend(silence) as backend:
        router = CoreRouter(pipeline(arm("a", backend.address)), counters=tmp_path / "c", drain_limit_s=0.4)
        with RawClient(router.address) as client:
            streams = [client.start(request()) for _ in range(5)]
            gathering = client.open()
            wait_until(lambda: len(backend.calls) == 5, "the calls")
            started = time.monotonic()
            router.stop()
            for got in client.finish_all([*streams, gathering]):
                assert (got.status, got.message) == (UNAVAILABLE, "the router is shutting down")
            assert 0.4 <= time.monotonic() - started < 3 * SLOW
            client.wait_closed()
            wait_until(lambda: not router.running, "the router to end")
            assert time.monotonic() - started < 5 * SLOW
        router.end()
        wait_until(lambda: all(call.gone for call in backend.calls), "the backend to hear of it")
        (cells,) = counts(router.snapshot(), closed=True).values()
        assert (cells.assigned, cells.completed, cells.statuses) == (5, 5, {UNAVAILABLE: 5})


def test_a_second_stop_waits_for_nobody() -> None:
    with ScriptedBackend(silence) as backend:
        router = CoreRouter(pipeline(arm("a", backend.address)))
        with RawClient(router.address) as client:
            for _ in range(5):
                client.start(request())
            wait_until(lambda: len(backend.calls) == 5, "the calls")
            router.stop()
            client.pump(lambda: bool(client.goaways))
            started = time.monotonic()
            router.stop()
            wait_until(lambda: not router.running, "the router to end")
            assert time.monotonic() - started < 1.0 * SLOW
            router.end()
            client.wait_closed()


def test_a_router_that_never_ran_and_one_that_is_idle_end_at_once() -> None:
    with ScriptedBackend() as backend:
        for _ in range(5):
            router = CoreRouter(pipeline(arm("a", backend.address)))
            router.stop()
            wait_until(lambda router=router: not router.running, "the router to end")  # type: ignore[misc]
            router.end()
