"""How objects show themselves, what slow calls print, what importing costs, and the report command."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tiltyard
from click.testing import CliRunner
from tiltyard.api.outcomes.v1 import outcome_pb2
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.cli.report_cmd import command as report_command
from tiltyard.client.dtypes import by_number
from tiltyard.client.progress import Progress
from tiltyard.client.tables import TableList, html_table, text_table
from tiltyard.client.tensors import encode
from tiltyard.errors import EntityNotFoundError, InvalidArgumentError
from tiltyard.testing.fake_tiltyard import FakeTiltyard, saved_model

FLOAT = tensor_pb2.DATA_TYPE_FLOAT


def _answer(model: str, request: predict_pb2.PredictRequest) -> dict[str, tensor_pb2.Tensor]:
    return {"<y>": encode(np.array([[0.5]], np.float32), by_number(FLOAT))}


@pytest.fixture
def fake() -> Iterator[FakeTiltyard]:
    with FakeTiltyard(_answer) as fake:
        yield fake


@pytest.fixture
def pipeline(fake: FakeTiltyard, tmp_path: Path) -> Iterator[tiltyard.Pipeline]:
    (tmp_path / "saved_model.pb").write_bytes(saved_model({"x": (FLOAT, (-1, 1))}, {"<y>": (FLOAT, (-1, 1))}))
    with tiltyard.Client(fake.address, interactive=False) as wl:
        arms = [(2, wl.upload_model("a", tmp_path)), (1, wl.upload_model("b", tmp_path))]
        yield wl.build_pipeline("p").add_random_split(arms, "user").deploy()


def _report() -> outcome_pb2.Report:
    report = outcome_pb2.Report(pipeline="workspaces/default/pipelines/p", deployment_uid="d1", boots=1)
    report.report_time.FromSeconds(1_700_000_000)
    for name, assigned, ok, total in (("a", 100, 97, 48.5), ("b", 51, 50, 40.0)):
        arm = report.arms.add(arm=name, lost=1)
        arm.live.assigned, arm.live.completed = assigned, assigned - 1
        arm.live.statuses[0] = ok
        if assigned - 1 - ok:
            arm.live.statuses[14] = assigned - 1 - ok
        metric = arm.live.metrics.add(metric="main", scored=ok, sum=total, sum_of_squares=total)
        metric.unscored["error"] = assigned - 1 - ok
    return report


def test_cells_are_escaped() -> None:
    shown = html_table(["<h>"], [["<script>alert(1)</script>"], [None]])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "&lt;h&gt;" in shown
    assert "None" not in shown


def test_lists_are_lists_with_a_table() -> None:
    found = TableList([1, 2], ["n", "square"], lambda n: (n, n * n))
    assert found == [1, 2]
    assert isinstance(found, list)
    assert found._repr_html_() == (
        "<table><tr><th>n</th><th>square</th></tr><tr><td>1</td><td>1</td></tr><tr><td>2</td><td>4</td></tr></table>"
    )


def test_numbers_stand_to_the_right() -> None:
    assert text_table(["arm", "n"], [["a", 5], ["long", 100]]) == "arm     n\na       5\nlong  100"


def test_everything_shows_itself(pipeline: tiltyard.Pipeline) -> None:
    wl = pipeline._client
    workspace = wl.get_current_workspace()
    assert repr(workspace).startswith("{'name': 'default', 'id': 1, 'created_at': '20")
    assert repr(workspace).endswith("'models': ['a', 'b'], 'pipelines': ['p']}")
    card = pipeline._repr_html_()
    for part in ("<th>deployed</th><td>True</td>", "<th>versions</th><td>1</td>", "random split by user: a 2, b 1"):
        assert part in card
    assert "<th>deployed</th><td>False</td>" in pipeline.undeploy()._repr_html_()
    pipeline.deploy()
    results = pipeline.infer([{"x": [[1]]}, {"x": [[2]]}])
    assert "&lt;y&gt;" in results[0]._repr_html_()
    assert "&lt;y&gt;: 0.5" in results._repr_html_()
    for shown in (wl.list_models(), wl.list_workspaces(), wl.list_pipelines(), pipeline.versions(), wl.get_model("a")):
        assert shown._repr_html_().startswith("<table>")
    assert repr(wl) == f"tiltyard.Client({wl._connection.address!r})"
    assert "aloha" not in repr(results[0])
    assert repr(results[0]).startswith("InferenceResult(model=")


def test_showing_an_object_needs_nobody(pipeline: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    workspace = pipeline._client.get_current_workspace()
    fake.close()
    assert repr(workspace).startswith("{'name': 'default'")
    assert "<td>p</td>" in pipeline._repr_html_()


def test_short_calls_say_nothing_and_long_ones_one_line() -> None:
    now = [0.0]
    out = io.StringIO()
    progress = Progress("upload model 'm'", out=out, state=lambda: "1.0 of 2.0 MB", clock=lambda: now[0])
    progress.draw()
    progress.finish("ok")
    assert out.getvalue() == ""
    now[0] = 2.1
    progress.draw()
    now[0] = 3.0
    progress.finish("ok")
    assert out.getvalue() == "\rupload model 'm': 1.0 of 2.0 MB\rupload model 'm': ok           \n"


def test_a_slow_deploy_shows_that_it_goes_on(
    pipeline: tiltyard.Pipeline, fake: FakeTiltyard, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    fake.fail_next("UndeployPipeline", grpc.StatusCode.NOT_FOUND, "gone", after=release)
    connection = pipeline._client._connection
    connection._interactive = True
    timer = threading.Timer(2.5, release.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(EntityNotFoundError, match="undeploy pipeline 'p': gone"):
        pipeline.undeploy()
    timer.join()
    assert 2.4 < time.monotonic() - start < 9
    shown = capsys.readouterr().err
    assert "\rundeploy pipeline 'p': 2 s" in shown
    assert shown.rstrip(" \n").endswith("undeploy pipeline 'p': failed")


def test_the_report_shows_each_arm(pipeline: tiltyard.Pipeline, fake: FakeTiltyard) -> None:
    fake.state.reports["workspaces/default/pipelines/p"] = _report()
    report = pipeline.report()
    assert [arm.name for arm in report.arms] == ["a", "b"]
    live = report.arms[0].live
    assert (live.assigned, live.completed, live.ok, live.failed) == (100, 99, 97, 2)
    assert live.statuses == {"OK": 97, "UNAVAILABLE": 2}
    (metric,) = live.metrics
    assert (metric.mean, metric.scored, metric.unscored) == (0.5, 97, {"error": 2})
    assert metric.deviation == pytest.approx((97 / 4 / 96) ** 0.5)
    assert report.closed_through is None
    assert str(report).splitlines() == [
        "arm  assigned  answered  failed  in flight  main (mean)  unscored",
        "a         100        97       2          1       0.5000         2",
        "b          51        50       0          1       0.8000         0",
    ]
    assert "<td>0.5000</td>" in report._repr_html_()
    assert pipeline.deploy().undeploy().report() == report  # of the last deployment when none is in force
    with pytest.raises(EntityNotFoundError):  # what was counted of another deployment is not this one's
        pipeline.deploy().report()
    assert json.loads(json.dumps(report.to_dict()))["arms"][1]["live"]["assigned"] == 51
    assert pipeline._client.report("default/p").pipeline == report.pipeline
    with pytest.raises(EntityNotFoundError):
        pipeline._client.report("p")  # no workspace was set: a plain name is for the outcomes service to know


def test_the_report_command(fake: FakeTiltyard) -> None:
    fake.state.reports["p"] = _report()
    run = CliRunner()
    table = run.invoke(report_command, ["p", "--address", fake.address])
    assert table.exit_code == 0
    assert "0.5000" in table.output
    as_json = run.invoke(report_command, ["p", "--address", fake.address, "--output", "json"])
    assert json.loads(as_json.output)["arms"][0]["live"]["statuses"] == {"OK": 97, "UNAVAILABLE": 2}
    missing = run.invoke(report_command, ["nothing", "--address", fake.address])
    assert isinstance(missing.exception, EntityNotFoundError)
    assert isinstance(run.invoke(report_command, ["A/B/C", "--address", fake.address]).exception, InvalidArgumentError)


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


def test_importing_the_sdk_is_quick_and_light() -> None:
    code = """
import sys, time
start = time.perf_counter(), time.process_time()
import tiltyard
tiltyard.Client
print(time.perf_counter() - start[0], time.process_time() - start[1])
heavy = {"tensorflow", "tensorflow_serving", "pandas", "rich", "click", "sqlalchemy", "yaml", "tiltyard_router"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    times = [tuple(map(float, _python(code).split())) for _ in range(3)]
    assert min(wall for wall, _ in times) < 0.5


def test_the_package_itself_loads_nothing() -> None:
    code = """
import sys
import tiltyard
assert "grpc" not in sys.modules and "numpy" not in sys.modules
assert set(tiltyard.__all__) <= set(dir(tiltyard))
from tiltyard import *
assert Client is tiltyard.Client and issubclass(InferenceError, TiltyardError)
"""
    assert _python(code) == ""
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = tiltyard.Nothing
