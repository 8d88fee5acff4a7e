"""The benchmark's own checks: which runs are void, and how ratios are taken."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiltyard_router import loadgen
else:
    loadgen = pytest.importorskip("tiltyard_router.loadgen", exc_type=ImportError)

pytestmark = pytest.mark.router

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_router.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_router", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_router"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def result_of(ok: int) -> loadgen.LoadResult:
    latency = loadgen.Latency(count=ok, mean_s=0.0, p50_s=0.0, p90_s=0.0, p99_s=0.0, p999_s=0.0, max_s=0.0)
    return loadgen.LoadResult(
        ended="done",
        detail="",
        issued=ok,
        ok=ok,
        wrong_size=0,
        statuses={},
        failures={},
        not_sent=0,
        abandoned=0,
        connect_errors=0,
        connections_lost=0,
        reconnects=0,
        elapsed_s=1.0,
        latency=latency,
        send_lag=latency,
    )


def test_a_good_run_passes(bench: ModuleType) -> None:
    bench.check_run("router", result_of(90_000), 60_000, 30_000)
    bench.check_run("router", result_of(90_000), 60_700, 29_300)  # 4.95 standard errors
    bench.check_run("direct", result_of(90_000), 90_000, 0)


@pytest.mark.parametrize(("champion", "challenger"), [(60_000, 29_999), (60_000, 30_001), (0, 0)])
def test_a_run_is_void_when_backends_and_client_disagree(bench: ModuleType, champion: int, challenger: int) -> None:
    for target in ("router", "direct"):
        with pytest.raises(bench.BenchError, match="the backends"):
            bench.check_run(target, result_of(90_000), champion, challenger)


@pytest.mark.parametrize("champion", [60_720, 59_280, 90_000, 45_000])
def test_a_run_is_void_when_the_split_is_off(bench: ModuleType, champion: int) -> None:
    with pytest.raises(bench.BenchError, match="standard errors"):
        bench.check_run("nghttpx", result_of(90_000), champion, 90_000 - champion)


def test_a_run_is_void_when_a_call_failed(bench: ModuleType) -> None:
    result = dataclasses.replace(result_of(90_000), issued=90_001, statuses={14: 1})
    with pytest.raises(bench.BenchError, match="calls failed"):
        bench.check_run("router", result, 60_000, 30_000)


def test_ratios_are_taken_within_each_round(bench: ModuleType) -> None:
    def samples(*cpus: float) -> list[object]:
        return [bench.Sample(1, 1.0, 1.0, 1.0, cpu, 1, 0) for cpu in cpus]

    by_target = {"router": samples(4, 8, 6), "nghttpx": samples(8, 10, 8), "direct": samples(0, 0, 0)}
    assert bench.ratios(by_target) == {"router/nghttpx": 0.75}  # of 0.5, 0.8, 0.75


def alive(stat: Path) -> bool:
    try:
        return ") Z " not in stat.read_text()
    except OSError:
        return False


def test_cpu_of_a_process_counts_its_children_and_ends_them(bench: ModuleType, tmp_path: Path) -> None:
    spin = "import os, time\nwhile time.process_time() < 0.3: pass\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    with bench.Process("spin", [sys.executable, "-c", script], tmp_path) as process:
        log = tmp_path / "spin.log"
        while not log.read_text().endswith("\n"):
            process.check()
            time.sleep(0.01)
        assert 0.25 <= process.cpu_s() < 5.0
        stat = Path(f"/proc/{int(log.read_text())}/stat")
        assert alive(stat)
    deadline = time.monotonic() + 5.0
    while alive(stat):
        assert time.monotonic() < deadline
        time.sleep(0.01)
