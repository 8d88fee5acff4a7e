"""The route stream's client against a scripted control plane."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from tiltyard.api.common.v1 import metric_pb2
from tiltyard.api.router.v1 import routes_pb2, routes_pb2_grpc
from tiltyard.errors import DeadlineError
from tiltyard.router.snapshot import spec_of
from tiltyard.router.spec import ArmSpec, MetricSpec, PipelineSpec, ReceiptKey, RouteSpec
from tiltyard.router.watch import Backoff, RouteWatch
from tiltyard.rpc import bind, create_server

LIMIT_S = 10.0


def snapshot(revision: int, **changes: Any) -> routes_pb2.RouteSnapshot:
    pipeline = routes_pb2.PipelineRoute(
        pipeline="workspaces/team/pipelines/aloha",
        deployment_uid="d-1",
        request_names=["aloha", "team/aloha"],
        hash_key="session_id",
        salt=b"\x00\xff",
        epoch=4,
        arms=[
            routes_pb2.ArmRoute(name="champion", model="team.a", version=1, backends=["127.0.0.1:9001", "b:1"]),
            routes_pb2.ArmRoute(name="challenger", model="team.b", version=2, backends=["127.0.0.1:9002"]),
        ],
        slots=[routes_pb2.SlotRun(end=6667, arm=0), routes_pb2.SlotRun(end=10000, arm=1)],
        metrics=[
            metric_pb2.Metric(name="main", output="main", index=3, above=0.0),
            metric_pb2.Metric(name="r", output="r"),
        ],
        timeout=Duration(seconds=1, nanos=500_000_000),
    )
    pipeline.MergeFrom(routes_pb2.PipelineRoute(**changes))
    keys = [routes_pb2.ReceiptKey(number=3, secret=b"s" * 32), routes_pb2.ReceiptKey(number=2, secret=b"o" * 32)]
    return routes_pb2.RouteSnapshot(revision=revision, pipelines=[pipeline], receipt_keys=keys)


class Control(routes_pb2_grpc.RouteServiceServicer):
    """Sends what a test tells it to, on the newest stream, and keeps what routers say."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[routes_pb2.WatchRoutesRequest] = asyncio.Queue()
        self.to_send: asyncio.Queue[routes_pb2.RouteSnapshot | None] = asyncio.Queue()
        self.streams = 0
        self.instances: list[str] = []

    async def WatchRoutes(self, request_iterator: Any, context: Any) -> AsyncIterator[routes_pb2.WatchRoutesResponse]:  # noqa: N802
        self.streams += 1

        async def listen() -> None:
            async for request in request_iterator:
                self.heard.put_nowait(request)

        listening = asyncio.create_task(listen())
        try:
            while (one := await self.to_send.get()) is not None:
                yield routes_pb2.WatchRoutesResponse(snapshot=one)
        finally:
            listening.cancel()

    async def hears(self) -> routes_pb2.WatchRoutesRequest:
        """What a router said; the instance of a hello is random and goes to ``instances``."""
        said = await asyncio.wait_for(self.heard.get(), LIMIT_S)
        if not said.revision:
            self.instances.append(said.instance)
            said.ClearField("instance")
        return said


