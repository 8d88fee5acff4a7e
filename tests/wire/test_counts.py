"""The counters against what the client saw: live and closed, by arm, epoch, status and metric."""

from __future__ import annotations

import math
import random
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.router.counters import CountersFile
from tiltyard.router.spec import MetricSpec
from wirebench.backend import Call, ScriptedBackend, echo, replies, silence
from wirebench.benches import one_arm
from wirebench.client import RawClient
from wirebench.ledger import Ledger
from wirebench.messages import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    NOT_FOUND,
    OK,
    UNAVAILABLE,
    answer,
    floats,
    int64s,
    padded,
    request,
    strings,
)
from wirebench.routers import (
    BlockCounts,
    CoreRouter,
    arm,
    counters_of,
    counts,
    pipeline,
    routes_yaml,
    start_process,
)
from wirebench.wires import INTERNAL_ERROR, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

MAIN = MetricSpec("main", "main")
ABOVE = MetricSpec("above", "main", above=0.5)


def closed(router: CoreRouter) -> BlockCounts:
    """The closed counts, once all that was assigned until now is in them."""
    now = int(time.time())
    wait_until(lambda: router.snapshot().closed_through >= now, "this second to be closed")
    return counts(router.snapshot(), closed=True)


def test_what_the_client_saw_is_what_was_counted(tmp_path: Path) -> None:
    draw = random.Random(11)

    async def moody(call: Call) -> None:
        await call.request()
        mood = call.number % 10
        if mood == 7:
            call.rst(INTERNAL_ERROR)
        elif mood == 8:
            call.only_trailers(draw.choice([3, 8, 13, 16]), "mood")
        elif mood == 9:
            await call.reply(answer(), status=9)
        else:
            await call.reply(answer({"main": floats([mood / 8])}))

    with ScriptedBackend(moody) as one, ScriptedBackend(moody) as two:
        table = pipeline(
            arm("champion", one.address), arm("challenger", two.address), weights=[2, 1], metrics=[MAIN, ABOVE]
        )
        ledger = Ledger()
        seen: dict[str, list[float]] = defaultdict(list)
        with CoreRouter(table, counters=tmp_path / "c") as router, RawClient(router.address) as client:
            for number in range(400):
                label = "challenger" if number % 25 == 0 else ""
                key = [("session_id", f"user/{number % 90}")] if number % 3 else []
                got = client.call(request(label=label), key)
                ledger.add(got)
                if got.status == OK and not label:
                    assert got.arm is not None
                    (value,) = predict_pb2.PredictResponse.FromString(got.body).outputs["main"].float_val
                    seen[got.arm].append(value)
            for bad in (request("nobody"), b"\xff", request(label="nope")):
                got = client.call(bad)
                ledger.add(got)
                assert got.status in (NOT_FOUND, INVALID_ARGUMENT)
            assert (ledger.forced, ledger.unassigned) == (16, 3)
            live = counts(router.snapshot(), closed=False)
            ledger.check(live)
            ledger.check(closed(router))
            assert closed(router) == counts(router.snapshot(), closed=False)
        for name, values in seen.items():
            cells = live["p", name, 1]
            main, above = cells.metrics
            assert (main.metric, main.scored, above.metric, above.scored) == ("main", len(values), "above", len(values))
            assert main.total == pytest.approx(sum(values))
            assert main.sum_of_squares == pytest.approx(sum(value * value for value in values))
            assert above.total == above.sum_of_squares == sum(value > 0.5 for value in values)
            errors = sum(n for status, n in cells.statuses.items() if status != OK)
            assert dict(main.unscored) == dict(above.unscored) == {"error": errors}
        after = router.snapshot()
        assert after.ended
        ledger.check(counts(after, closed=True))


# ---------------------------------------------------------------- why an answer gave no value

HALF = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT, tensor_content=b"\0\0\0\x3f")


