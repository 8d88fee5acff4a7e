"""Calls to the control plane and to the outcomes service, passed through in both directions; and health."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from wirebench.backend import Call, ScriptedBackend, silence
from wirebench.benches import one_arm
from wirebench.client import RawClient
from wirebench.messages import (
    CHECK,
    INVALID_ARGUMENT,
    NOT_FOUND,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    WATCH,
    grpc_frame,
    grpc_messages,
    padded,
    request,
)
from wirebench.routers import CoreRouter, arm, pipeline
from wirebench.wires import CANCEL, SLOW, Header, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

MIB = 1 << 20
CONTROL = "/tiltyard.api.control.v1.PipelineService/GetPipeline"
OUTCOMES = "/tiltyard.api.outcomes.v1.OutcomeService/WatchReport"


async def mirror(call: Call) -> None:
    """Every message comes back as it is; trailers when the client has ended."""
    call.head([("x-path", call.path)])
    while True:
        await call.until(lambda: call.request_ended or len(call.body) > 0)
        piece = bytes(call.body)
        call.body.clear()
        if piece:
            await call.data(piece)
        elif call.request_ended:
            break
    call.tail(0, "", [("x-end", "1")])


@pytest.mark.parametrize("service", ["control", "outcomes"])
def test_calls_reach_their_service_and_no_other(service: str) -> None:
    path = {"control": CONTROL, "outcomes": OUTCOMES}[service]
    other = {"control": OUTCOMES, "outcomes": CONTROL}[service]
    with (
        ScriptedBackend(mirror) as backend,
        CoreRouter(
            table=False,
            control=backend.address if service == "control" else None,
            outcomes=backend.address if service == "outcomes" else None,
        ) as router,
        RawClient(router.address) as client,
    ):
        metadata: list[Header] = [("authorization", "Bearer x"), ("tiltyard-arm", "x"), ("x-raw-bin", "AA")]
        got = client.call(b"hello", [*metadata, ("grpc-accept-encoding", "gzip")], path=path)
        assert (got.status, got.body, got.get("x-path")) == (OK, b"hello", path)
        assert got.trailers == [("grpc-status", "0"), ("x-end", "1")]
        assert got.arm is None
        assert got.get("tiltyard-inference-id") is None
        (call,) = backend.calls
        assert call.get("authorization") == "Bearer x"
        assert call.get("grpc-accept-encoding") == "gzip"
        assert call.get("tiltyard-arm") is None
        got = client.call(b"hello", path=other)
        text = {
            "control": "no control plane is connected to this router (--control)",
            "outcomes": "no outcomes service is connected to this router (--outcomes)",
        }
        missing = "outcomes" if service == "control" else "control"
        assert (got.status, got.message) == (UNIMPLEMENTED, text[missing])
        assert len(backend.calls) == 1


def test_messages_go_to_and_fro_on_one_call() -> None:
    with (
        ScriptedBackend(mirror) as backend,
        CoreRouter(outcomes=backend.address) as router,
        RawClient(router.address) as client,
    ):
        stream = client.open(OUTCOMES)
        got = client.streams[stream]
        sent = bytearray()
        for number in range(50):
            message = grpc_frame(bytes([number]) * (number * 700))
            sent.extend(message)
            client.data(stream, message)
            client.pump(lambda: len(got.data) == len(sent))
        client.data(stream, b"", end=True)
        client.finish(stream)
        assert got.data == sent
        assert len(grpc_messages(bytes(sent))) == 50
        assert (got.status, got.get("x-end")) == (OK, "1")


def test_a_client_may_end_first_or_last() -> None:
    async def hear_out(call: Call) -> None:
        await call.until(lambda: call.request_ended)
        call.head()
        await call.data(grpc_frame(str(len(call.body)).encode()))
        call.tail()

    async def cut_short(call: Call) -> None:
        await call.until(lambda: len(call.body) > 0)
        call.only_trailers(INVALID_ARGUMENT, "enough")

    with (
        ScriptedBackend(hear_out) as backend,
        CoreRouter(control=backend.address) as router,
        RawClient(router.address) as client,
    ):
        stream = client.open(CONTROL)
        for _ in range(10):
            client.data(stream, grpc_frame(bytes(100_000)))
        client.data(stream, b"", end=True)
        assert client.finish(stream).body == b"1000050"

        backend.script = cut_short
        stream = client.open(CONTROL)
        client.data(stream, grpc_frame(b"x"))
        got = client.finish(stream)
        assert (got.status, got.message) == (INVALID_ARGUMENT, "enough")
        client.pump(lambda: got.reset == 0)  # NO_ERROR: nothing more need be sent
        wait_until(lambda: backend.calls[-1].reset is not None, "the service to be let go")


def test_large_bodies_pass_whole_in_both_directions_at_once() -> None:
    with (
        ScriptedBackend(mirror) as backend,
        CoreRouter(control=backend.address) as router,
        RawClient(router.address) as client,
    ):
        body = b"".join(grpc_frame(padded(request(), 1_000_000 + n)) for n in range(12))
        stream = client.open(CONTROL)
        client.data(stream, body, end=True, frame_bytes=10_007)
        got = client.finish(stream)
        assert bytes(got.data) == body
        assert router.stats()["buffered_bytes"] == 0


def test_a_slow_reader_stops_a_fast_writer() -> None:
    sent = 0

    async def flood(call: Call) -> None:
        nonlocal sent
        call.head()
        piece = grpc_frame(bytes(99_995))
        while sent < 40 * MIB:
            await call.data(piece)
            sent += len(piece)
        call.tail()

    with (
        ScriptedBackend(flood) as backend,
        CoreRouter(outcomes=backend.address) as router,
        RawClient(router.address, window=65_535, credit=False) as client,
    ):
        stream = client.open(OUTCOMES, end=True)
        client.pump(lambda: len(client.streams[stream].data) == 65_535)
        stopped = []

        def still() -> bool:
            stopped.append(sent)
            time.sleep(0.05)
            return len(stopped) > 5 and len(set(stopped[-5:])) == 1

        wait_until(still, "the writer to stop")
        assert sent <= 2 * MIB
        assert router.stats()["buffered_bytes"] <= MIB
        client.give_credit(stream, 50 * MIB)
        assert client.finish(stream).status == OK
        assert len(client.streams[stream].data) == sent


def test_a_client_that_goes_away_cancels_the_services_call() -> None:
    with (
        ScriptedBackend(silence) as backend,
        CoreRouter(outcomes=backend.address) as router,
        RawClient(router.address) as client,
    ):
        stream = client.open(OUTCOMES)
        client.data(stream, grpc_frame(b"x"))
        wait_until(lambda: len(backend.calls) == 1, "the call")
        client.cancel(stream)
        wait_until(lambda: backend.calls[0].reset == CANCEL, "the service to be told")


def test_a_service_that_breaks_off_or_is_not_there_is_unavailable() -> None:
    async def break_off(call: Call) -> None:
        call.head()
        await call.data(grpc_frame(b"one"))
        call.conn.abort()

    with (
        ScriptedBackend(break_off) as backend,
        CoreRouter(outcomes=backend.address) as router,
        RawClient(router.address) as client,
    ):
        got = client.finish(client.open(OUTCOMES))
        assert got.status == UNAVAILABLE
        backend.die()
        wait_until(lambda: not backend.open_connections, "it to be gone")
        started = time.monotonic()
        assert client.call(b"", path=OUTCOMES).status == UNAVAILABLE
        assert time.monotonic() - started < 3 * SLOW
        backend.script = mirror
        backend.listen()
        wait_until(lambda: client.call(b"x", path=OUTCOMES).status == OK, "it to be used again")


def test_a_grpc_client_streams_both_ways() -> None:
    with (
        ScriptedBackend(mirror) as backend,
        CoreRouter(control=backend.address) as router,
        grpc.insecure_channel(router.address) as channel,
    ):
        go = threading.Semaphore(1)

        def questions() -> Any:
            for number in range(20):
                go.acquire()
                yield str(number).encode()

        call: Any = channel.stream_stream(CONTROL, None, None)(questions(), timeout=30)
        for number, answer in enumerate(call):
            assert answer == str(number).encode()
            go.release()
        assert call.code() is grpc.StatusCode.OK
        assert ("x-end", "1") in call.trailing_metadata()


def test_deadlines_pass_but_none_is_made_up() -> None:
    with (
        ScriptedBackend(mirror) as backend,
        CoreRouter(control=backend.address) as router,
        RawClient(router.address) as client,
    ):
        assert client.call(b"", path=CONTROL).status == OK
        assert backend.calls[-1].get("grpc-timeout") is None
        assert client.call(b"", path=CONTROL, timeout="2H").status == OK
        assert milliseconds(backend.calls[-1].get("grpc-timeout")) in range(7_190_000, 7_200_001)
        backend.script = silence
        started = time.monotonic()
        assert client.call(b"", path=CONTROL, timeout="300m").status == 4
        assert 0.3 <= time.monotonic() - started < 3 * SLOW
        wait_until(lambda: backend.calls[-1].reset == CANCEL, "the service to be told")


def milliseconds(timeout: str | None) -> int:
    assert timeout is not None
    unit: Callable[[int], int] = {"m": lambda n: n, "S": lambda n: n * 1000}[timeout[-1]]
    return unit(int(timeout[:-1]))


# ---------------------------------------------------------------- health

SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
PREDICTION = b"\x0a\x24tensorflow.serving.PredictionService"


def test_health_is_not_serving_until_a_table_is_in_force() -> None:
    with (
        ScriptedBackend() as backend,
        CoreRouter(table=False) as router,
        RawClient(router.address) as client,
    ):
        for name in (b"", PREDICTION):
            assert client.call(name, path=CHECK).body == NOT_SERVING
        router.apply(pipeline(arm("a", backend.address)))
        for name in (b"", b"\x0a\x00", PREDICTION):
            got = client.call(name, path=CHECK)
            assert (got.body, got.status) == (SERVING, OK)


def test_health_of_other_services_is_not_found() -> None:
    with one_arm() as (_, router, client):
        got = client.call(b"\x0a\x05other", path=CHECK)
        assert (got.status, got.message) == (NOT_FOUND, "no service 'other' here")
        for bad in (b"\x0a\x05othe", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b"):
            assert client.call(bad, path=CHECK).status == INVALID_ARGUMENT
        assert client.call(b"\x0a" * 300, path=CHECK).status == RESOURCE_EXHAUSTED
        for unknown_field in (b"\x08\x01", b"\x12\x01x"):
            assert client.call(unknown_field, path=CHECK).body == SERVING
        with grpc.insecure_channel(router.address) as channel:
            check: Any = channel.unary_unary(CHECK, None, None)
            assert check(PREDICTION, timeout=20) == SERVING


def test_a_health_watch_hears_of_the_first_table_and_of_the_end() -> None:
    with (
        ScriptedBackend() as backend,
        CoreRouter(table=False) as router,
        RawClient(router.address) as client,
    ):
        names = (b"", PREDICTION, b"\x0a\x05other")
        streams = [client.start(name, path=WATCH) for name in names]
        one, two, other = (client.streams[stream] for stream in streams)
        client.pump(lambda: len(one.data) == len(two.data) == len(other.data) == 7)
        assert [grpc_messages(bytes(got.data)) for got in (one, two, other)] == [
            [NOT_SERVING],
            [NOT_SERVING],
            [SERVICE_UNKNOWN],
        ]
        router.apply(pipeline(arm("a", backend.address)))
        client.pump(lambda: len(one.data) == len(two.data) == 14)
        router.apply(pipeline(arm("a", backend.address), epoch=2))  # no news
        stopped = client.start(b"", path=WATCH)
        client.pump(lambda: len(client.streams[stopped].data) == 7)
        client.cancel(stopped)
        client.ping()
        assert not any(got.ended for got in (one, two, other))
        router.stop()
        client.finish_all(streams)
        assert [grpc_messages(bytes(got.data)) for got in (one, two, other)] == [
            [NOT_SERVING, SERVING, NOT_SERVING],
            [NOT_SERVING, SERVING, NOT_SERVING],
            [SERVICE_UNKNOWN],
        ]
        assert {got.status for got in (one, two, other)} == {OK}
        client.wait_closed()
