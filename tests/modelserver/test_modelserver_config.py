"""GetModelMetadata, GetModelStatus and HandleReloadConfigRequest; the life of a version."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.modelserver.conftest import Client, Gate

pytestmark = pytest.mark.serve

Refused = Callable[[Callable[[], Any]], tuple[grpc.StatusCode, str]]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
FAILED = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model name of the test's own: the server keeps the history of each name for as long as it lives."""
    return f"m-{abs(hash(request.node.name))}"


@pytest.fixture
def base(models: Path, tmp_path: Path) -> Path:
    """A base path of the test's own, empty; ``put`` fills it."""
    path = tmp_path / "base"
    path.mkdir()
    return path


@pytest.fixture
def put(models: Path, base: Path) -> Callable[..., None]:
    """Publish versions of ``plus`` in ``base``: y = x / 2 + number."""

    def publish(*numbers: int, folder: str = "{}") -> None:
        for number in numbers:
            shutil.copytree(models / "plus" / str(number), base / folder.format(number))

    return publish


@pytest.fixture(autouse=True)
def _nothing_stays_served(client: Client) -> Iterator[None]:
    yield
    client.reload()


def _states(client: Client, name: str) -> dict[int, str]:
    return {version: state for version, (state, _, _) in client.status(name).items()}


# Status.


def test_status_lists_all_versions_greatest_first(client: Client, models: Path, name: str) -> None:
    client.reload({"name": name, "base_path": models / "plus", "versions": "all"})
    for version in (1, 2, 9, 10):
        client.wait_state(name, version, "AVAILABLE")
    assert list(client.status(name).items()) == [(version, ("AVAILABLE", 0, "")) for version in (10, 9, 2, 1)]
    assert client.status(name, version=9) == {9: ("AVAILABLE", 0, "")}
    assert list(client.status(name, label="whatever")) == [10, 9, 2, 1]


def test_status_of_the_unknown_is_not_found(client: Client, models: Path, name: str, refused: Refused) -> None:
    code, text = refused(lambda: client.status(name))
    assert (code, name in text) == (NOT_FOUND, True)
    client.reload({"name": name, "base_path": models / "plus"})
    code, text = refused(lambda: client.status(name, version=77))
    assert (code, name in text, "77" in text) == (NOT_FOUND, True, True)
    empty = client.tfs.get_model_status_pb2.GetModelStatusRequest()
    assert refused(lambda: client.model.GetModelStatus(empty)) == (INVALID, "Missing ModelSpec")


def test_history_is_kept_after_the_model_has_left(client: Client, models: Path, name: str, refused: Refused) -> None:
    client.reload({"name": name, "base_path": models / "plus", "versions": [2]})
    client.reload()
    client.wait_state(name, 2, "END")
    assert client.status(name) == {2: ("END", 0, "")}
    assert refused(lambda: client.y(name))[0] is NOT_FOUND
    client.reload({"name": name, "base_path": models / "plus", "versions": [2]})
    assert client.status(name) == {2: ("AVAILABLE", 0, "")}
    assert client.y(name) == 2.5


# Metadata.


def _metadata(client: Client, name: str, *fields: str, **choice: Any) -> Any:
    request = client.tfs.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    client.spec(request.model_spec, name, **choice)
    return client.prediction.GetModelMetadata(request, timeout=30)


def test_metadata_tells_every_signature(client: Client, models: Path, name: str) -> None:
    client.reload({"name": name, "base_path": models / "many"})
    answer = _metadata(client, name, "signature_def")
    assert (answer.model_spec.name, answer.model_spec.version.value) == (name, 1)
    assert answer.model_spec.signature_name == ""
    assert answer.metadata["signature_def"].type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures = client.tfs.get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert sorted(signatures.signature_def) == ["both", "defaults", "examples", "matmul"]
    both = signatures.signature_def["both"]
    assert both.method_name == "tensorflow/serving/predict"
    assert sorted(both.outputs) == ["matmul", "product", "sum"]
    assert (both.inputs["a"].name, both.inputs["a"].dtype) == ("a:0", 1)
    assert [dim.size for dim in both.inputs["a"].tensor_shape.dim] == [-1, 2]
    assert list(signatures.signature_def["defaults"].defaults) == ["b"]


