"""A real control process: deploys, weights, undeploys, restarts and kills, as model servers and routers see them."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from tiltyard.api.control.v1 import (
    deployment_pb2,
    deployment_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    workspace_pb2,
    workspace_pb2_grpc,
)
from tiltyard.api.router.v1 import routes_pb2, routes_pb2_grpc
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.rpc import open_channel
from tiltyard.testing.fake_models import FakeModelServer, eventually, saved_model_bytes, zip_bytes

SPLIT = "workspaces/default/pipelines/demo"
END: Any = grpc.aio.EOF  # type: ignore[attr-defined]


class ControlProcess:
    """``tiltyard control`` as people start it, and stubs to talk to it."""

    def __init__(self, data_dir: Path, model_servers: Sequence[str]) -> None:
        self.data_dir = data_dir
        self.socket = data_dir / "router.sock"
        self._arguments = [arg for address in model_servers for arg in ("--model-server", address)]
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""

    async def start(self) -> None:
        command = [sys.executable, "-m", "tiltyard", "control", "--listen", "127.0.0.1:0"]
        command += ["--router-listen", f"unix:{self.socket}", "--data-dir", str(self.data_dir), *self._arguments]
        self._process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            line = (await self._process.stdout.readline()).decode()
        assert line.startswith("tiltyard: control ready on 127.0.0.1:"), line
        self.address = line.rsplit(" ", 1)[1].strip()
        self.channel = open_channel(self.address)
        self.workspaces: Any = workspace_pb2_grpc.WorkspaceServiceStub(self.channel)
        self.models: Any = model_pb2_grpc.ModelServiceStub(self.channel)
        self.pipelines: Any = pipeline_pb2_grpc.PipelineServiceStub(self.channel)
        self.deployments: Any = deployment_pb2_grpc.DeploymentServiceStub(self.channel)

    async def stop(self) -> int:
        return await self._end(lambda process: process.terminate())

    async def kill(self) -> None:
        assert await self._end(lambda process: process.kill()) == -9

    async def _end(self, how: Callable[[asyncio.subprocess.Process], None]) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        how(process)
        async with asyncio.timeout(30):
            _, _ = await process.communicate()
        await self.channel.close(5.0)  # calls under way get to see why they ended
        assert process.returncode is not None
        return process.returncode

    # what people do

    async def upload(self, model: str, mark: str = "", workspace: str = "default") -> model_pb2.ModelVersion:
        archive = zip_bytes({"top/saved_model.pb": saved_model_bytes(mark=mark), "top/variables/x": b"w"})
        return await self.upload_zip(model, archive, workspace)

    async def upload_zip(self, model: str, archive: bytes, workspace: str = "default") -> model_pb2.ModelVersion:
        header = model_pb2.UploadHeader(
            parent=f"workspaces/{workspace}", model_id=model, format=model_pb2.UPLOAD_FORMAT_ZIP, file_name="m.zip"
        )

        async def parts() -> AsyncIterator[model_pb2.UploadModelRequest]:
            yield model_pb2.UploadModelRequest(header=header)
            for at in range(0, len(archive), 1 << 20):
                yield model_pb2.UploadModelRequest(chunk=archive[at : at + (1 << 20)])

        answer = await self.models.UploadModel(parts(), timeout=10)
        version: model_pb2.ModelVersion = answer.model_version
        return version

    async def pipeline(
        self, *arms: tuple[str, str, int], name: str = "demo", workspace: str = "default", key: str = "session_id"
    ) -> str:
        parent = f"workspaces/{workspace}"
        try:
            await self.pipelines.CreatePipeline(
                pipeline_pb2.CreatePipelineRequest(parent=parent, pipeline_id=name), timeout=10
            )
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.ALREADY_EXISTS  # noqa: PT017 - another version of it
        version = pipeline_pb2.PipelineVersion()
        split = version.steps.add().random_split
        split.hash_key = key
        for arm, model_version, weight in arms:
            split.arms.add(name=arm, model_version=model_version, weight=weight)
        version.metrics.add(name="main", output="main", above=0.5)
        answer = await self.pipelines.CreatePipelineVersion(
            pipeline_pb2.CreatePipelineVersionRequest(parent=f"{parent}/pipelines/{name}", pipeline_version=version),
            timeout=10,
        )
        created: str = answer.pipeline_version.name
        return created

    async def deploy(self, version: str, wait_s: int = 10, reshuffle: bool = False) -> Any:
        request = deployment_pb2.DeployPipelineRequest(
            pipeline_version=version, wait=Duration(seconds=wait_s), reshuffle=reshuffle
        )
        return await self.deployments.DeployPipeline(request, timeout=30)

    async def undeploy(self, pipeline: str = SPLIT) -> Any:
        request = deployment_pb2.UndeployPipelineRequest(pipeline=pipeline)
        return (await self.deployments.UndeployPipeline(request, timeout=30)).deployment

    async def weights(self, *weights: tuple[str, int], pipeline: str = SPLIT) -> Any:
        request = deployment_pb2.SetWeightsRequest(pipeline=pipeline)
        for arm, weight in weights:
            request.weights.add(arm=arm, weight=weight)
        return await self.deployments.SetWeights(request, timeout=30)

    async def status(self, pipeline: str = SPLIT) -> Any:
        request = deployment_pb2.GetDeploymentRequest(name=f"{pipeline}/deployment")
        return (await self.deployments.GetDeployment(request, timeout=10)).deployment

    async def demo(self) -> str:
        """Two models and a 2:1 split of them, not yet deployed."""
        champion, challenger = await self.upload("a", "one"), await self.upload("b", "two")
        return await self.pipeline(("champion", champion.name, 2), ("challenger", challenger.name, 1))


class ScriptedRouter:
    """A router's side of the route stream."""

    def __init__(self, socket: Path, name: str = "r1", acks: bool = True) -> None:
        self._socket = socket
        self._name = name
        self.acks = acks
        self.snapshots: list[routes_pb2.RouteSnapshot] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ScriptedRouter:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        async with open_channel(f"unix:{self._socket}") as channel:
            stub: Any = routes_pb2_grpc.RouteServiceStub(channel)
            call = stub.WatchRoutes()
            await call.write(routes_pb2.WatchRoutesRequest(router=self._name))
            while (message := await call.read()) is not END:
                self.snapshots.append(message.snapshot)
                if self.acks:
                    revision = message.snapshot.revision
                    await call.write(routes_pb2.WatchRoutesRequest(router=self._name, revision=revision))

    @property
    def routes(self) -> dict[str, routes_pb2.PipelineRoute]:
        """The newest routes by pipeline."""
        return {route.pipeline: route for route in self.snapshots[-1].pipelines} if self.snapshots else {}


