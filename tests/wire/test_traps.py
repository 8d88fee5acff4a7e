"""The traps of a proxy on nghttp2 and libuv, one test each (a few have more).

The fifteenth, that a load generator must look at grpc-status and answer size and send unique keys, is the load
generator's: test_load.py. The fourteenth is so far what the library does; the tenth has no shadows yet.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from tiltyard.api.tfs.v1 import predict_pb2
from tiltyard.router.spec import MetricSpec
from wirebench.backend import Call, Connection, Script, ScriptedBackend, echo, replies, silence
from wirebench.benches import one_arm
from wirebench.client import RawClient
from wirebench.messages import (
    INTERNAL,
    INVALID_ARGUMENT,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    answer,
    field,
    floats,
    grpc_frame,
    padded,
    request,
    spec,
)
from wirebench.routers import CoreRouter, arm, counts, five_sigma, pipeline
from wirebench.wires import CANCEL, FRAME_BYTES, INTERNAL_ERROR, REFUSED_STREAM, Header, headers_frames, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

MIB = 1 << 20
STREAM = "/tiltyard.api.outcomes.v1.OutcomeService/Anything"


def rest_of(message: bytes) -> bytes:
    """A request's bytes without its model_spec, which comes first in messages made here."""
    parsed = predict_pb2.PredictRequest.FromString(message)
    head = field(1, parsed.model_spec.SerializeToString(deterministic=True))
    assert message.startswith(head)
    return message[len(head) :]


def rewritten(message: bytes, model: str = "model-a", version: int = 1) -> bytes:
    """What the backend must get for it."""
    return field(1, spec(model, version=version)) + rest_of(message)


def steady(router: CoreRouter) -> int:
    """Bytes buffered, once they are some and do not change any more."""
    seen = [0]

    def still() -> bool:
        time.sleep(0.05)
        seen.append(router.stats()["buffered_bytes"])
        return seen[-1] > 0 and len(set(seen[-4:])) == 1

    wait_until(still, "the buffers to come to rest")
    return seen[-1]


# ---------------------------------------------------------------- 1: the end of a body


def test_trap_01_bodies_at_every_frame_boundary_are_whole() -> None:
    def mirror(call: Call) -> Awaitable[None]:
        async def script() -> None:
            await call.reply(await call.request())

        return script()

    with one_arm(mirror) as (_, _, client):
        shift = len(rewritten(request())) - len(request())
        for frames in (1, 2, 3, 64, 65):
            for off in (-18, -10, -9, -6, -5, -4, -1, 0, 1, 4, 5, 6, 9, 10, 18):
                # What the backend gets, and with it the answer, is this far from a whole number of frames.
                message = padded(request(), frames * FRAME_BYTES + off - 5 - shift)
                got = client.call(message)
                assert got.status == OK
                assert got.body == rewritten(message), (frames, off)
                assert len(got.data) == frames * FRAME_BYTES + off


def test_trap_01_bodies_of_20_mb_are_whole_in_odd_frames() -> None:
    async def mirror(call: Call) -> None:
        await call.reply(await call.request(), frame_bytes=9_973)

    with one_arm(mirror) as (_, _, client):
        message = padded(request(), 20_000_000)
        got = client.call(message, frame_bytes=7_919)
        assert got.status == OK
        assert got.body == rewritten(message)


# ---------------------------------------------------------------- 2: output is bounded


def test_trap_02_a_client_that_does_not_read_costs_its_windows_and_little_more() -> None:
    big = padded(answer(), 4 * MIB)
    with one_arm(replies(big), client={"receive_buffer": 1 << 16}) as (_, router, client):
        streams = [client.start(request()) for _ in range(16)]
        # Each stream may hold one window of 1 MiB; what lies in the socket's write request is bounded besides.
        wait_until(lambda: router.stats()["buffered_bytes"] > 12 * MIB, "the windows to fill")
        assert router.stats()["buffered_bytes"] <= 16 * MIB
        assert router.stats()["memory_bytes"] <= 24 * MIB
        assert all(got.body == big for got in client.finish_all(streams))


