"""The tutorial, call by call, with its own models, through the real parts: ``tiltyard up`` and the SDK."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiltyard
from tiltyard.client.pipelines import Pipeline
from tiltyard.client.results import ResultList
from tiltyard.testing.cluster import Cluster, health, start_up, wait_until

pytestmark = [pytest.mark.aloha, pytest.mark.router, pytest.mark.serve, pytest.mark.timeout(300)]

ALOHA = Path(os.environ.get("TILTYARD_ALOHA_DIR") or "/nonexistent")
if not (ALOHA / "aloha-cnn-lstm.zip").exists():
    pytest.skip("TILTYARD_ALOHA_DIR does not name the tutorial's models", allow_module_level=True)

PIPELINE = "randomsplitpipeline-demo"
FIRST_ROW = {"banjori": 0.0015195857, "corebot": 0.98291481, "main": 0.99756402, "suppobox": 1.3889951e-27}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with start_up(tmp_path_factory.mktemp("tutorial")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    data = json.loads((ALOHA / "test_data.json").read_text())
    assert isinstance(data, list)
    assert len(data) == 1000
    return data


@pytest.fixture(scope="module")
def experiment(up: Cluster) -> Iterator[Pipeline]:
    """The tutorial's set-up, as it is written there."""
    with tiltyard.Client(up.address) as wl:

        def get_workspace(name: str) -> Any:
            workspace = None
            for ws in wl.list_workspaces():
                if ws.name() == name:
                    workspace = ws
            if workspace is None:
                workspace = wl.create_workspace(name)
            return workspace

        workspace = get_workspace("abtestworkspace")
        wl.set_current_workspace(workspace)
        assert wl.get_current_workspace().name() == "abtestworkspace"
        control = wl.upload_model("aloha-control", str(ALOHA / "aloha-cnn-lstm.zip")).configure("tensorflow")
        challenger = wl.upload_model("aloha-challenger", str(ALOHA / "aloha-cnn-lstm-new.zip")).configure("tensorflow")
        pipeline = wl.build_pipeline(PIPELINE).add_random_split([(2, control), (1, challenger)], "session_id")
        pipeline.add_metric("main", output="main", above=0.5)
        with pytest.warns(tiltyard.TiltyardWarning, match="A/A"):  # the two models are byte-identical
            experiment_pipeline = pipeline.deploy()
        yield experiment_pipeline
        experiment_pipeline.undeploy()
        assert experiment_pipeline.status() == {"status": f"Pipeline {PIPELINE} is not deployed"}


def test_a_single_inference_gives_the_tutorials_numbers(experiment: Pipeline) -> None:
    names: set[str] = set()
    for _ in range(12):  # all of one arm: 1 in 130 for the champion; either arm must give the same numbers
        results = experiment.infer_from_file(str(ALOHA / "data-1.json"))
        result = results[0]
        names.add(result.model()[0])
        outputs = result.raw["outputs"]
        assert len(outputs) == len(result.data()) == 15
        alphabetical = {"banjori": 0, "corebot": 1, "main": 7, "suppobox": 14}
        for name, index in alphabetical.items():
            assert outputs[index]["Float"]["data"][0] == pytest.approx(FIRST_ROW[name], rel=1e-5)
            assert result.data()[index].shape == (1, 1)
        assert len(result.inference_id) == 64
        assert result.arm == result.model()[0] == result.raw["model_name"]
        assert result.time_elapsed().total_seconds() > 0
    assert names <= {"aloha-control", "aloha-challenger"}


def test_a_thousand_rows_are_answered_and_split_two_to_one(experiment: Pipeline, rows: list[dict[str, Any]]) -> None:
    responses: list[Any] = []
    for nth in range(1000):
        responses.extend(experiment.infer(rows[nth]))
    assert len(responses) == 1000
    assert sum(r.raw["outputs"][7]["Float"]["data"][0] > 0.5 for r in responses) == 977
    counts = Counter(r.raw["model_name"] for r in responses)
    assert set(counts) == {"aloha-control", "aloha-challenger"}
    share = counts["aloha-challenger"] / 1000
    assert abs(share - 1 / 3) < 4 * math.sqrt((1 / 3) * (2 / 3) / 1000)


