"""The check that holds the core to its rules finds what breaks them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tools import check_core


@pytest.mark.parametrize(
    "good",
    [
        "cdef int f(int a) noexcept nogil:\n    return a\n",
        "cdef inline void f(ty_run *runs,\n                   int (*then)(int)) noexcept nogil\n",
        "cdef int check(int rv, str what) except -1:\n",
        "cdef object text(bytes b):  # python\n",
        "cdef struct ty_run:\n    int end\n",
        'cdef extern from "uv.h" nogil:\n    int uv_run(uv_loop_t *loop)\n',
        "def f(a):\n    return a\n",
        "cdef int a = 3\ncdef uint64_t b\n",
    ],
)
def test_good_code_passes(good: str) -> None:
    assert check_core.broken_rules(good) == []


@pytest.mark.parametrize(
    "bad",
    [
        "cdef int f(int a):\n    return a\n",
        "cdef int f(int a) noexcept:\n    return a\n",
        "cdef int f(int a) nogil:\n    return a\n",
        "cdef inline const ty_run *f(int a,\n                            int b) nogil:\n",
        "cdef int f(int a)",
    ],
)
def test_a_function_that_is_not_noexcept_nogil_is_found(bad: str) -> None:
    assert check_core.broken_rules("# a module\n\n" + bad) == [(3, "f")]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("cdef int g(int a) noexcept nogil:\n    return a\n", ""),
        (
            "cdef void g(int a) nogil:\n    pass\ncdef void f(int a) noexcept nogil:\n    g(a)\n",
            "performance hint",
        ),
        ("cdef int f(int a) noexcept nogil:\n    cdef int b\n    if a:\n        b = 1\n    return b\n", "warning"),
        ("cdef int f(int a) noexcept nogil:\n    return str(a)\n", "cython failed"),
    ],
)
def test_what_cython_says_counts(code: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cython = shutil.which("cython", path=str(Path(sys.executable).parent))
    if cython is None:
        pytest.skip("needs cython (the [dev] extra)")
    monkeypatch.setenv("PATH", str(Path(cython).parent), prepend=":")
    for name in ("ROOT", "CORE"):
        monkeypatch.setattr(check_core, name, tmp_path)
    module = tmp_path / "module.pyx"
    module.write_text(code)
    found = check_core.cython(module, tmp_path)
    assert bool(found) == bool(complaint)
    assert all(complaint in line for line in found[:1])
