"""`tiltyard up` as people run it: the real children, kill -9 under load, and a ledger of every call."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tiltyard.client import Client, Pipeline, Report
from tiltyard.demo.data import INPUT, MAIN, NAME_LENGTH
from tiltyard.errors import EntityNotFoundError, TiltyardError
from tiltyard.supervisor.spawn import tiltyard_command
from tiltyard.testing.cluster import CHILDREN, Cluster, open_predict, predict_message, start_up, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytest.importorskip("sqlalchemy")

pytestmark = [pytest.mark.router, pytest.mark.serve, pytest.mark.timeout(240)]

MODELS = Path(__file__).resolve().parents[2] / "examples" / "dga" / "models"
THREADS = 4
ROW = np.full((1, NAME_LENGTH), 20, np.float32)
COUNTS_LIMIT_S = 30.0
BACK_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with start_up(tmp_path_factory.mktemp("up") / "data") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address, interactive=False) as client:
        for name in ("champion", "challenger"):
            client.upload_model(name, MODELS / name)
        yield client


def deployed(client: Client, name: str) -> Pipeline:
    models = [client.get_model(name) for name in ("champion", "challenger")]
    pipeline = client.build_pipeline(name).add_random_split(list(zip((2, 1), models, strict=True)), "session_id")
    return pipeline.add_metric(MAIN, output=MAIN, above=0.5).deploy()


@dataclass
class Ledger:
    """What became of every call, by arm (``""`` when it is not known) and status."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, arm: str, status: str) -> None:
        with self.lock:
            self.calls[arm, status] += 1

    def total(self, status: str) -> int:
        with self.lock:
            return sum(n for (_, found), n in self.calls.items() if found == status)

    def statuses(self) -> dict[str, int]:
        with self.lock:
            totals: Counter[str] = Counter()
            for (_, status), n in self.calls.items():
                totals[status] += n
            return dict(totals)

    def by_arm(self) -> dict[str, int]:
        """Answered calls by arm."""
        with self.lock:
            return {arm: n for (arm, status), n in self.calls.items() if status == "OK"}


@contextmanager
def load(address: str, pipeline: str) -> Iterator[Ledger]:
    """Requests with ever new keys from a few threads, none of them sent twice, until the block ends."""
    ledger, stop = Ledger(), threading.Event()

    def send(thread: int) -> None:
        request = predict_message(pipeline, {INPUT: ROW})
        with open_predict(address) as predict:
            n = 0
            while not stop.wait(0.01):
                n += 1
                try:
                    _, metadata = predict(request, metadata={"session_id": f"{thread}-{n}"})
                except grpc.RpcError as error:
                    call: Any = error
                    pairs = [*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())]
                    ledger.write(str(dict(pairs).get("tiltyard-arm", "")), call.code().name)
                else:
                    ledger.write(str(metadata["tiltyard-arm"]), "OK")

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(THREADS)]
    for each in threads:
        each.start()
    try:
        yield ledger
    finally:
        stop.set()
        for each in threads:
            each.join()


def kill_under_load(cluster: Cluster, pipeline: str, child: str) -> Ledger:
    """Kill a child while requests run; end when requests have succeeded for a while after its return."""
    others = {name: pid for name, pid in cluster.children().items() if name != child}
    with load(cluster.address, pipeline) as ledger:
        wait_until(lambda: ledger.total("OK") >= 100, "the first answers")
        old = cluster.kill_child(child)
        cluster.wait_new_child(child, old, BACK_LIMIT_S)
        wait_until(lambda: f"{child} is back" in cluster.said(), f"{child} to serve", BACK_LIMIT_S)
        answered = ledger.total("OK")
        wait_until(lambda: ledger.total("OK") >= answered + 200, "answers after its return", BACK_LIMIT_S)
    now = cluster.children()
    assert {name: now[name] for name in others} == others, "the others went on"
    return ledger


def report_when(pipeline: Pipeline, completed: int) -> Report:
    """The report once it holds at least that many completed requests, and whatever else was on its way with them."""
    found: list[Report] = []

    def there() -> bool:
        try:
            found.append(pipeline.report())
        except (EntityNotFoundError, TiltyardError):
            return False
        return sum(arm.live.completed for arm in found[-1].arms) >= completed

    wait_until(there, f"{completed} counted requests; last: {found[-1:]}", COUNTS_LIMIT_S)
    return found[-1]


def statuses_of(report: Report) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for arm in report.arms:
        totals.update(arm.live.statuses)
    return dict(totals)


# -- start and refusals ------------------------------------------------------------------------------------------------


def test_one_ready_line_and_a_folder_for_the_owner_alone(cluster: Cluster) -> None:
    assert cluster.stdout.read_text() == f"tiltyard: ready on {cluster.address}\n"
    assert cluster.data_dir.stat().st_mode & 0o777 == 0o700
    assert set(cluster.children()) == set(CHILDREN)
    open_to_others = [path for path in cluster.data_dir.rglob("*") if path.lstat().st_mode & 0o077 and path.is_file()]
    assert open_to_others == []
    for name in CHILDREN:
        assert f"tiltyard: {name} ready on " in (cluster.data_dir / "logs" / f"{name}.log").read_text()