def test_trap_02_frames_of_other_kinds_fit_behind_a_full_batch_of_data() -> None:
    """Many short DATA frames are copied into one batch, and trailers that follow in the same breath still fit in."""
    n, size, last = 97, 2_000, 1_500
    wide: list[Header] = [("x-wide", "v" * 1_000)]

    async def burst(call: Call) -> None:
        call.head()
        if call.number == 0:  # fills the client's socket, so that all that follows waits for one flush
            await call.data(bytes(8 * MIB))
        elif call.number == n + 1:
            others = call.conn.backend.calls[1 : n + 1]
            batch = [DataFrame(other.stream, bytes(size)).serialize() for other in others]
            batch.append(DataFrame(call.stream, bytes(last)).serialize())
            batch.append(headers_frames(call.conn.encoder, call.stream, [("grpc-status", "0"), *wide], end=True))
            call.conn.send(*batch)
        else:
            await call.cancelled()

    with (
        ScriptedBackend(burst) as backend,
        CoreRouter(outcomes=backend.address) as router,
        RawClient(router.address, receive_buffer=1 << 16) as client,
    ):
        full = client.open(STREAM, end=True)
        before = steady(router)
        streams = [client.open(STREAM, end=True) for _ in range(n + 1)]
        wait_until(lambda: router.stats()["buffered_bytes"] >= before + n * size + last, "the burst")
        got = client.finish(streams[-1])
        assert (got.status, got.get("x-wide"), len(got.data)) == (OK, wide[0][1], last)
        client.pump(lambda: all(len(client.streams[stream].data) == size for stream in streams[:-1]))
        client.pump(lambda: len(client.streams[full].data) == 8 * MIB)


# ---------------------------------------------------------------- 3, 4: closing in the middle of things


def test_trap_03_streams_that_close_while_others_are_being_sent() -> None:
    draw = random.Random(3)
    big = padded(answer(), 300_000)

    async def fickle(call: Call) -> None:
        await call.request()
        call.head()
        body = grpc_frame(big)
        if call.number % 5 == 0:
            await call.data(body[: draw.randrange(len(body))])
            call.rst(INTERNAL_ERROR)
            return
        await call.data(body)
        call.tail()

    with one_arm(fickle) as (_, _, client):
        for _ in range(12):
            streams = [client.start(request()) for _ in range(20)]
            kept = []
            for stream in streams:
                if draw.random() < 0.4:
                    want = draw.randrange(200_000)
                    client.pump(
                        lambda stream=stream, want=want: (  # type: ignore[misc]
                            len(client.streams[stream].data) >= want or client.streams[stream].ended
                        )
                    )
                    client.cancel(stream)
                else:
                    kept.append(stream)
            for got in client.finish_all(kept):
                assert got.status in (OK, UNAVAILABLE)
                if got.status == OK:
                    assert got.body == big


def test_trap_04_every_call_of_a_lost_backend_connection_is_ended() -> None:
    with one_arm(silence) as (backend, _, client):
        streams = [client.start(request()) for _ in range(150)]
        wait_until(lambda: len(backend.calls) == 150, "all calls at the backend")
        backend.script = echo
        backend.do(backend.connections[0].abort)
        assert {got.status for got in client.finish_all(streams)} == {UNAVAILABLE}
        assert client.call(request()).status == OK


@pytest.mark.parametrize("how", ["close", "abort"])
def test_trap_04_every_call_of_a_lost_client_connection_is_cancelled(how: str) -> None:
    with one_arm(silence) as (backend, _, client):
        for _ in range(150):
            client.start(request())
        wait_until(lambda: len(backend.calls) == 150, "all calls at the backend")
        client.close() if how == "close" else client.abort()
        wait_until(lambda: all(call.reset == CANCEL for call in backend.calls), "the backend to hear of it")
        assert not any(conn.closed for conn in backend.connections)


# ---------------------------------------------------------------- 5, 6: windows


