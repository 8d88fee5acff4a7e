"""Which pipeline versions make sense, and what names may be given."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiltyard.control import names
from tiltyard.control.names import ModelRef, PipelineRef
from tiltyard.control.pipelines import (
    ArmSpec,
    MetricSpec,
    PipelineSpec,
    Signature,
    Signatures,
    StepSpec,
    TensorSpec,
    check,
)
from tiltyard.errors import InvalidArgumentError

REF = PipelineRef("w", "p")
A, B = ModelRef("w", "a", 1), ModelRef("w", "b", 2)
A2 = ModelRef("w", "a", 2)


def serving(
    inputs: dict[str, TensorSpec] | None = None, outputs: dict[str, TensorSpec] | None = None
) -> dict[str, Signature]:
    signature = Signature(
        inputs or {"x": TensorSpec("FLOAT", (-1, 4))},
        outputs or {"main": TensorSpec("FLOAT", (-1, 3)), "label": TensorSpec("STRING", (-1,))},
    )
    return {"serving_default": signature}


MODELS: dict[ModelRef, Signatures] = {A: serving(), B: serving(), A2: serving()}


def arm(model: ModelRef, weight: int = 1, name: str = "") -> ArmSpec:
    return ArmSpec(name, model, weight)


def split(*arms: ArmSpec, hash_key: str = "", metrics: tuple[MetricSpec, ...] = ()) -> PipelineSpec:
    return PipelineSpec((StepSpec(split=True, arms=arms, hash_key=hash_key),), metrics)


GOOD = split(arm(A, 2), arm(B, 1), hash_key="session_id", metrics=(MetricSpec("hits", "main", 2, 0.5),))


def test_arms_are_named_after_their_models() -> None:
    checked = check(REF, GOOD, MODELS)
    assert [a.name for a in checked.step.arms] == ["a", "b"]
    assert replace(checked, steps=GOOD.steps) == GOOD
    three = check(REF, split(arm(A), arm(A2), arm(B)), MODELS)
    assert [a.name for a in three.step.arms] == ["a-v1", "a-v2", "b"]
    given = check(REF, split(arm(A, name="champion"), arm(A, name="twin")), MODELS)
    assert [a.name for a in given.step.arms] == ["champion", "twin"]


def test_a_model_step_has_one_arm_named_after_the_model() -> None:
    checked = check(REF, PipelineSpec((StepSpec(split=False, arms=(arm(B, 7),)),)), MODELS)
    assert checked.step.arms == (ArmSpec("b", B, 1),)
    no_default: Signatures = {"other": serving()["serving_default"]}
    check(REF, PipelineSpec((StepSpec(split=False, arms=(arm(B),)),)), {B: no_default})


def test_a_version_comes_back_from_its_text() -> None:
    checked = replace(check(REF, GOOD, MODELS), timeout_ns=1_500_000_000)
    assert PipelineSpec.from_json(checked.to_json()) == checked


@pytest.mark.parametrize("key", ["session_id", "x-user", "a.b", "k" * 64, "id-bin"])
def test_keys_that_requests_can_carry(key: str) -> None:
    check(REF, split(arm(A), arm(B), hash_key=key), MODELS)


@pytest.mark.parametrize("count", [2, 16])
def test_two_to_sixteen_arms(count: int) -> None:
    check(REF, split(*(arm(A, name=f"arm{n}") for n in range(count))), MODELS)


EIGHT = tuple(MetricSpec(f"m{n}", "main") for n in range(8))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (PipelineSpec(()), "0 steps"),
        (PipelineSpec(GOOD.steps * 2), "2 steps"),
        (split(), "0 arms"),
        (split(arm(A)), "1 arms"),
        (split(*(arm(A, name=f"arm{n}") for n in range(17))), "17 arms"),
        (split(arm(A), arm(A)), "2 arms are named 'a-v1'"),
        (split(arm(A, name="x"), arm(B, name="x")), "2 arms are named 'x'"),
        (split(arm(A, name="no dots."), arm(B)), "arm name 'no dots.'"),
        (split(arm(A, name="x" * 65), arm(B)), "arm name"),
        (split(arm(A, -1), arm(B)), "'a': weight -1 is negative"),
        (split(arm(A, 0), arm(B, 0)), "all weights are 0"),
        (split(arm(A, 100_000), arm(B, 1)), "'b': a weight of 1 rounds to none"),
        (split(arm(A), arm(B), hash_key="Session"), "hash_key 'Session'"),
        (split(arm(A), arm(B), hash_key="k" * 65), "hash_key"),
        (split(arm(A), arm(B), hash_key="a b"), "hash_key"),
        (split(arm(A), arm(B), hash_key="schlüssel"), "hash_key"),
        (split(arm(A), arm(B), hash_key="tiltyard-arm"), "never reaches the split"),
        (split(arm(A), arm(B), hash_key="grpc-timeout"), "never reaches the split"),
        (split(arm(A), arm(B), hash_key="x"), "type FLOAT; only strings and integers"),
        (split(arm(A), arm(ModelRef("elsewhere", "b", 1))), "another workspace"),
        (replace(GOOD, metrics=(*EIGHT, MetricSpec("m8", "main"))), "9 metrics"),
        (replace(GOOD, metrics=(MetricSpec("M", "main"),)), "metric name 'M'"),
        (replace(GOOD, metrics=(MetricSpec("", "main"),)), "metric name ''"),
        (replace(GOOD, metrics=(EIGHT[0], EIGHT[0])), "2 metrics are named 'm0'"),
        (replace(GOOD, metrics=(MetricSpec("m", ""),)), "names no output"),
        (replace(GOOD, metrics=(MetricSpec("m", "main", -1),)), "index -1"),
        (replace(GOOD, metrics=(MetricSpec("m", "main", 3),)), "index 3 is outside.*3 elements a row"),
        (replace(GOOD, metrics=(MetricSpec("m", "main", 0, float("nan")),)), "finite"),
        (replace(GOOD, metrics=(MetricSpec("m", "nothing"),)), "arm 'a' has no output 'nothing'; it has label, main"),
        (replace(GOOD, metrics=(MetricSpec("m", "label"),)), "is STRING, not a number"),
        (replace(GOOD, timeout_ns=0), "timeout"),
        (replace(GOOD, timeout_ns=-5), "timeout"),
        (replace(GOOD, timeout_ns=3601 * 10**9), "timeout"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: PipelineSpec, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        check(REF, spec, {**MODELS, ModelRef("elsewhere", "b", 1): serving()})


def test_metrics_must_be_in_every_arm() -> None:
    other = serving(outputs={"score": TensorSpec("FLOAT", (-1, 1))})
    with pytest.raises(InvalidArgumentError, match="arm 'b' has no output 'main'; it has score"):
        check(REF, GOOD, {**MODELS, B: other})
    check(REF, replace(GOOD, metrics=EIGHT), MODELS)


@pytest.mark.parametrize("shape", [None, (), (-1,), (-1, -1), (-1, 3)])
def test_an_index_is_judged_only_where_the_row_is_known(shape: tuple[int, ...] | None) -> None:
    outputs = {"main": TensorSpec("INT64", shape)}
    models = {A: serving(outputs=outputs), B: serving(outputs=outputs)}
    spec = split(arm(A), arm(B), metrics=(MetricSpec("m", "main", 2),))
    if shape == (-1,):
        with pytest.raises(InvalidArgumentError, match="1 elements a row"):
            check(REF, spec, models)
    else:
        check(REF, spec, models)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"y": TensorSpec("FLOAT")}, r"inputs are \['y'\], the champion's \['x'\]"),
        ({"x": TensorSpec("FLOAT"), "y": TensorSpec("FLOAT")}, "cannot answer"),
        ({"x": TensorSpec("DOUBLE")}, "input 'x' as DOUBLE, the champion as FLOAT"),
    ],
)
def test_arms_must_take_the_same_requests(inputs: dict[str, TensorSpec], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        check(REF, GOOD, {**MODELS, B: serving(inputs)})


def test_an_arm_without_the_default_signature_is_refused() -> None:
    signature = serving()["serving_default"]
    odd: Signatures = {"predict": signature, "__saved_model_init_op": signature}
    with pytest.raises(InvalidArgumentError, match=r"arm 'b': .* 'serving_default' \(it has predict\)"):
        check(REF, GOOD, {**MODELS, B: odd})


@pytest.mark.parametrize("dtype", ["STRING", "INT32", "UINT64"])
def test_a_key_may_be_an_input_that_identifies(dtype: str) -> None:
    signatures = serving({"user": TensorSpec(dtype)})
    check(REF, split(arm(A), arm(B), hash_key="user"), {A: signatures, B: signatures})


@pytest.mark.parametrize("text", ["a", "A-1", "x" * 63])
def test_good_names(text: str) -> None:
    assert names.check_id("model", text) == text


@pytest.mark.parametrize("text", ["", "1a", "-a", "a-", "a.b", "a_b", "ä", "x" * 64, "a/b", "a\n", ".."])
def test_bad_names(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        names.check_id("model", text)


@pytest.mark.parametrize("text", ["", "A", "-a", "a-", "a.b", "a_b", "x" * 64, "a/b", "a\n"])
def test_bad_pipeline_names(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        names.check_pipeline_id(text)
    assert names.check_pipeline_id("1-a") == "1-a"


def test_resource_names_are_read_to_the_letter() -> None:
    assert names.parse_model_version("workspaces/w/models/a/versions/3") == ModelRef("w", "a", 3)
    assert str(ModelRef("w", "a", 3)) == "workspaces/w/models/a/versions/3"
    assert names.parse_pipeline_version(f"{REF}/versions/12") == (REF, 12)
    assert names.parse_deployment(f"{REF}/deployment") == REF
    assert names.parse_workspace("workspaces/-", wildcard=True) == "-"
    for bad in ("workspaces/-", "workspaces/", "workspaces/a/b", "w", ""):
        with pytest.raises(InvalidArgumentError):
            names.parse_workspace(bad)
    for bad in ("0", "-1", "01", "1.0", "x", "", "9" * 19, "\u0661"):
        with pytest.raises(InvalidArgumentError):
            names.parse_model_version(f"workspaces/w/models/a/versions/{bad}")