def three(*values: float) -> bytes:
    """An answer with rows of three values."""
    return answer({"main": floats(values, shape=[len(values) // 3, 3])})


# By name: the metric's index, the answer, and the value read or the reason why there is none.
READINGS: dict[str, tuple[int, bytes, float | str]] = {
    "a typed field": (0, answer({"main": floats([0.5])}), 0.5),
    "tensor_content": (0, answer({"main": HALF}), 0.5),
    "integers": (0, answer({"main": int64s([3])}), 3.0),
    "one row of three": (2, three(1, 2, 3), 3.0),
    "the mean over two rows": (2, three(1, 2, 3, 4, 5, 6), 4.5),
    "large": (2, padded(three(0, 0, 0.25), 300_000), 0.25),
    "rows too short for the index": (2, answer({"main": floats([1, 2, 3, 4], shape=[2, 2])}), "index"),
    "three rows of one": (2, answer({"main": floats([0.0] * 3)}), "index"),
    "another output": (0, answer({"other": floats([0.5])}), "missing"),
    "no output": (0, answer({}), "missing"),
    "text": (0, answer({"main": strings([b"0.5"])}), "dtype"),
    "not a number": (2, three(0, 0, math.nan), "nan"),
    "infinity": (2, three(0, 0, -math.inf), "nan"),
    "a length beyond the end": (0, b"\x0a\x7f" + answer(), "malformed"),
    "cut off": (0, answer({"main": floats([0.5])})[:-1], "malformed"),
}


@pytest.mark.parametrize("what", READINGS)
def test_answers_give_a_value_or_a_reason(what: str, tmp_path: Path) -> None:
    index, message, result = READINGS[what]
    metrics = [MetricSpec("m", "main", index=index)]
    with one_arm(replies(message), metrics=metrics, counters=tmp_path / "c") as (_, router, client):
        got = client.call(request())
        assert (got.status, got.body) == (OK, message)  # the client gets it either way
        (cells,) = counts(router.snapshot(), closed=False).values()
        (metric,) = cells.metrics
        assert cells.statuses == {OK: 1}
        if isinstance(result, str):
            assert (metric.scored, dict(metric.unscored)) == (0, {result: 1})
        else:
            assert (metric.scored, metric.total, dict(metric.unscored)) == (1, result, {})


def test_each_metric_has_its_own_reason(tmp_path: Path) -> None:
    metrics = [
        MAIN,
        MetricSpec("second", "main", index=1),
        MetricSpec("gone", "other"),
        MetricSpec("text", "text"),
        MetricSpec("far", "main", index=2**40),
        MetricSpec("high", "main", index=1, above=0.25),
        MetricSpec("low", "main", index=1, above=0.5),
    ]
    message = answer({"main": floats([0.25, 0.5], shape=[1, 2]), "text": strings([b"x"])})
    with one_arm(replies(message), metrics=metrics, counters=tmp_path / "c") as (_, router, client):
        assert client.call(request()).status == OK
        (cells,) = counts(router.snapshot(), closed=False).values()
        values: Mapping[str, object] = {
            metric.metric: metric.total if metric.scored else next(iter(metric.unscored)) for metric in cells.metrics
        }
        assert values == {
            "main": 0.25,
            "second": 0.5,
            "gone": "missing",
            "text": "dtype",
            "far": "index",
            "high": 1.0,
            "low": 0.0,
        }


# ---------------------------------------------------------------- calls that end badly count for their arm


def test_every_way_to_fail_counts_for_the_arm_that_was_drawn(tmp_path: Path) -> None:
    async def by_metadata(call: Call) -> None:
        await call.request()
        what = call.get("x-what")
        if what == "break":
            call.conn.abort()
        elif what == "half":
            call.head()
            await call.data(b"\0\0\0\1\0abc")
            await call.cancelled()
        else:
            await silence(call)

    with one_arm(by_metadata, metrics=[MAIN], counters=tmp_path / "c") as (backend, router, client):
        ledger = Ledger()
        ledger.add(client.call(request(), timeout="50m"))
        for what in ("silent", "half"):
            stream = client.start(request(), [("x-what", what)])
            wait_until(lambda: len(backend.calls) == (2 if what == "silent" else 3), "the call")  # noqa: B023
            if what == "half":
                client.pump(lambda: len(client.streams[stream].data) > 0)  # noqa: B023
            client.cancel(stream)
            ledger.lost("a", CANCELLED)
        ledger.add(client.call(request(), [("x-what", "break")]))
        with RawClient(router.address) as gone:
            gone.start(request())
            wait_until(lambda: len(backend.calls) == 5, "the call")
            gone.abort()
            ledger.lost("a", CANCELLED)
        router.wait_idle()
        assert sorted(status for _, _, status in ledger.statuses) == [CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE]
        ledger.check(counts(router.snapshot(), closed=False))
        (cells,) = closed(router).values()
        assert dict(cells.metrics[0].unscored) == {"error": 5}
        # Given up before the draw: nobody's.
        stream = client.open()
        client.cancel(stream)
        client.ping()
        ledger.check(counts(router.snapshot(), closed=False))


def test_a_backend_that_is_down_counts_for_its_arm(tmp_path: Path) -> None:
    with one_arm(counters=tmp_path / "c") as (backend, router, client):
        ledger = Ledger()
        backend.die()
        for _ in range(20):
            ledger.add(client.call(request()))
        assert set(ledger.statuses) == {("a", 1, UNAVAILABLE)}
        ledger.check(counts(router.snapshot(), closed=False))


def test_a_second_stays_open_until_its_last_call_has_ended(tmp_path: Path) -> None:
    with one_arm(silence, counters=tmp_path / "c") as (backend, router, client):
        wait_until(lambda: router.snapshot().closed_through > 0, "the first second")
        held = client.start(request())
        wait_until(lambda: len(backend.calls) == 1, "the call")
        assigned = int(time.time())
        backend.script = echo
        time.sleep(0.05)
        assert client.call(request()).status == OK
        end = time.monotonic() + 2.2
        while time.monotonic() < end:
            client.idle(0.1)
            snapshot = router.snapshot()
            assert snapshot.closed_through < assigned + 1
            (cells,) = counts(snapshot, closed=True).values()
            assert cells.assigned == 0
        assert next(iter(counts(router.snapshot(), closed=False).values())).completed == 1
        client.cancel(held)
        (cells,) = closed(router).values()
        assert cells.statuses == {OK: 1, CANCELLED: 1}


# ---------------------------------------------------------------- epochs


def test_each_epoch_counts_for_itself_and_a_call_for_the_one_it_began_in(tmp_path: Path) -> None:
    gate = False

    async def held(call: Call) -> None:
        await call.request()
        await call.until(lambda: gate or call.get("x-wait") is None)
        await call.reply(answer())

    with ScriptedBackend(held) as backend:

        def table(epoch: int, weights: list[int]) -> CoreRouter:
            arms = (arm("champion", backend.address), arm("challenger", backend.address))
            router.apply(pipeline(*arms, weights=weights, epoch=epoch))
            return router

        ledger = Ledger()
        with CoreRouter(counters=tmp_path / "c") as router, RawClient(router.address) as client:
            table(1, [2, 1])
            waiting = [client.start(request(), [("x-wait", "1")]) for _ in range(30)]
            wait_until(lambda: len(backend.calls) == 30, "the calls")
            for epoch, weights in ((2, [1, 1]), (3, [1, 3])):
                table(epoch, weights)
                for _ in range(60):
                    got = client.call(request())
                    assert got.receipt.epoch == epoch
                    ledger.add(got)
            gate = True
            backend.wake()
            for got in client.finish_all(waiting):
                assert got.receipt.epoch == 1
                ledger.add(got)
            live = counts(router.snapshot(), closed=False)
            assert {epoch for _, _, epoch in live} == {1, 2, 3}
            ledger.check(live)
            ledger.check(closed(router))


def test_sighup_begins_an_epoch_and_a_kill_loses_nothing_completed(tmp_path: Path) -> None:
    with ScriptedBackend() as one, ScriptedBackend() as two:
        table = pipeline(arm("champion", one.address), arm("challenger", two.address), metrics=[MAIN])
        ledger = Ledger()
        routes = routes_yaml(table, weights=[2, 1])
        with start_process(routes, folder=tmp_path) as process, RawClient(process.address) as client:
            for number in range(100):
                ledger.add(client.call(request(), [("session_id", f"{number}")]))
            (tmp_path / "routes.yaml").write_text(routes_yaml(table, weights=[1, 1]))
            process.signal(signal.SIGHUP)
            wait_until(lambda: told(client, ledger) > 1, "the new table")
            for number in range(100):
                ledger.add(client.call(request(), [("session_id", f"{number}")]))
            path = counters_of(tmp_path)
            process.kill()
        with CountersFile(path) as file:
            assert file.try_lock()
            snapshot = file.read()
        assert not snapshot.ended
        live = counts(snapshot, closed=False)
        ledger.check(live)
        assert len({epoch for _, _, epoch in live}) == 2
        assert sum(cells.metrics[0].scored for cells in live.values()) == sum(ledger.statuses.values())


def told(client: RawClient, ledger: Ledger) -> int:
    got = client.call(request())
    ledger.add(got)
    return got.receipt.epoch