def test_metadata_keeps_an_unknown_rank(client: Client, models: Path, name: str) -> None:
    client.reload({"name": name, "base_path": models / "echo"})
    signatures = client.tfs.get_model_metadata_pb2.SignatureDefMap()
    assert _metadata(client, name, "signature_def").metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["string"].inputs["x"].tensor_shape.unknown_rank


def test_metadata_takes_a_version_or_label(client: Client, models: Path, name: str, refused: Refused) -> None:
    model = {"name": name, "base_path": models / "plus", "versions": [1, 2]}
    client.reload(model)
    client.wait_state(name, 1, "AVAILABLE")
    client.reload({**model, "version_labels": {"old": 1}})
    assert _metadata(client, name, "signature_def", label="old").model_spec.version.value == 1
    assert _metadata(client, name, "signature_def", version=2).model_spec.version.value == 2
    assert refused(lambda: _metadata(client, name, "signature_def", version=3))[0] is NOT_FOUND
    assert refused(lambda: _metadata(client, name, "signature_def", label="new"))[0] is INVALID


def test_metadata_fields_are_checked_before_the_model(client: Client, name: str, refused: Refused) -> None:
    assert refused(lambda: _metadata(client, name))[0] is INVALID
    code, text = refused(lambda: _metadata(client, name, "signature_def", "weather"))
    assert (code, "weather" in text) == (INVALID, True)
    assert refused(lambda: _metadata(client, name, "signature_def"))[0] is NOT_FOUND
    request = client.tfs.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    assert refused(lambda: client.prediction.GetModelMetadata(request)) == (INVALID, "Missing ModelSpec")


# Which versions are served.


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ({}, [10]),
        ({"latest": 0}, [10]),
        ({"latest": 1}, [10]),
        ({"latest": 3}, [10, 9, 2]),
        ({"latest": 99}, [10, 9, 2, 1]),
        ({"versions": "all"}, [10, 9, 2, 1]),
        ({"versions": [1]}, [1]),
        ({"versions": [2, 9, 5]}, [9, 2]),
    ],
    ids=str,
)
def test_the_policy_chooses_versions(
    client: Client, models: Path, request: pytest.FixtureRequest, name: str, policy: dict[str, Any], served: list[int]
) -> None:
    client.reload({"name": name, "base_path": models / "plus", **policy})
    for version in served:
        client.wait_state(name, version, "AVAILABLE")
    assert list(client.status(name)) == served
    assert client.y(name) == 0.5 + served[0]


def test_only_numbers_are_versions(client: Client, base: Path, put: Callable[..., None], name: str) -> None:
    put(2, folder="0000{}")
    put(9, folder="{}-tmp")
    put(10, folder="v{}")
    (base / "99").write_text("a file")
    (base / ("9" * 30)).mkdir()
    client.reload({"name": name, "base_path": base, "versions": "all"})
    assert _states(client, name) == {2: "AVAILABLE"}
    assert client.y(name) == 2.5


# Reload: what is refused, in which order.


def test_no_model_list_is_refused(client: Client, refused: Refused) -> None:
    messages = client.tfs.model_management_pb2
    assert refused(lambda: client.model.HandleReloadConfigRequest(messages.ReloadConfigRequest()))[0] is INVALID
    custom = messages.ReloadConfigRequest()
    custom.config.custom_model_config.SetInParent()
    assert refused(lambda: client.model.HandleReloadConfigRequest(custom))[0] is INVALID


def test_an_empty_list_unloads_everything(client: Client, models: Path, name: str) -> None:
    client.reload({"name": name, "base_path": models / "plus"})
    answer = client.reload()
    assert (answer.status.error_code, answer.status.error_message) == (0, "")
    client.wait_state(name, 10, "END")


