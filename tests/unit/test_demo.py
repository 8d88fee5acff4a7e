"""The demo against a Tiltyard in memory: what it counts, what it shows, and that a failure is never called success."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from tiltyard.api.outcomes.v1 import outcome_pb2
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.cli.demo_cmd import command
from tiltyard.client import Client
from tiltyard.client.dtypes import by_number
from tiltyard.client.tensors import decode, encode
from tiltyard.demo.data import INPUT, MAIN, NAME_LENGTH, DemoFiles
from tiltyard.demo.run import DemoResult, Tally, run_demo
from tiltyard.demo.view import LinesView, SilentView, TerminalView
from tiltyard.errors import UnavailableError
from tiltyard.testing.fake_tiltyard import FakeTiltyard, saved_model

FLOAT = tensor_pb2.DATA_TYPE_FLOAT
SESSIONS = 40
PER_SESSION = 3


def judge(model: str, request: predict_pb2.PredictRequest) -> dict[str, tensor_pb2.Tensor]:
    """The challenger calls a name generated that ends in a digit, which is the truth; the champion calls all so."""
    rows = decode(request.inputs[INPUT])
    digit = (rows[:, -1:] >= 2) & (rows[:, -1:] <= 11)
    main = np.where(digit | (not model.endswith("challenger")), 0.9, 0.1).astype(np.float32)
    return {MAIN: encode(main, by_number(FLOAT))}


RESOURCE = "workspaces/demo/pipelines/dga"


@pytest.fixture
def fake() -> Iterator[FakeTiltyard]:
    """A Tiltyard whose reports count what it answers, by deployment."""
    lock = threading.Lock()

    def answer(model: str, request: predict_pb2.PredictRequest) -> dict[str, tensor_pb2.Tensor]:
        outputs = judge(model, request)
        with lock:
            state = tiltyard.state
            uid = state.deployments[RESOURCE].uid
            report = state.reports.get(RESOURCE)
            if report is None or report.deployment_uid != uid:
                report = outcome_pb2.Report(pipeline=RESOURCE, deployment_uid=uid)
                for arm in ("champion", "challenger"):
                    live = report.arms.add(arm=arm).live
                    live.metrics.add(metric=MAIN)
                state.reports[RESOURCE] = report
            live = report.arms[model.endswith("challenger")].live
            live.assigned += 1
            live.completed += 1
            live.statuses[0] += 1
            live.metrics[0].scored += 1
            live.metrics[0].sum += float(decode(outputs[MAIN]).item()) > 0.5
        return outputs

    with FakeTiltyard(answer) as tiltyard:
        yield tiltyard


@pytest.fixture
def client(fake: FakeTiltyard) -> Iterator[Client]:
    with Client(fake.address, interactive=False) as client:
        yield client


@pytest.fixture
def files(tmp_path: Path) -> DemoFiles:
    lines = ["session_id,name,label,family"]
    for session in range(SESSIONS):
        lines += [f"s{session},a{session % 10 if n else ''}.com,{int(n > 0)},f" for n in range(PER_SESSION)]
    (tmp_path / "heldout.csv").write_text("\n".join(lines))
    for arm in ("champion", "challenger"):
        folder = tmp_path / "models" / arm
        folder.mkdir(parents=True)
        graph = saved_model({INPUT: (FLOAT, (-1, NAME_LENGTH))}, {MAIN: (FLOAT, (-1, 1))})
        (folder / "saved_model.pb").write_bytes(graph)
        (folder / "mark.txt").write_text(arm)  # two models, not the same one twice
    return DemoFiles(
        champion=tmp_path / "models" / "champion",
        challenger=tmp_path / "models" / "challenger",
        names=tmp_path / "heldout.csv",
    )


def test_what_is_seen_is_counted_by_arm_and_agrees_with_the_report(client: Client, files: DemoFiles) -> None:
    result = run_demo(client, files, SilentView(), threads=4)
    champion, challenger = result.arms["champion"], result.arms["challenger"]
    assert result.requests == SESSIONS * PER_SESSION
    assert min(champion.requests, challenger.requests) > 0
    assert [champion.flagged_share, champion.accuracy] == pytest.approx([1, 2 / 3])
    assert [challenger.flagged_share, challenger.accuracy] == pytest.approx([2 / 3, 1])
    assert (result.sessions, result.split_sessions) == (SESSIONS, 0)
    assert result.problems() == []
    assert not client.get_pipeline("dga").deployed()


def test_a_second_run_takes_over_what_the_first_left_and_counts_anew(client: Client, files: DemoFiles) -> None:
    first = run_demo(client, files, SilentView(), threads=4)
    client.get_pipeline("dga").deploy()  # as if the first had been cut short
    second = run_demo(client, files, SilentView(), threads=4)
    assert second.problems() == []
    assert first.report is not None
    assert second.report is not None
    assert first.report.deployment_uid != second.report.deployment_uid


def test_failed_requests_are_counted_and_are_a_problem(fake: FakeTiltyard, client: Client, files: DemoFiles) -> None:
    fake.fail_next("Predict", grpc.StatusCode.UNAVAILABLE, "no model server")
    result = run_demo(client, files, SilentView(), threads=4)
    assert result.errors == 1
    assert result.requests == SESSIONS * PER_SESSION
    assert any("1 of 120 requests failed" in problem and "no model server" in problem for problem in result.problems())


def test_a_failed_step_undeploys_and_is_raised(fake: FakeTiltyard, client: Client, files: DemoFiles) -> None:
    class Broken(SilentView):
        def replay(self, total: int) -> AbstractContextManager[Callable[[DemoResult], None]]:
            raise UnavailableError(f"nothing of {total}")

    with pytest.raises(UnavailableError, match="nothing of 120"):
        run_demo(client, files, Broken())
    assert not client.get_pipeline("dga").deployed()


def test_differences_between_what_was_seen_and_counted_are_problems(client: Client, files: DemoFiles) -> None:
    result = run_demo(client, files, SilentView(), threads=4)
    arms = result.arms
    arms["champion"] = replace(arms["champion"], flagged=arms["champion"].flagged - 1)
    assert ["counts differ" in problem for problem in result.problems()] == [True]
    result.split_sessions = 2
    result.report = None
    assert [problem[:10] for problem in result.problems()] == ["2 sessions", "the reques"]


def test_lines_now_and_then_and_at_the_end() -> None:
    out, now = io.StringIO(), [0.0]
    view = LinesView(Console(file=out, width=40), clock=lambda: now[0])
    result = DemoResult()
    champion = result.arms["champion"]
    view.step("replaying [5,000] names")
    with view.replay(100) as show:
        for requests in range(1, 101):
            champion.requests = champion.correct = requests
            champion.flagged = requests // 2
            now[0] += 0.0625
            show(result)
    lines = out.getvalue().splitlines()
    assert lines[0] == "replaying [5,000] names ..."
    assert [line.split()[:3] for line in lines[1:]] == [[n, "of", "100:"] for n in ("32", "64", "96", "100")]
    assert "champion 100 requests, 0 errors, main > 0.5 50.0%, right 100.0%; challenger 0 requests" in lines[-1]


def test_the_terminal_shows_a_bar_and_a_table() -> None:
    out = io.StringIO()
    view = TerminalView(Console(file=out, width=100, force_terminal=True))
    result = DemoResult()
    result.arms["champion"] = Tally(requests=4, errors=2, flagged=1, correct=2)
    with view.replay(10) as show:
        show(result)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "4/10" in text
    assert "│ champion   │        4 │      2 │      50.0% │                100.0% │" in text
    assert "│ challenger │        0 │      0 │          - │" in text


def test_the_command_prints_json_and_its_exit_status_tells(fake: FakeTiltyard, files: DemoFiles) -> None:
    arguments = ["--address", fake.address, "--models", str(files.names.parent), "--output", "json"]
    good = CliRunner().invoke(command, arguments)
    assert good.exit_code == 0, good.output
    shown = json.loads(good.stdout)
    assert (shown["requests"], shown["errors"], shown["verdict"], shown["problems"]) == (120, 0, None, [])
    assert [arm["arm"] for arm in shown["arms"]] == ["champion", "challenger"]
    fake.fail_next("Predict", grpc.StatusCode.INTERNAL, "broken")
    bad = CliRunner().invoke(command, arguments)
    assert bad.exit_code == 1
    assert "1 of 120 requests failed" in bad.stderr
    assert json.loads(bad.stdout)["errors"] == 1


def test_the_command_prints_tables_and_gives_no_verdict(fake: FakeTiltyard, files: DemoFiles) -> None:
    done = CliRunner().invoke(command, ["--address", fake.address, "--models", str(files.names.parent)])
    assert done.exit_code == 0, done.output
    assert "120 of 120: champion" in done.stdout
    assert "What the router counted" in done.stdout
    assert "no verdict" in done.stdout


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--models", str(tmp_path)])
    assert done.exit_code == 1
    assert "the demo needs" in str(done.exception)
