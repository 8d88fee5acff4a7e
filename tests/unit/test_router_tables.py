"""From one routes file to the next: which slots move, and when an epoch begins."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tiltyard.router.routes_file import RoutesFile, parse_routes
from tiltyard.router.spec import PipelineSpec, ReceiptKey
from tiltyard.router.tables import FileTables, file_uid
from tiltyard.slots import SlotTable, first_table, move

KEY = ReceiptKey(0, b"k" * 32)


def routes(*weights: float, name: str = "p", extra: str = "", model: str = "m", port: int = 1) -> RoutesFile:
    arms = "".join(
        f"      - {{name: a{i}, weight: {weight}, model: {model}, version: 1, backends: ['h:{port}']}}\n"
        for i, weight in enumerate(weights)
    )
    return parse_routes(f"pipelines:\n  - name: {name}\n{extra}    arms:\n{arms}", "routes.yaml")


def apply(tables: FileTables, file: RoutesFile) -> PipelineSpec:
    plan = tables.plan(file)
    tables.commit(plan)
    return plan.spec.pipelines[0]


def test_the_first_table_is_that_of_the_weights() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    plan = tables.plan(routes(2, 1))
    (spec,) = plan.spec.pipelines
    assert (plan.spec.revision, plan.spec.receipt_key) == (1, KEY)
    assert (spec.key, spec.uid, spec.request_names, spec.epoch) == ("p", file_uid(spec), ("p",), 1)
    assert spec.slots == ((6667, 0), (10000, 1))
    assert spec.salt == b"p"


def test_the_same_file_again_is_a_new_revision_of_the_same_epoch() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    first = apply(tables, routes(2, 1))
    plan = tables.plan(routes(4, 2))  # other numbers, same shares
    assert plan.spec.revision == 2
    assert plan.spec.pipelines == (first,)


def test_changed_weights_move_slots_from_the_table_in_force_and_begin_an_epoch() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    apply(tables, routes(2, 1, 1))
    second = apply(tables, routes(2, 2, 0))
    third = apply(tables, routes(1, 1, 2))
    expected = move(move(first_table([2, 1, 1]), [2, 2, 0]), [1, 1, 2])
    assert (second.epoch, third.epoch) == (2, 3)
    assert third.slots == tuple(expected.runs())
    assert third.slots != tuple(first_table([1, 1, 2]).runs())  # a restart would start from this one


def test_counts_of_edited_files_are_never_added_up() -> None:
    """Each start begins at epoch 1: the uid tells the files apart, the clock the epochs of later reloads."""
    first = apply(FileTables(KEY), routes(2, 1))
    assert apply(FileTables(KEY), routes(2, 1)) == first
    assert apply(FileTables(KEY), routes(1, 1)).uid != first.uid
    tables = FileTables(KEY, clock=lambda: 1_800_000_000.5)
    apply(tables, routes(2, 1))
    reloaded = apply(tables, routes(1, 1))
    assert (reloaded.uid, reloaded.epoch) == (first.uid, 1_800_000_000)
    assert apply(tables, routes(1, 2)).epoch == 1_800_000_001


def test_what_was_planned_and_not_committed_leaves_nothing_behind() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    apply(tables, routes(2, 1))
    tables.plan(routes(1, 9))
    plan = tables.plan(routes(1, 1))
    assert (plan.spec.revision, plan.spec.pipelines[0].epoch) == (2, 2)
    assert plan.spec.pipelines[0].slots == tuple(move(first_table([2, 1]), [1, 1]).runs())


def test_backends_and_timeouts_change_within_an_epoch() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    apply(tables, routes(2, 1))
    spec = apply(tables, routes(2, 1, port=9, extra="    timeout: 3s\n"))
    assert (spec.epoch, spec.timeout_s, spec.arms[0].backends) == (1, 3.0, ("h:9",))


def test_what_the_counts_depend_on_begins_an_epoch() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    epochs = [
        apply(tables, file).epoch
        for file in (
            routes(2, 1),
            routes(2, 1, model="n"),
            routes(2, 1, model="n", extra="    metrics: [{name: x, output: o}]\n"),
            routes(2, 1, model="n", extra="    hash_key: k\n"),
            routes(2, 1, model="n", extra="    hash_key: k\n"),
        )
    ]
    assert epochs == [1, 2, 3, 4, 4]


def test_another_salt_or_other_arms_start_from_the_first_table() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    apply(tables, routes(2, 1, 1))
    apply(tables, routes(1, 1, 2))
    salted = apply(tables, routes(1, 1, 2, extra="    salt: other\n"))
    assert (salted.slots, salted.epoch) == (tuple(first_table([1, 1, 2]).runs()), 3)
    fewer = apply(tables, routes(1, 1, extra="    salt: other\n"))
    assert (fewer.slots, fewer.epoch) == (((5000, 0), (10000, 1)), 4)


def test_epochs_of_a_pipeline_that_was_away_go_on() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    apply(tables, routes(2, 1))
    apply(tables, routes(1, 1))
    assert apply(tables, routes(2, 1, name="other")).epoch == 1
    back = apply(tables, routes(2, 1))
    assert (back.epoch, back.slots) == (3, ((6667, 0), (10000, 1)))


def test_slots_given_outright_decide_and_later_weights_move_from_them() -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    given = apply(tables, routes(1, 1, extra="    slots: [[2000, a0], [9000, a1], [10000, a0]]\n"))
    assert given.slots == ((2000, 0), (9000, 1), (10000, 0))
    same = apply(tables, routes(3, 7))  # the shares those slots have already
    assert (same.slots, same.epoch) == (given.slots, 1)
    moved = apply(tables, routes(1, 1))
    table = SlotTable.from_runs(given.slots, 2)
    assert (moved.slots, moved.epoch) == (tuple(move(table, [1, 1]).runs()), 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any), min_size=1, max_size=6))
def test_any_way_of_weights_gives_the_tables_and_epochs_of_the_rules(path: list[list[int]]) -> None:
    tables = FileTables(KEY, clock=lambda: 0.0)
    table, epoch = first_table(path[0]), 1
    for weights in path:
        moved = move(table, weights)
        epoch += moved != table
        table = moved
        spec = apply(tables, routes(*weights))
        assert spec.slots == tuple(table.runs())
        assert spec.epoch == epoch