@asynccontextmanager
async def running(data_dir: Path, *servers: str) -> AsyncIterator[ControlProcess]:
    control = ControlProcess(data_dir, servers)
    await control.start()
    try:
        yield control
    finally:
        await control.stop()


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    fake = FakeModelServer()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def control(tmp_path: Path, server: FakeModelServer) -> AsyncIterator[ControlProcess]:
    async with running(tmp_path / "data", server.address) as started:
        yield started


def slots(route: routes_pb2.PipelineRoute) -> list[tuple[int, int]]:
    return [(run.end, run.arm) for run in route.slots]


BOTH = {("default.a", 1), ("default.b", 1)}


async def fails(call: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return str(caught.value.details())


async def test_deploy_weights_undeploy(control: ControlProcess, server: FakeModelServer) -> None:
    async with ScriptedRouter(control.socket) as router:
        await eventually(lambda: len(router.snapshots) == 1)
        assert router.routes == {}
        assert len(router.snapshots[0].receipt_keys[0].secret) == 32
        version = await control.demo()

        answer = await control.deploy(version)
        assert list(answer.warnings) == []
        deployed = answer.deployment
        assert deployed.state == deployment_pb2.DEPLOYMENT_STATE_RUNNING
        assert server.available == BOTH
        assert [(arm.name, arm.weight, arm.slots) for arm in deployed.arms] == [
            ("champion", 2, 6667),
            ("challenger", 1, 3333),
        ]
        assert [b.state for arm in deployed.arms for b in arm.backends] == ["AVAILABLE"] * 2
        assert list(deployed.request_names) == ["demo", "default/demo"]
        route = router.routes[SPLIT]  # acknowledged before the deploy was answered
        assert slots(route) == [(6667, 0), (10_000, 1)]
        assert [(arm.model, arm.version, list(arm.backends)) for arm in route.arms] == [
            ("default.a", 1, [server.address]),
            ("default.b", 1, [server.address]),
        ]
        assert (route.epoch, len(route.salt), route.hash_key, route.deployment_uid) == (
            1,
            16,
            "session_id",
            deployed.uid,
        )

        changed = await control.weights(("challenger", 1), ("champion", 1))
        assert (changed.moved_slots, changed.deployment.epoch) == (1667, 2)
        assert slots(router.routes[SPLIT]) == [(5000, 0), (10_000, 1)]
        assert router.routes[SPLIT].salt == route.salt
        same = await control.weights(("challenger", 5), ("champion", 5))
        assert (same.moved_slots, same.deployment.epoch, same.deployment.arms[0].weight) == (0, 2, 5)

        taken_out = await control.undeploy()
        assert taken_out.state == deployment_pb2.DEPLOYMENT_STATE_UNDEPLOYED
        assert router.routes == {}
        assert server.available == set()
        assert (await control.undeploy()).state == deployment_pb2.DEPLOYMENT_STATE_UNDEPLOYED
        again = await control.deploy(version)
        assert (again.deployment.epoch, again.deployment.arms[0].slots) == (3, 6667)
        assert again.deployment.uid != deployed.uid
        assert router.routes[SPLIT].salt == route.salt
        await control.deploy(version, reshuffle=True)
        assert router.routes[SPLIT].salt != route.salt
        revisions = [snapshot.revision for snapshot in router.snapshots]
        assert revisions == sorted(set(revisions))
    await fails(control.weights(("champion", 1)), grpc.StatusCode.INVALID_ARGUMENT)
    await control.undeploy()
    assert "not deployed" in await fails(
        control.weights(("champion", 1), ("challenger", 1)), grpc.StatusCode.FAILED_PRECONDITION
    )
    await fails(control.status("workspaces/default/pipelines/nothing"), grpc.StatusCode.NOT_FOUND)


async def test_a_failed_deploy_leaves_what_was_in_force(control: ControlProcess, server: FakeModelServer) -> None:
    async with ScriptedRouter(control.socket) as router:
        await control.deploy(await control.demo())
        good = await control.upload("a", "one again")
        broken = await control.upload("b", "broken")
        server.failing["default.b", 2] = "variables are missing"
        second = await control.pipeline(("champion", good.name, 1), ("challenger", broken.name, 1))
        before = router.routes[SPLIT]
        why = await fails(control.deploy(second), grpc.StatusCode.FAILED_PRECONDITION)
        assert "variables are missing" in why
        status = await control.status()
        assert (status.state, status.error) == (deployment_pb2.DEPLOYMENT_STATE_RUNNING, why)
        assert router.routes[SPLIT] == before
        await eventually(lambda: server.configs[-1] == {"default.a": (1,), "default.b": (1,)})
        assert server.available >= BOTH

        server.failing.clear()  # and once it loads, the swap keeps the people on their arms
        answer = await control.deploy(second)
        assert answer.deployment.error == ""
        assert slots(router.routes[SPLIT]) == [(5000, 0), (10_000, 1)]
        assert router.routes[SPLIT].salt == before.salt
        await eventually(lambda: server.available == {("default.a", 2), ("default.b", 2)})


async def test_a_first_deploy_that_fails_is_shown_as_failed(control: ControlProcess, server: FakeModelServer) -> None:
    version = await control.demo()
    server.load_s = 30
    assert "LOADING" in await fails(control.deploy(version, wait_s=1), grpc.StatusCode.FAILED_PRECONDITION)
    status = await control.status()
    assert status.state == deployment_pb2.DEPLOYMENT_STATE_FAILED
    assert "gave up waiting" in status.error
    assert (await control.undeploy()).state == deployment_pb2.DEPLOYMENT_STATE_UNDEPLOYED


async def test_byte_identical_arms_are_an_a_a_test(control: ControlProcess) -> None:
    one, two = await control.upload("a"), await control.upload("b")
    assert one.digest == two.digest
    (warning,) = (await control.deploy(await control.pipeline(("x", one.name, 1), ("y", two.name, 1)))).warnings
    assert "A/A test" in warning


async def test_a_bare_name_belongs_to_the_first_deployed(control: ControlProcess) -> None:
    await control.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace_id="other"), timeout=10)
    a, b = await control.upload("a", "1", "other"), await control.upload("b", "2", "other")
    theirs = await control.pipeline(("x", a.name, 1), ("y", b.name, 1), workspace="other")
    await control.deploy(await control.demo())
    second = await control.deploy(theirs)
    assert list(second.deployment.request_names) == ["other/demo"]
    assert "belongs to workspaces/default/pipelines/demo" in second.warnings[0]
    await control.undeploy()
    third = await control.deploy(theirs)
    assert list(third.deployment.request_names) == ["demo", "other/demo"]
    assert list(third.warnings) == []


