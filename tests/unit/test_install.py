"""Tiltyard as installed: used from an empty folder, so that the source tree cannot hide what the wheel lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _installed() -> bool:
    try:
        return any(True for _ in metadata.files("tiltyard") or ())
    except metadata.PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not _installed(), reason="Tiltyard is not installed, only on the path")


def run(*command: str, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(code: str, cwd: Path) -> str:
    return run(sys.executable, "-W", "error", "-c", code, cwd=cwd)


def sources(root: Path, package: str, *suffixes: str) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for path in (root / package).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_package() -> None:
    installed = {path.as_posix() for path in metadata.files("tiltyard") or ()}
    wanted = sources(ROOT / "services", "tiltyard", ".py", ".pyi", ".typed", ".mako", ".html")
    wanted |= {"tiltyard/py.typed"}
    assert len(wanted) > 100, "the source tree is not where this test looks for it"
    assert sorted(wanted - installed) == []
    if any(path.startswith("tiltyard_router/") for path in installed):
        stubs = sources(ROOT / "router_ext", "tiltyard_router", ".pyi") | {"tiltyard_router/py.typed"}
        assert sorted(stubs - installed) == []


def test_no_file_of_the_package_is_of_a_kind_that_the_wheel_leaves_out() -> None:
    package = ROOT / "services" / "tiltyard"
    kinds = {path.suffix or path.name for path in package.rglob("*") if path.is_file()} - {".pyc"}
    assert kinds <= {".py", ".pyi", ".typed", ".mako", ".html", ".binpb", "py.typed"}


def test_migrations_are_found_in_the_installed_package(tmp_path: Path) -> None:
    pytest.importorskip("alembic")
    code = """
from importlib.resources import files
for folder in ("control/store/migrations", "outcomes/migrations"):
    place = files("tiltyard").joinpath(folder)
    versions = [file for file in place.joinpath("versions").iterdir() if file.name != "__init__.py"]
    print(place.joinpath("env.py").is_file(), len([file for file in versions if file.name.endswith(".py")]))
"""
    for line in python(code, tmp_path).splitlines():
        found, versions = line.split()
        assert found == "True"
        assert int(versions) > 0


def test_importing_the_sdk_loads_neither_the_core_nor_tensorflow_nor_pandas(tmp_path: Path) -> None:
    code = """
import sys
import tiltyard
tiltyard.Client
heavy = {"tiltyard_router", "tensorflow", "pandas", "sqlalchemy", "alembic", "yaml"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    assert python(code, tmp_path).strip() == "[]"


def test_the_command_runs_in_an_empty_folder(tmp_path: Path) -> None:
    command = shutil.which("tiltyard", path=str(Path(sys.executable).parent))
    assert command is not None
    assert "Commands:" in run(command, "--help", cwd=tmp_path)
    assert metadata.version("tiltyard") in run(command, "--version", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["up", "demo", "load", "assign", "router", "control", "outcomes", "modelserver"])
def test_every_subcommand_shows_its_help(name: str, tmp_path: Path) -> None:
    assert "Usage: tiltyard" in run(sys.executable, "-m", "tiltyard", name, "--help", cwd=tmp_path)
