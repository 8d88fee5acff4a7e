"""The routes file: what is read, what is refused, and that every complaint names the line."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiltyard.errors import ConfigError
from tiltyard.router.plain_yaml import MAX_FILE_BYTES
from tiltyard.router.routes_file import PipelineRoutes, load_routes, parse_routes
from tiltyard.router.spec import ArmSpec, MetricSpec

GOOD = """\
pipelines:
  - name: aloha
    hash_key: session_id            # optional
    salt: "5eed"                    # optional, text; default: the pipeline's name
    arms:
      - {name: champion,   weight: 2, model: aloha-control,    version: 1, backends: ["127.0.0.1:9001"]}
      - {name: challenger, weight: 1, model: aloha-challenger, version: 1, backends: ["127.0.0.1:9002"]}
    metrics:
      - {name: main, output: main, index: 0, above: 0.5}
"""

BLOCK = """\
pipelines:
  - name: team/aloha
    timeout: 500ms
    slots:
      - [4000, a]
      - [9000, b]
      - [10000, a]
    arms:
      - name: a
        model: control
        version: 12
        backends:
          - "[::1]:9001"
          - model-a.default.svc:8500
      - name: b
        model: challenger
        version: 3
        backends: ["localhost:9"]
  - name: plain
    arms:
      - {name: only, model: m, version: 1, backends: ["127.0.0.1:1"]}
