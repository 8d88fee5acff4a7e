"""Deadlines and cancellation of predictions."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from wirebench.backend import Call, ScriptedBackend, echo, silence
from wirebench.benches import one_arm
from wirebench.client import RawClient
from wirebench.messages import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    OK,
    PREDICT,
    UNAVAILABLE,
    answer,
    grpc_frame,
    padded,
    request,
)
from wirebench.routers import CoreRouter, arm, pipeline
from wirebench.wires import CANCEL, SLOW, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

SPARE_MS = int(1_900 * SLOW)
"""How much of a deadline may go by between client and backend on a busy machine."""


def left_ms(call: Call) -> int:
    value = call.get("grpc-timeout")
    assert value is not None
    return int(value[:-1]) * {"m": 1, "S": 1_000}[value[-1]]


@pytest.mark.parametrize(
    ("asked", "most_ms"),
    [
        (None, 60_000),
        ("5S", 5_000),
        ("5000m", 5_000),
        ("4999999u", 5_000),
        ("99999999n", 100),
        ("1M", 60_000),
        ("61S", 60_000),
        ("99999999H", 60_000),
    ],
)
def test_the_backend_is_told_what_is_left(asked: str | None, most_ms: int) -> None:
    with one_arm() as (backend, _, client):
        assert client.call(request(), timeout=asked).status == OK
        assert most_ms - SPARE_MS <= left_ms(backend.calls[0]) <= most_ms


@pytest.mark.parametrize(
    ("pipeline_s", "asked", "most_ms"),
    [
        (2.0, None, 2_000),
        (2.0, "5S", 2_000),
        (5.0, "2S", 2_000),
        (600.0, None, 600_000),
        (600.0, "100S", 100_000),
        (600.0, "20M", 600_000),
    ],
)
def test_a_pipelines_time_out_takes_the_place_of_60_seconds(pipeline_s: float, asked: str | None, most_ms: int) -> None:
    with one_arm(timeout_s=pipeline_s) as (backend, _, client):
        assert client.call(request(), timeout=asked).status == OK
        assert most_ms - SPARE_MS <= left_ms(backend.calls[0]) <= most_ms


def test_the_router_ends_a_call_at_its_deadline_and_tells_the_backend() -> None:
    with one_arm(silence) as (backend, _, client):
        for timeout, seconds in (("100m", 0.1), ("400000u", 0.4)):
            started = time.monotonic()
            got = client.call(request(), timeout=timeout)
            took = time.monotonic() - started
            assert (got.status, got.message, got.arm) == (DEADLINE_EXCEEDED, "the deadline passed", "a")
            assert seconds <= took < seconds + 1.5 * SLOW
            wait_until(lambda: backend.calls[-1].reset == CANCEL, "the backend to be told")
            assert left_ms(backend.calls[-1]) <= seconds * 1_000


def test_the_deadline_also_ends_an_answer_under_way() -> None:
    async def half(call: Call) -> None:
        await call.request()
        call.head()
        await call.data(grpc_frame(padded(answer(), 5_000))[:3_000])
        await call.cancelled()

    with one_arm(half) as (backend, _, client):
        got = client.call(request(), timeout="200m")
        assert (got.status, len(got.data)) == (DEADLINE_EXCEEDED, 3_000)
        wait_until(lambda: backend.calls[0].reset == CANCEL, "the backend to be told")


def test_the_deadline_runs_while_the_request_is_still_coming() -> None:
    with one_arm() as (backend, _, client):
        stream = client.open(timeout="150m")
        client.data(stream, grpc_frame(request())[:-1])
        got = client.finish(stream)
        assert got.status == DEADLINE_EXCEEDED
        assert got.arm is None
        assert backend.calls == []


def test_what_has_expired_on_arrival_is_not_sent_on() -> None:
    with one_arm() as (backend, _, client):
        got = client.call(request(), timeout="0m")
        assert (got.status, got.message) == (DEADLINE_EXCEEDED, "the deadline had passed on arrival")
        assert backend.calls == []


@pytest.mark.parametrize("text", ["", "5", "S", "-5S", "5s", "5 S", "123456789S", "1.5S", "0x1S"])
def test_a_malformed_time_out_is_refused(text: str) -> None:
    with one_arm() as (backend, _, client):
        got = client.call(request(), timeout=text)
        assert (got.status, got.message) == (INVALID_ARGUMENT, "grpc-timeout is malformed")
        assert backend.calls == []


def test_many_deadlines_at_once_are_all_kept() -> None:
    with one_arm(silence) as (_, _, client):
        started = time.monotonic()
        streams = [client.start(request(), timeout=f"{100 + 3 * n}m") for n in range(200)]
        late = 0.0
        for n, stream in enumerate(streams):
            got = client.finish(stream)
            assert got.status == DEADLINE_EXCEEDED
            late = max(late, time.monotonic() - started - (0.1 + 0.003 * n))
        assert late < 2.0 * SLOW


def test_a_cancelled_call_cancels_the_backends() -> None:
    with one_arm(silence) as (backend, router, client):
        streams = [client.start(request()) for _ in range(20)]
        wait_until(lambda: len(backend.calls) == 20, "the calls")
        for stream in streams[::2]:
            client.cancel(stream)
        wait_until(lambda: sum(call.reset == CANCEL for call in backend.calls) == 10, "the backend to be told")
        wait_until(lambda: router.stats()["streams"] == 10, "the router to forget them")
        assert client.call(request(), timeout="100m").status == DEADLINE_EXCEEDED
        for stream in streams[1::2]:
            client.cancel(stream)


def test_a_call_cancelled_before_it_was_sent_is_not_sent() -> None:
    with one_arm() as (backend, _, client):
        stream = client.open()
        client.data(stream, grpc_frame(request())[:-1])
        client.cancel(stream)
        client.ping()
        assert client.call(request()).status == OK
        assert len(backend.calls) == 1


def test_calls_that_wait_for_a_connection_can_expire_and_be_cancelled() -> None:
    # A port that takes connections and says nothing: no HTTP/2 connection ever comes to be.
    with one_arm(echo, backend={"on_connect": lambda conn: None}, connect_timeout_s=30.0) as (backend, router, client):
        got = client.call(request(), timeout="150m")
        assert got.status == DEADLINE_EXCEEDED
        streams = [client.start(request()) for _ in range(5)]
        client.ping()
        assert router.stats()["streams"] == 5
        for stream in streams:
            client.cancel(stream)
        wait_until(lambda: router.stats()["streams"] == 0, "them to be forgotten")
        assert backend.calls == []


def test_a_backend_that_never_speaks_http2_is_unavailable_within_the_connect_time_out() -> None:
    with one_arm(backend={"on_connect": lambda conn: None}) as (_, _, client):
        started = time.monotonic()
        assert client.call(request()).status == UNAVAILABLE
        assert time.monotonic() - started < 1.0 + 2.0 * SLOW


def test_grpcs_own_deadline_and_cancellation() -> None:
    with one_arm(silence) as (backend, router, _), grpc.insecure_channel(router.address) as channel:
        predict: Any = channel.unary_unary(PREDICT, None, None)
        with pytest.raises(grpc.RpcError) as caught:
            predict(request(), timeout=0.3)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        future = predict.future(request(), timeout=30)
        wait_until(lambda: len(backend.calls) == 2, "the call")
        future.cancel()
        wait_until(lambda: backend.calls[1].reset == CANCEL, "the backend to be told")


def test_a_slow_backend_is_not_cut_off_before_its_time() -> None:
    async def slow(call: Call) -> None:
        await call.request()
        await asyncio.sleep(0.7)
        await call.reply(answer())

    with one_arm(slow) as (_, _, client):
        assert client.call(request(), timeout="8S").status == OK


def test_one_slow_arm_does_not_hold_up_another() -> None:
    with ScriptedBackend(silence) as slow, ScriptedBackend() as quick:
        table = pipeline(arm("slow", slow.address), arm("quick", quick.address))
        with CoreRouter(table) as router, RawClient(router.address) as client:
            stuck = [client.start(request(label="slow")) for _ in range(100)]
            for _ in range(50):
                assert client.call(request(label="quick"), timeout="5S").status == OK
            for stream in stuck:
                client.cancel(stream)