def test_trap_05_a_slow_client_holds_up_neither_the_backend_connection_nor_the_router() -> None:
    big = padded(answer(), 24 * MIB)

    async def script(call: Call) -> None:
        await call.request()
        await call.reply(big if call.number == 0 else answer())

    slow_one = {"window": 100_000, "credit": False}
    with one_arm(script, client=slow_one) as (backend, router, slow), RawClient(router.address) as other:
        stream = slow.start(request())
        wait_until(lambda: router.stats()["buffered_bytes"] > 900_000, "the stream's window to fill")
        for _ in range(50):
            assert other.call(request()).status == OK
        assert router.stats()["buffered_bytes"] <= MIB
        assert len(backend.open_connections) == 1  # all went over the connection that the big answer is on
        slow.pump(lambda: len(slow.streams[stream].data) == 100_000)
        slow.idle(0.1)
        assert len(slow.streams[stream].data) == 100_000
        slow.give_credit(stream, 30 * MIB)
        assert slow.finish(stream).body == big


def test_trap_05_a_fast_client_is_stopped_by_a_slow_service() -> None:
    with (
        ScriptedBackend(silence, credit=False, window=1 << 24) as service,
        CoreRouter(outcomes=service.address) as router,
        RawClient(router.address) as client,
    ):
        client.ping()
        stream = client.open(STREAM)
        answer = client.streams[stream]
        sent = 0
        while True:
            client.pump(lambda: answer.send_window > 0, what="SETTINGS") if sent == 0 else client.idle(0.2)
            room = min(answer.send_window, client.send_window)
            if room <= 0:
                break
            client.data(stream, bytes(room))
            sent += room
        # One window at the service, one at the router; the router never holds more than its own.
        wait_until(lambda: sum(len(call.body) for call in service.calls) == MIB, "the service's window to fill")
        assert MIB < sent <= 2 * MIB
        assert router.stats()["buffered_bytes"] == sent - MIB
        client.cancel(stream)


