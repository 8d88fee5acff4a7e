"""The router process from outside: start, ready, reload, drain, stop, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from tiltyard.api.router.v1 import counters_pb2, counters_pb2_grpc, routes_pb2, routes_pb2_grpc
from tiltyard.api.tfs.v1 import predict_pb2
from tiltyard.rpc import bind, create_server

pytestmark = pytest.mark.router
pytest.importorskip("tiltyard_router.core", exc_type=ImportError)

PREDICT = "/tensorflow.serving.PredictionService/Predict"
HEALTH = "/grpc.health.v1.Health/Check"
LIMIT_S = 20.0

if TYPE_CHECKING:  # generic for the type checker only
    _Handler = grpc.GenericRpcHandler[Any, Any]
else:
    _Handler = grpc.GenericRpcHandler


@dataclass
class Backend(_Handler):
    """A model server that answers with the request's own model_spec, at once or when it is let go."""

    held: asyncio.Event | None = None
    calls: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_unary_rpc_method_handler(self._predict)

    async def _predict(self, data: bytes, context: Any) -> bytes:
        self.calls += 1
        self.arrived.set()
        if self.held is not None:
            await self.held.wait()
        spec = predict_pb2.PredictRequest.FromString(data).model_spec
        return predict_pb2.PredictResponse(model_spec=spec).SerializeToString()


@asynccontextmanager
async def backend(**settings: Any) -> AsyncIterator[tuple[Backend, str]]:
    handler = Backend(**settings)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield handler, f"127.0.0.1:{port}"
    finally:
        if handler.held is not None:
            handler.held.set()
        await server.stop(None)


