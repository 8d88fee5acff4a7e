"""Hold the compiled core to its rules.

Every core function is ``noexcept nogil``, and Cython has no performance hint for any module. (A function without
``noexcept`` makes its callers take the GIL to look for an exception; one that needs the GIL stops every loop.)
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "router_ext"

# cdef [inline] TYPE name(...) at the start of a line, up to the colon or the end of a declaration
FUNCTION = re.compile(r"^cdef\s+(?:inline\s+)?(?!struct|enum|union|class|extern|public)[\w\s\*]+?\b(\w+)\(", re.MULTILINE)


def functions(text: str) -> list[tuple[int, str, str]]:
    """Line, name and whole signature of each module-level ``cdef`` function."""
    found = []
    for match in FUNCTION.finditer(text):
        depth, at = 0, match.end() - 1
        while at < len(text):
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
            if depth == 0:
                break
        tail = text[at : text.find("\n", at)]
        found.append((text.count("\n", 0, match.start()) + 1, match.group(1), tail))
    return found


def main() -> int:
    problems = []
    for path in sorted(CORE.rglob("*.p[yx][xd]")):
        text = path.read_text()
        for line, name, tail in functions(text):
            # Façade helpers raise: they say so with "except", or work on Python objects and are no core functions.
            if "except" in tail.replace("noexcept", "") or "# python" in tail:
                continue
            if not ("noexcept" in tail and "nogil" in tail):
                problems.append(f"{path.relative_to(ROOT)}:{line}: {name} is not 'noexcept nogil'")
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(CORE.rglob("*.pyx")):
            run = subprocess.run(
                ["cython", "-3", str(path.relative_to(CORE)), "-o", str(Path(scratch) / f"{path.stem}.c")],
                cwd=CORE, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if run.returncode != 0:
                problems.append(f"{path.relative_to(ROOT)}: cython failed\n{run.stderr}")
            problems += [f"{path.relative_to(ROOT)}: {line}" for line in run.stderr.splitlines() if "performance hint" in line]
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
