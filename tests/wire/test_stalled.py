"""Peers that stop taking part: what they hold is let go, and nobody else pays for it."""

from __future__ import annotations

import struct

import pytest
from wirebench.backend import Call, ScriptedBackend
from wirebench.client import RawClient
from wirebench.messages import CHECK, OK, RESOURCE_EXHAUSTED, UNAVAILABLE, answer, field, request
from wirebench.routers import CoreRouter, arm, pipeline
from wirebench.wires import SLOW, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

MIB = 1 << 20
STALLED = 8
BIG = answer() + field(2000, bytes(2 * MIB))


def test_what_a_client_does_not_take_is_kept_until_its_deadline_and_no_longer() -> None:
    async def script(call: Call) -> None:
        await call.request()
        await call.reply(BIG if call.number < STALLED else answer())

    with (
        ScriptedBackend(script) as backend,
        CoreRouter(pipeline(arm("a", backend.address))) as router,
        RawClient(router.address, window=70_000, credit=False, receive_buffer=1 << 16) as client,
        RawClient(router.address) as other,
    ):
        for _ in range(STALLED):
            client.start(request(), timeout=f"{int(2 * SLOW)}S")
        wait_until(lambda: router.stats()["buffered_bytes"] > STALLED * MIB // 2, "answers to wait for the client")
        assert other.call(request()).status == OK
        wait_until(lambda: router.stats()["buffered_bytes"] == 0, "what it does not take to be dropped")
        assert other.call(request()).status == OK
        assert router.stats()["connections"] == 2  # the connection itself lives


def test_a_backend_that_drains_is_dialled_again_while_its_last_call_runs() -> None:
    """Its successor listens on the same address; the old connection still has a call."""
    done = [False]

    async def script(call: Call) -> None:
        await call.request()
        if call.number == 0:
            await call.until(lambda: done[0])
        await call.reply(answer())

    with (
        ScriptedBackend(script) as backend,
        CoreRouter(pipeline(arm("a", backend.address))) as router,
        RawClient(router.address) as client,
        RawClient(router.address) as other,
    ):
        long = client.start(request())
        wait_until(lambda: len(backend.calls) == 1, "the call to reach the backend")
        backend.stop_listening()
        backend.do(backend.connections[0].goaway, 1)
        wait_until(lambda: other.call(request()).status == UNAVAILABLE, "the gap to be noticed")
        backend.listen()
        wait_until(lambda: other.call(request()).status == OK, "the successor to be found")
        assert not backend.calls[0].answer_ended
        done[0] = True
        backend.wake()
        assert client.finish(long).status == OK


def test_a_health_check_cannot_fill_the_buffers() -> None:
    with (
        ScriptedBackend() as backend,
        CoreRouter(pipeline(arm("a", backend.address))) as router,
        RawClient(router.address) as client,
    ):
        stream = client.open(CHECK)
        client.data(stream, struct.pack(">BI", 0, 64 * MIB) + bytes(1000))
        got = client.finish(stream)
        assert (got.status, got.message) == (RESOURCE_EXHAUSTED, "the request is larger than 272 bytes")
        assert router.stats()["buffered_bytes"] == 0
