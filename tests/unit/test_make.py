"""Where `make` tells the tests to look for the tutorial's models."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def aloha_seen(clone: Path, given: str | None) -> str:
    """What a recipe of the Makefile in ``clone`` finds in TILTYARD_ALOHA_DIR, or "unset"."""
    clone.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", clone)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TILTYARD_", "MAKE"))}
    if given is not None:
        env["TILTYARD_ALOHA_DIR"] = given
    target = "show:\n\t@echo $${TILTYARD_ALOHA_DIR-unset}\n"
    command = ["make", "--no-print-directory", "-s", "-f", "Makefile", "-f", "-", "show"]
    done = subprocess.run(command, cwd=clone, env=env, input=target, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("shared", "given", "seen"),
    [
        (True, None, "{root}/shared/aloha"),
        (False, None, "unset"),
        (True, "", "{root}/shared/aloha"),
        (False, "", "unset"),
        (True, "/elsewhere", "/elsewhere"),
        (False, "/elsewhere", "/elsewhere"),
    ],
)
def test_the_models_beside_the_clone_are_used(tmp_path: Path, shared: bool, given: str | None, seen: str) -> None:
    if shared:
        (tmp_path / "shared" / "aloha").mkdir(parents=True)
    assert aloha_seen(tmp_path / "clone", given) == seen.format(root=tmp_path)
