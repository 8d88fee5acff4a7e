"""Train the demo's two models, export them, and write the held-out names they are compared on.

    python -m examples.dga.train            # from the project's root; about a minute on two cores
    python -m examples.dga.train --measure  # only measures the models that are there

Champion and challenger are the same network, trained in the same way on the same benign names. The challenger has
seen names of all families; the champion is the older one, made before ``NEW_FAMILIES`` appeared. That is the whole
difference between them, and it is what the demo's A/B test measures. Both answer all outputs of the signature; the
champion never saw a positive example for the outputs of the new families.

Held-out names come from other campaigns (days, seeds, places in a sequence) of the malware than the training names,
and no label (the part before the first dot) is in both.

Everything is seeded. On one machine two runs give the same weights as far as TensorFlow allows; on another machine
they may differ in the last digits.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN's results depend on the processor
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from tiltyard.demo.data import ALPHABET, INPUT, MAIN, NAME_LENGTH, encode_names, load_names

from examples.dga.families import BENIGN, FAMILIES, label_of, sample, sample_benign

NEW_FAMILIES = ("matsnu", "suppobox", "symmi")
"""What the champion has not seen: the two that write words, and one that writes syllables."""

OUTPUTS = tuple(sorted([*FAMILIES, MAIN]))
"""The models' outputs, each float [rows, 1], in the order in which clients see them."""

SEED = 20260701
PER_FAMILY = 3_000
BENIGN_NAMES = 36_000
HELD_OUT = 5_000
HELD_OUT_CAMPAIGN = 4_000
"""Training takes the campaigns from 0 on, the held-out names those from here on."""
SESSIONS = 1_500

EPOCHS = 8
BATCH = 128
FILTERS = 64
EMBEDDING = 16
STEP = 2e-3

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded names, float32 [n, NAME_LENGTH], and what the outputs should say of them, float32 [n, len(OUTPUTS)]."""

    inputs: Floats
    targets: Floats


def examples_of(names_by_family: dict[str, list[str]]) -> Examples:
    """Encode names and make their targets: ``main`` for every malware name, and the family's own output."""
    names = [name for names in names_by_family.values() for name in names]
    targets = np.zeros((len(names), len(OUTPUTS)), dtype=np.float32)
    families = [family for family, names in names_by_family.items() for _ in names]
    for row, family in enumerate(families):
        if family != BENIGN:
            targets[row, OUTPUTS.index(family)] = targets[row, OUTPUTS.index(MAIN)] = 1.0
    return Examples(encode_names(names), targets)


def training_names() -> dict[str, list[str]]:
    """Names to train on, by family, with the benign ones under ``benign``."""
    names = {family: sample(family, first=0, count=PER_FAMILY, per_campaign=8) for family in FAMILIES}
    names[BENIGN] = sample_benign(seed=SEED, count=BENIGN_NAMES)
    return names


def held_out_rows(training: dict[str, list[str]]) -> list[tuple[str, str, int, str]]:
    """The rows of ``heldout.csv``: session id, name, label, family; half benign, the families in equal parts."""
    seen = {label_of(name) for names in training.values() for name in names}
    generated = HELD_OUT // 2
    names: list[tuple[str, str]] = []
    for i, family in enumerate(FAMILIES):
        count = generated // len(FAMILIES) + (i < generated % len(FAMILIES))
        names += [
            (name, family)
            for name in sample(family, first=HELD_OUT_CAMPAIGN, count=count, per_campaign=4, exclude=seen)
        ]
    names += [(name, BENIGN) for name in sample_benign(seed=SEED + 1, count=HELD_OUT - generated, exclude=seen)]
    rng = random.Random(SEED)
    rng.shuffle(names)
    sessions = [f"s{rng.getrandbits(40):010x}" for _ in range(SESSIONS)]
    return [(rng.choice(sessions), name, int(family != BENIGN), family) for name, family in names]


def build(inputs: tf.Tensor) -> tf.Tensor:
    """The network, in the current graph: embedding, two convolutions, the strongest answer of each filter, logits.

    Args:
        inputs: float32 [rows, NAME_LENGTH], character numbers.

    Returns:
        Logits, float32 [rows, len(OUTPUTS)].
    """
    v1 = tf.compat.v1

    def weight(name: str, shape: Sequence[int]) -> tf.Tensor:
        fan_in = int(np.prod(shape[:-1]))
        bias = len(shape) == 1
        start = v1.initializers.zeros() if bias else v1.initializers.truncated_normal(stddev=(2.0 / fan_in) ** 0.5)
        return v1.get_variable(name, shape, tf.float32, initializer=start)

    codes = tf.cast(tf.clip_by_value(inputs, 0.0, float(len(ALPHABET))), tf.int32)
    table = v1.get_variable(
        "embedding", [len(ALPHABET) + 1, EMBEDDING], tf.float32, initializer=v1.initializers.random_normal(stddev=0.5)
    )
    x = tf.gather(table, codes)
    for layer, width in ((1, 5), (2, 5)):
        channels = EMBEDDING if layer == 1 else FILTERS
        kernel = weight(f"kernel{layer}", [width, channels, FILTERS])
        x = tf.nn.relu(tf.nn.conv1d(x, kernel, stride=1, padding="SAME") + weight(f"bias{layer}", [FILTERS]))
    x = tf.reduce_max(x, axis=1)
    x = tf.nn.relu(tf.matmul(x, weight("hidden", [FILTERS, FILTERS])) + weight("hidden_bias", [FILTERS]))
    return tf.matmul(x, weight("out", [FILTERS, len(OUTPUTS)])) + weight("out_bias", [len(OUTPUTS)])


