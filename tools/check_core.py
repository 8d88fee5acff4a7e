"""Hold the compiled core to its rules.

Every core function is ``noexcept nogil``, and Cython has no warning or performance hint for any module. (One without
``noexcept`` makes its callers take the GIL to look for an exception; one that needs the GIL stops every loop.)
A function that says ``except`` raises, or one marked ``# python`` works on Python objects: neither is the core's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "router_ext"

# Cython takes the variable of a loop for unused when the body does not read it, and every generator expression.
NO_WARNING = "Unused entry"

# cdef [inline] TYPE name( at the start of a line. What stands within "cdef extern" is indented.
FUNCTION = re.compile(
    r"^cdef[ \t]+(?:inline[ \t]+)?(?!struct|enum|union|class|extern|public)[\w \t*]+?\b(\w+)\(", re.MULTILINE
)


def functions(text: str) -> list[tuple[int, str, str]]:
    """Line, name, and what stands behind the arguments, of each module-level ``cdef`` function."""
    found = []
    for match in FUNCTION.finditer(text):
        depth, at = 0, match.end() - 1
        while at < len(text):
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
            if depth == 0:
                break
        end = text.find("\n", at)
        found.append((text.count("\n", 0, match.start()) + 1, match.group(1), text[at : end if end >= 0 else None]))
    return found


def broken_rules(text: str) -> list[tuple[int, str]]:
    """Line and name of each core function that is not ``noexcept nogil``."""
    found = []
    for line, name, tail in functions(text):
        words = re.findall(r"\w+|#.*", tail)
        if "except" in words or any(word.startswith("#") and "python" in word for word in words):
            continue
        if not {"noexcept", "nogil"} <= set(words):
            found.append((line, name))
    return found


def cython(path: Path, scratch: Path) -> list[str]:
    """What Cython has to complain about, in warnings and performance hints or because it fails."""
    command = ["cython", "-3", "-Wextra", str(path.relative_to(CORE)), "-o", str(scratch / f"{path.stem}.c")]
    run = subprocess.run(command, cwd=CORE, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        return [f"{path.relative_to(ROOT)}: cython failed\n{run.stderr}"]
    complaints = [line for line in run.stderr.splitlines() if line.startswith(("warning:", "performance hint:"))]
    return [line for line in complaints if NO_WARNING not in line]


def main() -> int:
    problems = []
    for path in sorted(CORE.rglob("*.p[yx][xd]")):
        for line, name in broken_rules(path.read_text()):
            problems.append(f"{path.relative_to(ROOT)}:{line}: {name} is not 'noexcept nogil'")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        modules = sorted(CORE.rglob("*.pyx"))
        for complaints in pool.map(cython, modules, [Path(scratch)] * len(modules)):
            problems += complaints
    if problems:
        print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
