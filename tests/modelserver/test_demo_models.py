"""The demo's shipped models: small, of one signature, and as accurate on the shipped names as the demo promises."""

import importlib.util
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiltyard.demo.data import INPUT, MAIN, LabelledName, encode_names, find_demo, load_names

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # examples/ is no installed package

from examples.dga.families import FAMILIES, label_of  # noqa: E402

pytestmark = [
    pytest.mark.serve,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs the [serve] extra (tensorflow)"),
]

OUTPUTS = sorted([*FAMILIES, MAIN])


@dataclass(frozen=True)
class Answers:
    """What a model answered to the 5,000 names in one request: float32 [5000, 1] by output; and its signature."""

    outputs: dict[str, NDArray[np.float32]]
    signature: Any


@pytest.fixture(scope="module")
def names() -> list[LabelledName]:
    return load_names(find_demo(start=ROOT).names)


@pytest.fixture(scope="module")
def answers(names: list[LabelledName]) -> dict[str, Answers]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own imports warn
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
        files = find_demo(start=ROOT)
        rows = encode_names(name.name for name in names)
        found = {}
        for arm, folder in (("champion", files.champion), ("challenger", files.challenger)):
            with tf.Graph().as_default(), tf.compat.v1.Session() as session:
                meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
                signature = meta.signature_def["serving_default"]
                fetches = {name: info.name for name, info in signature.outputs.items()}
                feed = {signature.inputs[INPUT].name: rows}
                found[arm] = Answers(outputs=session.run(fetches, feed), signature=signature)
    return found


def _accuracy(answers: Answers, names: list[LabelledName], families: set[str] | None = None) -> float:
    chosen = [
        name.correct(float(main))
        for name, main in zip(names, answers.outputs[MAIN][:, 0], strict=True)
        if families is None or name.family in families
    ]
    return sum(chosen) / len(chosen)


def test_accuracy_of_the_champion_and_lead_of_the_challenger(
    answers: dict[str, Answers], names: list[LabelledName]
) -> None:
    champion = _accuracy(answers["champion"], names)
    challenger = _accuracy(answers["challenger"], names)
    assert 0.88 <= champion <= 0.92
    assert challenger >= champion + 0.05


def test_the_lead_comes_from_the_families_the_champion_never_saw(
    answers: dict[str, Answers], names: list[LabelledName]
) -> None:
    new = {"matsnu", "suppobox", "symmi"}
    known = set(FAMILIES) - new | {"benign"}
    # On everything it was trained for, the champion is as good as the challenger: nobody spoilt its weights.
    assert _accuracy(answers["champion"], names, known) >= _accuracy(answers["challenger"], names, known) - 0.005
    assert _accuracy(answers["champion"], names, known) > 0.97
    assert _accuracy(answers["challenger"], names, new) > _accuracy(answers["champion"], names, new) + 0.5


def test_both_have_the_same_signature_with_main_at_index_7(answers: dict[str, Answers]) -> None:
    for answer in answers.values():
        signature = answer.signature
        assert list(signature.inputs) == [INPUT]
        assert sorted(signature.outputs) == OUTPUTS
        assert OUTPUTS.index(MAIN) == 7  # where the tutorial's models have it, so its code works on these
        assert signature.method_name == "tensorflow/serving/predict"
        for info, size in [(signature.inputs[INPUT], 50), *((info, 1) for info in signature.outputs.values())]:
            assert info.dtype == 1  # DT_FLOAT
            assert [dim.size for dim in info.tensor_shape.dim] == [-1, size]
    assert answers["champion"].signature == answers["challenger"].signature


def test_outputs_are_probabilities_one_a_row(answers: dict[str, Answers], names: list[LabelledName]) -> None:
    for answer in answers.values():
        for values in answer.outputs.values():
            assert values.dtype == np.float32
            assert values.shape == (len(names), 1)
            assert ((values >= 0) & (values <= 1)).all()


def test_the_challenger_tells_families_apart(answers: dict[str, Answers], names: list[LabelledName]) -> None:
    # Five of the fourteen write plain random letters, of much the same lengths: nobody could tell those apart.
    outputs = answers["challenger"].outputs
    families = list(FAMILIES)
    scores = np.concatenate([outputs[family] for family in families], axis=1)
    told = [families[best] == name.family for best, name in zip(scores.argmax(axis=1), names, strict=True)]
    assert np.mean([right for right, name in zip(told, names, strict=True) if name.generated]) > 0.6


@pytest.mark.parametrize("arm", ["champion", "challenger"])
def test_a_model_takes_less_than_1_mb(arm: str) -> None:
    folder = ROOT / "examples" / "dga" / "models" / arm
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert len(sizes) == 3
    assert sum(sizes) < 1_000_000


def test_the_models_differ() -> None:
    files = find_demo(start=ROOT)
    data = "variables/variables.data-00000-of-00001"
    assert (files.champion / data).read_bytes() != (files.challenger / data).read_bytes()


def test_the_shipped_names_are_those_the_training_script_holds_out(names: list[LabelledName]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from examples.dga import train
    training = train.training_names()
    assert train.held_out_rows(training) == [
        (name.session_id, name.name, int(name.generated), name.family) for name in names
    ]
    seen = {label_of(name) for made in training.values() for name in made}
    assert not seen & {label_of(name.name) for name in names}
