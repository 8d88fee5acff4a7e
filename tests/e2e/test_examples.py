"""The examples as people run them: a script, and a Tiltyard that runs already."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiltyard.client import Client
from tiltyard.testing.cluster import start_up

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytest.importorskip("sqlalchemy")

pytestmark = [pytest.mark.router, pytest.mark.serve, pytest.mark.timeout(240)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SINGLE, BATCH = 5, 1000
# About five standard errors of the share of requests: whole sessions, of about 3.5 names each, go to an arm.
CONTROL = (520, 800)


def test_the_tutorial_runs_from_upload_to_undeploy(tmp_path: Path) -> None:
    with start_up(tmp_path / "data") as cluster:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "tutorial.py"), cluster.address],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with Client(cluster.address) as client:
            client.set_current_workspace(client.get_workspace("abtestworkspace"))
            assert not client.get_pipeline("randomsplitpipeline-demo").deployed()
    said = done.stdout
    single = re.findall(r"^  \('dga-(?:control|challenger)', '1'\) main = \d\.\d{6}$", said, re.MULTILINE)
    assert len(single) == SINGLE, said
    by_model = {model: int(n) for model, n in re.findall(r"^  (dga-\w+) +(\d+)$", said, re.MULTILINE)}
    assert set(by_model) == {"dga-control", "dga-challenger"}, said
    assert sum(by_model.values()) == BATCH
    assert CONTROL[0] < by_model["dga-control"] < CONTROL[1]
    rates = {
        model: (float(positive), float(right))
        for model, positive, right in re.findall(r"^  (dga-\w+) +(\d\.\d{3})  (\d\.\d{3})$", said, re.MULTILINE)
    }
    assert set(rates) == set(by_model), said
    assert rates["dga-challenger"][1] > rates["dga-control"][1] > 0.8, "the challenger knows three families more"
    assert "what the router counted:" in said
    assert "These are counts, not a verdict" in said
    assert said.endswith("\nPipeline randomsplitpipeline-demo is not deployed\n")
