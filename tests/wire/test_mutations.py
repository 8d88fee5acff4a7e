"""Damaged bytes from both sides: the router answers or closes, and a good client beside it keeps working.

A real process takes it, so that a crash is a crash. Each case has its own seed, which a failure shows.
TILTYARD_MUTATIONS_S=600 makes more of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from tiltyard.router.spec import MetricSpec
from wirebench.backend import GRPC_HEADERS, Call, ScriptedBackend
from wirebench.benches import one_arm
from wirebench.client import Answer, RawClient
from wirebench.messages import (
    CHECK,
    INVALID_ARGUMENT,
    OK,
    PREDICT,
    answer,
    floats,
    grpc_frame,
    padded,
    request,
    strings,
)
from wirebench.routers import arm, pipeline, routes_yaml, start_process
from wirebench.wires import NO_ERROR, PREFACE, SLOW, Header, headers_frames

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

SECONDS = float(os.environ.get("TILTYARD_MUTATIONS_S", "4"))
"""How long each of these tests goes on making cases; at least MIN_CASES are made."""
MIN_CASES = 60
SEEDS = 100_000

MESSAGE = request(inputs={"session_id": strings([b"somebody"]), "x": floats([1.0, 2.0])})
ANSWER = answer({"main": floats([0.25, 0.5]), "other": strings([b"a", b"bc"])})


def cases(first: int) -> Iterator[int]:
    """Seeds, until the time is over."""
    end = time.monotonic() + SECONDS
    for seed in range(first, first + SEEDS):
        if seed >= first + MIN_CASES and time.monotonic() > end:
            return
        yield seed


def damage(draw: random.Random, data: bytes) -> bytes:
    """A few edits of the kinds that broken peers, networks and attackers make."""
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        at = draw.randrange(len(out) + 1)
        size = min(draw.choice([1, 1, 2, 4, 9, 100]), len(out) - at)
        kind = draw.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = draw.randbytes(size or 1)
        elif kind == 4:
            out[at:at] = out[at : at + size]
        elif kind == 5:
            del out[at:]
        else:
            other = draw.randrange(len(out) + 1)
            out[at : at + size] = out[other : other + size]
        if not out:
            out += b"\0"
    return bytes(out)


def chopped(draw: random.Random, data: bytes) -> Iterator[bytes]:
    """The same bytes in pieces of any size."""
    at = 0
    while at < len(data):
        size = draw.choice([1, 2, 3, 9, 10, 50, 400, 5_000, 20_000])
        yield data[at : at + size]
        at += size


def requests(draw: random.Random) -> bytes:
    """A good client's bytes: preface, SETTINGS and some calls."""
    encoder = Encoder()
    out = PREFACE + SettingsFrame(0, settings={4: 1 << 20}).serialize()
    for number in range(draw.randrange(1, 5)):
        stream = 2 * number + 1
        path = draw.choice([PREDICT, PREDICT, PREDICT, CHECK, "/tiltyard.api.control.v1.X/Y", "/nothing"])
        message = b"" if path == CHECK else draw.choice([MESSAGE, padded(MESSAGE, 20_000), b""])
        headers: list[Header] = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "router"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "1S"),
            ("session_id-bin", "c29tZWJvZHk"),
        ]
        out += headers_frames(encoder, stream, headers, end=False)
        body = grpc_frame(message)
        for at in range(0, len(body), 16_384):
            last = at + 16_384 >= len(body)
            out += DataFrame(stream, body[at : at + 16_384], flags=["END_STREAM"] if last else []).serialize()
    return out