def test_a_session_keeps_its_arm_also_after_a_router_restart(
    up: Cluster, experiment: Pipeline, rows: list[dict[str, Any]]
) -> None:
    def arms() -> dict[str, str]:
        return {f"user-{n}": one(experiment.infer({**rows[n], "session_id": f"user-{n}"})).arm for n in range(60)}

    first = arms()
    assert set(first.values()) == {"aloha-control", "aloha-challenger"}
    assert arms() == first
    old = up.kill_child("router")
    up.wait_new_child("router", old)
    wait_until(lambda: health(up.address) == "SERVING", "the router serves again")
    assert arms() == first
    by_argument = {key: one(experiment.infer(rows[0], key=key)).arm for key in first}
    assert by_argument == first


def one(results: ResultList) -> Any:
    assert len(results) == 1
    return results[0]


def test_three_thousand_rows_in_one_request(experiment: Pipeline, rows: list[dict[str, Any]]) -> None:
    batch = {"text_input": [rows[n % 1000]["text_input"][0] for n in range(3000)]}
    result = one(experiment.infer(batch, timeout=60.0))
    main = result.data()[7]
    assert main.shape == (3000, 1)
    assert int((main > 0.5).sum()) == 3 * 977


def test_the_report_counts_every_request(experiment: Pipeline, rows: list[dict[str, Any]]) -> None:
    before = at_rest(experiment)
    for nth in range(50):
        experiment.infer(rows[nth])
    wait_until(lambda: assigned(experiment) >= before + 50, "the report has the new requests")
    assert at_rest(experiment) == before + 50


def assigned(experiment: Pipeline) -> int:
    return sum(arm.live.assigned for arm in experiment.report().arms)


def at_rest(experiment: Pipeline) -> int:
    """Requests assigned, once two reports that are more than one reporting interval apart say the same."""
    seen: list[tuple[float, int]] = []

    def same() -> bool:
        now = time.monotonic()
        seen.append((now, assigned(experiment)))
        return any(count == seen[-1][1] and now - then > 2.5 for then, count in seen) and all(
            count == seen[-1][1] for then, count in seen if now - then <= 2.5
        )

    wait_until(same, "the counts are at rest")
    return seen[-1][1]


CLIENT = """
import json, sys
import grpc
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

address, name, rows = sys.argv[1], sys.argv[2], json.load(sys.stdin)
stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))
answers = []
for row in rows:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    tensor = request.inputs["text_input"]
    tensor.dtype = types_pb2.DT_FLOAT
    for size in (1, 50):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend(row["text_input"][0])
    answer = stub.Predict(request, timeout=15)
    answers.append([answer.model_spec.name, {k: v.float_val[0] for k, v in answer.outputs.items()}])
print(json.dumps(answers))
"""


def test_an_unchanged_tensorflow_serving_client_gets_the_same_answers(
    up: Cluster, experiment: Pipeline, rows: list[dict[str, Any]]
) -> None:
    """tensorflow-serving-api's own stubs, in a process of their own."""
    ran = subprocess.run(
        [sys.executable, "-c", CLIENT, up.address, PIPELINE],
        input=json.dumps(rows[:10]), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout.splitlines()[-1])
    assert {name for name, _ in answers} <= {"abtestworkspace.aloha-control", "abtestworkspace.aloha-challenger"}
    for name, value in FIRST_ROW.items():
        assert answers[0][1][name] == pytest.approx(value, rel=1e-5)
    for (_, outputs), row in zip(answers, rows, strict=False):
        ours = one(experiment.infer(row))
        assert len(outputs) == 15
        for (_, theirs), mine in zip(sorted(outputs.items()), ours.data(), strict=True):
            assert theirs == pytest.approx(float(mine[0, 0]), rel=1e-5, abs=1e-30)
