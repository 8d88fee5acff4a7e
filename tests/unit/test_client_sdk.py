"""The SDK against a Tiltyard in memory: the tutorial's calls, and what happens when things go wrong."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiltyard
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.client.dtypes import by_number
from tiltyard.client.tensors import decode, encode
from tiltyard.errors import (
    AlreadyExistsError,
    DeadlineError,
    DeployError,
    FailedPreconditionError,
    InferenceError,
    InvalidArgumentError,
    ModelUploadError,
    TiltyardWarning,
    UnavailableError,
    UnsupportedError,
)
from tiltyard.object import EntityNotFoundError
from tiltyard.testing.fake_tiltyard import FakeTiltyard, saved_model

T = tensor_pb2
FLOAT, STRING, INT64 = T.DATA_TYPE_FLOAT, T.DATA_TYPE_STRING, T.DATA_TYPE_INT64
GRAPH = saved_model({"text_input": (FLOAT, (-1, 3))}, {"main": (FLOAT, (-1, 1)), "banjori": (FLOAT, (-1, 1))})
ROW = {"text_input": [[1, 2, 3]]}


def _answer(model: str, request: predict_pb2.PredictRequest) -> dict[str, T.Tensor]:
    """``main`` is the sum of each row, ``banjori`` says which model answered."""
    rows = decode(request.inputs["text_input"])
    main = rows.sum(axis=1, keepdims=True)
    banjori = np.full_like(main, 2.0 if model.endswith("challenger") else 1.0)
    return {"main": encode(main, by_number(FLOAT)), "banjori": encode(banjori, by_number(FLOAT))}


@pytest.fixture
def fake() -> Iterator[FakeTiltyard]:
    with FakeTiltyard(_answer) as fake:
        yield fake


@pytest.fixture
def wl(fake: FakeTiltyard) -> Iterator[tiltyard.Client]:
    with tiltyard.Client(fake.address, interactive=False) as client:
        yield client


@pytest.fixture
def model_zip(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "model.zip", graph: bytes = GRAPH) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("model/saved_model.pb", graph)
        return tmp_path / name

    return make


@pytest.fixture
def split(wl: tiltyard.Client, model_zip: Callable[..., Path]) -> tiltyard.Pipeline:
    control = wl.upload_model("aloha-control", model_zip()).configure("tensorflow")
    challenger = wl.upload_model("aloha-challenger", model_zip()).configure("tensorflow")
    pipeline = wl.build_pipeline("demo").add_random_split([(2, control), (1, challenger)], "session_id")
    return pipeline.deploy()


def test_the_tutorial(wl: tiltyard.Client, tmp_path: Path, model_zip: Callable[..., Path]) -> None:
    def get_workspace(name: str) -> tiltyard.Workspace:
        workspace = None
        for ws in wl.list_workspaces():
            if ws.name() == name:
                workspace = ws
        if workspace is None:
            workspace = wl.create_workspace(name)
        return workspace

    workspace = get_workspace("abtestworkspace")
    assert get_workspace("abtestworkspace") == workspace
    assert wl.set_current_workspace(workspace).name() == wl.get_current_workspace().name() == "abtestworkspace"
    control = wl.upload_model("aloha-control", str(model_zip())).configure("tensorflow")
    challenger = wl.upload_model("aloha-challenger", str(model_zip())).configure("tensorflow")
    pipeline = wl.build_pipeline("randomsplitpipeline-demo").add_random_split(
        [(2, control), (1, challenger)], "session_id"
    )
    experiment_pipeline = pipeline.deploy()
    (tmp_path / "data-1.json").write_text(json.dumps(ROW))
    result = experiment_pipeline.infer_from_file(tmp_path / "data-1.json")
    assert result[0].model() in {("aloha-control", "1"), ("aloha-challenger", "1")}
    assert [array.tolist() for array in result[0].data()][1] == [[6.0]]
    responses: list[tiltyard.InferenceResult] = []
    for nth in range(300):
        responses.extend(experiment_pipeline.infer({"text_input": [[nth, 0, 0]]}))
    names = [r.raw["model_name"] for r in responses]
    assert set(names) == {"aloha-control", "aloha-challenger"}
    assert 150 < names.count("aloha-control") < 250  # 200 expected, 8.2 a standard deviation
    assert [r.raw["outputs"][1]["Float"]["data"][0] for r in responses] == [float(nth) for nth in range(300)]
    assert experiment_pipeline.undeploy() is experiment_pipeline
    assert experiment_pipeline.status() == {"status": "Pipeline randomsplitpipeline-demo is not deployed"}


def test_a_result_shows_everything_there_is(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    (result,) = split.infer({**ROW, "session_id": "u-1"})
    name, version = result.model()
    assert (name, version) == (result.arm, "1")
    assert [array.dtype for array in result.data()] == [np.float32, np.float32]
    assert list(result.outputs()) == ["banjori", "main"]
    assert result.input_data() == {**ROW, "session_id": "u-1"}
    assert timedelta(0) < result.time_elapsed() < timedelta(seconds=10)
    assert len(result.inference_id) == 64
    raw = result.raw
    assert raw["outputs"] == [
        {"Float": {"v": 1, "dim": [1, 1], "data": [1.0 if name == "aloha-control" else 2.0]}},
        {"Float": {"v": 1, "dim": [1, 1], "data": [6.0]}},
    ]
    assert raw["pipeline_name"] == "demo"
    assert raw["check_failures"] == []
    assert raw["shadow_data"] == {}
    assert raw["original_data"] == {**ROW, "session_id": "u-1"}
    assert (raw["model_name"], raw["model_version"]) == (name, version)
    assert abs(raw["elapsed"] / 1000 - result.time_elapsed() / timedelta(microseconds=1)) < 1
    json.dumps(raw)
    seen = fake.state.seen[-1]
    assert seen.request.model_spec.name == "default/demo"
    assert seen.metadata["session_id"] == "u-1"
    assert set(seen.request.inputs) == {"text_input"}
    assert 10 < seen.remaining_s < 16.0


def test_a_key_always_gets_the_same_arm(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    for key in ("u-1", "é", 7, b"\x00"):
        assert len({result.arm for _ in range(8) for result in split.infer(ROW, key=key)}) == 1
    assert fake.state.seen[8].metadata["session_id-bin"] == "é".encode()
    assert len({split.infer(ROW, key=f"u{i}")[0].arm for i in range(40)}) == 2


def test_a_list_of_dicts_is_one_request_each(split: tiltyard.Pipeline) -> None:
    results = split.infer([{"text_input": [[i, 0, 0]]} for i in range(5)])
    assert [result.data()[1].tolist() for result in results] == [[[float(i)]] for i in range(5)]
    assert split.infer([]) == []


def test_many_rows_are_one_request(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    (result,) = split.infer({"text_input": np.ones((100_000, 3), np.float32)})
    assert result.data()[1].shape == (100_000, 1)
    assert len(fake.state.seen) == 1


def test_threads_may_ask_at_once(split: tiltyard.Pipeline) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: split.infer({"text_input": [[i, 0, 0]]})[0].data()[1].item(), range(200)))
    assert found == [float(i) for i in range(200)]


def test_a_refused_input_is_not_sent(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no input 'txt'.*text_input"):
        split.infer({"txt": [[1, 2, 3]]})
    with pytest.raises(InvalidArgumentError, match=r"element \[1\]: input 'text_input'.*missing"):
        split.infer([ROW, {"session_id": "u"}])
    assert fake.state.seen == []


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"metadata": {"grpc-timeout": "1S"}}, "'grpc-timeout' is one that"),
        ({"metadata": {"a b": "1"}}, "use letters, digits"),
        ({"timeout": 0}, "more than 0"),
        ({"timeout": -1.0}, "more than 0"),
    ],
)
def test_refused_metadata_and_timeouts_send_nothing(
    split: tiltyard.Pipeline, fake: FakeTiltyard, asked: dict[str, Any], says: str
) -> None:
    before = dict(fake.state.calls)
    with pytest.raises(InvalidArgumentError, match=says):
        split.infer(ROW, **asked)
    assert dict(fake.state.calls) == before, "not even what is deployed was asked for"


def test_metadata_that_can_be_given_once_goes_with_every_request(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    results = split.infer([ROW] * 20, metadata=iter([("session_id", "u-81")]))
    assert len({result.arm for result in results}) == 1


def test_a_failed_request_is_not_sent_again(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    fake.fail_next(
        "Predict",
        grpc.StatusCode.UNAVAILABLE,
        "arm is down",
        tiltyard_inference_id="r" * 64,
        tiltyard_arm="aloha-control",
    )
    with pytest.raises(InferenceError, match=r"\[UNAVAILABLE\] arm is down; status\(\)") as caught:
        split.infer(ROW)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert (caught.value.inference_id, caught.value.arm) == ("r" * 64, "aloha-control")
    assert fake.state.calls["Predict"] == 1
    assert split.infer(ROW)


def test_a_failure_in_the_middle_keeps_what_came_before(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    split.infer(ROW)
    original = fake.state.answer

    def answer(model: str, request: predict_pb2.PredictRequest) -> Any:
        if decode(request.inputs["text_input"])[0, 0] == 2:
            raise ValueError("boom")
        return original(model, request)

    fake.state.answer = answer
    with pytest.raises(InferenceError, match=r"request 3 of 4.*boom") as caught:
        split.infer([{"text_input": [[i, 0, 0]]} for i in range(4)])
    assert [result.data()[1].item() for result in caught.value.results] == [0.0, 1.0]
    assert len(caught.value.inference_id) == 64


def test_no_answer_in_time_says_so(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    split.infer(ROW)
    release = threading.Event()

    def answer(model: str, request: predict_pb2.PredictRequest) -> Any:
        release.wait(10)
        return _answer(model, request)

    fake.state.answer = answer
    with pytest.raises(InferenceError, match=r"within 0\.2 s, allow more with timeout=") as caught:
        split.infer(ROW, timeout=0.2)
    release.set()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_nobody_there(wl: tiltyard.Client, split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    split.infer(ROW)
    fake.close()
    with pytest.raises(InferenceError, match="nobody answers at") as caught:
        split.infer(ROW)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(UnavailableError, match=r"list workspaces: nobody answers at .*is `tiltyard up` running"):
        wl.list_workspaces()
    with pytest.raises(UnavailableError):
        split.deploy()


def test_without_the_control_plane_what_was_known_serves_on(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    split.infer(ROW)
    fake.fail_next("Predict", grpc.StatusCode.UNAVAILABLE, "a backend went away")
    with pytest.raises(InferenceError):
        split.infer(ROW)
    fake.fail_next("GetDeployment", grpc.StatusCode.UNAVAILABLE, "control is gone")
    assert split.infer(ROW)[0].data()[1].item() == 6.0


def test_another_deployment_is_noticed(wl: tiltyard.Client, split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    split.infer({**ROW, "session_id": "u"})
    assert fake.state.calls["GetDeployment"] == 1
    split.infer({**ROW, "session_id": "u"})
    assert fake.state.calls["GetDeployment"] == 1  # remembered
    other = wl.get_pipeline("demo")
    control, challenger = wl.get_model("aloha-control"), wl.get_model("aloha-challenger")
    other.replace_with_random_split(0, [(1, control), (1, challenger)], "user").deploy()
    split.infer({**ROW, "user": "u"})  # `user` was no input and no key before; looked up, not refused
    assert fake.state.seen[-1].metadata["user"] == "u"
    split.infer(ROW)
    other.set_weights([9, 1])
    calls = fake.state.calls["GetDeployment"]
    split.infer(ROW)  # its receipt is of a new epoch
    split.infer(ROW)
    split.infer(ROW)
    assert fake.state.calls["GetDeployment"] == calls + 1
    other.undeploy()
    with pytest.raises(InferenceError, match="NOT_FOUND"):
        split.infer(ROW)
    with pytest.raises(FailedPreconditionError, match=r"not deployed; call deploy\(\) first"):
        split.infer(ROW)


def test_status_shows_arms_and_model_servers(split: tiltyard.Pipeline) -> None:
    status = split.status()
    assert status["status"] == "Running"
    assert [(arm["name"], arm["weight"], arm["share"]) for arm in status["arms"]] == [
        ("aloha-control", 2, 0.6667),
        ("aloha-challenger", 1, 0.3333),
    ]
    (engine,) = status["engines"]
    assert engine["status"] == "Running"
    assert [model["name"] for model in engine["model_statuses"]["models"]] == ["aloha-control", "aloha-challenger"]
    assert engine["pipeline_statuses"] == {"pipelines": [{"id": "demo", "status": "Running"}]}
    assert status["request_names"] == ["default/demo"]


def test_weights_change_without_a_new_version(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    split.set_weights({"aloha-control": 0.9, "aloha-challenger": 0.1})
    assert [arm["weight"] for arm in split.status()["arms"]] == [9, 1]
    assert len(split.versions()) == 1
    cases: list[tuple[Any, str]] = [
        ({"aloha-control": 1}, "each of the arms"),
        ([1], "1 weights for 2"),
        ([0, 0], "all weights are 0"),
    ]
    for wrong, says in cases:
        with pytest.raises(InvalidArgumentError, match=says):
            split.set_weights(wrong)
    split.undeploy()
    with pytest.raises(FailedPreconditionError, match="not deployed"):
        split.set_weights([1, 1])


def test_warnings_of_a_deploy_are_warnings(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    fake.state.deploy_warnings = ["arms aloha-control and aloha-challenger are the same model: an A/A test"]
    with pytest.warns(TiltyardWarning, match="A/A test") as caught:
        split.deploy()
    assert caught[0].filename == __file__


def test_a_failed_deploy_says_why(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    fake.fail_next("DeployPipeline", grpc.StatusCode.FAILED_PRECONDITION, "model x did not become available")
    with pytest.raises(DeployError, match="deploy pipeline 'demo': model x did not become available"):
        split.deploy()
    with pytest.raises(InvalidArgumentError, match="no time to wait"):
        split.deploy(wait=0)


def test_a_pipeline_without_steps_is_not_deployed(wl: tiltyard.Client, split: tiltyard.Pipeline) -> None:
    with pytest.raises(FailedPreconditionError, match=r"has no steps.*get_pipeline\('demo'\)"):
        wl.build_pipeline("demo").deploy()


def test_the_same_steps_make_no_second_version(wl: tiltyard.Client, split: tiltyard.Pipeline) -> None:
    split.deploy()
    control, challenger = wl.get_model("aloha-control"), wl.get_model("aloha-challenger")
    wl.build_pipeline("demo").add_random_split([(2, control), (1, challenger)], "session_id").deploy()
    assert [version.version() for version in split.versions()] == ["1"]
    split.add_metric("main", output="main", above=0.5).deploy()
    assert [version.version() for version in split.versions()] == ["2", "1"]


def test_a_fetched_pipeline_keeps_everything(wl: tiltyard.Client, split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    """Q1: a split, its metrics and its key survive being fetched, deployed again, and rolled back to."""
    split.add_metric("main", output="main", index=0, above=0.5).deploy()
    model = wl.get_model("aloha-control")
    wl.build_pipeline("demo").add_model_step(model).deploy()
    assert [version.version() for version in split.versions()] == ["3", "2", "1"]
    old = wl.get_pipeline("demo", version=2)
    assert old.definition() == split.definition()
    assert old.metrics() == split.metrics()
    old.deploy()
    assert len(old.versions()) == 3
    deployment = fake.state.deployments[old.id()]
    assert deployment.pipeline_version.endswith("/versions/2")
    assert [arm.name for arm in deployment.arms] == ["aloha-control", "aloha-challenger"]
    assert deployment.hash_key == "session_id"
    proto = fake.state.versions[old.id()][1]
    assert [(metric.name, metric.output, metric.above) for metric in proto.metrics] == [("main", "main", 0.5)]


def test_a_fetched_pipeline_keeps_its_timeout(
    wl: tiltyard.Client, split: tiltyard.Pipeline, fake: FakeTiltyard
) -> None:
    fake.state.versions[split.id()][0].timeout.FromMilliseconds(90_500)
    fetched = wl.get_pipeline("demo")
    fetched.add_metric("main", output="main").deploy()
    assert fake.state.versions[split.id()][-1].timeout.ToMilliseconds() == 90_500


def test_lists_of_what_there_is(wl: tiltyard.Client, split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    fake.state.page_limit = 1  # pages of one, so that the tokens are followed
    wl.create_workspace("other")
    assert [workspace.name() for workspace in wl.list_workspaces()] == ["default", "other"]
    assert [model.name() for model in wl.list_models()] == ["aloha-challenger", "aloha-control"]
    assert [pipeline.name() for pipeline in wl.list_pipelines()] == ["demo"]
    assert wl.list_pipelines()[0].steps() == split.steps()
    assert wl.get_workspace("other").models() == []
    assert [version.version() for version in wl.get_model("aloha-control").versions()] == ["1"]
    assert split.deployed()


def test_every_upload_is_a_version(wl: tiltyard.Client, model_zip: Callable[..., Path]) -> None:
    first, second = wl.upload_model("m", model_zip()), wl.upload_model("m", model_zip())
    assert (first.version(), second.version()) == ("1", "2")
    assert first.sha() == second.sha()
    assert first != second
    assert wl.get_model("m") == second
    assert wl.get_model("m", 1) == wl.get_model("m", "1") == first
    assert [version.version() for version in first.versions()] == ["2", "1"]
    assert str(first.inputs()["text_input"]) == "text_input (float32, [?, 3])"
    assert list(first.outputs()) == ["banjori", "main"]
    assert (first.file_name(), first.size_bytes(), first.workspace()) == ("model.zip", len(GRAPH), "default")


def test_what_is_not_there_is_said_by_name(wl: tiltyard.Client, split: tiltyard.Pipeline) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: wl.get_workspace("nobody"), r"no workspace 'nobody'.*create_workspace\('nobody'\)"),
        (lambda: wl.get_model("nothing"), r"get model 'nothing'.*list_models\(\)"),
        (lambda: wl.get_model("aloha-control", 9), "versions/9"),
        (lambda: wl.get_pipeline("nothing"), r"get pipeline 'nothing'.*build_pipeline\('nothing'\)"),
        (lambda: wl.get_pipeline("demo", 9), "version 9 of pipeline 'demo'"),
        (split.report, "report of pipeline"),
    ]
    for call, says in calls:
        with pytest.raises(EntityNotFoundError, match=says):
            call()
    assert wl.get_workspace("nobody", create_if_not_exist=True).name() == "nobody"
    with pytest.raises(AlreadyExistsError, match="'nobody' exists already"):
        wl.create_workspace("nobody")


def test_names_that_cannot_be_are_refused_here(wl: tiltyard.Client, fake: FakeTiltyard, tmp_path: Path) -> None:
    for call in (
        lambda: wl.create_workspace("a/b"),
        lambda: wl.get_model("../x"),
        lambda: wl.upload_model("a.b", tmp_path),
        lambda: wl.build_pipeline("Upper"),
        lambda: wl.build_pipeline(""),
        lambda: wl.get_model("m", "1/x"),
        lambda: wl.report("a/b/c"),
    ):
        with pytest.raises(InvalidArgumentError, match="is no "):
            call()
    assert not fake.state.calls


def test_folders_are_uploaded_file_by_file(wl: tiltyard.Client, fake: FakeTiltyard, tmp_path: Path) -> None:
    folder = tmp_path / "served" / "1"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(GRAPH)
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(b"x" * (2 * 1024 * 1024 + 5))
    (folder / "variables" / "empty").write_bytes(b"")
    inside = wl.upload_model("m", folder)
    assert fake.state.upload_chunks == [len(GRAPH), 1024 * 1024, 1024 * 1024, 5]
    around = wl.upload_model("m", tmp_path / "served")  # TensorFlow Serving's layout: a version's folder inside
    assert inside.sha() == around.sha()
    assert inside.size_bytes() == len(GRAPH) + 2 * 1024 * 1024 + 5


def test_what_is_no_model_is_refused(wl: tiltyard.Client, fake: FakeTiltyard, tmp_path: Path) -> None:
    with pytest.raises(ModelUploadError, match="no file or folder"):
        wl.upload_model("m", tmp_path / "nothing.zip")
    with pytest.raises(ModelUploadError, match=r"holds no saved_model\.pb"):
        wl.upload_model("m", tmp_path)
    assert not fake.state.calls
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ModelUploadError, match=r"upload model 'm': no saved_model\.pb in it"):
        wl.upload_model("m", tmp_path / "empty.zip")


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("1/variables", "secrets"),
        ("1/assets/vocabulary.txt", "secrets/key"),
        ("1/assets/vocabulary.txt", "served/1/saved_model.pb"),  # inside: refused as well, as in a zip
        ("1/assets/vocabulary.txt", "nothing"),
    ],
)
def test_links_in_a_folder_are_refused_and_nothing_is_sent(
    wl: tiltyard.Client, fake: FakeTiltyard, tmp_path: Path, link: str, target: str
) -> None:
    served = tmp_path / "served"
    (served / "1" / "assets").mkdir(parents=True)
    (served / "1" / "saved_model.pb").write_bytes(GRAPH)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_bytes(b"secret")
    (served / link).symlink_to(tmp_path / target)
    for given in (served, served / "1"):
        with pytest.raises(ModelUploadError, match=rf"served/{link}' is a link, and links are not followed"):
            wl.upload_model("m", given)
    assert not fake.state.calls


def test_a_linked_graph_or_version_folder_is_refused_and_a_linked_way_to_it_is_not(
    wl: tiltyard.Client, fake: FakeTiltyard, tmp_path: Path
) -> None:
    real, by_file, by_folder = tmp_path / "real", tmp_path / "by-file", tmp_path / "by-folder"
    for folder in (real, by_file, by_folder):
        folder.mkdir()
    (real / "saved_model.pb").write_bytes(GRAPH)
    (by_file / "saved_model.pb").symlink_to(real / "saved_model.pb")
    (by_folder / "1").symlink_to(real)
    for given in (by_file, by_folder):
        with pytest.raises(ModelUploadError, match="is a link"):
            wl.upload_model("m", given)
    assert not fake.state.calls
    (tmp_path / "current").symlink_to(real)  # named by the caller, who knows where it leads
    assert wl.upload_model("m", tmp_path / "current").version() == "1"


def test_a_file_that_stops_being_readable_is_named(
    wl: tiltyard.Client, fake: FakeTiltyard, model_zip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_zip()
    real = Path.open

    def broken(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(ModelUploadError, match=r"cannot read .*model\.zip: Permission denied"):
        wl.upload_model("m", path)
    assert not fake.state.models


def test_a_model_with_one_signature_of_another_name_is_called_by_it(
    wl: tiltyard.Client, fake: FakeTiltyard, model_zip: Callable[..., Path]
) -> None:
    graph = saved_model({"text_input": (FLOAT, (-1, 3))}, {"main": (FLOAT, (-1, 1))}, key="predict")
    wl.build_pipeline("one").add_model_step(wl.upload_model("m", model_zip(graph=graph))).deploy().infer(ROW)
    assert fake.state.seen[-1].request.model_spec.signature_name == "predict"


def test_strings_in_and_out(wl: tiltyard.Client, fake: FakeTiltyard, model_zip: Callable[..., Path]) -> None:
    graph = saved_model({"text": (STRING, (-1,))}, {"same": (STRING, (-1,)), "size": (INT64, (-1,))})

    def answer(model: str, request: predict_pb2.PredictRequest) -> dict[str, T.Tensor]:
        size = np.array([len(text) for text in request.inputs["text"].string_val], np.int64)
        return {"same": request.inputs["text"], "size": encode(size, by_number(INT64))}

    fake.state.answer = answer
    pipeline = wl.build_pipeline("words").add_model_step(wl.upload_model("m", model_zip(graph=graph))).deploy()
    (result,) = pipeline.infer({"text": ["é", b"\xff"]})
    assert result.data()[0].tolist() == ["é".encode(), b"\xff"]
    assert result.raw["outputs"][0] == {"String": {"v": 1, "dim": [2], "data": ["é", "\udcff"]}}
    assert result.raw["outputs"][1] == {"Int64": {"v": 1, "dim": [2], "data": [2, 1]}}
    json.dumps(result.raw["outputs"])


def test_arms_that_take_other_inputs_are_refused(wl: tiltyard.Client, model_zip: Callable[..., Path]) -> None:
    champion = wl.upload_model("champion", model_zip())
    outputs: dict[str, tuple[int, tuple[int, ...] | None]] = {"main": (FLOAT, (-1, 1))}
    cases: list[tuple[str, dict[str, tuple[int, tuple[int, ...] | None]], str]] = [
        ("renamed", {"other": (FLOAT, (-1, 3))}, "champion takes text_input.*the arm takes other"),
        ("retyped", {"text_input": (INT64, (-1, 3))}, "has it as text_input .int64"),
        ("wider", {"text_input": (FLOAT, (-1, 3)), "more": (FLOAT, ())}, "also needs more"),
    ]
    for name, inputs, says in cases:
        challenger = wl.upload_model(name, model_zip(graph=saved_model(inputs, outputs)))
        with pytest.raises(InvalidArgumentError, match=says):
            wl.build_pipeline("p").add_random_split([(1, champion), (1, challenger)])
    default = encode(np.zeros((), np.float32), by_number(FLOAT))
    graph = saved_model({"text_input": (FLOAT, (-1, 3)), "more": (FLOAT, ())}, outputs, defaults={"more": default})
    optional = wl.upload_model("optional", model_zip(graph=graph))
    wl.build_pipeline("p").add_random_split([(1, champion), (1, optional)])


def test_other_runtimes_are_refused(wl: tiltyard.Client, model_zip: Callable[..., Path]) -> None:
    model = wl.upload_model("m", model_zip())
    assert model.configure() is model.configure("TensorFlow") is model
    with pytest.raises(UnsupportedError, match="'onnx'"):
        model.configure("onnx")


class Framework(str, Enum):  # noqa: UP042 - str() of a member is not its value, unlike StrEnum's
    """As the Wallaroo SDK has it."""

    TENSORFLOW = "tensorflow"
    ONNX = "onnx"


def test_the_framework_is_tensorflow(wl: tiltyard.Client, fake: FakeTiltyard, model_zip: Callable[..., Path]) -> None:
    path = model_zip()
    for other in ("onnx", Framework.ONNX, "", 7):
        with pytest.raises(InvalidArgumentError, match=r"^framework .*'tensorflow' only; export it as a SavedModel"):
            wl.upload_model("m", path, framework=other)  # type: ignore[arg-type]
    assert not fake.state.calls
    for given in (None, "tensorflow", "TensorFlow", Framework.TENSORFLOW):
        model = wl.upload_model("m", path, framework=given)
        assert model.configure(given) is model
    assert model.version() == "4"


CONFIGURE = (
    "tensor_fields",
    "filter_threshold",
    "input_schema",
    "output_schema",
    "batch_config",
    "dynamic_batching_config",
    "continuous_batching_config",
    "openai_config",
)


def test_wallaroos_options_of_configure_may_be_named_and_not_set(
    wl: tiltyard.Client, model_zip: Callable[..., Path]
) -> None:
    model = wl.upload_model("m", model_zip())
    assert model.configure(runtime="tensorflow", **dict.fromkeys(CONFIGURE)) is model
    for name in CONFIGURE:
        with pytest.raises(UnsupportedError, match=rf"configure\({name}='x'\) is not supported.*leave {name}= out"):
            model.configure(**{name: "x"})  # type: ignore[arg-type]


def test_wallaroos_options_of_deploy_may_be_named_and_not_set(split: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    assert split.deploy(deployment_config=None, wait_for_status=True) is split
    before = dict(fake.state.calls)
    with pytest.raises(
        UnsupportedError, match=r"deploy\(deployment_config=\{'cpus': 1\}\).*leave deployment_config= out"
    ):
        split.deploy(deployment_config={"cpus": 1})  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"wait_for_status=False\).*leave it out, and limit the time with wait="):
        split.deploy(wait_for_status=False)
    assert dict(fake.state.calls) == before


def test_a_closed_client_says_so(fake: FakeTiltyard) -> None:
    client = tiltyard.Client(fake.address)
    client.close()
    client.close()
    with pytest.raises(FailedPreconditionError, match="client was closed"):
        client.list_workspaces()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8500", "127.0.0.1", ":8500", "host:99999", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is no address"):
        tiltyard.Client(address)


def test_a_slow_control_plane_is_not_waited_for_for_ever(fake: FakeTiltyard) -> None:
    release = threading.Event()
    fake.fail_next("ListWorkspaces", grpc.StatusCode.INTERNAL, "too late", after=release)
    with tiltyard.Client(fake.address, request_timeout=0.2) as client:
        with pytest.raises(DeadlineError, match=r"list workspaces: no answer from .* within 0\.2 s"):
            client.list_workspaces()
        release.set()