def test_refusals_come_in_order_and_change_nothing(client: Client, models: Path, name: str, refused: Refused) -> None:
    good = {"name": name, "base_path": models / "plus", "versions": [1]}
    other = f"{name}-other"
    client.reload(good)
    duplicate = {"name": other, "base_path": models / "plus"}
    relative = {"name": f"{other}-relative", "base_path": "models/plus"}
    platform = {**good, "model_platform": "pytorch"}
    label = {**good, "version_labels": {"next": 2}}
    unsupported = {"name": f"{other}-platform", "base_path": models / "plus", "model_platform": "onnx"}
    missing = {"name": f"{other}-missing", "base_path": models / "nowhere"}
    faults: list[tuple[list[dict[str, Any]], grpc.StatusCode, str]] = [
        ([duplicate, duplicate, relative, platform, unsupported, missing], INVALID, other),
        ([duplicate, relative, platform, unsupported, missing], INVALID, "absolute"),
        ([duplicate, platform, unsupported, missing], INVALID, "pytorch"),
        ([duplicate, label, unsupported, missing], FAILED, "next"),
        ([duplicate, good, unsupported, missing], INVALID, "onnx"),
    ]
    for models_given, wanted, word in faults:
        code, text = refused(lambda given=models_given: client.reload(*given))  # type: ignore[misc]
        assert (code, word in text) == (wanted, True), text
        assert refused(lambda: client.status(other))[0] is NOT_FOUND
        assert client.status(name) == {1: ("AVAILABLE", 0, "")}
        assert client.y(name) == 1.5


@pytest.mark.parametrize("platform", ["", "onnx"])
def test_an_unsupported_platform_spoils_nothing(
    client: Client, models: Path, name: str, refused: Refused, platform: str
) -> None:
    bad = {"name": name, "base_path": models / "plus", "model_platform": platform}
    assert refused(lambda: client.reload(bad))[0] is INVALID
    client.reload({**bad, "model_platform": "tensorflow"})
    assert client.y(name) == 10.5


def test_a_nameless_model_is_refused(client: Client, models: Path, refused: Refused) -> None:
    assert refused(lambda: client.reload({"name": "", "base_path": models / "plus"}))[0] is INVALID


@pytest.mark.parametrize("fault", ["missing", "empty", "none of the versions"])
def test_a_model_that_could_never_load_fails_at_once(
    client: Client, models: Path, base: Path, name: str, refused: Refused, fault: str
) -> None:
    """TensorFlow Serving would wait for ever, holding up every later reload."""
    client.reload({"name": f"{name}-good", "base_path": models / "plus"})
    bad: dict[str, Any] = {"name": name, "base_path": base}
    if fault == "missing":
        bad["base_path"] = base / "nowhere"
    elif fault != "empty":
        bad = {"name": name, "base_path": models / "plus", "versions": [5, 6]}
    code, text = refused(lambda: client.reload({"name": f"{name}-good", "base_path": models / "plus"}, bad))
    assert code is not grpc.StatusCode.DEADLINE_EXCEEDED
    assert name in text
    assert str(bad["base_path"]) in text
    assert client.y(f"{name}-good") == 10.5
    client.reload({"name": name, "base_path": models / "plus"})
    assert client.y(name) == 10.5


def test_a_load_failure_is_told_and_leaves_the_others(
    client: Client, models: Path, name: str, refused: Refused
) -> None:
    good = {"name": f"{name}-good", "base_path": models / "plus"}
    code, text = refused(lambda: client.reload(good, {"name": name, "base_path": models / "broken"}))
    assert code is grpc.StatusCode.UNKNOWN
    assert "1 model(s) did not become available" in text
    assert name in text
    state, error_code, message = client.status(name)[1]
    assert state == "END"
    assert error_code != 0
    assert message
    assert refused(lambda: client.y(name))[0] is NOT_FOUND
    assert client.y(f"{name}-good") == 10.5


# Reload: labels.