def any_frame(draw: random.Random, encoder: Encoder) -> bytes:
    """A frame of any type with any flags for any stream, well-formed more often than not."""
    stream = draw.choice([0, 1, 1, 2, 3, 5, 7, 2**31 - 1])
    block = encoder.encode([(":method", "POST"), (":path", PREDICT), ("content-type", "application/grpc")])
    makers: list[Callable[[], Frame]] = [
        lambda: DataFrame(stream or 1, grpc_frame(MESSAGE)[: draw.randrange(200)]),
        lambda: HeadersFrame(stream or 1, data=block),
        lambda: ContinuationFrame(stream or 1, data=block[: draw.randrange(20)]),
        lambda: PriorityFrame(stream or 1, depends_on=draw.randrange(9), stream_weight=draw.randrange(256)),
        lambda: RstStreamFrame(stream or 1, error_code=draw.randrange(16)),
        lambda: SettingsFrame(0, settings={draw.randrange(1, 9): draw.choice([0, 1, 100, 2**24, 2**31, 2**32 - 1])}),
        lambda: PingFrame(0, opaque_data=draw.randbytes(8)),
        lambda: GoAwayFrame(0, last_stream_id=stream, error_code=draw.randrange(16)),
        lambda: WindowUpdateFrame(stream, window_increment=draw.choice([1, 65_535, 2**31 - 1])),
    ]
    data = bytearray(draw.choice(makers)().serialize())
    data[4] = draw.choice([0, data[4], 1, 4, 5, 8, 0x20, 0xFF])  # flags
    if draw.randrange(8) == 0:
        data[3] = draw.randrange(256)  # type
    if draw.randrange(8) == 0:
        data[5:9] = draw.choice([0, 1, 3, 2**31, 2**32 - 1]).to_bytes(4, "big")
    return bytes(data)


@contextmanager
def attacked(folder: Path) -> Iterator[tuple[ScriptedBackend, RawClient, str]]:
    """A router process with a metric, its backend, and a good client of it."""
    with ScriptedBackend(backend_script) as backend:
        table = pipeline(
            arm("a", backend.address),
            arm("b", backend.address),
            metrics=[MetricSpec("m", "main", index=1), MetricSpec("n", "other")],
        )
        flags = ("--control", backend.address)
        with start_process(routes_yaml(table), *flags, folder=folder) as process, RawClient(process.address) as good:
            yield backend, good, process.address
            assert process.alive()
            for _ in range(5):
                assert good.call(request()).status == OK


async def backend_script(call: Call) -> None:
    await call.until(lambda: call.request_ended)
    await call.reply(ANSWER)


def survives(good: RawClient, seed: int) -> None:
    started = time.monotonic()
    assert good.call(request(), timeout="10S").status == OK, f"seed {seed}"
    assert time.monotonic() - started < 3 * SLOW, f"seed {seed}"


def assault(address: str, draw: random.Random, data: bytes) -> None:
    """Send the bytes in pieces, look at what comes back now and then, go away in one of several ways."""
    with RawClient(address, hello=False) as client:
        for piece in chopped(draw, data):
            client.send(piece)
            if client.closed:
                return
        ending = draw.randrange(4)
        if ending == 0:
            client.abort()
        elif ending == 1:
            with contextlib.suppress(OSError):  # closed by the router already
                client.socket.shutdown(socket.SHUT_WR)
            client.wait_closed(limit_s=5 * SLOW)  # the router closes what nobody will ever speak on again
        elif ending == 2:
            client.socket.settimeout(0.01)


def test_damaged_bytes_of_clients(tmp_path: Path) -> None:
    with attacked(tmp_path) as (_, good, address):
        for seed in cases(0):
            draw = random.Random(seed)
            assault(address, draw, damage(draw, requests(draw)))
            survives(good, seed)


def test_any_frames_in_any_order_from_clients(tmp_path: Path) -> None:
    with attacked(tmp_path) as (_, good, address):
        for seed in cases(1_000_000):
            draw = random.Random(seed)
            encoder = Encoder()
            data = PREFACE + SettingsFrame(0).serialize()
            data += b"".join(any_frame(draw, encoder) for _ in range(draw.randrange(1, 40)))
            assault(address, draw, data)
            survives(good, seed)


def test_damaged_messages_in_good_frames(tmp_path: Path) -> None:
    """The frames are right and the protobuf is not: every call is answered, by the router or by the backend."""
    with attacked(tmp_path) as (_, good, _):
        for seed in cases(2_000_000):
            draw = random.Random(seed)
            streams = [good.start(damage(draw, MESSAGE), timeout="10S") for _ in range(20)]
            for stream in streams:
                got = good.finish(stream)
                assert got.reset is None, f"seed {seed}"
                assert got.status in (OK, INVALID_ARGUMENT, 5), f"seed {seed}"  # NOT_FOUND: the name was hit


