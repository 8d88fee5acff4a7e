"""Building pipelines: weights, arms, keys, metrics, and edits that cannot drift apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiltyard
from hypothesis import given
from hypothesis import strategies as st
from tiltyard.api.control.v1 import pipeline_pb2
from tiltyard.api.tfs.v1 import tensor_pb2
from tiltyard.client import SplitStep
from tiltyard.client.steps import metric_from, step_from, whole_weights
from tiltyard.errors import FailedPreconditionError, InvalidArgumentError, UnsupportedError
from tiltyard.testing.fake_tiltyard import FakeTiltyard, saved_model

FLOAT = tensor_pb2.DATA_TYPE_FLOAT


@pytest.fixture
def wl() -> Iterator[tiltyard.Client]:
    with FakeTiltyard(lambda model, request: {}) as fake, tiltyard.Client(fake.address, interactive=False) as client:
        yield client


@pytest.fixture
def upload(wl: tiltyard.Client, tmp_path: Path) -> Callable[[str], tiltyard.ModelVersion]:
    (tmp_path / "saved_model.pb").write_bytes(saved_model({"x": (FLOAT, (-1, 1))}, {"y": (FLOAT, (-1, 1))}))
    return lambda name: wl.upload_model(name, tmp_path)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([2, 1], [2, 1]),
        ([90, 10], [90, 10]),  # integers stay as they were written
        ([0.9, 0.1], [9, 1]),
        ([0.5, 0.5], [1, 1]),
        ([0.1, 0.2, 0.7], [1, 2, 7]),
        ([2, 0.5], [4, 1]),
        ([1, 0.0], [1, 0]),
        ([1e3, 1.0], [1000, 1]),
        ([Decimal("0.05"), Decimal("0.95")], [1, 19]),
        ([Fraction(1, 3), Fraction(2, 3)], [1, 2]),
        ([np.float32(0.9), np.float64(0.1)], [9, 1]),
        ([np.int64(3), 1], [3, 1]),
    ],
)
def test_weights_become_whole_numbers_by_their_decimal_text(weights: list[Any], wanted: list[int]) -> None:
    assert whole_weights(weights, ["a", "b", "c"][: len(weights)]) == wanted


@given(st.lists(st.integers(1, 999), min_size=2, max_size=8))
def test_decimals_keep_their_proportions(parts: list[int]) -> None:
    whole = whole_weights([part / 1000 for part in parts], [str(i) for i in range(len(parts))])
    assert all(a * d == b * c for a, b in zip(whole, parts, strict=True) for c, d in zip(whole, parts, strict=True))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([0, 0], "all weights are 0"),
        ([2, -1], r"weight -1 is negative"),
        ([1, float("nan")], "no finite number"),
        ([1, float("inf")], "no finite number"),
        ([1, True], "True is no number"),
        ([1, "1"], "'1' is no number"),
        ([1, None], "None is no number"),
        ([1, 1 + 0j], "is no number"),
        ([100_000, 1], "rounds to none"),
        ([1, 1e-300], "rounds to none|too fine"),
    ],
)
def test_weights_that_make_no_split_are_refused(weights: list[Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        whole_weights(weights, ["champion", "challenger"])


def test_the_stored_definition(wl: tiltyard.Client, upload: Callable[[str], tiltyard.ModelVersion]) -> None:
    """Q2: one step is one step, however it was put together."""
    a, b = upload("a"), upload("b")
    pipeline = wl.build_pipeline("p").add_random_split([(0.9, a), (0.1, b)], "session_id")
    assert len(pipeline.steps()) == 1
    models = [{"name": name, "version": "1", "sha": a.sha()} for name in "ab"]
    split = {
        "hash_key": "session_id",
        "weights": [{"name": "a", "model": models[0], "weight": 9}, {"name": "b", "model": models[1], "weight": 1}],
    }
    assert pipeline.definition() == {"id": "p", "steps": [{"RandomSplit": split}]}
    pipeline.replace_with_model_step(0, b)
    assert pipeline.definition() == {"id": "p", "steps": [{"ModelInference": {"models": [models[1]]}}]}
    assert pipeline.remove_step(0).steps() == []
    assert pipeline.add_model_step(a).clear().steps() == []


def test_a_generator_of_arms_is_taken_whole(
    wl: tiltyard.Client, upload: Callable[[str], tiltyard.ModelVersion]
) -> None:
    """Q3."""
    models = [upload("a"), upload("b"), upload("c")]
    pipeline = wl.build_pipeline("p").add_random_split((i + 1, model) for i, model in enumerate(models))
    (step,) = pipeline.steps()
    assert isinstance(step, SplitStep)
    assert [(arm.name, arm.weight, arm.model_version) for arm in step.arms] == [
        (model.name(), i + 1, model.id()) for i, model in enumerate(models)
    ]


def test_steps_that_are_not_there_are_refused(
    wl: tiltyard.Client, upload: Callable[[str], tiltyard.ModelVersion]
) -> None:
    """Q4."""
    model = upload("a")
    pipeline = wl.build_pipeline("p").add_model_step(model)
    for index in (1, -1, True, 0.0, None):
        with pytest.raises(InvalidArgumentError, match=r"no step .*steps 0 to 0"):
            pipeline.replace_with_model_step(index, model)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="no step"):
            pipeline.remove_step(index)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="has no steps"):
        pipeline.clear().remove_step(0)


def test_versions_of_one_model_meet_under_names_of_their_own(
    wl: tiltyard.Client, upload: Callable[[str], tiltyard.ModelVersion]
) -> None:
    """Q5."""
    old, new, other = upload("fraud"), upload("fraud"), upload("other")

    def names(*arms: Any) -> list[str]:
        (step,) = wl.build_pipeline("p").add_random_split(arms).steps()
        assert isinstance(step, SplitStep)
        return [arm.name for arm in step.arms]

    assert names((1, old), (1, new)) == ["fraud-v1", "fraud-v2"]
    assert names((1, old), (1, new), (1, other)) == ["fraud-v1", "fraud-v2", "other"]
    assert names((1, old), (1, old, "shadow_of-it")) == ["fraud", "shadow_of-it"]
    assert names((1, old, "champion"), [1, new, "challenger"]) == ["champion", "challenger"]
    for arms in ([(1, old), (1, old)], [(1, old, "x"), (1, new, "x")], [(1, old), (1, other, "fraud")]):
        with pytest.raises(InvalidArgumentError, match="two arms would be called"):
            names(*arms)
    for wrong in ("", "a b", "a/b", "x" * 65, 5):
        with pytest.raises(InvalidArgumentError, match="is no arm name"):
            names((1, old, wrong), (1, new))


def test_a_split_has_2_to_16_arms(wl: tiltyard.Client, upload: Callable[[str], tiltyard.ModelVersion]) -> None:
    model = upload("a")
    pipeline = wl.build_pipeline("p")
    for n in (0, 1, 17):
        with pytest.raises(InvalidArgumentError, match=f"2 to 16 arms and this has {n}"):
            pipeline.add_random_split([(1, model, f"arm{i}") for i in range(n)])
    pipeline.add_random_split([(1, model, f"arm{i}") for i in range(16)])


@pytest.mark.parametrize("item", [(1,), (1, "model"), 5, None, (1, None, "x"), (1, 2, 3, 4)])
def test_what_is_no_arm_is_refused(
    wl: tiltyard.Client, upload: Callable[[str], tiltyard.ModelVersion], item: Any
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"arm 2 is .*\(weight, model\)"):
        wl.build_pipeline("p").add_random_split([(1, upload("a")), item])


@pytest.mark.parametrize("hash_key", ["Session", "a b", "x" * 65, "a/b", "é", "grpc-timeout", "tiltyard-x", "te"])
def test_what_can_be_no_key_is_refused(
    wl: tiltyard.Client, upload: Callable[[str], tiltyard.ModelVersion], hash_key: str
) -> None:
    arms = [(1, upload("a")), (1, upload("b"))]
    with pytest.raises(InvalidArgumentError, match=re.escape(repr(hash_key))):
        wl.build_pipeline("p").add_random_split(arms, hash_key)


def test_a_pipeline_has_one_step_for_now(wl: tiltyard.Client, upload: Callable[[str], tiltyard.ModelVersion]) -> None:
    a, b = upload("a"), upload("b")
    pipeline = wl.build_pipeline("p").add_model_step(a)
    with pytest.raises(FailedPreconditionError, match=r"has a step already \(a\)"):
        pipeline.add_random_split([(1, a), (1, b)])
    with pytest.raises(InvalidArgumentError, match="is no model"):
        wl.build_pipeline("p").add_model_step("a")  # type: ignore[arg-type]


def test_metrics(wl: tiltyard.Client) -> None:
    pipeline = (
        wl.build_pipeline("p").add_metric("main", output="main", above=0.5).add_metric("sum", output="y", index=3)
    )
    assert [(m.name, m.output, m.index, m.above) for m in pipeline.metrics()] == [
        ("main", "main", 0, 0.5),
        ("sum", "y", 3, None),
    ]
    assert [metric_from(metric.to_proto()) for metric in pipeline.metrics()] == pipeline.metrics()
    zero = wl.build_pipeline("p").add_metric("m", output="y", above=0).metrics()[0].to_proto()
    assert zero.HasField("above")  # a threshold of 0 is one
    with pytest.raises(InvalidArgumentError, match="'main' is there already"):
        pipeline.add_metric("main", output="y")
    assert [metric.name for metric in pipeline.remove_metric("main").metrics()] == ["sum"]
    with pytest.raises(InvalidArgumentError, match="the metrics are: sum"):
        pipeline.remove_metric("main")
    for i in range(7):
        pipeline.add_metric(f"m{i}", output="y")
    with pytest.raises(InvalidArgumentError, match="at most 8"):
        pipeline.add_metric("ninth", output="y")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "A", "output": "y"},
        {"name": "m", "output": ""},
        {"name": "m", "output": "y", "index": -1},
        {"name": "m", "output": "y", "index": True},
        {"name": "m", "output": "y", "above": float("nan")},
    ],
)
def test_what_is_no_metric_is_refused(wl: tiltyard.Client, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        wl.build_pipeline("p").add_metric(**wrong)


def test_a_step_of_a_newer_kind_is_not_lost_silently() -> None:
    """A pipeline made by a newer SDK: unknown steps must not vanish on the way through an older one."""
    with pytest.raises(UnsupportedError, match="newer tiltyard"):
        step_from(pipeline_pb2.Step())