def test_labels_follow_the_two_step_rule(client: Client, models: Path, name: str, refused: Refused) -> None:
    model = {"name": name, "base_path": models / "plus", "versions": [1, 2]}
    assert refused(lambda: client.reload({**model, "version_labels": {"stable": 1}}))[0] is FAILED
    client.reload(model)
    client.wait_state(name, 1, "AVAILABLE")
    client.reload({**model, "version_labels": {"stable": 1, "canary": 2}})
    assert (client.y(name, label="stable"), client.y(name, label="canary")) == (1.5, 2.5)
    response = client.predict(name, {"x": np.ones((1, 1), np.float32)}, label="stable")
    assert response.model_spec.version.value == 1
    assert response.model_spec.version_label == ""


def test_labels_are_replaced_as_a_whole(client: Client, models: Path, name: str, refused: Refused) -> None:
    model = {"name": name, "base_path": models / "plus", "versions": [1, 2]}
    client.reload(model)
    client.wait_state(name, 1, "AVAILABLE")
    client.reload({**model, "version_labels": {"stable": 1, "canary": 2}})
    assert refused(lambda: client.reload({**model, "version_labels": {"stable": 9}}))[0] is FAILED
    assert (client.y(name, label="stable"), client.y(name, label="canary")) == (1.5, 2.5)
    client.reload({**model, "version_labels": {"stable": 2}})
    assert client.y(name, label="stable") == 2.5
    code, text = refused(lambda: client.y(name, label="canary"))
    assert (code, "canary" in text) == (INVALID, True)


def test_a_label_outlives_its_version(client: Client, models: Path, name: str, refused: Refused) -> None:
    model = {"name": name, "base_path": models / "plus", "versions": [1, 2]}
    client.reload(model)
    client.wait_state(name, 1, "AVAILABLE")
    client.reload({"name": name, "base_path": models / "plus", "versions": [2], "version_labels": {"stable": 1}})
    client.wait_state(name, 1, "END")
    code, text = refused(lambda: client.y(name, label="stable"))
    assert (code, text) == (NOT_FOUND, f"Servable not found for request: Specific({name}, 1)")


# Reload: transitions.


def test_new_models_are_available_when_the_reload_answers(client: Client, models: Path, name: str) -> None:
    names = [f"{name}-{index}" for index in range(3)]
    client.reload(*({"name": each, "base_path": models / "plus"} for each in names))
    assert [client.y(each) for each in names] == [10.5] * 3


def test_models_that_stay_are_not_loaded_again(client: Client, models: Path, name: str) -> None:
    counter = {"name": name, "base_path": models / "counter"}
    client.reload(counter)
    assert client.predict(name).outputs["count"].int64_val[0] == 1
    client.reload(counter, {"name": f"{name}-plus", "base_path": models / "plus"})
    assert client.predict(name).outputs["count"].int64_val[0] == 2
    client.reload(counter)
    assert client.predict(name).outputs["count"].int64_val[0] == 3


def test_each_load_has_its_own_state(client: Client, models: Path, name: str) -> None:
    first, second = ({"name": f"{name}-{n}", "base_path": models / "counter"} for n in (1, 2))
    client.reload(first, second)
    assert client.predict(f"{name}-1").outputs["count"].int64_val[0] == 1
    assert client.predict(f"{name}-2").outputs["count"].int64_val[0] == 1
    client.reload(first)
    client.wait_state(f"{name}-2", 1, "END")
    client.reload(first, second)
    assert client.predict(f"{name}-1").outputs["count"].int64_val[0] == 2
    assert client.predict(f"{name}-2").outputs["count"].int64_val[0] == 1


def test_no_request_fails_while_versions_change(client: Client, models: Path, name: str) -> None:
    """Requests without a version, all the time; the model goes from 1 to 2 to 9 to 1."""
    model = {"name": name, "base_path": models / "plus"}
    client.reload({**model, "versions": [1]})
    done = threading.Event()

    def call() -> set[float]:
        seen = set()
        while not done.is_set():
            seen.add(client.y(name))
        return seen

    with ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(call) for _ in range(3)]
        try:
            for before, after in ((1, 2), (2, 9), (9, 1)):
                client.reload({**model, "versions": [after]})
                client.wait_state(name, after, "AVAILABLE")
                client.wait_state(name, before, "END")
        finally:
            done.set()
        seen = set().union(*(caller.result() for caller in callers))
    assert seen <= {1.5, 2.5, 9.5}
    assert client.y(name) == 1.5