async def test_everything_is_there_after_a_restart(tmp_path: Path, server: FakeModelServer) -> None:
    data = tmp_path / "data"
    async with running(data, server.address) as control:
        version = await control.demo()
        deployed = (await control.deploy(version)).deployment
        await control.weights(("champion", 3), ("challenger", 1))
        async with ScriptedRouter(control.socket) as router:
            await eventually(lambda: bool(router.routes))
            before = router.snapshots[-1]
        assert await control.stop() == 0
    await server.stop()  # the model server lost its models meanwhile
    await server.start()
    async with running(data, server.address) as control, ScriptedRouter(control.socket) as router:
        await eventually(lambda: bool(router.routes))
        assert server.available == BOTH  # placed before they were published
        after = router.snapshots[-1]
        assert after.revision > before.revision
        assert list(after.pipelines) == list(before.pipelines)
        assert after.receipt_keys == before.receipt_keys
        status = await control.status()
        assert (status.uid, status.epoch, status.arms[0].slots) == (deployed.uid, 2, 7500)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "receipt.key").stat().st_mode) == 0o600


async def test_a_model_server_that_was_killed_gets_its_models_again(
    control: ControlProcess, server: FakeModelServer
) -> None:
    await control.deploy(await control.demo())
    await server.stop()
    status = await control.status()
    assert {backend.state for arm in status.arms for backend in arm.backends} == {"UNREACHABLE"}
    await server.start()
    await eventually(lambda: server.available == BOTH, timeout_s=15)


