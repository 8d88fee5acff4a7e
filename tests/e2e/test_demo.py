"""`tiltyard demo`, whole: once on a Tiltyard of its own, and on one that runs already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiltyard.client import Client
from tiltyard.supervisor.process import Process
from tiltyard.supervisor.spawn import tiltyard_command
from tiltyard.testing.cluster import start_up, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytest.importorskip("sqlalchemy")

pytestmark = [pytest.mark.router, pytest.mark.serve, pytest.mark.timeout(240)]

MODELS = Path(__file__).resolve().parents[2] / "examples" / "dga"
NAMES = 5_000
# About five standard errors of the share of requests: whole sessions, of about 3.5 names each, go to an arm.
SHARE = (0.59, 0.74)


def demo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = tiltyard_command("demo", "--models", str(MODELS), *arguments)
    env = os.environ | {"TMPDIR": str(cwd)}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=cwd, env=env)


def test_the_demo_on_its_own(tmp_path: Path) -> None:
    began = time.monotonic()
    done = demo(cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 60
    for step in ("starting Tiltyard", "uploading two models", "deploying a split", "replaying 5,000", "undeploying"):
        assert step in done.stdout
    assert "5,000 of 5,000: champion" in done.stdout
    assert "no verdict" in done.stdout
    assert "champion" in done.stdout
    assert "Sessions answered by more than one arm: 0." in done.stdout
    assert done.stderr == ""
    assert os.listdir(tmp_path) == [], "its data folder is gone"


def test_the_demo_twice_on_a_running_tiltyard(tmp_path: Path) -> None:
    with start_up(tmp_path / "data") as cluster:
        results = []
        for _ in range(2):
            done = demo("--address", cluster.address, "--output", "json", cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            results.append(json.loads(done.stdout))
        with Client(cluster.address) as client:
            client.set_current_workspace(client.get_workspace("demo"))
            assert not client.get_pipeline("dga").deployed()
    for result in results:
        assert (result["requests"], result["errors"], result["problems"], result["verdict"]) == (NAMES, 0, [], None)
        assert result["sessions_on_several_arms"] == 0
        champion, challenger = result["arms"]
        assert (champion["arm"], challenger["arm"]) == ("champion", "challenger")
        assert SHARE[0] < champion["requests"] / NAMES < SHARE[1]
        assert 0.87 < champion["accuracy"] < 0.93
        assert challenger["accuracy"] - champion["accuracy"] > 0.03
        assert [arm["live"]["assigned"] for arm in result["report"]["arms"]] == [
            champion["requests"],
            challenger["requests"],
        ]
    first, second = results
    assert first["arms"] == second["arms"], "the same sessions go to the same arms again"
    assert first["report"]["deployment_uid"] != second["report"]["deployment_uid"]


STOPPED = "tiltyard: stopped; everything was taken down\n"


@pytest.mark.parametrize("step", ["starting Tiltyard", "uploading two models", "replaying 5,000"])
def test_ctrl_c_takes_everything_down_and_says_so(tmp_path: Path, step: str) -> None:
    temporary, output = tmp_path / "temporary", tmp_path / "output"
    temporary.mkdir()
    command = tiltyard_command("demo", "--models", str(MODELS))
    with Process(command, name="demo", folder=output, env={"TMPDIR": str(temporary)}) as process:
        wait_until(lambda: step in process.stdout.read_text() or not process.alive(), step, 100)
        process.signal(signal.SIGINT)
        assert process.wait(60) == 130, process.said()
        assert process.stderr.read_text() == STOPPED
        assert os.listdir(temporary) == [], "its data folder is gone"


def test_ctrl_c_undeploys_on_a_tiltyard_that_runs_on(tmp_path: Path) -> None:
    with start_up(tmp_path / "data") as cluster:
        command = tiltyard_command("demo", "--models", str(MODELS), "--address", cluster.address)
        with Process(command, name="demo", folder=tmp_path / "output") as process:
            wait_until(lambda: "deploying a split" in process.stdout.read_text() or not process.alive(), "deploy", 100)
            process.signal(signal.SIGINT)
            assert process.wait(60) == 130, process.said()
            said = f"tiltyard: stopped; nothing of it is deployed on {cluster.address}\n"
            assert process.stderr.read_text() == said
        with Client(cluster.address) as client:
            client.set_current_workspace(client.get_workspace("demo"))
            assert not client.get_pipeline("dga").deployed()


def test_a_wrong_address_is_an_error_of_one_line(tmp_path: Path) -> None:
    done = demo("--address", "127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