def test_trap_05_what_all_calls_hold_together_is_bounded() -> None:
    """Requests that are gathered, requests that pass through and answers draw on one account."""
    full = (RESOURCE_EXHAUSTED, "the router's buffers are full; try again later")
    with (
        ScriptedBackend(replies(padded(answer(), 2 * MIB))) as backend,
        ScriptedBackend(silence, credit=False, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as service,
        CoreRouter(pipeline(arm("a", backend.address)), outcomes=service.address, max_buffered_bytes=2 * MIB) as router,
        RawClient(router.address) as client,
    ):
        gathered = client.open()
        client.data(gathered, grpc_frame(padded(request(), MIB))[:-1])
        passing = client.open(STREAM)
        client.data(passing, bytes(MIB - 20_000))
        client.ping()
        assert router.stats()["buffered_bytes"] > 2 * MIB - 30_000
        for more in (client.start(padded(request(), 50_000)), client.start(bytes(50_000), path=STREAM)):
            got = client.finish(more)
            assert (got.status, got.message) == full
        with RawClient(router.address, window=0) as slow:  # its request fits in, and the answer does not
            stream = slow.start(request())
            wait_until(lambda: any(call.reset == CANCEL for call in backend.calls), "the backend to be told")
            slow.give_credit(stream, MIB)
            got = slow.finish(stream)
            assert (got.status, got.message) == full
        assert not client.streams[gathered].ended
        assert not client.streams[passing].ended
        client.cancel(passing)
        backend.script = echo
        client.data(gathered, b"\0", end=True)
        assert client.finish(gathered).status == OK


def test_trap_05_padding_and_late_data_give_their_credit_back() -> None:
    """Neither what pads a frame nor what comes for a stream that has ended may leak window."""
    with one_arm() as (_, _, client):
        client.ping()
        for _ in range(1_200):  # 19 MB of connection window in all, more than the router's 16 MiB
            stream = client.open()
            client.send(DataFrame(stream, b"\0\xff\xff\xff\xff", flags=["PADDED"], pad_length=250))
            client.send(DataFrame(stream, bytes(FRAME_BYTES), flags=["END_STREAM"]))
            client.send_window -= FRAME_BYTES + 256
            client.read_once(0)
            assert client.finish(stream).status == RESOURCE_EXHAUSTED
        client.ping()
        assert client.send_window > 8 * MIB
        assert client.call(request()).status == OK


def test_trap_06_windows_of_a_mebibyte_on_both_sides() -> None:
    with one_arm() as (backend, _, client):
        assert client.call(padded(request(), 65_536)).status == OK
        assert client.peer_settings[SettingsFrame.INITIAL_WINDOW_SIZE] >= MIB
        assert client.peer_settings[SettingsFrame.MAX_CONCURRENT_STREAMS] >= 100
        client.ping()
        assert client.send_window >= MIB
        (conn,) = backend.connections
        assert conn.peer_window >= MIB
        assert conn.send_window >= MIB


# ---------------------------------------------------------------- 7: lengths are claims


def test_trap_07_nothing_is_allocated_by_a_claimed_length() -> None:
    with one_arm() as (_, router, client):
        assert client.call(request()).status == OK
        before = router.stats()["memory_bytes"]
        streams = []
        for _ in range(100):
            stream = client.open()
            client.send(DataFrame(stream, b"\0\x04\x00\x00\x00" + b"x"))  # 64 MiB to come
            streams.append(stream)
        client.ping()
        assert router.stats()["memory_bytes"] - before < 2 * MIB
        for stream in streams:
            client.cancel(stream)
        client.ping()
        stream = client.open()
        client.send(DataFrame(stream, b"\0\xff\xff\xff\xff"))
        got = client.finish(stream)
        assert (got.status, got.message) == (RESOURCE_EXHAUSTED, "the request is larger than 67108864 bytes")


@pytest.mark.parametrize("claim", [b"\0\xff\xff\xff\xff", b"\0\x04\x00\x00\x01"])
def test_trap_07_an_answer_that_claims_too_much_is_refused(claim: bytes) -> None:
    async def script(call: Call) -> None:
        await call.request()
        call.head()
        await call.data(claim + b"x")
        await call.cancelled()

    with one_arm(script) as (backend, _, client):
        assert client.call(request()).status == RESOURCE_EXHAUSTED
        wait_until(lambda: backend.calls[0].reset == CANCEL, "the backend to hear of it")


# ---------------------------------------------------------------- 8, 9: connections to backends


def test_trap_08_after_goaway_a_connection_gets_nothing_new() -> None:
    async def script(call: Call) -> None:
        await call.request()
        if call.number == 0:
            call.conn.goaway(call.stream)
            await call.until(lambda: len(call.conn.backend.calls) > 5)
        await call.reply(answer())

    with one_arm(script) as (backend, _, client):
        first = client.start(request())
        wait_until(lambda: len(backend.calls) == 1, "the first call")
        client.idle(0.1)
        for _ in range(5):
            assert client.call(request()).status == OK
        assert client.finish(first).status == OK  # in flight when GOAWAY came, and finished
        old, new = backend.connections
        assert len(old.calls) == 1
        assert len(new.calls) == 5
        wait_until(lambda: old.closed, "the old connection to be closed")


def test_trap_08_calls_that_a_goaway_leaves_out_are_sent_again() -> None:
    async def script(call: Call) -> None:
        await call.request()
        if call.conn is not call.conn.backend.connections[0]:
            await call.reply(answer())
        elif len(call.conn.calls) == 10:
            call.conn.goaway(0)

    with one_arm(script) as (backend, _, client):
        streams = [client.start(request()) for _ in range(10)]
        assert {got.status for got in client.finish_all(streams)} == {OK}
        assert len(backend.calls) == 20


def test_trap_08_a_refused_stream_is_sent_again_and_counted_once(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.request()
        if call.number % 2 == 0:
            call.rst(REFUSED_STREAM)
        else:
            await call.reply(answer())

    with (
        ScriptedBackend(script) as backend,
        CoreRouter(pipeline(arm("a", backend.address)), counters=tmp_path / "c") as router,
    ):
        with RawClient(router.address) as client:
            message = padded(request(), 40_000)
            for _ in range(10):
                assert client.call(message).status == OK
        assert [call.message for call in backend.calls] == [rewritten(message)] * 20
        (cells,) = counts(router.snapshot(), closed=False).values()
        assert (cells.assigned, cells.completed, cells.statuses) == (10, 10, {OK: 10})


def test_trap_08_a_backend_that_refuses_everything_is_not_asked_for_ever() -> None:
    async def script(call: Call) -> None:
        call.rst(REFUSED_STREAM)

    with one_arm(script) as (backend, _, client):
        assert client.call(request()).status == UNAVAILABLE
        assert 2 <= len(backend.calls) <= 4


def test_trap_09_no_more_streams_than_the_backend_allows() -> None:
    async def script(call: Call) -> None:
        if call.conn.open_calls() > 4:  # as servers do with a stream too many
            call.rst(REFUSED_STREAM)
            return
        await call.request()
        await call.until(lambda: len(call.conn.backend.calls) >= 8)
        await call.reply(answer())

    limits = {SettingsFrame.MAX_CONCURRENT_STREAMS: 4}
    with (
        ScriptedBackend(script, settings=limits) as backend,
        CoreRouter(pipeline(arm("a", backend.address))) as router,
        RawClient(router.address) as client,
    ):
        streams = [client.start(request()) for _ in range(120)]
        assert Counter(got.status for got in client.finish_all(streams)) == {OK: 120}
        assert max(conn.most_open for conn in backend.connections) <= 4
        assert 2 <= len(backend.connections) <= 8
        assert len(backend.calls) == 120


# ---------------------------------------------------------------- 10: the key decides


def arms_of(client: RawClient, keys: list[str | None]) -> Counter[str | None]:
    """Arms that requests with these keys get."""
    seen: Counter[str | None] = Counter()
    for i in range(0, len(keys), 100):
        batch = [client.start(request(), [] if key is None else [("session_id", key)]) for key in keys[i : i + 100]]
        seen.update(got.arm for got in client.finish_all(batch))
    return seen


def test_trap_10_a_constant_key_has_one_arm_and_unique_keys_are_split() -> None:
    with ScriptedBackend() as backend:
        arms = pipeline(arm("champion", backend.address), arm("challenger", backend.address), weights=[2, 1])
        with CoreRouter(arms) as router, RawClient(router.address) as client:
            assert len(arms_of(client, ["constant"] * 100)) == 1
            n = 1_200
            for keys in ([f"key-{i}" for i in range(n)], [None] * n):
                seen = arms_of(client, list(keys))
                assert sum(seen.values()) == n
                assert abs(seen["champion"] - n * 2 / 3) < five_sigma(n, 2 / 3)


# ---------------------------------------------------------------- 11: connections come and go


def test_trap_11_connections_that_come_and_go_leave_nothing_behind() -> None:
    with ScriptedBackend(silence) as backend, CoreRouter(pipeline(arm("a", backend.address))) as router:
        sizes = []
        for _ in range(4):
            for n in range(60):
                with RawClient(router.address) as client:
                    for _ in range(3):
                        client.start(padded(request(), 5_000))
                    if n % 3 == 0:
                        client.ping()
                    if n % 2 == 0:
                        client.abort()
            wait_until(lambda: router.stats()["connections"] == 0, "all connections to be gone")
            router.wait_idle()
            sizes.append(router.stats()["memory_bytes"])
        assert max(sizes[1:]) - sizes[0] < 100_000, sizes


# ---------------------------------------------------------------- 12: backends that break off


def before_headers(code: int) -> Script:
    async def script(call: Call) -> None:
        await call.request()
        call.rst(code)

    return script


def after_headers(code: int) -> Script:
    async def script(call: Call) -> None:
        await call.request()
        call.head()
        call.rst(code)

    return script


def mid_data(code: int) -> Script:
    async def script(call: Call) -> None:
        await call.request()
        call.head()
        await call.data(grpc_frame(padded(answer(), 50_000))[:30_000])
        call.rst(code)

    return script


def ends(action: Callable[[Connection], None], data: int = -1) -> Script:
    """The connection ends by ``action``; before headers, or after so many bytes of the answer."""

    async def script(call: Call) -> None:
        await call.request()
        if data >= 0:
            call.head()
            await call.data(grpc_frame(padded(answer(), 50_000))[:data])
        action(call.conn)

    return script


def goaway_then_close(conn: Connection) -> None:
    conn.goaway(2**31 - 1, INTERNAL_ERROR)
    conn.close()


def garbage(conn: Connection) -> None:
    conn.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 11\r\n\r\nBad Request")


def nonsense_frame(conn: Connection) -> None:
    conn.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31}))