def test_a_failed_new_version_leaves_the_old_one(
    client: Client, base: Path, put: Callable[..., None], name: str
) -> None:
    put(1)
    client.reload({"name": name, "base_path": base})
    (base / "3").mkdir()
    client.reload({"name": name, "base_path": base})
    client.wait_state(name, 3, "END")
    assert client.status(name)[3][1] != 0
    assert client.y(name) == 1.5


def test_a_new_version_on_disk_is_found_by_the_next_reload(
    client: Client, base: Path, put: Callable[..., None], name: str
) -> None:
    put(9)
    client.reload({"name": name, "base_path": base})
    put(10)
    client.reload({"name": name, "base_path": base})
    client.wait_state(name, 10, "AVAILABLE")
    client.wait_state(name, 9, "END")
    assert client.y(name) == 10.5


def test_without_its_folder_a_model_stays(client: Client, base: Path, put: Callable[..., None], name: str) -> None:
    put(1)
    client.reload({"name": name, "base_path": base})
    shutil.rmtree(base)
    client.reload({"name": name, "base_path": base})
    assert client.y(name) == 1.5


def test_requests_in_flight_finish_while_their_version_unloads(
    client: Client, models: Path, name: str, gate: Gate, refused: Refused
) -> None:
    model = {"name": name, "base_path": models / "gate"}
    client.reload({**model, "versions": [1]})
    held = client.prediction.Predict.future(client.request(name, gate.inputs), timeout=60)
    gate.wait_started()
    client.reload({**model, "versions": [2]})
    client.wait_state(name, 2, "AVAILABLE")
    client.wait_state(name, 1, "UNLOADING")
    code, text = refused(lambda: client.predict(name, gate.inputs, version=1))
    assert (code, text) == (NOT_FOUND, f"Servable not found for request: Specific({name}, 1)")
    assert not held.done()
    gate.open()
    assert held.result().model_spec.version.value == 1
    client.wait_state(name, 1, "END")
    assert client.status(name) == {2: ("AVAILABLE", 0, ""), 1: ("END", 0, "")}


def test_a_version_may_come_back_while_its_last_life_ends(client: Client, models: Path, name: str, gate: Gate) -> None:
    model = {"name": name, "base_path": models / "gate", "versions": [1]}
    client.reload(model)
    held = client.prediction.Predict.future(client.request(name, gate.inputs), timeout=60)
    gate.wait_started()
    client.reload()
    client.wait_state(name, 1, "UNLOADING")
    client.reload(model)
    client.wait_state(name, 1, "AVAILABLE")
    gate.open()
    assert held.result().model_spec.version.value == 1
    assert client.predict(name, gate.inputs).outputs["turns"].int_val[0] == 0
    assert client.status(name) == {1: ("AVAILABLE", 0, "")}


def test_reloads_at_once_are_done_one_after_another(client: Client, models: Path, name: str) -> None:
    def reload(version: int) -> None:
        client.reload({"name": name, "base_path": models / "plus", "versions": [version]})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(reload, (1, 2, 9, 10)))
    reload(2)
    client.wait_state(name, 2, "AVAILABLE")
    for version in (1, 9, 10):
        if client.state(name, version):
            client.wait_state(name, version, "END")
    assert client.y(name) == 2.5


def test_a_reload_goes_on_when_its_caller_has_left(client: Client, models: Path, name: str) -> None:
    call = client.model.HandleReloadConfigRequest.future(
        client.config(*({"name": f"{name}-{n}", "base_path": models / "plus", "versions": "all"} for n in range(4)))
    )
    client.wait_state(f"{name}-0", 10, "AVAILABLE")
    call.cancel()
    for index in range(4):
        client.wait_state(f"{name}-{index}", 1, "AVAILABLE")
