"""Model servers get what is held, and get it again when they lose it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tiltyard.control.names import ModelRef
from tiltyard.control.placement import Placement, PlacementSettings, server_config
from tiltyard.errors import DeployError
from tiltyard.testing.fake_models import FakeModelServer, eventually

A1, A2, B1 = ModelRef("w", "a", 1), ModelRef("w", "a", 2), ModelRef("w", "b", 1)
QUICK = PlacementSettings(
    watch_s=0.05,
    watch_soon_s=0.02,
    status_timeout_s=1.0,
    reload_timeout_s=2.0,
    poll_s=0.01,
    stale_s=0.3,
    retry_s=0.2,
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for ref in (A1, A2, B1):
        folder = tmp_path / ref.served_name / str(ref.version)
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"")
    return tmp_path


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    fake = FakeModelServer()
    await fake.start()
    yield fake
    await fake.stop()


@asynccontextmanager
async def placement_on(models: Path, *addresses: str, watched: bool = False) -> AsyncIterator[Placement]:
    placement = Placement(
        addresses,
        base_path=lambda name: str(models / name),
        on_disk=lambda ref: (models / ref.served_name / str(ref.version)).is_dir(),
        settings=QUICK,
    )
    watching = [asyncio.create_task(placement.watch())] if watched else []
    try:
        yield placement
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await placement.close()


def served(*refs: ModelRef) -> set[tuple[str, int]]:
    return {(ref.served_name, ref.version) for ref in refs}


def test_a_configuration_is_complete_and_names_its_versions() -> None:
    config = server_config([B1, A2, A1, A2], lambda name: f"/models/{name}")
    found = {
        model.name: (model.base_path, model.model_platform, list(model.model_version_policy.specific.versions))
        for model in config.model_config_list.config
    }
    assert found == {
        "w.a": ("/models/w.a", "tensorflow", [1, 2]),
        "w.b": ("/models/w.b", "tensorflow", [1]),
    }
    assert server_config([], str).WhichOneof("config") == "model_config_list"


async def test_what_is_held_is_placed_side_by_side_on_every_server(models: Path, server: FakeModelServer) -> None:
    second = FakeModelServer()
    await second.start()
    try:
        async with placement_on(models, server.address, second.address) as placement:
            placement.hold("one", [A1])
            placement.hold("two", [A2, B1])
            await placement.place([A1, A2, B1], 5)
            assert server.available == second.available == served(A1, A2, B1)
            placement.release("one")
            await placement.settle(5)
            assert server.available == second.available == served(A2, B1)
            assert placement.states(A2)[server.address].state == "AVAILABLE"
    finally:
        await second.stop()


async def test_a_load_that_fails_says_why_and_leaves_the_rest(models: Path, server: FakeModelServer) -> None:
    server.failing["w.a", 2] = "Op type not registered 'Foo'"
    async with placement_on(models, server.address) as placement:
        placement.hold("old", [A1])
        await placement.place([A1], 5)
        placement.hold("new", [A2])
        with pytest.raises(DeployError, match=r"cannot load workspaces/w/models/a/versions/2: Op type not registered"):
            await placement.place([A2], 5)
        placement.release("new")
        await placement.settle(5)
        assert server.available == served(A1)
        assert server.configs[-1] == {"w.a": (1,)}


async def test_a_failure_of_last_time_is_not_taken_for_one_of_this_time(models: Path, server: FakeModelServer) -> None:
    server.failing["w.a", 1] = "cut short"
    async with placement_on(models, server.address) as placement:
        placement.hold("new", [A1])
        with pytest.raises(DeployError, match="cut short"):
            await placement.place([A1], 5)
        server.failing.clear()
        await placement.place([A1], 5)
        assert server.available == served(A1)


async def test_a_refused_configuration_fails_at_once(models: Path, server: FakeModelServer) -> None:
    server.refuse = "no such platform"
    async with placement_on(models, server.address) as placement:
        placement.hold("new", [A1])
        async with asyncio.timeout(5):
            with pytest.raises(DeployError, match=r"refuses the configuration: no such platform"):
                await placement.place([A1], 60)


async def test_waiting_is_bounded(models: Path, server: FakeModelServer) -> None:
    server.load_s = 30
    async with placement_on(models, server.address) as placement:
        placement.hold("new", [A1])
        async with asyncio.timeout(5):
            with pytest.raises(DeployError, match=r"is LOADING on model server .*gave up waiting"):
                await placement.place([A1], 0.3)


async def test_a_server_that_is_not_there_is_waited_for_and_then_named(models: Path, server: FakeModelServer) -> None:
    await server.stop()
    async with placement_on(models, server.address) as placement:
        placement.hold("new", [A1])
        with pytest.raises(DeployError, match=f"is UNREACHABLE on model server {server.address}"):
            await placement.place([A1], 0.3)
        waiting = asyncio.create_task(placement.place([A1], 10))
        await asyncio.sleep(0.1)
        await server.start()
        await waiting
        assert server.available == served(A1)


async def test_without_servers_or_files_a_deploy_says_what_to_do(models: Path, server: FakeModelServer) -> None:
    async with placement_on(models) as placement:
        with pytest.raises(DeployError, match="--model-server"):
            await placement.place([A1], 1)
    gone = ModelRef("w", "gone", 1)
    async with placement_on(models, server.address) as placement:
        placement.hold("x", [gone, A1])
        with pytest.raises(DeployError, match=r"the files of workspaces/w/models/gone/versions/1 are gone"):
            await placement.place([gone], 1)
        await placement.place([A1], 5)  # what is gone does not spoil the rest
        assert server.configs[-1] == {"w.a": (1,)}


async def test_a_server_that_lost_its_models_gets_them_again(models: Path, server: FakeModelServer) -> None:
    async with placement_on(models, server.address, watched=True) as placement:
        placement.hold("one", [A1, B1])
        await eventually(lambda: server.available == served(A1, B1))
        await server.stop()
        await eventually(lambda: placement.states(A1)[server.address].state == "UNREACHABLE")
        await server.start()
        await eventually(lambda: server.available == served(A1, B1))
        placement.release("one")
        await eventually(lambda: not server.available)


async def test_a_server_that_has_everything_is_left_alone(models: Path, server: FakeModelServer) -> None:
    async with placement_on(models, server.address, watched=True) as placement:
        placement.hold("one", [A1])
        await eventually(lambda: server.available == served(A1))
        await placement.settle(5)
        count = len(server.configs)
        await asyncio.sleep(0.1)
        for _ in range(5):
            await placement.settle(5)
        assert len(server.configs) == count


async def test_a_model_that_keeps_failing_is_tried_ever_more_rarely(models: Path, server: FakeModelServer) -> None:
    server.failing["w.a", 1] = "broken"
    async with placement_on(models, server.address, watched=True) as placement:
        placement.hold("one", [A1])
        await eventually(lambda: len(server.configs) >= 2)
        for _ in range(50):
            await placement.settle(1)
        assert len(server.configs) < 10
        server.failing.clear()
        await eventually(lambda: server.available == served(A1))
