"""The demo itself: two models, one split, 5,000 labelled names, and what came of them.

``run_demo`` takes a client of a running Tiltyard; ``own_tiltyard`` starts one that lasts as long as its block.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiltyard.client import Client, Pipeline, Report
from tiltyard.demo.data import INPUT, MAIN, DemoFiles, LabelledName, encode_names, load_names
from tiltyard.errors import EntityNotFoundError, InferenceError
from tiltyard.supervisor.process import Process
from tiltyard.supervisor.spawn import tiltyard_command

__all__ = ["ARMS", "DemoResult", "Tally", "View", "own_tiltyard", "run_demo"]

WORKSPACE = "demo"
PIPELINE = "dga"
HASH_KEY = "session_id"
ARMS = ("champion", "challenger")
WEIGHTS = (2, 1)
THREADS = 16
"""Requests in flight at a time."""

_REQUEST_LIMIT_S = 15.0
_COUNTS_LIMIT_S = 20.0
_POLL_S = 0.1
_LOOK_S = 0.1


@dataclass(slots=True)
class Tally:
    """What the client saw of one arm.

    Attributes:
        requests: those that were sent.
        errors: those of them without an answer.
        flagged: answers with ``main`` above 0.5.
        correct: answers that agree with the label.
    """

    requests: int = 0
    errors: int = 0
    flagged: int = 0
    correct: int = 0

    @property
    def flagged_share(self) -> float | None:
        """Share of the answers with ``main`` above 0.5; None without answers."""
        return self._share(self.flagged)

    @property
    def accuracy(self) -> float | None:
        """Share of the answers that agree with the label; None without answers."""
        return self._share(self.correct)

    def _share(self, part: int) -> float | None:
        answered = self.requests - self.errors
        return part / answered if answered else None


@dataclass(slots=True, kw_only=True)
class DemoResult:
    """What came of a replay.

    Attributes:
        arms: by name, the champion first; ``""`` for requests that failed before an arm was known.
        sessions: sessions in the replay.
        split_sessions: sessions that were answered by more than one arm; the split promises none.
        first_error: what the first failed request said.
        seconds: how long the replay took.
        report: what the router counted, as the outcomes service tells it.
    """

    arms: dict[str, Tally] = field(default_factory=lambda: {arm: Tally() for arm in ARMS})
    sessions: int = 0
    split_sessions: int = 0
    first_error: str = ""
    seconds: float = 0.0
    report: Report | None = None

    @property
    def requests(self) -> int:
        """Requests sent."""
        return sum(tally.requests for tally in self.arms.values())

    @property
    def errors(self) -> int:
        """Requests without an answer."""
        return sum(tally.errors for tally in self.arms.values())

    def problems(self) -> list[str]:
        """What went wrong, for people; empty when nothing did."""
        found = []
        if self.errors:
            found.append(f"{self.errors} of {self.requests} requests failed; the first: {self.first_error}")
        if self.split_sessions:
            found.append(f"{self.split_sessions} sessions were answered by more than one arm")
        if self.report is None:
            found.append(f"the requests were not counted within {_COUNTS_LIMIT_S:g} s")
        elif not self.errors and (differing := self._differences(self.report)):
            found.append(f"the router's counts differ from the client's: {differing}")
        return found

    def _differences(self, report: Report) -> str:
        seen = {arm: (tally.requests, tally.requests, tally.flagged) for arm, tally in self.arms.items() if arm}
        counted = {}
        for arm in report.arms:
            flagged = sum(round((metric.mean or 0.0) * metric.scored) for metric in arm.live.metrics)
            counted[arm.name] = (arm.live.assigned, arm.live.ok, flagged)
        if seen == counted:
            return ""
        return f"(assigned, answered, above 0.5) is {counted} there and {seen} here"


class View(Protocol):
    """Where the demo shows what it does."""

    def step(self, text: str) -> None:
        """One step begins."""

    def replay(self, total: int) -> AbstractContextManager[Callable[[DemoResult], None]]:
        """A replay of ``total`` requests; the block calls what it is given with what was seen so far."""


@contextmanager
def own_tiltyard() -> Iterator[str]:
    """A Tiltyard on a free port with a temporary data folder; the address it serves.

    Raises:
        UnavailableError: it did not start; shows what it said.
    """
    with tempfile.TemporaryDirectory(prefix="tiltyard-demo-") as folder:
        place = Path(folder)
        command = tiltyard_command("up", "--data-dir", str(place / "data"), "--listen", "127.0.0.1:0")
        with Process(command, name="up", folder=place / "output") as process:
            yield process.wait_line("tiltyard: ready on ", 180.0)


def run_demo(client: Client, files: DemoFiles, view: View, *, threads: int = THREADS) -> DemoResult:
    """Upload, split, replay, count, undeploy.

    Args:
        client: of a running Tiltyard.
        files: the models and the names.
        view: shows what is done.
        threads: requests in flight at a time.

    Raises:
        TiltyardError: a step other than a single request failed.
    """
    names = load_names(files.names)
    client.set_current_workspace(client.get_workspace(WORKSPACE, create_if_not_exist=True))
    view.step("uploading two models")
    models = [client.upload_model(f"dga-{arm}", getattr(files, arm)).configure("tensorflow") for arm in ARMS]
    view.step(f"deploying a split, {' to '.join(map(str, WEIGHTS))} by {HASH_KEY}")
    pipeline = client.build_pipeline(PIPELINE)
    if pipeline.deployed():  # by a demo that was cut short
        pipeline.undeploy()
    pipeline.add_random_split(list(zip(WEIGHTS, models, ARMS, strict=True)), HASH_KEY)
    pipeline.add_metric(MAIN, output=MAIN, above=0.5)
    try:
        pipeline.deploy()  # may be in force although it was interrupted
        view.step(f"replaying {len(names):,} labelled domain names")
        result = _replay(pipeline, names, view, threads)
        view.step("asking what the router counted")
        result.report = _counted(pipeline, result.requests - result.errors)
    finally:
        view.step("undeploying")
        pipeline.undeploy()
    return result


def _replay(pipeline: Pipeline, names: Sequence[LabelledName], view: View, threads: int) -> DemoResult:
    rows = encode_names(name.name for name in names)
    result = DemoResult(sessions=len({name.session_id for name in names}))
    arms_of: dict[str, set[str]] = {}
    began = time.monotonic()
    pool = ThreadPoolExecutor(threads, "tiltyard-demo")
    with view.replay(len(names)) as show:
        try:
            pending = {
                pool.submit(_ask, pipeline, name, row): name
                for name, row in zip(names, rows[:, np.newaxis], strict=True)
            }
            while pending:
                done, _ = wait(pending, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                for future in done:
                    _count(result, arms_of, pending.pop(future), future)
                result.seconds = time.monotonic() - began
                show(result)
        finally:
            pool.shutdown(cancel_futures=True)
    result.split_sessions = sum(len(arms) > 1 for arms in arms_of.values())
    return result


def _ask(pipeline: Pipeline, name: LabelledName, row: npt.NDArray[np.float32]) -> tuple[str, float]:
    """Send one name; the arm that answered, and how likely it holds the name to be generated."""
    answer = pipeline.infer({INPUT: row}, key=name.session_id, timeout=_REQUEST_LIMIT_S)[0]
    return answer.arm, float(answer.outputs()[MAIN].item())


def _count(
    result: DemoResult, arms_of: dict[str, set[str]], name: LabelledName, future: Future[tuple[str, float]]
) -> None:
    try:
        arm, main = future.result()
    except InferenceError as error:
        tally = result.arms.setdefault(error.arm, Tally())
        tally.requests += 1
        tally.errors += 1
        result.first_error = result.first_error or error.message
        return
    tally = result.arms.setdefault(arm, Tally())
    tally.requests += 1
    tally.flagged += main > 0.5
    tally.correct += name.correct(main)
    arms_of.setdefault(name.session_id, set()).add(arm)


def _counted(pipeline: Pipeline, requests: int) -> Report | None:
    """The report of this deployment once it holds that many requests; None when it does not in time.

    Args:
        pipeline: the pipeline.
        requests: how many were answered; those that failed may never have reached a router.
    """
    end = time.monotonic() + _COUNTS_LIMIT_S
    while time.monotonic() < end:
        try:
            report = pipeline.report()
        except EntityNotFoundError:  # nothing was counted yet
            pass
        else:
            if sum(arm.live.completed for arm in report.arms) >= requests:
                return report
        time.sleep(_POLL_S)
    return None
