"""Route snapshots reach every router, and it is known who has taken which."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tiltyard.api.router.v1 import routes_pb2, routes_pb2_grpc
from tiltyard.control.watch import RouteHub, RouteServicer
from tiltyard.rpc import bind, create_server, open_channel
from tiltyard.testing.fake_models import eventually

END: Any = grpc.aio.EOF  # type: ignore[attr-defined]


def snapshot(revision: int) -> routes_pb2.RouteSnapshot:
    return routes_pb2.RouteSnapshot(revision=revision)


def says(router: str = "", revision: int = 0, error: str = "", instance: str = "") -> routes_pb2.WatchRoutesRequest:
    return routes_pb2.WatchRoutesRequest(router=router, revision=revision, error=error, instance=instance)


@pytest.fixture
def hub() -> RouteHub:
    return RouteHub()


@pytest.fixture
async def stub(hub: RouteHub, tmp_path: Path) -> AsyncIterator[Any]:
    server = create_server()
    routes_pb2_grpc.add_RouteServiceServicer_to_server(RouteServicer(hub), server)
    address = bind(server, f"unix:{tmp_path / 's'}")
    await server.start()
    async with open_channel(address) as channel:
        yield routes_pb2_grpc.RouteServiceStub(channel)
    hub.close()
    await server.stop(None)


async def read(call: Any) -> int:
    async with asyncio.timeout(5):
        message = await call.read()
    assert message is not END
    revision: int = message.snapshot.revision
    return revision


async def test_a_router_gets_the_snapshot_in_force_and_each_newer_one(hub: RouteHub, stub: Any) -> None:
    hub.publish(snapshot(3))
    call = stub.WatchRoutes()
    await call.write(says("r1"))
    assert await read(call) == 3
    hub.publish(snapshot(2))  # late news
    hub.publish(snapshot(4))
    assert await read(call) == 4
    for revision in range(5, 50):  # a router that falls behind skips to the newest
        hub.publish(snapshot(revision))
    got = await read(call)
    while got != 49:
        got = await read(call)
    assert hub.routers == ("r1",)
    call.cancel()
    await eventually(lambda: hub.routers == ())


async def test_waiting_for_routers(hub: RouteHub, stub: Any) -> None:
    assert await hub.wait_taken(1, 0.1) == []  # nobody is there
    hub.publish(snapshot(1))
    first, second = stub.WatchRoutes(), stub.WatchRoutes()
    for name, call in (("r1", first), ("r2", second)):
        await call.write(says(name))
        assert await read(call) == 1
    waiting = asyncio.create_task(hub.wait_taken(1, 5))
    await first.write(says("r1", 1))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await second.write(says("r2", 1, "no backends"))
    assert await waiting == ["Router 'r2' refused the new routes: no backends"]
    hub.publish(snapshot(2))
    waiting = asyncio.create_task(hub.wait_taken(2, 5))
    await first.write(says("r1", 2))
    second.cancel()  # a router that goes is waited for no longer
    assert await waiting == []
    hub.publish(snapshot(3))
    assert await hub.wait_taken(3, 0.05) == ["Router 'r1' has not taken the new routes after 0.05 s."]


async def test_a_router_that_comes_back_replaces_its_older_stream(hub: RouteHub, stub: Any) -> None:
    hub.publish(snapshot(1))
    old, new = stub.WatchRoutes(), stub.WatchRoutes()
    await old.write(says("r1"))
    assert await read(old) == 1
    await new.write(says("r1"))
    assert await read(new) == 1
    async with asyncio.timeout(5):
        assert await old.read() is END
    await new.write(says("r1", 1))
    assert await hub.wait_taken(1, 5) == []


async def test_two_routers_of_one_name_live_side_by_side(hub: RouteHub, stub: Any) -> None:
    hub.publish(snapshot(1))
    first, second = stub.WatchRoutes(), stub.WatchRoutes()
    for call, instance in ((first, "a"), (second, "b")):
        await call.write(says("r1", instance=instance))
        assert await read(call) == 1
    assert hub.routers == ("r1", "r1")
    await first.write(says("r1", 1))
    assert await hub.wait_taken(1, 0.05) == ["Router 'r1' has not taken the new routes after 0.05 s."]
    await second.write(says("r1", 1))
    assert await hub.wait_taken(1, 5) == []
    again = stub.WatchRoutes()  # the one start comes back: its older stream is ended, the other's is not
    await again.write(says("r1", instance="a"))
    assert await read(again) == 1
    async with asyncio.timeout(5):
        assert await first.read() is END
    hub.publish(snapshot(2))
    assert await read(second) == await read(again) == 2


@pytest.mark.parametrize("how", ["cancel", "close", "replaced"])
async def test_no_session_outlives_its_stream(hub: RouteHub, how: str) -> None:
    rng = random.Random(7)
    server = create_server()
    routes_pb2_grpc.add_RouteServiceServicer_to_server(RouteServicer(hub), server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    hub.publish(snapshot(1))
    for number in range(200):
        channel = open_channel(address)
        stub: Any = routes_pb2_grpc.RouteServiceStub(channel)
        call = stub.WatchRoutes()
        await call.write(says(f"r{number}"))
        assert await read(call) == 1
        if how == "cancel":
            call.cancel()
        elif how == "replaced":
            newer = stub.WatchRoutes()
            await newer.write(says(f"r{number}"))
            await asyncio.sleep(rng.random() * 0.004)  # the end of both falls into each moment of the change
        await channel.close(None)
    try:
        await eventually(lambda: hub.routers == (), 3)
        assert await hub.wait_taken(2, 0.05) == []
    finally:
        await server.stop(None)


async def test_a_stream_that_must_end_is_not_waited_for(hub: RouteHub) -> None:
    hub.publish(snapshot(1))
    hub.join("r1")  # its stream hangs: nobody takes what it sends
    waiting = asyncio.create_task(hub.wait_taken(1, 5))
    await asyncio.sleep(0.01)
    hub.answer(hub.join("r1"), 1, "")
    async with asyncio.timeout(1):
        assert await waiting == []
    assert hub.routers == ("r1",)
    hub.close()
    assert await hub.wait_taken(2, 0.05) == []


async def test_before_the_first_snapshot_a_router_just_waits(hub: RouteHub, stub: Any) -> None:
    call = stub.WatchRoutes()
    await call.write(says("r1"))
    await eventually(lambda: hub.routers == ("r1",))
    hub.publish(snapshot(9))
    assert await read(call) == 9


async def test_a_nameless_hello_is_refused(stub: Any) -> None:
    for first in ([says("")], []):
        call = stub.WatchRoutes()
        for message in first:
            await call.write(message)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_closing_ends_every_stream(hub: RouteHub, stub: Any) -> None:
    call = stub.WatchRoutes()
    await call.write(says("r1"))
    await eventually(lambda: hub.routers == ("r1",))
    hub.close()
    async with asyncio.timeout(5):
        assert await call.read() is END