async def test_killed_while_models_are_placed_nothing_of_the_deploy_stays(
    tmp_path: Path, server: FakeModelServer
) -> None:
    control = ControlProcess(tmp_path / "data", [server.address])
    await control.start()
    try:
        await control.deploy(await control.demo())
        better = await control.upload("b", "better")
        first = (await control.status()).arms[0].model_version
        second = await control.pipeline(("champion", first, 1), ("challenger", better.name, 9))
        server.load_s = 0.5
        deploying = asyncio.create_task(control.deploy(second))
        await eventually(lambda: server.configs[-1] == {"default.a": (1,), "default.b": (1, 2)})
        await control.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await deploying
        server.load_s = 0.0
        await control.start()
        async with ScriptedRouter(control.socket) as router:
            await eventually(lambda: bool(router.routes))
            assert slots(router.routes[SPLIT]) == [(6667, 0), (10_000, 1)]
        assert (await control.status()).pipeline_version.endswith("/versions/1")
        await eventually(lambda: server.available == BOTH)
    finally:
        await control.stop()


async def test_killed_while_routers_take_the_routes_the_deploy_stands(tmp_path: Path, server: FakeModelServer) -> None:
    control = ControlProcess(tmp_path / "data", [server.address])
    await control.start()
    try:
        version = await control.demo()
        async with ScriptedRouter(control.socket, acks=False) as router:
            deploying = asyncio.create_task(control.deploy(version))
            await eventually(lambda: bool(router.routes))
            assert not deploying.done()
            seen = router.snapshots[-1]
            await control.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await deploying
        await control.start()
        async with ScriptedRouter(control.socket) as router:
            await eventually(lambda: bool(router.routes))
            assert list(router.snapshots[-1].pipelines) == list(seen.pipelines)
            assert router.snapshots[-1].revision > seen.revision
        assert (await control.status()).epoch == 1
    finally:
        await control.stop()