def response(draw: random.Random, call: Call) -> bytes:
    """A good backend's bytes for one call."""
    encoder = call.conn.encoder
    message = draw.choice([ANSWER, padded(ANSWER, 30_000)])
    head = headers_frames(encoder, call.stream, [*GRPC_HEADERS, ("x-some", "thing")], end=False)
    body = grpc_frame(message)
    data = b"".join(DataFrame(call.stream, body[at : at + 9_000]).serialize() for at in range(0, len(body), 9_000))
    return head + data + headers_frames(encoder, call.stream, [("grpc-status", "0")], end=True)


@pytest.mark.parametrize("kind", ["bytes", "frames", "messages"])
def test_damaged_bytes_of_backends(kind: str, tmp_path: Path) -> None:
    """Every call ends with a status, at the latest at its deadline, and the next one is served."""
    with attacked(tmp_path) as (backend, good, _):
        first = {"bytes": 3_000_000, "frames": 4_000_000, "messages": 5_000_000}[kind]
        for seed in cases(first):
            draw = random.Random(seed)

            async def broken(call: Call, draw: random.Random = draw) -> None:
                await call.until(lambda: call.request_ended)
                if kind == "bytes":
                    for piece in chopped(draw, damage(draw, response(draw, call))):
                        call.conn.send(piece)
                        await call.conn.drain()
                elif kind == "frames":
                    call.conn.send(*(any_frame(draw, call.conn.encoder) for _ in range(draw.randrange(1, 20))))
                    call.conn.send(response(draw, call))
                else:
                    await call.reply(damage(draw, ANSWER))
                    return
                if draw.randrange(2):
                    call.conn.close()

            backend.script = broken
            streams = [good.start(request(), timeout="300m") for _ in range(3)]
            for stream in streams:
                got = good.finish(stream)
                # NO_ERROR: the deadline passed before our own request had left; the answer is whole (RFC 9113, 8.1).
                assert got.reset in (None, NO_ERROR), f"seed {seed}"
                assert got.ended, f"seed {seed}"
                assert 0 <= got.status <= 16, f"seed {seed}"
            backend.script = backend_script
            backend.close_connections()
            for _ in range(50):
                if good.call(request(), timeout="2S").status == OK:
                    break
                time.sleep(0.02)
            else:
                raise AssertionError(f"not served again after seed {seed}")


def test_any_chopping_gives_the_same_answer() -> None:
    with one_arm() as (backend, router, _):
        encoder = Encoder()
        data = PREFACE + SettingsFrame(0, settings={4: 1 << 20}).serialize()
        message = padded(MESSAGE, 40_000)
        headers: list[Header] = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", PREDICT),
            (":authority", "router"),
            ("content-type", "application/grpc"),
            ("x-long", "v" * 3_000),
        ]
        data += headers_frames(encoder, 1, headers, end=False)
        body = grpc_frame(message)
        for at in range(0, len(body), 3_001):
            data += DataFrame(1, body[at : at + 3_001]).serialize()
        data += DataFrame(1, b"", flags=["END_STREAM"]).serialize()
        for seed in range(6_000_000, 6_000_030):
            draw = random.Random(seed)

            async def in_pieces(call: Call, draw: random.Random = draw) -> None:
                await call.until(lambda: call.request_ended)
                for piece in chopped(draw, response(random.Random(1), call)):
                    call.conn.send(piece)
                    await call.conn.drain()

            backend.script = in_pieces
            with RawClient(router.address, hello=False) as client:
                client.streams[1] = got = Answer()
                for piece in chopped(draw, data):
                    client.send(piece)
                client.finish(1)
                assert got.status == OK, f"seed {seed}"
                assert backend.calls[-1].message.endswith(message[-39_000:]), f"seed {seed}"
