"""The outcomes service as a process, with the router's own reporter and counters files in front of it."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from tiltyard.api.outcomes.v1 import outcome_pb2 as pb
from tiltyard.api.outcomes.v1.outcome_pb2_grpc import OutcomeServiceStub
from tiltyard.api.router.v1.counters_pb2 import CounterBlock, ReportCountersRequest
from tiltyard.api.router.v1.counters_pb2_grpc import CounterServiceStub
from tiltyard.router.counters import counters_path
from tiltyard.router.report import Reporter

if TYPE_CHECKING:
    from tiltyard_router import tap
else:
    tap = pytest.importorskip("tiltyard_router.tap")

pytestmark = pytest.mark.router

START = 1_700_000_000


def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Poll until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


class Service:
    """One data folder, and at most one process on it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.socket = f"unix:{folder / 'in.sock'}"
        self.child: subprocess.Popen[str] | None = None
        self.address = ""

    def command(self) -> list[str]:
        arguments = ["--listen", "127.0.0.1:0", "--router-listen", self.socket, "--data-dir", str(self.data)]
        return [sys.executable, "-m", "tiltyard", "outcomes", *arguments]

    def start(self) -> None:
        self.child = subprocess.Popen(self.command(), stdout=subprocess.PIPE, text=True)
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line.startswith("tiltyard: outcomes ready on 127.0.0.1:"), line
        self.address = line.split()[-1]

    def stop(self, how: signal.Signals) -> int:
        assert self.child is not None
        assert self.child.stdout is not None
        self.child.send_signal(how)
        code = self.child.wait(10)
        self.child.stdout.close()
        self.child = None
        return code

    def report(self, pipeline: str, uid: str = "") -> pb.Report:
        with grpc.insecure_channel(self.address) as channel:
            stub = OutcomeServiceStub(channel)
            return stub.GetReport(pb.GetReportRequest(pipeline=pipeline, deployment_uid=uid), timeout=5).report

    def assigned(self, pipeline: str) -> tuple[int, int, int]:
        """Live, closed and lost requests of all arms; zeros when nothing was heard yet."""
        try:
            arms = self.report(pipeline).arms
        except grpc.RpcError as error:
            if code(error) != grpc.StatusCode.NOT_FOUND:
                raise
            return 0, 0, 0
        return sum(a.live.assigned for a in arms), sum(a.closed.assigned for a in arms), sum(a.lost for a in arms)


def code(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.RpcError)
    return error.code()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    service.start()
    yield service
    if service.child is not None:
        service.stop(signal.SIGKILL)


class Router:
    """A counters file and the reporter beside it, without the proxy."""

    def __init__(self, folder: Path, service: Service, boot: int, pipeline: str = "workspaces/w/pipelines/p") -> None:
        folder.mkdir(exist_ok=True)
        boot_id = boot.to_bytes(6, "big")
        self.path = counters_path(folder, boot_id)
        self.tap = tap.Tap(self.path, boot_id)
        arms = [("champion", 6_667), ("challenger", 3_333)]
        blocks = [self.tap.block(pipeline, "u1", 1, arm, n, share, ["main"]) for n, (arm, share) in enumerate(arms)]
        self.blocks = [block for block in blocks if block is not None]
        self.reporter = Reporter(
            folder, own_boots=[boot_id], address=service.socket, router="r1", interval_s=0.05, deadline_s=1.0
        )

    def count(self, second: int, n: int, *, hang: int = 0) -> None:
        for number in range(n):
            call = self.tap.assign(self.blocks[number % 2], second)
            self.tap.complete(call, 0, [1.0 if number % 4 else 0.0])
        for _ in range(hang):
            self.tap.assign(self.blocks[0], second)