async def test_killed_in_an_undeploy_the_models_go_after_the_restart(tmp_path: Path, server: FakeModelServer) -> None:
    control = ControlProcess(tmp_path / "data", [server.address])
    await control.start()
    try:
        await control.deploy(await control.demo())
        async with ScriptedRouter(control.socket, acks=False) as router:
            await eventually(lambda: bool(router.routes))
            undeploying = asyncio.create_task(control.undeploy())
            await eventually(lambda: not router.routes)
            assert server.available == BOTH  # routes first
            await control.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await undeploying
        await control.start()
        assert (await control.status()).state == deployment_pb2.DEPLOYMENT_STATE_UNDEPLOYED
        await eventually(lambda: server.available == set())
    finally:
        await control.stop()


async def test_killed_in_an_upload_nothing_of_it_stays(tmp_path: Path, server: FakeModelServer) -> None:
    data = tmp_path / "data"
    control = ControlProcess(data, [server.address])
    await control.start()
    try:
        header = model_pb2.UploadHeader(
            parent="workspaces/default", model_id="half", format=model_pb2.UPLOAD_FORMAT_ZIP
        )
        call = control.models.UploadModel()
        await call.write(model_pb2.UploadModelRequest(header=header))
        await call.write(model_pb2.UploadModelRequest(chunk=b"PK" * 100))
        await eventually(lambda: bool(list((data / "staging").iterdir())))
        await control.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        await control.start()
        assert list((data / "staging").iterdir()) == []
        await fails(
            control.models.GetModel(model_pb2.GetModelRequest(name="workspaces/default/models/half"), timeout=10),
            grpc.StatusCode.NOT_FOUND,
        )
        assert (await control.upload("half")).version == 1
    finally:
        await control.stop()


async def test_a_router_that_does_not_answer_is_named(control: ControlProcess) -> None:
    version = await control.demo()
    async with ScriptedRouter(control.socket, name="sleepy", acks=False) as router:
        await eventually(lambda: bool(router.snapshots))
        answer = await control.deploy(version)
        assert "'sleepy' has not taken" in answer.warnings[0]
        assert answer.deployment.state == deployment_pb2.DEPLOYMENT_STATE_RUNNING


async def test_a_deploy_that_is_cancelled_is_rolled_back(control: ControlProcess, server: FakeModelServer) -> None:
    version = await control.demo()
    server.load_s = 0.5
    call = control.deployments.DeployPipeline(deployment_pb2.DeployPipelineRequest(pipeline_version=version))
    await eventually(lambda: bool(server.configs) and bool(server.configs[-1]))
    assert (await control.status()).state == deployment_pb2.DEPLOYMENT_STATE_DEPLOYING
    call.cancel()
    await eventually(lambda: server.configs[-1] == {})
    assert (await control.status()).state == deployment_pb2.DEPLOYMENT_STATE_UNDEPLOYED


async def test_deploys_of_two_pipelines_at_once_do_not_spoil_each_other(
    control: ControlProcess, server: FakeModelServer
) -> None:
    good, broken = await control.upload("a", "1"), await control.upload("b", "2")
    server.failing["default.b", 1] = "cut short"
    server.load_s = 0.2
    one = await control.pipeline(("x", good.name, 1), ("y", good.name, 1), name="one")
    two = await control.pipeline(("x", good.name, 1), ("y", broken.name, 1), name="two")
    first: Any
    second: Any
    first, second = await asyncio.gather(control.deploy(one), control.deploy(two), return_exceptions=True)
    assert first.deployment.state == deployment_pb2.DEPLOYMENT_STATE_RUNNING
    assert isinstance(second, grpc.aio.AioRpcError)
    assert "cut short" in str(second.details())
    await eventually(lambda: server.configs[-1] == {"default.a": (1,)})


