"""Tiltyard where the compiled router cannot be built: everything else is, and the build says why."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(not (BIN / "meson").exists(), reason="needs meson (the [dev] extra)")


def meson(*arguments: str, env: dict[str, str], succeeds: bool = True) -> str:
    """Run meson of this environment; gives all it printed."""
    whole = {name: value for name, value in os.environ.items() if name not in ("CC", "CFLAGS", "PYTHONPATH")} | env
    whole.setdefault("PATH", f"{BIN}:{os.environ['PATH']}")
    done = subprocess.run([str(BIN / "meson"), *arguments], env=whole, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    return done.stdout + done.stderr


def no_libraries(folder: Path) -> dict[str, str]:
    return {"PKG_CONFIG_LIBDIR": str(folder / "empty")}


def no_compiler(folder: Path) -> dict[str, str]:
    """A PATH with what the build needs, except a C compiler."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("ninja", "cython", "python3", "pkg-config", "env", "sh"):
        found = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
        if found is not None:
            (tools / name).symlink_to(found)
    return {"PATH": str(tools)}


def installed_without_router(build: Path, root: Path) -> Path:
    """Install from a build folder; gives the folder that holds ``tiltyard``, after looking for what should not be."""
    meson("install", "-C", str(build), "--quiet", env={"DESTDIR": str(root)})
    (package,) = (path for path in root.rglob("tiltyard") if (path / "__init__.py").exists())
    assert list(root.rglob("tiltyard_router")) == []
    return package.parent


@pytest.mark.parametrize(
    ("hidden", "reason"),
    [
        # meson finds openssl and zlib without pkg-config, too
        (no_libraries, "building without tiltyard_router: missing libuv, libnghttp2, .*libxxhash"),
        (no_compiler, "building without tiltyard_router: missing a C compiler"),
    ],
    ids=["no-libraries", "no-compiler"],
)
def test_the_build_goes_on_without_the_router_and_says_so(
    tmp_path: Path, hidden: Callable[[Path], dict[str, str]], reason: str
) -> None:
    build = tmp_path / "build"
    said = meson("setup", str(build), str(ROOT), env=hidden(tmp_path))
    assert re.search(reason, said)
    site = installed_without_router(build, tmp_path / "root")

    # The environment of this run may have a router; this installation has none.
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text("import sys\nsys.modules['tiltyard_router'] = None\n")

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path / "hide"), str(site)))}
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    loaded = python("-c", "import tiltyard; tiltyard.Client; print(tiltyard.__file__)")
    assert loaded.stdout.strip() == str(site / "tiltyard" / "__init__.py"), loaded.stderr
    assert python("-m", "tiltyard", "--help").returncode == 0
    router = python("-m", "tiltyard", "router", "--routes", "routes.yaml")
    assert router.returncode == 1
    assert router.stderr.startswith("tiltyard: this installation has no compiled router (tiltyard_router)")
    assert len(router.stderr.splitlines()) == 1


def test_the_router_can_be_switched_off(tmp_path: Path) -> None:
    said = meson("setup", str(tmp_path / "build"), str(ROOT), "-Drouter=disabled", env={})
    assert "tiltyard_router is switched off (-Drouter=disabled)" in said
    installed_without_router(tmp_path / "build", tmp_path / "root")


def test_asked_for_the_router_a_build_that_cannot_have_it_fails(tmp_path: Path) -> None:
    hidden = no_libraries(tmp_path)
    said = meson("setup", str(tmp_path / "build"), str(ROOT), "-Drouter=enabled", env=hidden, succeeds=False)
    assert "libuv" in said