@asynccontextmanager
async def serving(control: Control, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = create_server()
    routes_pb2_grpc.add_RouteServiceServicer_to_server(control, server)
    address = bind(server, address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


class Core:
    """Takes tables in the core's stead."""

    def __init__(self) -> None:
        self.applied: list[RouteSpec] = []
        self.fails_with: Exception | None = None

    async def apply(self, spec: RouteSpec) -> None:
        if self.fails_with is not None:
            raise self.fails_with
        self.applied.append(spec)


@asynccontextmanager
async def watching(address: str, apply: Callable[[RouteSpec], Awaitable[None]]) -> AsyncIterator[None]:
    backoff = Backoff(first_s=0.01, most_s=0.05, rng=random.Random(1))
    task = asyncio.create_task(RouteWatch(address, "router-1", apply, backoff=backoff).run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def ack(revision: int, error: str = "") -> routes_pb2.WatchRoutesRequest:
    return routes_pb2.WatchRoutesRequest(router="router-1", revision=revision, error=error)


async def test_says_hello_and_acknowledges_what_is_in_force() -> None:
    control, core = Control(), Core()
    async with serving(control) as address, watching(address, core.apply):
        assert await control.hears() == ack(0)
        for revision in (5, 6, 90):
            control.to_send.put_nowait(snapshot(revision))
            assert await control.hears() == ack(revision)
        assert [spec.revision for spec in core.applied] == [5, 6, 90]
        assert control.streams == 1


async def test_acknowledges_only_once_the_table_is_in_force() -> None:
    control, in_force, handed_over = Control(), asyncio.Event(), asyncio.Event()

    async def apply(spec: RouteSpec) -> None:
        handed_over.set()
        await in_force.wait()

    async with serving(control) as address, watching(address, apply):
        await control.hears()
        control.to_send.put_nowait(snapshot(1))
        await asyncio.wait_for(handed_over.wait(), LIMIT_S)
        assert control.heard.empty()
        in_force.set()
        assert await control.hears() == ack(1)


async def test_refuses_a_bad_snapshot_with_the_reason_and_goes_on() -> None:
    control, core = Control(), Core()
    async with serving(control) as address, watching(address, core.apply):
        await control.hears()
        control.to_send.put_nowait(snapshot(1))
        assert await control.hears() == ack(1)
        bad = snapshot(2)
        bad.pipelines[0].arms[1].backends[0] = "nowhere"
        control.to_send.put_nowait(bad)
        refusal = await control.hears()
        assert refusal.revision == 2
        assert "arm 'challenger': backend 'nowhere' is not HOST:PORT" in refusal.error
        core.fails_with = ValueError("the slots end at 9999" + "!" * 5_000)
        control.to_send.put_nowait(snapshot(3))
        refusal = await control.hears()
        assert refusal.error.startswith("the slots end at 9999")
        assert len(refusal.error) == 1_000
        core.fails_with = DeadlineError("not in force")
        control.to_send.put_nowait(snapshot(4))
        assert await control.hears() == ack(4, "not in force")
        core.fails_with = ZeroDivisionError("secret detail")
        control.to_send.put_nowait(snapshot(5))
        assert await control.hears() == ack(5, "internal error; the router's log has the detail")
        core.fails_with = None
        control.to_send.put_nowait(snapshot(5))  # what was refused may be sent again
        assert await control.hears() == ack(5)
        assert [spec.revision for spec in core.applied] == [1, 5]


async def test_an_older_revision_is_ignored_and_the_same_one_is_not_built_again() -> None:
    control, core = Control(), Core()
    async with serving(control) as address, watching(address, core.apply):
        await control.hears()
        for revision in (7, 6, 7, 8):
            control.to_send.put_nowait(snapshot(revision))
        assert [await control.hears() for _ in range(3)] == [ack(7), ack(7), ack(8)]
        assert [spec.revision for spec in core.applied] == [7, 8]


async def test_comes_back_after_the_stream_ends_or_the_control_plane_restarts() -> None:
    control, core = Control(), Core()
    async with serving(control) as address, watching(address, core.apply):
        await control.hears()
        control.to_send.put_nowait(snapshot(1))
        assert await control.hears() == ack(1)
        control.to_send.put_nowait(None)  # ends the stream with status OK
        assert await control.hears() == ack(0)
        control.to_send.put_nowait(snapshot(1))
        assert await control.hears() == ack(1)
        assert control.streams == 2
    restarted = Control()
    async with watching(address, core.apply):
        await asyncio.sleep(0.1)  # nobody is there for some attempts
        async with serving(restarted, address):
            assert await restarted.hears() == ack(0)
            restarted.to_send.put_nowait(snapshot(2))
            assert await restarted.hears() == ack(2)
    assert control.instances[0] == control.instances[1] != restarted.instances[0]
    assert all(len(instance) == 16 for instance in control.instances + restarted.instances)
    assert [spec.revision for spec in core.applied] == [1, 2]


async def test_an_outage_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tiltyard.router.watch")
    control, core = Control(), Core()
    async with serving(control) as address:
        pass
    async with watching(address, core.apply):
        await asyncio.sleep(0.1)
        async with serving(control, address):
            await control.hears()
            control.to_send.put_nowait(snapshot(1))
            await control.hears()
            # Before the control plane goes away once more.
            lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith(f"route stream from {address} lost, there are no routes yet; trying again (UNAVAILABLE")
    assert lines[1] == f"route stream from {address} is up"


async def test_a_wrong_service_there_is_tried_again() -> None:
    server = create_server()
    address = bind(server, "127.0.0.1:0")
    await server.start()
    control, core = Control(), Core()
    async with watching(address, core.apply):
        await asyncio.sleep(0.1)
        await server.stop(None)
        async with serving(control, address):
            assert await control.hears() == ack(0)


def test_pauses_double_to_a_limit_and_are_shortened_at_random() -> None:
    class Fixed(random.Random):
        part = 1.0

        def uniform(self, a: float, b: float) -> float:
            assert (a, b) == (0.5, 1.0)
            return self.part

    backoff = Backoff(rng=Fixed())
    assert [round(backoff.pause_s(), 3) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.pause_s() == 0.2
    jittered = Backoff()
    pauses = {jittered.pause_s() for _ in range(50)}
    assert len(pauses) == 50
    assert max(pauses) <= 5.0


def test_a_snapshot_becomes_the_spec_it_says() -> None:
    assert spec_of(snapshot(9)) == RouteSpec(
        revision=9,
        pipelines=(
            PipelineSpec(
                key="workspaces/team/pipelines/aloha",
                uid="d-1",
                request_names=("aloha", "team/aloha"),
                arms=(
                    ArmSpec("champion", "team.a", 1, ("127.0.0.1:9001", "b:1")),
                    ArmSpec("challenger", "team.b", 2, ("127.0.0.1:9002",)),
                ),
                slots=((6667, 0), (10000, 1)),
                epoch=4,
                hash_key="session_id",
                salt=b"\x00\xff",
                metrics=(MetricSpec("main", "main", 3, 0.0), MetricSpec("r", "r", 0, None)),
                timeout_s=1.5,
            ),
        ),
        receipt_key=ReceiptKey(3, b"s" * 32),
    )


def test_a_snapshot_without_a_receipt_key_or_with_no_time_to_answer_is_refused() -> None:
    bare = snapshot(1)
    del bare.receipt_keys[:]
    with pytest.raises(ValueError, match="0 receipt keys; a snapshot brings 1 or 2"):
        spec_of(bare)
    with pytest.raises(ValueError, match="it must be above 0"):
        spec_of(snapshot(1, timeout=Duration(seconds=-5)))
    unset = snapshot(1)
    unset.pipelines[0].ClearField("timeout")
    assert spec_of(unset).pipelines[0].timeout_s == 0.0


async def test_a_stop_that_grpc_reports_as_the_end_of_the_stream_is_a_stop() -> None:
    class Ending(RouteWatch):
        begun = asyncio.Event()

        async def _watch_once(self) -> None:
            self.begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise asyncio.InvalidStateError("RPC already finished.") from None

    watch = Ending("127.0.0.1:1", "router-1", Core().apply, backoff=Backoff(first_s=0.01, most_s=0.01))
    task = asyncio.create_task(watch.run())
    await watch.begun.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=LIMIT_S)
    assert done
    assert task.cancelled()