async def test_an_undeploy_whose_caller_hangs_up_is_finished(control: ControlProcess, server: FakeModelServer) -> None:
    await control.deploy(await control.demo())
    async with ScriptedRouter(control.socket, acks=False) as router:
        await eventually(lambda: bool(router.routes))
        call = control.deployments.UndeployPipeline(deployment_pb2.UndeployPipelineRequest(pipeline=SPLIT))
        await eventually(lambda: not router.routes)
        call.cancel()
        assert server.available == BOTH
    await eventually(lambda: server.available == set())


async def test_two_control_planes_cannot_share_a_data_folder(control: ControlProcess) -> None:
    code, _, err = await cli("control", "--listen", "127.0.0.1:0", "--data-dir", str(control.data_dir))
    assert code == 1
    assert "is used by another control plane (process " in err
    assert "Traceback" not in err


async def cli(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tiltyard",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200"},
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:0"], "--insecure-listen"),
        (["--listen", "nonsense"], "is not HOST:PORT"),
        (["--router-listen", "127.0.0.1:0"], "UNIX socket"),
    ],
)
async def test_bad_flags_are_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    code, _, err = await cli("control", "--data-dir", str(tmp_path / "data"), *arguments)
    assert code == 1
    assert words in err
    assert "Traceback" not in err


async def test_the_command_line(control: ControlProcess) -> None:
    where = ("--address", control.address)
    assert "no pipelines yet" in (await cli("pipelines", *where))[1]
    version = await control.demo()
    assert "undeployed" in (await cli("pipelines", *where))[1]
    await control.deploy(version)
    code, out, _ = await cli("weights", "demo", "champion=0.9", "challenger=0.1", *where)
    assert code == 0
    assert out.splitlines() == [
        "demo: champion 9 (90 %), challenger 1 (10 %)",
        "2333 of 10000 slots moved; weight epoch 2",
    ]
    assert "champion 9 (90 %), challenger 1 (10 %)" in (await cli("pipelines", *where))[1]
    (row,) = json.loads((await cli("pipelines", *where, "--output", "json"))[1])
    assert (row["state"], row["epoch"], row["request_names"]) == ("running", 2, ["demo", "default/demo"])
    code, _, err = await cli("weights", "default/demo", "champion=1", *where)
    assert code == 1
    assert "no weight for challenger" in err
    assert (await cli("weights", "demo", "champion", *where))[0] == 2


async def test_pages(control: ControlProcess) -> None:
    for name in ("one", "two", "three"):
        await control.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace_id=name), timeout=10)
        await control.upload("m", name)
        await control.pipelines.CreatePipeline(
            pipeline_pb2.CreatePipelineRequest(parent=f"workspaces/{name}", pipeline_id="p"), timeout=10
        )

    async def pages(call: Any, request: Any, field: str) -> list[list[str]]:
        found: list[list[str]] = []
        while True:
            page = await call(request, timeout=10)
            found.append([item.name for item in getattr(page, field)])
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    listed = await pages(
        control.workspaces.ListWorkspaces, workspace_pb2.ListWorkspacesRequest(page_size=3), "workspaces"
    )
    assert listed == [["workspaces/default", "workspaces/one", "workspaces/three"], ["workspaces/two"]]
    versions = await pages(
        control.models.ListModelVersions,
        model_pb2.ListModelVersionsRequest(parent="workspaces/default/models/m", page_size=2),
        "model_versions",
    )
    assert [[name[-1] for name in page] for page in versions] == [["3", "2"], ["1"]]
    everywhere = await pages(
        control.pipelines.ListPipelines,
        pipeline_pb2.ListPipelinesRequest(parent="workspaces/-", page_size=1),
        "pipelines",
    )
    assert everywhere == [[f"workspaces/{name}/pipelines/p"] for name in ("one", "three", "two")]
    for bad in ({"page_token": "?"}, {"page_token": "eA=="}, {"page_size": -1}):
        request = pipeline_pb2.ListPipelinesRequest(parent="workspaces/-", **bad)
        await fails(control.pipelines.ListPipelines(request, timeout=10), grpc.StatusCode.INVALID_ARGUMENT)


