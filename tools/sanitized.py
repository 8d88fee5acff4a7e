"""Make sure that the sanitizers see what they shall: this process and a router that it starts.

Usage: sanitized.py ROOT, the folder that holds the sanitized build.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROUTES = """
pipelines:
  - name: p
    arms:
      - {name: champion, weight: 1, model: m, version: 1, backends: ["127.0.0.1:1"]}
"""
EXPECTED = ("libasan", "libubsan")


def check(who: str, pid: int | str, root: Path) -> None:
    """Raise unless a process has the sanitizers, and the core of that build, in its memory."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    missing = [name for name in (*EXPECTED, f"{root}/") if name not in maps]
    cores = {line.split()[-1] for line in maps.splitlines() if "/tiltyard_router/" in line}
    strays = [core for core in cores if not Path(core).is_relative_to(root)]
    plain = [core for core in cores if b"__asan_" not in Path(core).read_bytes()]
    if missing or strays or plain or not any(Path(core).name.startswith("core.") for core in cores):
        raise SystemExit(f"{who} is not sanitized: missing {missing}, not from {root}: {strays}, plain: {plain}")


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    importlib.import_module("tiltyard_router.core")
    check("this process", "self", root)
    with tempfile.TemporaryDirectory() as folder:
        routes = Path(folder, "routes.yaml")
        routes.write_text(ROUTES)
        command = [sys.executable, "-m", "tiltyard", "router", "--listen", "127.0.0.1:0"]
        command += ["--routes", str(routes), "--data-dir", str(Path(folder, "data"))]
        router = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            line = router.stdout.readline() if router.stdout is not None else ""
            if "ready on" not in line:
                raise SystemExit(f"the router did not start: {line!r}")
            check("a router process", router.pid, root)
        finally:
            router.terminate()
            status = router.wait(30)
    if status != 0:
        raise SystemExit(f"the router ended with status {status}")


if __name__ == "__main__":
    main()
