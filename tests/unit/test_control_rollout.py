"""What a deploy and a change of weights lead to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiltyard.control.names import ModelRef, PipelineRef
from tiltyard.control.pipelines import ArmSpec, MetricSpec, PipelineSpec, StepSpec
from tiltyard.control.records import DeploymentRecord, PipelineRecord, PipelineVersionRecord
from tiltyard.control.rollout import DeployPlan, Fresh, plan_deploy, plan_weights
from tiltyard.control.routes import snapshot_of
from tiltyard.errors import FailedPreconditionError, InvalidArgumentError
from tiltyard.slots import first_table

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REF = PipelineRef("default", "p")


def version(*weights: int, number: int = 1, ref: PipelineRef = REF, names: str = "abc") -> PipelineVersionRecord:
    arms = tuple(
        ArmSpec(name, ModelRef(ref.workspace, f"m-{name}", number), weight)
        for name, weight in zip(names, weights, strict=False)
    )
    spec = PipelineSpec((StepSpec(split=len(arms) > 1, arms=arms, hash_key="id"),), (MetricSpec("m", "main"),))
    return PipelineVersionRecord(ref, number, spec, NOW)


def plan(
    wanted: PipelineVersionRecord,
    *in_force: DeploymentRecord,
    last_epoch: int = 0,
    kept_salt: bytes | None = None,
    reshuffle: bool = False,
    same: bool = False,
    uid: str = "u1",
) -> DeployPlan:
    pipeline = PipelineRecord(
        ref=wanted.ref, created=NOW, updated=NOW, latest=wanted, deployed=False, last_epoch=last_epoch, deploy_error=""
    )
    digests = {arm.model: "same" if same else arm.name for arm in wanted.spec.step.arms}
    return plan_deploy(
        pipeline,
        wanted,
        in_force=in_force,
        kept_salt=kept_salt,
        reshuffle=reshuffle,
        digests=digests,
        fresh=Fresh(uid=uid, salt=b"fresh" * 3 + b"!", now=NOW),
    )


def test_a_first_deploy() -> None:
    made = plan(version(2, 1))
    deployment = made.deployment
    assert made.warnings == ()
    assert (deployment.epoch, deployment.uid, deployment.salt) == (1, "u1", b"fresh" * 3 + b"!")
    assert deployment.table == first_table([2, 1])
    assert deployment.weights == (2, 1)
    assert deployment.request_names == ("p", "default/p")


def test_the_salt_stays_until_reshuffled() -> None:
    assert plan(version(2, 1), kept_salt=b"old").deployment.salt == b"old"
    assert plan(version(2, 1), kept_salt=b"old", reshuffle=True).deployment.salt.startswith(b"fresh")


def test_an_epoch_is_never_used_again() -> None:
    first = plan(version(2, 1)).deployment
    changed = plan_weights(first, 1, [("a", 1), ("b", 1)]).deployment
    assert changed.epoch == 2
    assert plan(version(2, 1), changed, last_epoch=2, uid="u2").deployment.epoch == 3
    assert plan(version(2, 1), last_epoch=7).deployment.epoch == 8  # undeployed in between


def test_a_redeploy_of_the_same_arms_begins_at_their_slots() -> None:
    first = plan(version(8, 1, 1)).deployment
    moved = plan_weights(first, 1, [("a", 7), ("b", 1), ("c", 2)]).deployment
    same_shares = plan(version(7, 1, 2, number=2), moved, last_epoch=2).deployment
    assert same_shares.table == moved.table != first_table([7, 1, 2])
    assert plan(version(7, 1, 2, number=2), moved, last_epoch=2, reshuffle=True).deployment.table == first_table(
        [7, 1, 2]
    )
    renamed = version(7, 1, 2, number=2, names="abd")
    assert plan(renamed, moved, last_epoch=2).deployment.table == first_table([7, 1, 2])


def test_byte_identical_arms_are_called_an_a_a_test() -> None:
    (warning,) = plan(version(2, 1, 1), same=True).warnings
    assert "a, b and c serve byte-identical models" in warning
    assert "A/A test" in warning


def test_a_bare_name_belongs_to_the_first_until_it_is_undeployed() -> None:
    first = plan(version(2, 1)).deployment
    other = version(2, 1, ref=PipelineRef("second", "p"))
    made = plan(other, first)
    assert made.deployment.request_names == ("second/p",)
    assert "belongs to workspaces/default/pipelines/p" in made.warnings[0]
    assert plan(version(2, 1), first, made.deployment).deployment.bare_name  # the owner keeps it
    assert not plan(other, first, made.deployment).deployment.bare_name
    assert plan(other, made.deployment).deployment.bare_name  # the first is gone
    unlike = replace(first, ref=PipelineRef("default", "q"))
    assert plan(other, unlike).deployment.bare_name


def test_weights_are_given_by_name_in_any_order() -> None:
    first = plan(version(2, 1)).deployment
    changed = plan_weights(first, 1, [("b", 1), ("a", 9)])
    assert changed.deployment.weights == (9, 1)
    assert changed.deployment.table.counts() == (9000, 1000)
    assert changed.moved == 10_000 - 6667 - 1000


def test_the_same_shares_are_no_new_epoch() -> None:
    first = plan(version(2, 1)).deployment
    same = plan_weights(first, 1, [("a", 4), ("b", 2)])
    assert (same.moved, same.deployment.epoch, same.deployment.weights) == (0, 1, (4, 2))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([("a", 1)], "no weight for b"),
        ([], "no weight for a, b"),
        ([("a", 1), ("b", 1), ("c", 1)], "has no arm 'c'; its arms are a, b"),
        ([("a", 1), ("b", 1), ("a", 2)], "'a' is given twice"),
        ([("a", 1), ("b", -1)], "'b': weight -1 is negative"),
        ([("a", 0), ("b", 0)], "all weights are 0"),
        ([("a", 100_000), ("b", 1)], "'b': a weight of 1 rounds to none"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: list[tuple[str, int]], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        plan_weights(plan(version(2, 1)).deployment, 1, weights)


def test_a_single_model_has_no_weights() -> None:
    single = plan(version(1)).deployment
    assert single.table.runs() == [(10_000, 0)]
    with pytest.raises(FailedPreconditionError, match="single model"):
        plan_weights(single, 1, [("a", 1)])


WEIGHTS = st.lists(st.integers(0, 30), min_size=3, max_size=3).filter(any)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["weights", "deploy", "undeploy"]), WEIGHTS), max_size=8))
def test_epochs_rise_with_every_deploy_and_every_change_of_shares(steps: list[tuple[str, list[int]]]) -> None:
    in_force: DeploymentRecord | None = None
    last = 0
    for what, weights in steps:
        if what == "deploy":
            in_force = plan(version(*weights), *([in_force] if in_force else []), last_epoch=last).deployment
            assert in_force.epoch == last + 1
        elif what == "undeploy":
            in_force = None
        elif in_force is not None:
            before = in_force
            changed = plan_weights(before, last, zip("abc", weights, strict=True))
            in_force = changed.deployment
            assert in_force.epoch == (last + 1 if in_force.table.owners() != before.table.owners() else before.epoch)
        last = max(last, in_force.epoch if in_force else 0)


def test_a_snapshot_says_everything() -> None:
    deployment = replace(plan(version(2, 1)).deployment, spec=replace(version(2, 1).spec, timeout_ns=1_500_000_000))
    snapshot = snapshot_of([deployment], revision=7, backends=["h:1", "h:2"], receipt_key=b"k" * 32)
    (route,) = snapshot.pipelines
    assert (snapshot.revision, snapshot.receipt_keys[0].number, snapshot.receipt_keys[0].secret) == (7, 0, b"k" * 32)
    assert route.pipeline == "workspaces/default/pipelines/p"
    assert list(route.request_names) == ["p", "default/p"]
    assert [(arm.name, arm.model, arm.version, list(arm.backends)) for arm in route.arms] == [
        ("a", "default.m-a", 1, ["h:1", "h:2"]),
        ("b", "default.m-b", 1, ["h:1", "h:2"]),
    ]
    assert [(run.end, run.arm) for run in route.slots] == [(6667, 0), (10_000, 1)]
    assert (route.epoch, route.hash_key, route.salt, route.deployment_uid) == (1, "id", deployment.salt, "u1")
    assert route.timeout.ToMilliseconds() == 1500
    assert (route.metrics[0].name, route.metrics[0].HasField("above")) == ("m", False)