async def test_an_uploader_that_hangs_up_leaves_nothing(control: ControlProcess) -> None:
    staging = control.data_dir / "staging"
    header = model_pb2.UploadHeader(parent="workspaces/default", model_id="half", format=model_pb2.UPLOAD_FORMAT_FOLDER)
    call = control.models.UploadModel()
    await call.write(model_pb2.UploadModelRequest(header=header))
    await call.write(model_pb2.UploadModelRequest(file=model_pb2.UploadFile(path="saved_model.pb")))
    await call.write(model_pb2.UploadModelRequest(chunk=b"half of it"))
    await eventually(lambda: bool(list(staging.iterdir())))
    call.cancel()
    await eventually(lambda: not list(staging.iterdir()))


async def test_an_unsafe_upload_is_refused_on_the_wire(control: ControlProcess) -> None:
    unsafe = zip_bytes({"saved_model.pb": saved_model_bytes(), "../evil": b"x"})
    assert "unsafe upload: '../evil'" in await fails(control.upload_zip("m", unsafe), grpc.StatusCode.INVALID_ARGUMENT)
    assert not list((control.data_dir / "staging").iterdir())
    assert not list((control.data_dir / "models").iterdir())


# the real model server

ALOHA = os.environ.get("TILTYARD_ALOHA_DIR", "")


@asynccontextmanager
async def real_model_server(port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tiltyard", "modelserver", f"--port={port}", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(90):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("tiltyard: modelserver ready on "), line
        yield process, line.rsplit(" ", 1)[1].strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def predict(address: str, model: str) -> predict_pb2.PredictResponse:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    (row,) = json.loads((Path(ALOHA) / "data-1.json").read_text())["text_input"]
    tensor = request.inputs["text_input"]
    tensor.dtype = tensor_pb2.DATA_TYPE_FLOAT
    for size in (1, len(row)):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend(row)
    async with open_channel(address) as channel:
        call: Any = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=predict_pb2.PredictRequest.SerializeToString,
            response_deserializer=predict_pb2.PredictResponse.FromString,
        )
        answer: predict_pb2.PredictResponse = await call(request, timeout=30)
        return answer


@pytest.mark.serve
@pytest.mark.aloha
@pytest.mark.skipif(not ALOHA, reason="TILTYARD_ALOHA_DIR is not set")
async def test_the_tutorials_models_on_the_real_model_server(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_serving", reason="needs the [serve] extra")
    zips = [(Path(ALOHA) / name).read_bytes() for name in ("aloha-cnn-lstm.zip", "aloha-cnn-lstm-new.zip")]
    async with real_model_server() as (process, address), running(tmp_path / "data", address) as control:
        champion = await control.upload_zip("aloha-control", zips[0])
        challenger = await control.upload_zip("aloha-challenger", zips[1])
        assert champion.digest == challenger.digest
        assert sorted(champion.signatures["serving_default"].outputs)[7] == "main"
        version = await control.pipeline(("control", champion.name, 2), ("challenger", challenger.name, 1))
        answer = await control.deploy(version, wait_s=25)
        assert "A/A test" in answer.warnings[0]
        for model in ("default.aloha-control", "default.aloha-challenger"):
            outputs = (await predict(address, model)).outputs
            assert outputs["main"].float_val[0] == pytest.approx(0.99756402, rel=1e-5)
            assert outputs["banjori"].float_val[0] == pytest.approx(0.0015195857, rel=1e-5)

        process.kill()
        await process.wait()
        async with real_model_server(int(address.rpartition(":")[2])):
            for _ in range(600):
                states = {b.state for arm in (await control.status()).arms for b in arm.backends}
                if states == {"AVAILABLE"}:
                    break
                await asyncio.sleep(0.1)
            assert states == {"AVAILABLE"}
            await predict(address, "default.aloha-control")
            await control.undeploy()
            assert "not found" in await fails(predict(address, "default.aloha-control"), grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("address", ["foo", "127.0.0.1", "127.0.0.1:0", "http://h:80", "unix:", "::1:80", ""])
async def test_what_is_no_address_of_a_model_server_is_refused_in_one_line(tmp_path: Path, address: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tiltyard", "control", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")),
        *("--model-server", "127.0.0.1:9001", "--model-server", "unix:/run/m.sock", "--model-server", address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert out == b""
    assert f"--model-server {address!r}" in err.decode()
    assert err.count(b"\n") == 1
    assert process.returncode == 1
    assert not (tmp_path / "data").exists()