@dataclass
class Process:
    """A running ``tiltyard router``."""

    child: asyncio.subprocess.Process
    address: str
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    async def end(self, limit_s: float = LIMIT_S) -> int:
        return await asyncio.wait_for(self.child.wait(), limit_s)

    async def logs(self, text: str, limit_s: float = LIMIT_S) -> str:
        """The first line of the log that holds the text; waits for it."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            for line in self.log.read_text().splitlines():
                if text in line:
                    return line
            await asyncio.sleep(0.005)
        raise AssertionError(f"{text!r} is not in the log:\n{self.log.read_text()}")


async def spawn(folder: Path, *flags: str) -> tuple[asyncio.subprocess.Process, Path]:
    log = folder / "log"
    with log.open("wb") as stderr:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tiltyard", "router", "--listen", "127.0.0.1:0"),
            *("--data-dir", str(folder / "data"), *flags),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "HOME": str(folder)},
        )
    return child, log


@asynccontextmanager
async def router(folder: Path, *flags: str) -> AsyncIterator[Process]:
    child, log = await spawn(folder, *flags)
    assert child.stdout is not None
    try:
        line = (await asyncio.wait_for(child.stdout.readline(), LIMIT_S)).decode()
        match = re.fullmatch(r"tiltyard: router ready on (127\.0\.0\.1:[0-9]+)\n", line)
        assert match, (line, log.read_text())
        yield Process(child, match[1], log)
        assert await child.stdout.read() == b""  # one line, and the process has ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def refuses(folder: Path, *flags: str) -> tuple[int, str]:
    child, log = await spawn(folder, *flags)
    out, _ = await asyncio.wait_for(child.communicate(), LIMIT_S)
    assert out == b""
    assert child.returncode is not None
    return child.returncode, log.read_text()


def write_routes(path: Path, address: str, *, model: str = "m", weights: tuple[float, ...] = (1,)) -> Path:
    arms = "".join(
        f"      - {{name: a{i}, weight: {w}, model: {model}, version: {i + 1}, backends: ['{address}']}}\n"
        for i, w in enumerate(weights)
    )
    draft = path.with_suffix(".new")
    draft.write_text(f"pipelines:\n  - name: p\n    hash_key: session_id\n    arms:\n{arms}")
    draft.replace(path)
    return path


@dataclass
class Answer:
    model: str
    version: int
    arm: str
    receipt: bytes


@asynccontextmanager
async def client(address: str) -> AsyncIterator[grpc.aio.Channel]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel


async def predict(channel: grpc.aio.Channel, key: str | None = None) -> Answer:
    call: Any = channel.unary_unary(PREDICT, None, None)(
        predict_pb2.PredictRequest(model_spec=predict_pb2.ModelSpec(name="p")).SerializeToString(),
        timeout=LIMIT_S,
        metadata=() if key is None else (("session_id", key),),
    )
    spec = predict_pb2.PredictResponse.FromString(await call).model_spec
    metadata = dict(await call.initial_metadata())
    receipt = base64.urlsafe_b64decode(metadata["tiltyard-inference-id"])
    return Answer(spec.name, spec.version.value, metadata["tiltyard-arm"], receipt)


def epoch(answer: Answer) -> int:
    return int.from_bytes(answer.receipt[4:8], "big")


def signed_by(answer: Answer, secret: bytes) -> bool:
    mac = hmac.new(secret, answer.receipt[:32], hashlib.sha256).digest()[:16]
    return hmac.compare_digest(mac, answer.receipt[32:])


async def test_serves_and_ends_with_status_0_on_sigterm(tmp_path: Path) -> None:
    async with backend() as (_, address):
        flags = ("--routes", str(write_routes(tmp_path / "r.yaml", address, weights=(2, 1))))
        async with router(tmp_path, *flags) as process, client(process.address) as channel:
            answer = await predict(channel, "somebody")
            assert (answer.model, answer.arm) == ("m", f"a{answer.version - 1}")
            process.signal(signal.SIGTERM)
            assert await process.end(5) == 0
            with socket.socket() as probe:
                host, _, port = process.address.rpartition(":")
                assert probe.connect_ex((host, int(port))) != 0
        assert "Traceback" not in process.log.read_text()


async def test_ctrl_c_ends_it_too(tmp_path: Path) -> None:
    flags = ("--routes", str(write_routes(tmp_path / "r.yaml", "127.0.0.1:1")))
    async with router(tmp_path, *flags) as process:
        process.signal(signal.SIGINT)
        assert await process.end(5) == 0


async def test_the_data_folder_is_private_and_keeps_the_key_over_restarts(tmp_path: Path) -> None:
    async with backend() as (_, address):
        flags = ("--routes", str(write_routes(tmp_path / "r.yaml", address, weights=(2, 1))))
        arms = []
        for _ in range(2):
            async with router(tmp_path, *flags) as process, client(process.address) as channel:
                answers = [await predict(channel, f"key-{i}") for i in range(20)]
                secret = (tmp_path / "data" / "receipt.key").read_bytes()
                assert all(signed_by(answer, secret) for answer in answers)
                arms.append([answer.arm for answer in answers])
                process.signal(signal.SIGTERM)
                assert await process.end() == 0
        assert arms[0] == arms[1]
    data = tmp_path / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "receipt.key").stat().st_mode) == 0o600
    assert len(list((data / "counters").glob("*.counters"))) == 2


async def test_counters_of_earlier_starts_do_not_pile_up(tmp_path: Path) -> None:
    flags = ("--routes", str(write_routes(tmp_path / "r.yaml", "127.0.0.1:1")))
    counters = tmp_path / "data" / "counters"

    def age(path: Path, created: int) -> None:
        with path.open("r+b") as file:
            file.seek(40)
            file.write(created.to_bytes(8, "little"))

    async with router(tmp_path, *flags) as process:  # a file that a router left
        process.child.kill()
        await process.end()
    (left,) = counters.glob("*.counters")
    for number in range(12):
        shutil.copy(left, counters / f"{number:012x}.counters")
        age(counters / f"{number:012x}.counters", 1_000 + number)
    left.unlink()
    with (counters / f"{0:012x}.counters").open("r+b") as reported:  # waits for the outcomes service
        reported.seek(88)
        reported.write(b"\x01")
    damaged = counters / f"{12:012x}.counters"
    damaged.write_bytes(b"?")
    with (counters / f"{1:012x}.counters").open("r+b") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        async with router(tmp_path, *flags) as process:
            await process.logs("removed counters of 2 earlier starts; the newest 8 stay")
            names = {path.name for path in counters.glob("*.counters")}
            assert {f"{number:012x}.counters" for number in (0, 1, *range(4, 13))} < names
            assert len(names) == 12  # and its own
            process.signal(signal.SIGTERM)
            assert await process.end() == 0


async def test_a_given_receipt_key_signs(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("ab" * 32 + "\n")
    async with backend() as (_, address):
        flags = (
            "--routes",
            str(write_routes(tmp_path / "r.yaml", address)),
            "--receipt-key-file",
            str(tmp_path / "key"),
        )
        async with router(tmp_path, *flags) as process, client(process.address) as channel:
            assert signed_by(await predict(channel), b"\xab" * 32)
            process.signal(signal.SIGTERM)
            assert await process.end() == 0
    assert not (tmp_path / "data" / "receipt.key").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pipelines:\n  - name: p\n    arms: [{name: a}]\n", "r.yaml:3: an arm has no 'model'"),
        ("pipelines: [\n", "r.yaml:2: no valid YAML"),
        ("", "r.yaml:1: the file is empty"),
        (None, "r.yaml: cannot be read: No such file or directory"),
    ],
)
async def test_a_bad_file_at_start_is_one_line_and_status_2(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_text(text)
    status, log = await refuses(tmp_path, "--routes", str(path))
    assert status == 2
    assert log.startswith(f"tiltyard: {tmp_path}/{reason}")
    assert log.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), "either --routes FILE or --watch ADDRESS"),
        (("--routes", "r.yaml", "--watch", "127.0.0.1:1"), "either --routes FILE or --watch ADDRESS"),
        (("--routes", "r.yaml", "--loops", "2"), "this version runs one loop"),
        (("--routes", "r.yaml", "--listen", "0.0.0.0:0"), "plaintext is served on loopback only"),
        (("--routes", "r.yaml", "--listen", "nowhere"), "is not HOST:PORT"),
        (("--routes", "r.yaml", "--listen", "unix:/x"), "the router listens on TCP"),
        (("--routes", "r.yaml", "--control", "x"), "--control 'x' is neither HOST:PORT nor unix:PATH"),
        (("--routes", "r.yaml", "--outcomes-report", "x:0"), "--outcomes-report 'x:0' is neither"),
        (("--watch", "127.0.0.1:1", "--receipt-key-file", "k"), "the key comes from the control plane"),
    ],
)
async def test_flags_that_make_no_sense_are_one_line_and_status_2(
    tmp_path: Path, flags: tuple[str, ...], reason: str
) -> None:
    status, log = await refuses(tmp_path, *flags)
    assert status == 2
    assert reason in log
    assert log.count("\n") == 1
    assert not (tmp_path / "data").exists()


async def test_a_taken_port_or_a_bad_key_is_one_line_and_status_2(tmp_path: Path) -> None:
    path = write_routes(tmp_path / "r.yaml", "127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, log = await refuses(tmp_path, "--routes", str(path), "--listen", address)
    assert (status, log) == (
        2,
        f"tiltyard: --listen {address}: another process listens there; stop it, or choose another port "
        "(0 picks a free one)\n",
    )
    (tmp_path / "key").write_text("short")
    status, log = await refuses(tmp_path, "--routes", str(path), "--receipt-key-file", str(tmp_path / "key"))
    assert status == 2
    assert "this holds 5 bytes" in log
    (tmp_path / "file").write_text("")
    status, log = await refuses(tmp_path, "--routes", str(path), "--data-dir", str(tmp_path / "file" / "x"))
    assert status == 2
    assert "cannot be made" in log


async def test_sighup_puts_a_good_file_in_force_within_half_a_second(tmp_path: Path) -> None:
    async with backend() as (_, address):
        path = write_routes(tmp_path / "r.yaml", address, weights=(2, 1))
        async with router(tmp_path, "--routes", str(path)) as process, client(process.address) as channel:
            keys = [f"key-{i}" for i in range(200)]
            before = {key: await predict(channel, key) for key in keys}
            assert {epoch(answer) for answer in before.values()} == {1}

            write_routes(path, address, weights=(1, 1))
            started = time.monotonic()
            process.signal(signal.SIGHUP)
            while epoch(await predict(channel)) == 1:
                assert time.monotonic() - started < 0.5
            assert time.monotonic() - started < 0.5
            after = {key: await predict(channel, key) for key in keys}
            moved = {(before[key].arm, after[key].arm) for key in keys if before[key].arm != after[key].arm}
            assert moved == {("a0", "a1")}

            write_routes(path, address, weights=(3, 3), model="n")  # same shares, another model
            process.signal(signal.SIGHUP)
            await process.logs("routes revision 3 in force")
            last = [await predict(channel, key) for key in keys]
            assert {answer.model for answer in last} == {"n"}
            assert {epoch(answer) for answer in last} == {max(map(epoch, last))}
            assert epoch(last[0]) > epoch(next(iter(after.values())))
            assert [answer.arm for answer in last] == [after[key].arm for key in keys]
            process.signal(signal.SIGTERM)
            assert await process.end() == 0


async def test_sighup_with_a_bad_file_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    async with backend() as (_, address):
        path = write_routes(tmp_path / "r.yaml", address)
        async with router(tmp_path, "--routes", str(path)) as process, client(process.address) as channel:
            path.write_text(path.read_text() + "extra: 1\n")
            process.signal(signal.SIGHUP)
            line = await process.logs("routes refused")
            assert f"revision 1 stays in force: {path}:6: unknown key 'extra'" in line
            assert (await predict(channel)).model == "m"
            path.unlink()
            process.signal(signal.SIGHUP)
            await process.logs("cannot be read: No such file")
            assert epoch(await predict(channel)) == 1
            write_routes(path, address, model="n")
            process.signal(signal.SIGHUP)
            await process.logs("routes revision 2 in force")
            assert (await predict(channel)).model == "n"
            process.signal(signal.SIGTERM)
            assert await process.end() == 0
        assert "Traceback" not in process.log.read_text()


async def test_no_request_is_lost_over_many_reloads(tmp_path: Path) -> None:
    async with backend() as (_, address):
        path = write_routes(tmp_path / "r.yaml", address, weights=(1, 1))
        async with router(tmp_path, "--routes", str(path)) as process, client(process.address) as channel:
            stop = asyncio.Event()
            epochs: set[int] = set()
            in_force = [1]

            async def ask() -> int:
                done = 0
                while not stop.is_set():
                    epochs.add(epoch(await predict(channel)))
                    done += 1
                return done

            callers = [asyncio.create_task(ask()) for _ in range(8)]
            for n in range(2, 22):
                write_routes(path, address, weights=(n, 1))
                process.signal(signal.SIGHUP)
                await process.logs(f"routes revision {n} in force")
                now = epoch(await predict(channel))
                assert now > max(in_force)
                in_force.append(now)
            stop.set()
            assert min(await asyncio.gather(*callers)) > 0
            assert len(in_force) == 21
            assert epochs <= set(in_force)
            assert len(epochs) > 2
            process.signal(signal.SIGTERM)
            assert await process.end() == 0


async def test_sigterm_lets_calls_in_flight_finish(tmp_path: Path) -> None:
    async with backend(held=asyncio.Event()) as (model, address):
        path = write_routes(tmp_path / "r.yaml", address)
        async with router(tmp_path, "--routes", str(path)) as process, client(process.address) as channel:
            call = asyncio.create_task(predict(channel))
            await asyncio.wait_for(model.arrived.wait(), LIMIT_S)
            process.signal(signal.SIGTERM)
            await process.logs("stopping")
            done, _ = await asyncio.wait({call, asyncio.create_task(process.child.wait())}, timeout=0.3)
            assert not done
            assert model.held is not None
            model.held.set()
            assert (await call).model == "m"
            assert await process.end(5) == 0


async def test_a_second_sigterm_ends_it_within_a_second(tmp_path: Path) -> None:
    async with backend(held=asyncio.Event()) as (model, address):
        path = write_routes(tmp_path / "r.yaml", address)
        async with router(tmp_path, "--routes", str(path)) as process, client(process.address) as channel:
            call = asyncio.create_task(predict(channel))
            await asyncio.wait_for(model.arrived.wait(), LIMIT_S)
            process.signal(signal.SIGTERM)
            await process.logs("stopping")
            started = time.monotonic()
            process.signal(signal.SIGTERM)
            assert await process.end(5) == 0
            assert time.monotonic() - started < 1.0
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_drain_limit_ends_calls_that_do_not(tmp_path: Path) -> None:
    async with backend(held=asyncio.Event()) as (model, address):
        flags = ("--routes", str(write_routes(tmp_path / "r.yaml", address)), "--drain-limit", "0.5")
        async with router(tmp_path, *flags) as process, client(process.address) as channel:
            call = asyncio.create_task(predict(channel))
            await asyncio.wait_for(model.arrived.wait(), LIMIT_S)
            started = time.monotonic()
            process.signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await process.end(5) == 0
            assert 0.4 < time.monotonic() - started < 2.0


class Outcomes(counters_pb2_grpc.CounterServiceServicer):
    """Takes reports; or holds them, and answers none."""

    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers
        self.reports: list[counters_pb2.ReportCountersRequest] = []
        self.heard = asyncio.Event()

    async def ReportCounters(  # noqa: N802
        self, request: counters_pb2.ReportCountersRequest, context: Any
    ) -> counters_pb2.ReportCountersResponse:
        self.reports.append(request)
        self.heard.set()
        if not self.answers:
            await asyncio.Event().wait()
        return counters_pb2.ReportCountersResponse(sequence=request.sequence)


@asynccontextmanager
async def outcomes(folder: Path, **settings: Any) -> AsyncIterator[tuple[Outcomes, str]]:
    servicer, server = Outcomes(**settings), create_server()
    counters_pb2_grpc.add_CounterServiceServicer_to_server(servicer, server)
    address = bind(server, f"unix:{folder}/outcomes.sock")
    await server.start()
    try:
        yield servicer, address
    finally:
        await server.stop(None)


async def test_the_last_counts_are_sent_before_it_ends(tmp_path: Path) -> None:
    async with backend() as (_, address), outcomes(tmp_path) as (taken, report_to):
        path = write_routes(tmp_path / "r.yaml", address, weights=(1, 1))
        flags = ("--routes", str(path), "--outcomes-report", report_to, "--name", "router-7")
        async with router(tmp_path, *flags) as process, client(process.address) as channel:
            answers = [await predict(channel) for _ in range(20)]
            process.signal(signal.SIGTERM)
            assert await process.end(5) == 0
        last = taken.reports[-1]
        assert (last.router, last.final, last.boot_id) == ("router-7", True, answers[0].receipt[16:22])
        names = {(block.pipeline, block.deployment_uid, block.epoch) for r in taken.reports for block in r.blocks}
        assert {(pipeline, uid[:5], epoch) for pipeline, uid, epoch in names} == {("p", "file-", 1)}
        assert last.closed_through >= int.from_bytes(answers[-1].receipt[28:32], "big")
        assert list((tmp_path / "data" / "counters").iterdir()) == []


async def test_a_silent_outcomes_service_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with outcomes(tmp_path, answers=False) as (silent, report_to):
        flags = ("--routes", str(write_routes(tmp_path / "r.yaml", "127.0.0.1:1")), "--outcomes-report", report_to)
        async with router(tmp_path, *flags) as process:
            await asyncio.wait_for(silent.heard.wait(), LIMIT_S)
            process.signal(signal.SIGTERM)
            await process.logs("stopping")
            started = time.monotonic()
            process.signal(signal.SIGTERM)
            assert await process.end(5) == 0
            assert time.monotonic() - started < 1.0
        assert len(list((tmp_path / "data" / "counters").glob("*.counters"))) == 1  # for the next start


class Control(routes_pb2_grpc.RouteServiceServicer):
    """A control plane that sends one snapshot to whoever asks, and keeps what routers say."""

    def __init__(self, snapshot: routes_pb2.RouteSnapshot) -> None:
        self.snapshot = snapshot
        self.heard: asyncio.Queue[routes_pb2.WatchRoutesRequest] = asyncio.Queue()

    async def WatchRoutes(self, request_iterator: Any, context: Any) -> AsyncIterator[routes_pb2.WatchRoutesResponse]:  # noqa: N802
        yield routes_pb2.WatchRoutesResponse(snapshot=self.snapshot)
        async for request in request_iterator:
            self.heard.put_nowait(request)


async def test_routers_of_one_host_have_names_of_their_own(tmp_path: Path) -> None:
    control, server = Control(routes_pb2.RouteSnapshot(revision=1)), create_server()
    routes_pb2_grpc.add_RouteServiceServicer_to_server(control, server)
    address = bind(server, f"unix:{tmp_path}/control.sock")
    await server.start()
    hellos = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        async with router(folder, "--watch", address) as process:
            hello = await asyncio.wait_for(control.heard.get(), LIMIT_S)
            assert hello.router == f"{socket.gethostname()}:{process.address.rpartition(':')[2]}"
            assert len(hello.instance) == 16
            hellos.add((hello.router, hello.instance))
            await asyncio.wait_for(control.heard.get(), LIMIT_S)
            process.signal(signal.SIGTERM)
            assert await process.end() == 0
    assert len({name for name, _ in hellos}) == len({instance for _, instance in hellos}) == 2
    await server.stop(None)


async def test_routes_from_the_control_plane_whenever_it_is_there(tmp_path: Path) -> None:
    async with backend() as (_, address):
        snapshot = routes_pb2.RouteSnapshot(
            revision=41,
            pipelines=[
                routes_pb2.PipelineRoute(
                    pipeline="workspaces/w/pipelines/p",
                    deployment_uid="d-1",
                    request_names=["p", "w/p"],
                    salt=b"\x00" * 16,
                    epoch=9,
                    arms=[routes_pb2.ArmRoute(name="only", model="w.m", version=3, backends=[address])],
                    slots=[routes_pb2.SlotRun(end=10000, arm=0)],
                )
            ],
            receipt_keys=[routes_pb2.ReceiptKey(number=2, secret=b"s" * 32)],
        )
        control_address = f"unix:{tmp_path}/control.sock"
        flags = ("--watch", control_address, "--name", "router-7")
        async with router(tmp_path, *flags) as process, client(process.address) as channel:
            health = channel.unary_unary(HEALTH, None, None)
            assert await health(b"", timeout=LIMIT_S) == b"\x08\x02"  # NOT_SERVING: there never was a table
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await predict(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

            control = Control(snapshot)
            server = create_server()
            routes_pb2_grpc.add_RouteServiceServicer_to_server(control, server)
            bind(server, control_address)
            await server.start()
            hello = await asyncio.wait_for(control.heard.get(), LIMIT_S)
            assert (hello.router, hello.revision) == ("router-7", 0)
            ack = await asyncio.wait_for(control.heard.get(), LIMIT_S)
            assert (ack.router, ack.revision, ack.error) == ("router-7", 41, "")
            answer = await predict(channel)
            assert (answer.model, answer.version, answer.arm, epoch(answer)) == ("w.m", 3, "only", 9)
            assert signed_by(answer, b"s" * 32)
            assert answer.receipt[0] == 0x12
            assert await health(b"", timeout=LIMIT_S) == b"\x08\x01"

            await server.stop(None)
            await process.logs("route stream from unix:")
            process.signal(signal.SIGHUP)
            await process.logs("nothing to read again")
            assert (await predict(channel)).arm == "only"  # it serves on without the control plane
            process.signal(signal.SIGTERM)
            assert await process.end(5) == 0
        assert not (tmp_path / "data" / "receipt.key").exists()