def train(examples: Examples, *, seed: int) -> dict[str, Floats]:
    """Train one network from scratch; returns its weights by variable name."""
    v1 = tf.compat.v1
    steps = EPOCHS * (len(examples.inputs) // BATCH)
    with tf.Graph().as_default():
        v1.set_random_seed(seed)
        inputs = v1.placeholder(tf.float32, [None, NAME_LENGTH])
        targets = v1.placeholder(tf.float32, [None, len(OUTPUTS)])
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=build(inputs)))
        step = v1.train.get_or_create_global_step()
        rate = v1.train.cosine_decay(STEP, step, steps)
        update = v1.train.AdamOptimizer(rate).minimize(loss, global_step=step)
        weights = {variable.op.name: variable for variable in v1.trainable_variables()}
        order = np.random.default_rng(seed)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for epoch in range(EPOCHS):
                rows = order.permutation(len(examples.inputs))
                losses = []
                for at in range(0, len(rows) - BATCH + 1, BATCH):
                    batch = rows[at : at + BATCH]
                    feed = {inputs: examples.inputs[batch], targets: examples.targets[batch]}
                    losses.append(session.run([update, loss], feed)[1])
                print(f"  epoch {epoch + 1}/{EPOCHS}: loss {np.mean(losses):.4f}", flush=True)
            trained: dict[str, Floats] = session.run(weights)
    return trained


def export(weights: dict[str, Floats], folder: Path) -> None:
    """Write a SavedModel with the signature ``serving_default``; what was in ``folder`` is replaced."""
    v1 = tf.compat.v1
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default():
        v1.set_random_seed(0)  # nothing random is kept, but deterministic TensorFlow insists on a seed
        inputs = v1.placeholder(tf.float32, [None, NAME_LENGTH], name=INPUT)
        columns = tf.split(tf.sigmoid(build(inputs)), len(OUTPUTS), axis=1)
        outputs = {name: tf.identity(column, name=name) for name, column in zip(OUTPUTS, columns, strict=True)}
        variables = v1.trainable_variables()
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for variable in variables:
                variable.load(weights[variable.op.name], session)
            builder = v1.saved_model.Builder(str(folder))
            builder.add_meta_graph_and_variables(
                session,
                [v1.saved_model.tag_constants.SERVING],
                signature_def_map={
                    "serving_default": v1.saved_model.predict_signature_def({INPUT: inputs}, outputs),
                },
                strip_default_attrs=True,
            )
            builder.save()


def scores(folder: Path, inputs: Floats) -> Floats:
    """``main`` of an exported model for each row of ``inputs``, float32 [rows]."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        meta = v1.saved_model.loader.load(session, [v1.saved_model.tag_constants.SERVING], str(folder))
        signature = meta.signature_def["serving_default"]
        answer: Floats = session.run(signature.outputs[MAIN].name, {signature.inputs[INPUT].name: inputs})
    return answer[:, 0]


def report(folder: Path, rows: Sequence[tuple[str, str, int, str]]) -> None:
    """Print the model's accuracy on the held-out names, in all and by family, and its size."""
    right = (scores(folder, encode_names(row[1] for row in rows)) > 0.5) == np.array([row[2] == 1 for row in rows])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder.name}: accuracy {right.mean():.4f} on {len(rows)} held-out names, {size / 1000:.0f} kB")
    for family in [BENIGN, *FAMILIES]:
        chosen = np.array([row[3] == family for row in rows])
        print(f"  {family:13} {right[chosen].mean():.3f} of {chosen.sum()}")


def read_rows(path: Path) -> list[tuple[str, str, int, str]]:
    """The rows of a ``heldout.csv``, as ``held_out_rows`` makes them."""
    return [(row.session_id, row.name, int(row.generated), row.family) for row in load_names(path)]


def write_rows(rows: Sequence[tuple[str, str, int, str]], path: Path) -> None:
    """Write ``heldout.csv``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["session_id", "name", "label", "family"])
        writer.writerows(rows)


def make(out: Path) -> None:
    """Write the held-out names, then train and export both models."""
    training = training_names()
    write_rows(held_out_rows(training), out / "heldout.csv")
    known = {family: names for family, names in training.items() if family not in NEW_FAMILIES}
    for arm, names in (("champion", known), ("challenger", training)):
        print(f"{arm}: training on {sum(map(len, names.values()))} names, {len(names) - 1} families", flush=True)
        export(train(examples_of(names), seed=SEED), out / "models" / arm)


def main() -> None:
    """Train, export and measure both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder of models/ and heldout.csv (default: here)"
    )
    parser.add_argument("--measure", action="store_true", help="train nothing; measure the models that are there")
    options = parser.parse_args()
    began = time.monotonic()
    tf.get_logger().setLevel("ERROR")  # TensorFlow 1's graphs are used on purpose: they make the plainest SavedModel
    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    if not options.measure:
        make(options.out)
    rows = read_rows(options.out / "heldout.csv")
    for arm in ("champion", "challenger"):
        report(options.out / "models" / arm, rows)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