"""


def one(text: str) -> PipelineRoutes:
    return parse_routes(text, "routes.yaml").pipelines[0]


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_routes(text, "routes.yaml")
    return caught.value


def test_the_example_is_read_as_written() -> None:
    assert one(GOOD) == PipelineRoutes(
        line=2,
        name="aloha",
        hash_key="session_id",
        salt=b"5eed",
        arms=(
            ArmSpec("champion", "aloha-control", 1, ("127.0.0.1:9001",)),
            ArmSpec("challenger", "aloha-challenger", 1, ("127.0.0.1:9002",)),
        ),
        weights=(Decimal(2), Decimal(1)),
        slots=None,
        metrics=(MetricSpec("main", "main", 0, 0.5),),
        timeout_s=0.0,
    )


def test_block_style_slots_timeout_and_a_plain_model_step() -> None:
    split, plain = parse_routes(BLOCK, "routes.yaml").pipelines
    assert (split.name, split.timeout_s, split.weights) == ("team/aloha", 0.5, ())
    assert split.slots == ((4000, 0), (9000, 1), (10000, 0))
    assert split.arms[0] == ArmSpec("a", "control", 12, ("[::1]:9001", "model-a.default.svc:8500"))
    assert (plain.salt, plain.hash_key, plain.metrics, plain.weights) == (b"plain", "", (), (Decimal(1),))


def test_a_file_may_serve_nothing() -> None:
    assert parse_routes("pipelines: []\n", "routes.yaml").pipelines == ()


@pytest.mark.parametrize(
    ("written", "weights"),
    [
        ("weight: 0", (Decimal(0), Decimal(1))),
        ("weight: 0.9", (Decimal("0.9"), Decimal(1))),
        ("weight: 1e2", (Decimal(100), Decimal(1))),
        ("weight: .5", (Decimal("0.5"), Decimal(1))),
    ],
)
def test_weights_keep_their_decimal_text(written: str, weights: tuple[Decimal, ...]) -> None:
    assert one(GOOD.replace("weight: 2", written)).weights == weights


@pytest.mark.parametrize(
    ("written", "seconds"), [("30s", 30.0), ("1.5s", 1.5), ("250ms", 0.25), ("2m", 120.0), ('"60m"', 3600.0)]
)
def test_timeouts(written: str, seconds: float) -> None:
    assert one(GOOD.replace("hash_key: session_id", f"timeout: {written}")).timeout_s == seconds


def test_weights_beside_slots_that_say_otherwise_are_pointed_out() -> None:
    agreeing = GOOD.replace("    metrics:", "    slots: [[6667, champion], [10000, challenger]]\n    metrics:")
    assert parse_routes(agreeing, "routes.yaml").warnings == ()
    assert one(agreeing).slots == ((6667, 0), (10000, 1))
    (warning,) = parse_routes(agreeing.replace("6667", "5000"), "routes.yaml").warnings
    assert warning.startswith("routes.yaml:8: slots decide")


# (what is written instead of what, line, words of the reason)
BAD = [
    # unknown keys, at every level
    ("pipelines:", "version: 2\npipelines:", 1, "unknown key 'version' in the file"),
    ("hash_key: session_id", "hashkey: session_id", 3, "unknown key 'hashkey' in a pipeline; known are name, arms,"),
    ("weight: 1,", "wieght: 1,", 7, "unknown key 'wieght' in an arm"),
    ("index: 0", "indx: 0", 9, "unknown key 'indx' in a metric"),
    ("weight: 1,", "share: {a: 1},", 7, "unknown key 'share'"),
    # what is missing
    ("- name: aloha\n    hash_key", "- hash_key", 2, "a pipeline has no 'name'"),
    ("model: aloha-challenger, ", "", 7, "an arm has no 'model'"),
    ('version: 1, backends: ["127.0.0.1:9002"]', 'backends: ["127.0.0.1:9002"]', 7, "an arm has no 'version'"),
    ("weight: 1, ", "", 7, "arm 'challenger' has no weight"),
    ("output: main, ", "", 9, "a metric has no 'output'"),
    # given twice
    ("hash_key: session_id", "name: again", 3, "'name' again; line 2 gives it already"),
    ("weight: 1,", "weight: 1, weight: 1,", 7, "'weight' again; line 7"),
    ("name: challenger", "name: champion", 7, "arm 'champion' again; line 6 has one of that name"),
    (
        "      - {name: main, output: main, index: 0, above: 0.5}",
        "      - {name: main, output: main}\n      - {name: main, output: other}",
        10,
        "metric 'main' again; line 9",
    ),
    ('["127.0.0.1:9002"]', '["127.0.0.1:9002", "127.0.0.1:9002"]', 7, "backend '127.0.0.1:9002' again"),
    # what lets YAML mean something else
    ("hash_key: session_id", "hash_key: &key session_id", 3, "the anchor &key"),
    ("hash_key: session_id", "hash_key: *key", 3, "the alias *key"),
    ("hash_key: session_id", "<<: {salt: x}", 3, "the merge key <<"),
    ("hash_key: session_id", "hash_key: !!str session_id", 3, "tags are not allowed"),
    ("hash_key: session_id", "hash_key: !env session_id", 3, "the tag !env"),
    ("hash_key: session_id", "? [a]\n    : b", 3, "a list as a key"),
    ("pipelines:", "%TAG ! tag:x,2000:\n---\npipelines:", 1, "%TAG"),
    ("index: 0, above: 0.5}\n", "index: 0, above: 0.5}\n---\na: 1\n", 10, "a second document"),
    # wrong types
    ("pipelines:", "pipelines: 5\nx:", 2, "unknown key 'x'"),
    ('salt: "5eed"', "salt: 5", 4, "salt must be text, not a number; put '5' in quotes"),
    ('salt: "5eed"', "salt: yes", 4, "salt must be text, not true or false"),
    ('salt: "5eed"', "salt: 2024-01-01", 4, "salt must be text, not a date"),
    ('salt: "5eed"', "salt:", 4, "salt is empty"),
    ('salt: "5eed"', "salt: [a]", 4, "salt must be text, not a list"),
    ('salt: "5eed"', 'salt: "a\\u0007"', 4, "not allowed here"),
    ("weight: 1", "weight: one", 7, "weight must be a number, not 'one'"),
    ("weight: 1", 'weight: "1"', 7, "weight must be a number, not '1' in quotes"),
    ("weight: 1", "weight: true", 7, "weight must be a number"),
    ("weight: 1", "weight: .inf", 7, "weight must be a number"),
    ("weight: 1", "weight: .nan", 7, "weight must be a number"),
    ("weight: 1", "weight: 1_000", 7, "weight must be a number"),
    ("weight: 1", "weight: 0x10", 7, "weight must be a number"),
    ("weight: 1", "weight: [1]", 7, "weight must be a number, not a list"),
    ("weight: 1", "weight: 1e999", 7, "too large or too small"),
    ("weight: 1", "weight: 1e300", 7, "weights above 0 must be"),
    ('version: 1, backends: ["127.0.0.1:9002', 'version: 1.0, backends: ["127.0.0.1:9002', 7, "must be a whole number"),
    ('version: 1, backends: ["127.0.0.1:9002', 'version: 010, backends: ["127.0.0.1:9002', 7, "must be a whole number"),
    ('version: 1, backends: ["127.0.0.1:9002', 'version: 0, backends: ["127.0.0.1:9002', 7, "it must be 1 to"),
    ('version: 1, backends: ["127.0.0.1:9002', 'version: -3, backends: ["127.0.0.1:9002', 7, "it must be 1 to"),
    ("index: 0", "index: 1.5", 9, "index must be a whole number"),
    ("index: 0", "index: -1", 9, "index is -1"),
    ("above: 0.5", "above: high", 9, "above must be a number"),
    ("- name: aloha", "- aloha\n  - name: aloha", 2, "a pipeline must be a mapping (key: value), not text"),
    ("- {name: main, output: main, index: 0, above: 0.5}", "main", 9, "metrics must be a list, not text"),
    # values
    ("name: aloha\n", "name: 'a b'\n", 2, "pipeline name 'a b' is not allowed"),
    ("name: aloha\n", "name: a/b/c\n", 2, "is not allowed"),
    ("name: aloha\n", "name: ''\n", 2, "has 0 bytes"),
    ("session_id", "Session", 3, "hash_key 'Session' is not allowed; use 1 to 64 of a-z 0-9 _ . -"),
    ("session_id", "s" * 65, 3, "is not allowed"),
    ("name: champion", "name: 'the champion'", 6, "arm name 'the champion' is not allowed"),
    ("weight: 1", "weight: -1", 7, "weight is -1; it must be 0 or more"),
    ("weight: 1", "weight: 0.00001", 7, "rounds to none of the 10000 slots"),
    ("name: main, ", "name: Main, ", 9, "metric name 'Main' is not allowed"),
    ('"127.0.0.1:9002"', "9002", 7, "a backend must be text, not a number"),
    ('"127.0.0.1:9002"', '"127.0.0.1"', 7, "backend '127.0.0.1' is not HOST:PORT"),
    ('"127.0.0.1:9002"', '"127.0.0.1:0"', 7, "the port is '0'"),
    ('"127.0.0.1:9002"', '"127.0.0.1:65536"', 7, "the port is '65536'"),
    ('"127.0.0.1:9002"', '"127.0.0.999:80"', 7, "127.0.0.999 is no IPv4 address"),
    ('"127.0.0.1:9002"', '"::1:80"', 7, "goes in brackets"),
    ('"127.0.0.1:9002"', '"[::g]:80"', 7, "is no IPv6 address"),
    ('"127.0.0.1:9002"', '"http://x:80"', 7, "is not HOST:PORT"),
    ('["127.0.0.1:9002"]', "[]", 7, "0 backends"),
    ("hash_key: session_id", "timeout: 30", 3, "timeout '30' is no time"),
    ("hash_key: session_id", "timeout: 2h", 3, "timeout '2h' is no time"),
    ("hash_key: session_id", "timeout: 0s", 3, "it must be 1ms to 60m"),
    ("hash_key: session_id", "timeout: 61m", 3, "it must be 1ms to 60m"),
    # slots
    (
        "hash_key: session_id",
        "slots: [[10000, nobody]]",
        3,
        "slots name 'nobody', but the arms are champion, challenger",
    ),
    ("hash_key: session_id", "slots: [[5000, champion]]", 3, "ends at 5000; it must end at 10000"),
    ("hash_key: session_id", "slots: []", 3, "ends at 0; it must end at 10000"),
    ("hash_key: session_id", "slots: [[10000, champion, 1]]", 3, "a run of slots is [end, arm]"),
    ("hash_key: session_id", "slots:\n      - [5, champion]\n      - [5, champion]", 5, "ends at 5 after 5"),
    ("hash_key: session_id", "slots: [[10001, champion]]", 3, "is 10001; it must be 1 to 10000"),
    ("hash_key: session_id", "slots: [10000]", 3, "a run of slots must be a list, not a number"),
    # no YAML
    ("metrics:", "metrics: [", 9, "no valid YAML"),
    ("salt:", "\tsalt:", 4, "no valid YAML"),
    ('salt: "5eed"', "salt: a\x07", 4, "which YAML does not allow"),
    ('salt: "5eed"', "salt: " + "[" * 40 + "]" * 40, 4, "levels deep"),
]


@pytest.mark.parametrize(("before", "after", "line", "reason"), BAD)
def test_a_bad_file_is_refused_with_line_and_reason(before: str, after: str, line: int, reason: str) -> None:
    assert before in GOOD
    error = refused(GOOD.replace(before, after, 1))
    assert error.message.startswith(f"routes.yaml:{line}: "), error.message
    assert reason in error.message
    assert (error.path, error.line) == ("routes.yaml", line)
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "the file is empty"),
        ("# nothing\n", 1, "the file is empty"),
        ("a word", 1, "the file must be a mapping"),
        ("- 1", 1, "the file must be a mapping (key: value), not a list"),
        ("pipelines: 5", 1, "pipelines must be a list, not a number"),
        ("pipelines:", 1, "pipelines must be a list, not empty"),
        ("{}", 1, "the file has no 'pipelines'"),
    ],
)
def test_a_file_of_another_shape_is_refused(text: str, line: int, reason: str) -> None:
    error = refused(text)
    assert error.line == line
    assert reason in error.message


def test_two_pipelines_of_one_name_are_refused() -> None:
    error = refused(GOOD + GOOD.removeprefix("pipelines:\n"))
    assert error.message == "routes.yaml:10: pipeline 'aloha' again; line 2 has one of that name"


def test_a_split_has_at_most_16_arms() -> None:
    def arms(n: int) -> str:
        lines = [f'      - {{name: a{i}, weight: 1, model: m, version: 1, backends: ["h:1"]}}\n' for i in range(n)]
        return "pipelines:\n  - name: p\n    arms:\n" + "".join(lines)

    assert len(one(arms(16)).arms) == 16
    assert refused(arms(17)).message == "routes.yaml:20: 17 arms; a split has 2 to 16, a plain model 1"
    assert "0 arms" in refused("pipelines: [{name: p, arms: []}]").message
    assert "all weights are 0" in refused(arms(3).replace("weight: 1", "weight: 0")).message


def test_at_most_8_metrics() -> None:
    metrics = "".join(f"      - {{name: m{i}, output: o}}\n" for i in range(9))
    text = GOOD[: GOOD.index("      - {name: main")] + metrics
    assert refused(text).message == "routes.yaml:17: 9 metrics; at most 8"


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(ConfigError, match=r"missing.yaml: cannot be read: No such file"):
        load_routes(missing)
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory|no plain file"):
        load_routes(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="no plain file"):
        load_routes(tmp_path / "fifo")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"pipelines:\n  # caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2: this is not UTF-8 text"):
        load_routes(latin)
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 16 MiB"):
        load_routes(large)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_routes(path).pipelines[0].name == "aloha"


def _mutated() -> st.SearchStrategy[str]:
    """The two good files with stretches cut out, doubled or replaced by what YAML finds interesting."""
    pieces = st.sampled_from(
        [*"[]{}:,-#&*!|>'\"%@`?~\n\t\x00\x85\u2028", "<<: ", "- ", ": ", "&a ", "*a", "!!int ", "---\n", "...\n",
         "null", "1e9999", "-0", "999999999999999999999", "\\ud800", '"\\ud800"', '"\\U0010ffff"', "\ud800", "é" * 300,
         "%YAML 99999999999999999999.1\n---\n", "? ", "2001-13-45", "[" * 50, "0b1", "+.inf"]
    )  # fmt: skip
    edit = st.tuples(st.integers(0, 700), st.integers(0, 30), st.one_of(pieces, st.text(max_size=4)))

    def apply(text: str, edits: list[tuple[int, int, str]]) -> str:
        for start, length, piece in edits:
            text = text[:start] + piece + text[start + length :]
        return text

    return st.builds(apply, st.sampled_from([GOOD, BLOCK]), st.lists(edit, min_size=1, max_size=5))


@settings(max_examples=600, deadline=None)
@given(_mutated())
def test_no_file_does_worse_than_being_refused(text: str) -> None:
    lines = sum(text.count(end) for end in "\n\r\x85\u2028\u2029") + 2
    try:
        file = parse_routes(text, "routes.yaml")
    except ConfigError as error:
        line = error.line
    else:
        line = max((pipeline.line for pipeline in file.pipelines), default=1)
    assert 1 <= line <= lines