BREAKS: dict[str, Script] = {
    **{f"reset {code} before headers": before_headers(code) for code in (0, 1, 2, 8, 11)},
    **{f"reset {code} after headers": after_headers(code) for code in (0, 2, 7, 8)},
    **{f"reset {code} mid-data": mid_data(code) for code in (0, 2, 7, 8)},
    **{
        f"{name}, {data} bytes of data": ends(action, data)
        for name, action in {
            "goaway": goaway_then_close,
            "close": Connection.close,
            "abort": Connection.abort,
            "garbage": garbage,
            "nonsense": nonsense_frame,
        }.items()
        for data in (-1, 0, 30_000)
    },
}


@pytest.mark.parametrize("how", BREAKS)
def test_trap_12_a_backend_that_breaks_off_is_unavailable(how: str) -> None:
    with one_arm(BREAKS[how]) as (backend, _, client):
        for _ in range(3):
            got = client.call(request())
            assert got.status == UNAVAILABLE, got
            assert got.message
        backend.script = echo
        assert client.call(request()).status == OK
        assert not client.goaways


# ---------------------------------------------------------------- 13: HTTP's own rules are kept

GOOD: list[Header] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/tensorflow.serving.PredictionService/Predict"),
    (":authority", "router"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
BAD_REQUESTS: dict[str, list[Header]] = {
    "upper case": [*GOOD, ("X-Upper", "1")],
    "no path": [field for field in GOOD if field[0] != ":path"],
    "no method": GOOD[1:],
    "two methods": [GOOD[0], *GOOD],
    "a pseudo field behind others": [*GOOD[:3], *GOOD[4:], GOOD[3]],
    "an unknown pseudo field": [(":what", "x"), *GOOD],
    "a status": [(":status", "200"), *GOOD],
    "connection": [*GOOD, ("connection", "close")],
    "transfer-encoding": [*GOOD, ("transfer-encoding", "chunked")],
    "another te": [*GOOD, ("te", "gzip")],
    "a negative length": [*GOOD, ("content-length", "-1")],
    "another length than the body's": [*GOOD, ("content-length", "3")],
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_trap_13_requests_against_http_are_reset_one_by_one(what: str) -> None:
    with one_arm() as (backend, _, client):
        stream = client.open(headers=BAD_REQUESTS[what])
        client.send(DataFrame(stream, grpc_frame(request()), flags=["END_STREAM"]))
        got = client.finish(stream)
        assert got.reset == 1, got  # PROTOCOL_ERROR
        assert client.call(request()).status == OK
        assert len(backend.calls) == 1


BAD_ANSWERS: dict[str, list[Header]] = {
    "no status": [("content-type", "application/grpc")],
    "two statuses": [(":status", "200"), (":status", "200"), ("content-type", "application/grpc")],
    "upper case": [(":status", "200"), ("content-type", "application/grpc"), ("X-Upper", "1")],
    "connection": [(":status", "200"), ("content-type", "application/grpc"), ("connection", "close")],
    "a path": [(":status", "200"), (":path", "/"), ("content-type", "application/grpc")],
    "another length than the body's": [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("content-length", "3"),
    ],
    "101": [(":status", "101"), ("content-type", "application/grpc")],
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_trap_13_answers_against_http_are_errors(what: str) -> None:
    async def script(call: Call) -> None:
        await call.request()
        call.head(headers=BAD_ANSWERS[what])
        await call.data(grpc_frame(answer()))
        call.tail()

    with one_arm(script) as (backend, _, client):
        got = client.call(request())
        assert got.status in (UNAVAILABLE, INTERNAL), got
        backend.script = echo
        assert client.call(request()).status == OK


# ---------------------------------------------------------------- 14: rapid reset


@pytest.mark.parametrize("work", [True, False])
def test_trap_14_a_rapid_reset_ends_its_connection_and_nothing_else(work: bool) -> None:
    with one_arm() as (_, router, good), RawClient(router.address) as client:
        for _ in range(5_000):
            stream = client.start(request()) if work else client.open()
            client.cancel(stream)
            client.read_once(0)
            if client.closed:
                break
        client.wait_closed()
        assert client.goaways or client.aborted
        assert all(code in (INTERNAL_ERROR, 11) for _, code in client.goaways)
        assert good.call(request()).status == OK


# ---------------------------------------------------------------- 16: compression


def test_trap_16_answers_that_are_read_are_not_asked_to_be_compressed(tmp_path: Path) -> None:
    metrics = [MetricSpec("main", "main")]
    with (
        ScriptedBackend() as backend,
        CoreRouter(pipeline(arm("a", backend.address), metrics=metrics), counters=tmp_path / "c") as router,
        RawClient(router.address) as client,
    ):
        accepts: list[Header] = [("grpc-accept-encoding", "identity, deflate, gzip")]
        assert client.call(request(), accepts).status == OK
        assert backend.calls[0].get("grpc-accept-encoding") is None

        async def compressed(call: Call) -> None:
            await call.request()
            call.head([("grpc-encoding", "gzip")])
            await call.data(grpc_frame(answer({"main": floats([0.5])}), compressed=True))
            call.tail()

        backend.script = compressed
        got = client.call(request(), accepts)
        assert (got.status, got.get("grpc-encoding")) == (OK, "gzip")
        assert bytes(got.data) == grpc_frame(answer({"main": floats([0.5])}), compressed=True)
        (cells,) = counts(router.snapshot(), closed=False).values()
        (main,) = cells.metrics
        assert (main.scored, main.unscored) == (1, {"malformed": 1})


# ---------------------------------------------------------------- and a few of HTTP/2's own


def test_a_message_in_pieces_of_one_byte_arrives_whole() -> None:
    with one_arm() as (backend, _, client):
        message = padded(request(), 700)
        assert client.call(message, frame_bytes=1).status == OK
        assert backend.calls[0].message == rewritten(message)


def test_two_messages_or_half_a_message_are_refused() -> None:
    with one_arm() as (backend, _, client):
        for body in (grpc_frame(request()) * 2, grpc_frame(request())[:-1], b"\0\0", b""):
            stream = client.open()
            client.data(stream, body, end=True)
            assert client.finish(stream).status == INVALID_ARGUMENT
        assert backend.calls == []


def test_interim_answers_are_passed_over() -> None:
    async def script(call: Call) -> None:
        await call.request()
        call.head(headers=[(":status", "100")])
        call.head(headers=[(":status", "103"), ("link", "</x>")])
        await call.reply(answer())

    with one_arm(script) as (_, _, client):
        got = client.call(request())
        assert (got.status, got.interim, got.get("link")) == (OK, [], None)
        assert got.body == answer()


def test_headers_without_end_or_for_a_used_stream_end_the_connection() -> None:
    with one_arm() as (_, router, good):
        for bad in (
            HeadersFrame(2, data=b"", flags=["END_HEADERS"]).serialize(),  # even
            DataFrame(41, b"x").serialize(),  # idle
            RstStreamFrame(43, error_code=8).serialize(),  # idle
            b"\0\0\5\6\0\0\0\0\0hello",  # a PING of five bytes
            b"\xff\xff\xff\0\0\0\0\0\1",  # longer than any frame may be
        ):
            with RawClient(router.address) as client:
                client.send(bad)
                client.wait_closed()
                assert client.goaways or client.aborted
        with RawClient(router.address, hello=False) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            client.wait_closed()
        assert good.call(request()).status == OK


def test_a_client_that_asks_for_more_than_it_reads_is_shown_the_door() -> None:
    """Every PING and SETTINGS wants an answer; who does not take them cannot make the router keep them all."""
    for frame in (PingFrame(0, opaque_data=b"12345678"), SettingsFrame(0, settings={})):
        with one_arm() as (_, router, good), RawClient(router.address, receive_buffer=1 << 12) as client:
            batch = frame.serialize() * 1_000
            client.socket.settimeout(2.0)
            for _ in range(5_000):
                try:
                    client.send(batch)
                except TimeoutError:  # the router has stopped reading: that is a bound, too
                    break
                if client.closed:
                    break
            else:
                raise AssertionError("five million frames taken, and nothing said")
            assert router.stats()["memory_bytes"] < 4 * MIB
            assert good.call(request()).status == OK