def refused_up(data_dir: Path, listen: str) -> str:
    command = tiltyard_command("up", "--data-dir", str(data_dir), "--listen", listen)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_second_one_is_told_who_holds_the_folder(cluster: Cluster) -> None:
    said = refused_up(cluster.data_dir, "127.0.0.1:0")
    assert f"process {cluster.pid}, since 20" in said
    assert f"serving {cluster.address})" in said, "the port it got, not the 0 it was told"


def test_a_taken_port_is_said_before_anything_starts(cluster: Cluster, tmp_path: Path) -> None:
    assert f"{cluster.address}: another process listens there" in refused_up(tmp_path / "other", cluster.address)
    assert not (tmp_path / "other" / "logs").exists()


def test_other_addresses_than_loopback_need_a_flag(tmp_path: Path) -> None:
    assert "--insecure-listen" in refused_up(tmp_path / "data", "0.0.0.0:0")
    assert not (tmp_path / "data").exists()


# -- kill -9 under load ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("child", ["control", "outcomes"])
def test_requests_do_not_notice_the_end_of_a_child_beside_their_path(
    cluster: Cluster, client: Client, child: str
) -> None:
    pipeline = deployed(client, f"kill-{child}")
    ledger = kill_under_load(cluster, pipeline.name(), child)
    assert ledger.statuses() == {"OK": ledger.total("OK")}
    report = report_when(pipeline, ledger.total("OK"))
    assert {arm.name: arm.live.assigned for arm in report.arms} == ledger.by_arm()
    assert {arm.name: arm.live.ok for arm in report.arms} == ledger.by_arm()
    assert [arm.lost for arm in report.arms] == [0, 0]
    assert pipeline.status()["status"] == "Running"
    pipeline.undeploy()


def test_a_killed_model_server_fails_calls_for_a_while_and_every_one_is_counted(
    cluster: Cluster, client: Client
) -> None:
    pipeline = deployed(client, "kill-modelserver")
    ledger = kill_under_load(cluster, pipeline.name(), "modelserver")
    seen = ledger.statuses()
    assert seen["OK"] >= 300
    assert set(seen) <= {"OK", "UNAVAILABLE", "NOT_FOUND"}  # NOT_FOUND: it is back, its models are not yet
    report = report_when(pipeline, sum(seen.values()))
    assert statuses_of(report) == seen
    assert {arm.name: arm.live.ok for arm in report.arms} == ledger.by_arm()
    assert sum(arm.live.assigned for arm in report.arms) == sum(seen.values())
    assert [arm.lost for arm in report.arms] == [0, 0]
    pipeline.undeploy()


def test_a_killed_router_loses_no_completed_request(cluster: Cluster, client: Client) -> None:
    pipeline = deployed(client, "kill-router")
    ledger = kill_under_load(cluster, pipeline.name(), "router")
    seen = ledger.statuses()
    assert set(seen) <= {"OK", "UNAVAILABLE"}
    report = report_when(pipeline, seen["OK"])
    # Requests that were in flight may have been completed just before the end, or not have arrived.
    extra = sum(arm.live.ok for arm in report.arms) - seen["OK"]
    assert 0 <= extra <= THREADS
    for arm in report.arms:
        assert 0 <= arm.live.ok - ledger.by_arm()[arm.name] <= THREADS
        assert set(arm.live.statuses) == {"OK"}
        assert 0 <= arm.live.assigned - arm.live.completed <= THREADS
    assert report.boots == 2

    # The seconds that were open at the end are in no verdict, and are called lost.
    def settled() -> bool:
        arms = pipeline.report().arms
        return all(arm.closed.assigned + arm.lost == arm.live.assigned for arm in arms)

    wait_until(settled, "every request to be in a closed second or lost", COUNTS_LIMIT_S)
    assert sum(arm.lost for arm in pipeline.report().arms) > 0
    pipeline.undeploy()


# -- the end -----------------------------------------------------------------------------------------------------------


def gone(pids: list[int]) -> bool:
    return not any(Path("/proc", str(pid)).exists() and not _zombie(pid) for pid in pids)


def _zombie(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_kill_9_of_itself_leaves_nobody_and_the_next_start_serves_what_was_deployed(tmp_path: Path) -> None:
    data = tmp_path / ("long-" * 20)  # too long a path for the sockets to lie in
    with start_up(data) as first:
        with Client(first.address, interactive=False) as client:
            for name in ("champion", "challenger"):
                client.upload_model(name, MODELS / name)
            deployed(client, "stays").infer({INPUT: ROW, "session_id": "a"})
        pids = list(first.children().values())
        first.kill()
        wait_until(lambda: gone(pids), "the end of its children", 10.0)

    with start_up(data) as second:
        with open_predict(second.address) as predict:
            answer, _ = predict(predict_message("stays", {INPUT: ROW}))  # ready means ready: no second try
        assert MAIN in answer.outputs
        pids = list(second.children().values())
        began = time.monotonic()
        second.signal(signal.SIGINT)
        assert second.wait(60) == 0
        assert time.monotonic() - began < 45
        assert gone(pids)
    assert (data / "logs" / "router.log.1").exists()
    assert not (data / "run").exists()


def test_a_stop_signal_during_the_start_ends_it_with_nobody_left(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data") as cluster:
        wait_until(lambda: len(cluster.children()) == len(CHILDREN), "all children")
        pids = list(cluster.children().values())
        assert cluster.terminate() == 0
        assert gone(pids)
        assert cluster.stdout.read_text() == ""