def test_counts_travel_from_the_file_to_the_report(service: Service, tmp_path: Path) -> None:
    router = Router(tmp_path / "counters", service, 1)
    router.count(START, 40)
    router.tap.close(START + 1)
    router.count(START + 1, 10, hang=1)
    router.reporter.start()
    until(lambda: service.assigned("p") == (51, 40, 0))
    report = service.report("w/p")
    assert (report.pipeline, report.deployment_uid, report.boots) == ("workspaces/w/pipelines/p", "u1", 1)
    assert report.closed_through_time.seconds == START
    champion, challenger = report.arms
    assert (champion.arm, champion.live.completed, dict(champion.live.statuses)) == ("champion", 25, {0: 25})
    assert (challenger.arm, challenger.live.completed) == ("challenger", 25)
    assert (champion.means[0].metric, champion.means[0].mean) == ("main", 12 / 25)
    assert challenger.means[0].mean == 1.0
    (epoch,) = report.epochs
    assert list(epoch.share_slots) == [6_667, 3_333]
    router.tap.end()
    router.reporter.stop()
    assert service.assigned("p") == (51, 40, 11)  # one hung when the loop ended: its second is lost whole
    assert not router.path.exists()


def test_a_clean_end_loses_nothing(service: Service, tmp_path: Path) -> None:
    router = Router(tmp_path / "counters", service, 1)
    router.reporter.start()
    router.count(START, 40)
    router.tap.end()
    router.reporter.stop()
    assert service.assigned("p") == (40, 40, 0)
    assert not router.path.exists()


def test_kill_and_restart_of_the_service_keep_exact_counts(service: Service, tmp_path: Path) -> None:
    router = Router(tmp_path / "counters", service, 1)
    router.reporter.start()
    total = 0
    for round_number in range(5):
        router.count(START + round_number, 100)
        total += 100
        if round_number % 2:
            until(lambda expected=total: service.assigned("p")[0] == expected)  # type: ignore[misc]
        service.stop(signal.SIGKILL)
        router.count(START + round_number, 10)  # while it is away
        total += 10
        service.start()
    until(lambda: service.assigned("p")[0] == total)
    router.tap.end()
    router.reporter.stop()
    assert service.assigned("p") == (total, total, 0)


