"""The load generator against backends that answer, refuse, stall, break off and fall silent."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tiltyard_router import loadgen
    from tiltyard_router.load_hist import quantiles
else:
    loadgen = pytest.importorskip("tiltyard_router.loadgen", exc_type=ImportError)
    from tiltyard_router.load_hist import quantiles

pytestmark = pytest.mark.router

PATH = "/tensorflow.serving.PredictionService/Predict"
Settings = dict[h2.settings.SettingCodes, int]
Handler = Callable[[bytes, Any], Awaitable[bytes]]


if TYPE_CHECKING:  # generic for the type checker only
    _Base = grpc.GenericRpcHandler[Any, Any]
else:
    _Base = grpc.GenericRpcHandler


class _Generic(_Base):
    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return grpc.unary_unary_rpc_method_handler(self._handler)


@asynccontextmanager
async def grpc_server(handler: Handler) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Generic(handler),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def load(target: str, **settings: Any) -> loadgen.LoadResult:
    defaults: dict[str, Any] = {
        "target": target,
        "payload": b"request",
        "connections": 2,
        "streams": 4,
        "timeout_s": 5.0,
        "time_limit_s": 20.0,
    }
    result = await asyncio.to_thread(loadgen.run, {**defaults, **settings})
    assert result.issued == result.ok + result.failed + result.not_sent + result.abandoned
    return result


def h2_connection(settings: Settings) -> h2.connection.H2Connection:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.local_settings = h2.settings.Settings(client=False, initial_values=settings)
    connection.initiate_connection()
    return connection


@dataclass
class RawServer:
    """An HTTP/2 server that does what ``on_request`` does: (server, connection number, stream id)."""

    on_request: Callable[[RawServer, Raw, int], None]
    settings: Settings = field(default_factory=dict)
    connections: list[Raw] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = Raw(len(self.connections), writer, self.settings)
        self.connections.append(raw)
        try:
            while data := await reader.read(65536):
                for event in raw.h2.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        raw.open.add(event.stream_id)
                        raw.most_open = max(raw.most_open, len(raw.open))
                    elif isinstance(event, h2.events.DataReceived):
                        raw.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        self.on_request(self, raw, event.stream_id)
                    elif isinstance(event, h2.events.StreamReset):
                        raw.resets += 1
                        raw.open.discard(event.stream_id)
                raw.flush()
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        finally:
            writer.close()


class Raw:
    """One connection of a RawServer."""

    def __init__(self, number: int, writer: asyncio.StreamWriter, settings: Settings) -> None:
        self.number = number
        self.writer = writer
        self.h2 = h2_connection(settings)
        self.open: set[int] = set()
        self.most_open = 0
        self.answered = 0
        self.resets = 0
        self.flush()

    def flush(self) -> None:
        if not self.writer.is_closing():
            self.writer.write(self.h2.data_to_send())

    def answer(
        self,
        stream: int,
        body: bytes = b"\0\0\0\0\2ok",
        http: str = "200",
        status: str | None = "0",
    ) -> None:
        self.h2.send_headers(stream, [(":status", http), ("content-type", "application/grpc")])
        self.h2.send_data(stream, body, end_stream=status is None)
        if status is not None:
            self.h2.send_headers(stream, [("grpc-status", status)], end_stream=True)
        self.open.discard(stream)
        self.answered += 1


@asynccontextmanager
async def raw_server(
    on_request: Callable[[RawServer, Raw, int], None], settings: Settings | None = None
) -> AsyncIterator[tuple[RawServer, str]]:
    state = RawServer(on_request, settings or {})
    server = await asyncio.start_server(state.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield state, f"127.0.0.1:{port}"
    finally:
        server.close()
        for raw in state.connections:
            raw.writer.close()
        await server.wait_closed()


# ---- counts --------------------------------------------------------------------------------------------------------


async def test_calls_are_counted_by_status() -> None:
    seen = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal seen
        seen += 1
        if seen % 4 == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no backend: 100 % gone")
        if seen % 4 == 2:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return request

    async with grpc_server(handler) as target:
        result = await load(target, requests=80)
    assert result.ended == "done"
    assert seen == 80
    assert result.ok == 40
    assert result.statuses == {grpc.StatusCode.UNAVAILABLE.value[0]: 20, grpc.StatusCode.NOT_FOUND.value[0]: 20}
    assert result.messages == {14: "no backend: 100 % gone", 5: "no such model"}
    assert result.failed == 40
    assert not result.clean
    assert result.latency.count == 40  # quick refusals do not flatter the percentiles


async def test_http_200_with_status_14_is_a_failure() -> None:
    def answer(server: RawServer, raw: Raw, stream: int) -> None:
        raw.answer(stream, status="14")

    async with raw_server(answer) as (_, target):
        result = await load(target, requests=20)
    assert (result.ok, result.statuses) == (0, {14: 20})


async def test_answers_without_status_and_other_http_statuses_are_failures() -> None:
    def answer(server: RawServer, raw: Raw, stream: int) -> None:
        if raw.answered % 2:
            raw.answer(stream, http="503", status=None)
        else:
            raw.answer(stream, status=None)

    async with raw_server(answer) as (_, target):
        result = await load(target, requests=20, connections=1)
    assert (result.ok, result.failures) == (0, {"http": 10, "no_status": 10})


async def test_resets_and_refusals_are_told_apart() -> None:
    def answer(server: RawServer, raw: Raw, stream: int) -> None:
        code = h2.errors.ErrorCodes.REFUSED_STREAM if stream % 4 == 1 else h2.errors.ErrorCodes.INTERNAL_ERROR
        raw.h2.reset_stream(stream, code)
        raw.open.discard(stream)

    async with raw_server(answer) as (_, target):
        result = await load(target, requests=20, connections=1)
    assert (result.ok, result.failures) == (0, {"refused": 10, "reset": 10})


async def test_only_calls_after_the_warm_up_are_counted() -> None:
    seen = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal seen
        seen += 1
        return request

    async with grpc_server(handler) as target:
        result = await load(target, requests=30, warmup_requests=20)
    assert (result.ok, result.issued, result.latency.count, seen) == (30, 30, 30, 50)


async def test_answers_are_counted_per_arm() -> None:
    seen = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal seen
        seen += 1
        await context.send_initial_metadata((("tiltyard-arm", "challenger" if seen % 3 == 0 else "champion"),))
        return request

    async with grpc_server(handler) as target:
        result = await load(target, requests=60)
    assert result.arms == {"champion": 40, "challenger": 20}


# ---- sizes ---------------------------------------------------------------------------------------------------------


async def test_answers_of_the_wrong_size_are_counted() -> None:
    seen = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal seen
        seen += 1
        return bytes(10 + seen % 2)

    async with grpc_server(handler) as target:
        exact = await load(target, requests=20, answer_size=10)
        any_size = await load(target, requests=20)
    assert (exact.ok, exact.wrong_size, exact.clean) == (10, 10, False)
    assert any_size.clean


async def test_the_same_size_is_asked_of_each_arm_by_itself() -> None:
    seen = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal seen
        seen += 1
        mine = seen  # others are counted while this one sends its metadata
        await context.send_initial_metadata((("tiltyard-arm", "ab"[mine % 2]),))
        return bytes(10 + mine % 2 + (mine > 20))

    async with grpc_server(handler) as target:
        first = await load(target, requests=20, answer_size="same")
        assert first.clean
        seen = 15
        second = await load(target, requests=20, answer_size="same", connections=1, streams=1)
    assert (second.ok, second.wrong_size) == (5, 15)


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0\3ok", b"\0\0\0\0\2okk", b"\0\0\0\0\2ok\0\0\0\0\2ok", b"\0\0\0"])
async def test_an_answer_cut_off_or_too_long_is_wrong_although_its_status_is_ok(body: bytes) -> None:
    async with raw_server(lambda server, raw, stream: raw.answer(stream, body)) as (_, target):
        result = await load(target, requests=5)
    assert (result.ok, result.wrong_size) == (0, 5)


@pytest.mark.parametrize("size", [0, 2042, 2043, 2044, 16378, 16379, 16380, 65531, 65536, 5_000_000])
async def test_requests_arrive_byte_by_byte(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    right = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal right
        right += request == payload
        return request

    async with grpc_server(handler) as target:
        result = await load(target, requests=6, payload=payload, answer_size=size)
    assert (result.ok, right) == (6, 6)


# ---- keys ----------------------------------------------------------------------------------------------------------


async def test_every_call_has_its_own_key() -> None:
    keys: list[str] = []

    async def handler(request: bytes, context: Any) -> bytes:
        keys.append(dict(context.invocation_metadata())["session_id"])
        return request

    async with grpc_server(handler) as target:
        for _ in range(2):  # not the same keys again in the next run either
            assert (await load(target, requests=300, key_header="session_id")).clean
    assert len(keys) == 600
    assert len(set(keys)) == 600
    assert {len(key) for key in keys} == {36}


async def test_a_pool_of_keys_is_the_same_in_every_run() -> None:
    keys: list[str] = []

    async def handler(request: bytes, context: Any) -> bytes:
        keys.append(dict(context.invocation_metadata())["user"])
        return request

    async with grpc_server(handler) as target:
        for _ in range(2):
            assert (await load(target, requests=200, key_header="user", keys=7, key_prefix="user-")).clean
    assert set(keys[:200]) == set(keys[200:]) == {f"user-{i:012x}" for i in range(7)}


async def test_metadata_deadline_and_path_reach_the_server() -> None:
    seen: list[tuple[dict[str, str], float]] = []

    async def handler(request: bytes, context: Any) -> bytes:
        seen.append((dict(context.invocation_metadata()), context.time_remaining()))
        return request

    async with grpc_server(handler) as target:
        assert (await load(target, requests=1, metadata=(("tenant", "a b"),), timeout_s=7.5)).clean
    metadata, remaining = seen[0]
    assert metadata["tenant"] == "a b"
    assert 5.0 < remaining <= 7.5


# ---- time ----------------------------------------------------------------------------------------------------------


async def test_open_loop_latency_counts_from_the_planned_time() -> None:
    """A server that stands still for 0.3 s of 1 s delays 3 calls in 10, however few of them it had in hand."""
    seen = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal seen
        seen += 1
        if seen == 60:
            time.sleep(0.3)  # noqa: ASYNC251 - the whole server stands still, which is the point
        return request

    async with grpc_server(handler) as target:
        settings: dict[str, Any] = {"rps": 200, "spacing": "constant", "duration_s": 1.0}
        wide = await load(target, **settings)
        seen = 0
        narrow = await load(target, **settings, connections=1, streams=1)
        seen = 0
        closed = await load(target, requests=200, connections=1, streams=1)
    for result in (wide, narrow):
        assert (result.ok, result.issued) == (200, 200)
        assert 0.9 < result.elapsed_s < 2.0
        assert result.latency.p90_s > 0.15
        assert result.latency.p99_s > 0.25
    assert narrow.send_lag.p90_s > 0.15  # one stream: the calls waited in the generator, and it says so
    assert closed.latency.p90_s < 0.15  # what a closed loop makes of the same stall


async def test_open_loop_keeps_its_rate() -> None:
    async with raw_server(lambda server, raw, stream: raw.answer(stream)) as (_, target):
        constant = await load(target, rps=400, spacing="constant", duration_s=0.5, warmup_s=0.1)
        poisson = await load(target, rps=400, requests=200, seed=1)
    assert constant.issued == 200
    assert poisson.issued == poisson.ok == 200
    assert 0.3 < poisson.elapsed_s < 1.5


async def test_calls_that_could_not_be_sent_are_counted() -> None:
    def hold(server: RawServer, raw: Raw, stream: int) -> None:
        pass

    async with raw_server(hold) as (_, target):
        result = await load(target, rps=2000, requests=100, max_in_flight=10, timeout_s=0.5)
    assert result.ended == "done"
    assert result.failures["timeout"] >= 10
    assert result.not_sent == 100 - result.failures["timeout"]
    assert result.not_sent >= 50
    assert not result.clean


@hypothesis_settings(deadline=None)  # a busy machine is no wrong answer
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_the_histogram_is_within_one_percent(values: list[int], q: float) -> None:
    (got,) = quantiles(values, [q])
    rank = next(i for i in range(1, len(values) + 1) if i >= q * len(values))
    exact = sorted(values)[rank - 1]
    assert abs(got - exact) <= 0.01 * exact


# ---- connections ---------------------------------------------------------------------------------------------------


async def test_a_dropped_connection_is_counted_and_opened_again() -> None:
    def drop_once(server: RawServer, raw: Raw, stream: int) -> None:
        if raw.number == 0 and raw.answered == 10:
            raw.writer.transport.abort()
        else:
            raw.answer(stream)

    async with raw_server(drop_once) as (server, target):
        result = await load(target, requests=100, connections=1)
    assert result.ended == "done"
    assert result.issued == 100
    assert 1 <= result.failures["connection"] <= 8
    assert result.ok == 100 - result.failures["connection"]
    assert (result.connections_lost, result.reconnects, len(server.connections)) == (1, 1, 2)
    assert result.detail


async def test_reconnecting_is_bounded() -> None:
    def drop(server: RawServer, raw: Raw, stream: int) -> None:
        raw.writer.transport.abort()

    async with raw_server(drop) as (_, target):
        result = await load(target, requests=1_000_000, connections=1, max_reconnects=3)
    assert result.ended == "no connection"
    assert (result.connections_lost, result.reconnects) == (4, 3)
    assert result.ok == 0


async def test_goaway_loses_no_call() -> None:
    def goaway(server: RawServer, raw: Raw, stream: int) -> None:
        raw.answer(stream)
        if raw.answered == 10:
            raw.h2.close_connection(last_stream_id=stream)

    async with raw_server(goaway) as (server, target):
        result = await load(target, requests=50, connections=1, streams=1)
    assert result.clean
    assert result.reconnects == len(server.connections) - 1 >= 4
    assert result.connections_lost == 0


async def test_the_servers_limit_on_streams_is_kept() -> None:
    def answer_later(server: RawServer, raw: Raw, stream: int) -> None:
        asyncio.get_running_loop().call_later(0.002, answer, raw, stream)

    def answer(raw: Raw, stream: int) -> None:
        raw.answer(stream)
        raw.flush()

    limit: Settings = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 3}
    async with raw_server(answer_later, limit) as (server, target):
        result = await load(target, requests=60, connections=2, streams=50)
    assert result.clean
    assert [raw.most_open for raw in server.connections] == [3, 3]


async def test_nobody_listens() -> None:
    async with raw_server(lambda server, raw, stream: None) as (_, target):
        pass
    start = time.monotonic()
    result = await load(target, requests=10)
    assert result.ended == "no connection"
    assert result.issued == 0
    assert result.connect_errors == 6
    assert "refused" in result.detail
    assert time.monotonic() - start < 5.0


async def test_garbage_instead_of_http2_ends_the_run() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        result = await load(f"127.0.0.1:{port}", requests=10)
    assert result.ended == "no connection"
    assert (result.ok, result.connect_errors) == (0, 6)


# ---- it never hangs ------------------------------------------------------------------------------------------------


async def test_a_silent_server_costs_its_deadlines_and_no_more() -> None:
    async with raw_server(lambda server, raw, stream: None) as (server, target):
        start = time.monotonic()
        result = await load(target, requests=8, connections=1, streams=4, timeout_s=0.2)
    assert result.failures == {"timeout": 8}
    assert result.ended == "done"
    assert result.latency.count == 8
    assert 0.19 < result.latency.p50_s < 2.0
    assert time.monotonic() - start < 5.0
    assert server.connections[0].resets >= 4  # what was given up is cancelled at the server


async def test_a_server_that_never_says_hello_ends_the_run() -> None:
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        result = await load(f"127.0.0.1:{port}", requests=10, timeout_s=0.1)
        done.set()
    assert result.ended == "no connection"
    assert result.connect_errors == 6


async def test_a_server_that_stops_reading_ends_the_run() -> None:
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conn = h2_connection({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
        conn.increment_flow_control_window(2**31 - 1 - 65535)
        writer.write(conn.data_to_send())
        await done.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        settings: dict[str, Any] = {"payload": bytes(20_000_000), "timeout_s": 0.2, "max_reconnects": 2}
        result = await load(f"127.0.0.1:{port}", requests=100, connections=1, streams=2, **settings)
        done.set()
    assert result.ended == "no connection"
    assert (result.ok, result.connections_lost) == (0, 3)


async def test_the_time_limit_ends_the_run() -> None:
    async with raw_server(lambda server, raw, stream: None) as (_, target):
        result = await load(target, requests=100, connections=1, streams=4, timeout_s=30.0, time_limit_s=0.3)
    assert (result.ended, result.abandoned, result.issued) == ("time limit", 4, 4)


async def test_stop_keeps_what_there_is() -> None:
    async with raw_server(lambda server, raw, stream: raw.answer(stream)) as (_, target):
        run = loadgen.Load(loadgen.LoadConfig(target=target, payload=b"x", duration_s=60.0, connections=2))
        task = asyncio.create_task(asyncio.to_thread(run.run))
        while run.progress().ok < 100:  # noqa: ASYNC110 - what is polled lives in another thread
            await asyncio.sleep(0.01)
        run.stop()
        result = await asyncio.wait_for(task, 5.0)
    assert result.ended == "stopped"
    assert result.ok >= 100
    with pytest.raises(RuntimeError, match="twice"):
        run.run()


async def test_stop_before_the_start_ends_the_run_at_once() -> None:
    async with raw_server(lambda server, raw, stream: raw.answer(stream)) as (_, target):
        run = loadgen.Load(loadgen.LoadConfig(target=target, payload=b"x", duration_s=60.0))
        run.stop()
        result = await asyncio.wait_for(asyncio.to_thread(run.run), 5.0)
    assert (result.ended, result.ok) == ("stopped", 0)


async def test_other_threads_run_during_a_load() -> None:
    """The GIL is released: this thread counts while the load runs, and is told of the progress."""
    seen: list[loadgen.Progress] = []
    async with raw_server(lambda server, raw, stream: raw.answer(stream)) as (_, target):
        threads: list[str] = []

        def note(progress: loadgen.Progress) -> None:
            threads.append(threading.current_thread().name)
            seen.append(progress)

        config = {"target": target, "payload": b"x", "duration_s": 0.6}
        result = await asyncio.to_thread(loadgen.run, config, on_progress=note, interval_s=0.05)
    assert len(seen) >= 3
    assert 0 < seen[-1].ok <= result.ok
    assert "tiltyard-load" not in threads


# ---- settings and command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "say how long"),
        ({"requests": 1, "speed": 2}, "unknown setting 'speed'"),
        ({"requests": 1, "target": "nowhere"}, "host:port"),
        ({"requests": 1, "spacing": "normal"}, "spacing"),
        ({"requests": 1, "key_header": "Session"}, "lower-case"),
        ({"requests": 1, "metadata": (("te", "x"),)}, "not allowed"),
        ({"requests": 1, "connections": 0}, "connections"),
        ({"requests": 1, "key_prefix": "x" * 200}, "key_prefix"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loadgen.run({"target": "127.0.0.1:1", "payload": b"", **settings})


def invoke(*arguments: str) -> tuple[int, str]:
    from tiltyard.cli.load_cmd import command

    result = CliRunner().invoke(command, arguments)
    return result.exit_code, result.output


async def test_the_command_exits_with_1_when_calls_failed() -> None:
    status = "0"

    def answer(server: RawServer, raw: Raw, stream: int) -> None:
        raw.answer(stream, status=status)

    async with raw_server(answer) as (_, target):
        arguments = (target, "--model", "m", "-n", "20", "--timeout", "5")
        code, output = await asyncio.to_thread(invoke, *arguments)
        assert code == 0
        assert "OK" in output
        status = "14"
        code, output = await asyncio.to_thread(invoke, *arguments)
        assert code == 1
        assert "UNAVAILABLE" in output
        code, output = await asyncio.to_thread(invoke, *arguments, "--allow-errors", "--output", "json")
    assert code == 0
    values = json.loads(output)
    assert (values["ok"], values["failed"], values["statuses"]) == (0, 20, {"UNAVAILABLE": 20})
    assert set(values["latency"]) >= {"p50_s", "p90_s", "p99_s", "p999_s", "max_s"}


async def test_the_command_sends_a_predict_request_of_the_wanted_size() -> None:
    from tiltyard.api.tfs.v1 import predict_pb2

    got: list[bytes] = []

    async def handler(request: bytes, context: Any) -> bytes:
        got.append(request)
        return request

    async with grpc_server(handler) as target:
        for size in (259, 260, 500, 70_000):
            arguments = (target, "--model", "aloha", "--floats", "16", "--size", str(size), "-n", "1")
            code, output = await asyncio.to_thread(invoke, *arguments)
            assert code == 0, output
    assert [len(request) for request in got] == [259, 260, 500, 70_000]
    for request in got:
        message = predict_pb2.PredictRequest.FromString(request)
        assert message.model_spec.name == "aloha"
        assert len(message.inputs["x"].tensor_content) == 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("127.0.0.1:1",), "give either --model NAME or --payload FILE"),
        (("127.0.0.1", "--model", "m"), "host:port"),
        (("127.0.0.1:1", "--model", "m", "--metadata", "x"), "NAME=VALUE"),
        (("127.0.0.1:1", "--model", "m", "--answer-size", "big"), "--answer-size"),
    ],
)
def test_wrong_flags_are_explained(arguments: tuple[str, ...], said: str) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert said in output