def test_files_of_dead_boots_are_reported_once_and_deleted(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "counters"
    dead = [Router(folder, service, boot) for boot in range(10, 22)]
    for router in dead:
        router.count(START, 20)
        router.tap.close(START + 1)
        router.count(START + 1, 4)
        router.tap.abandon()
    living = Router(folder, service, 1)
    living.count(START, 2)
    other = Router(folder, service, 2)  # another process's, alive: not ours to touch
    other.count(START, 1_000)
    (folder / "junk.counters").write_bytes(b"junk")
    living.reporter.start()
    until(lambda: service.assigned("p") == (12 * 24 + 2, 12 * 20, 12 * 4))
    until(lambda: sorted(folder.iterdir()) == sorted([folder / "junk.counters", living.path, other.path]))
    assert service.report("p").boots == 13
    living.reporter.stop()


def test_a_service_that_is_away_costs_nothing_and_the_files_wait(service: Service, tmp_path: Path) -> None:
    service.stop(signal.SIGTERM)
    router = Router(tmp_path / "counters", service, 1)
    router.reporter.start()
    router.count(START, 30)
    router.tap.end()
    started = time.monotonic()
    router.reporter.stop(1.0)
    assert time.monotonic() - started < 3
    assert router.path.exists()
    service.start()
    successor = Router(tmp_path / "counters", service, 2)
    successor.reporter.start()
    until(lambda: service.assigned("p") == (30, 30, 0) and not router.path.exists())
    successor.reporter.stop()


def test_a_lost_database_is_filled_again(service: Service, tmp_path: Path) -> None:
    router = Router(tmp_path / "counters", service, 1)
    router.count(START, 30)
    router.reporter.start()
    until(lambda: service.assigned("p")[0] == 30)
    service.stop(signal.SIGTERM)
    for path in service.data.glob("outcomes.db*"):
        path.unlink()
    router.count(START, 3)
    service.start()
    until(lambda: service.assigned("p")[0] == 33)
    router.reporter.stop()


def test_watching_shows_each_change_and_ends_with_the_service(service: Service, tmp_path: Path) -> None:
    router = Router(tmp_path / "counters", service, 1)
    router.reporter.start()
    with grpc.insecure_channel(service.address) as channel:
        stream = OutcomeServiceStub(channel).WatchReport(pb.WatchReportRequest(pipeline="p"), timeout=30)
        router.count(START, 10)
        seen = []
        started = time.monotonic()
        for answer in stream:
            seen.append(sum(arm.live.assigned for arm in answer.report.arms))
            if seen[-1] == 30:
                break
            router.count(START, 20 if seen[-1] == 10 else 0)
        assert seen[-1] == 30
        assert len(seen) <= 2 + (time.monotonic() - started)  # at most one a second
        assert service.stop(signal.SIGTERM) == 0
        with pytest.raises(grpc.RpcError) as error:
            list(stream)
        assert code(error.value) == grpc.StatusCode.UNAVAILABLE
    router.reporter.stop(0.1)


def test_what_makes_no_sense_is_refused_and_changes_nothing(service: Service) -> None:
    good = ReportCountersRequest(
        router="r",
        boot_id=b"123456",
        sequence=1,
        blocks=[CounterBlock(pipeline="p", arm="a", cells=struct.pack("<I", 0), values=struct.pack("<Q", 7))],
    )
    bad = ReportCountersRequest()
    bad.CopyFrom(good)
    bad.sequence = 2
    bad.blocks.add(pipeline="p", arm="b", cells=struct.pack("<I", 99), values=struct.pack("<Q", 7))
    with grpc.insecure_channel(service.socket) as channel:
        stub = CounterServiceStub(channel)
        for _ in range(3):
            answer = stub.ReportCounters(good, timeout=5)
            assert (answer.sequence, answer.send_all) == (1, False)
        with pytest.raises(grpc.RpcError) as error:
            stub.ReportCounters(bad, timeout=5)
        assert code(error.value) == grpc.StatusCode.INVALID_ARGUMENT
        ahead = ReportCountersRequest(router="r", boot_id=b"123456", sequence=9, base_sequence=8)
        answer = stub.ReportCounters(ahead, timeout=5)
        assert (answer.sequence, answer.send_all) == (1, True)
    assert service.assigned("p") == (7, 0, 0)


def test_routers_services_are_not_open_to_users(service: Service) -> None:
    with grpc.insecure_channel(service.address) as channel, pytest.raises(grpc.RpcError) as error:
        CounterServiceStub(channel).ReportCounters(ReportCountersRequest(), timeout=5)
    assert code(error.value) == grpc.StatusCode.UNIMPLEMENTED


def test_reports_are_found_by_deployment_and_listed_in_pages(service: Service) -> None:
    names = [f"workspaces/w/pipelines/p{number}" for number in range(5)]
    with grpc.insecure_channel(service.socket) as channel:
        stub = CounterServiceStub(channel)
        for number, uid in enumerate(["old", "new"], 1):
            blocks = [
                CounterBlock(
                    pipeline=name, deployment_uid=uid, arm="a", cells=bytes(4), values=struct.pack("<Q", number)
                )
                for name in names
            ]
            stub.ReportCounters(
                ReportCountersRequest(router="r", boot_id=b"123456", sequence=number, blocks=blocks), timeout=5
            )
    assert service.report("p3").deployment_uid == "new"
    assert service.report("p3").arms[0].live.assigned == 2
    assert service.report("p3", "old").arms[0].live.assigned == 1
    for pipeline, uid in (("p9", ""), ("p3", "other")):
        with pytest.raises(grpc.RpcError) as error:
            service.report(pipeline, uid)
        assert code(error.value) == grpc.StatusCode.NOT_FOUND
    with grpc.insecure_channel(service.address) as channel:
        users = OutcomeServiceStub(channel)
        token = ""
        pages = []
        while True:
            page = users.ListReports(pb.ListReportsRequest(page_size=2, page_token=token), timeout=5)
            pages.append([report.pipeline for report in page.reports])
            token = page.next_page_token
            if not token:
                break
        assert pages == [names[:2], names[2:4], names[4:]]
        garbled = "§"
        for wrong in (pb.ListReportsRequest(page_size=-1), pb.ListReportsRequest(page_token=garbled)):
            with pytest.raises(grpc.RpcError) as error:
                users.ListReports(wrong, timeout=5)
            assert code(error.value) == grpc.StatusCode.INVALID_ARGUMENT


def test_a_second_service_on_the_same_folder_is_refused(service: Service) -> None:
    second = subprocess.run(service.command(), capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode == 1
    assert "another outcomes service" in second.stderr
    assert "Traceback" not in second.stderr
    assert service.assigned("p") == (0, 0, 0)
