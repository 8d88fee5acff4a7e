"""The published vectors of the assignment rule, and ``tiltyard assign``."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xxhash
from click.testing import CliRunner
from tiltyard.cli.main import cli
from tiltyard.slots import SLOTS, SlotTable, first_table, move, moved_slots

if TYPE_CHECKING:
    from tiltyard_router import split
else:
    split = pytest.importorskip("tiltyard_router.split", exc_type=ImportError)

pytestmark = pytest.mark.router

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "vectors" / "assignment.json"
VECTORS: dict[str, Any] = json.loads(FILE.read_text())

ROUTES = """\
pipelines:
  - name: plain
    arms:
      - {name: only, model: m, version: 1, backends: ["127.0.0.1:1"]}
  - name: aloha
    salt: pepper
    arms:
      - {name: champion,   weight: 2, model: m, version: 1, backends: ["127.0.0.1:1"]}
      - {name: challenger, weight: 1, model: m, version: 2, backends: ["127.0.0.1:1"]}
  - name: slots
    arms:
      - {name: a, model: m, version: 1, backends: ["127.0.0.1:1"]}
      - {name: b, model: m, version: 2, backends: ["127.0.0.1:1"]}
    slots: [[1000, b], [10000, a]]
"""


def pairs(runs: list[list[int]]) -> list[tuple[int, int]]:
    return [(end, arm) for end, arm in runs]


def by_name(kind: str) -> list[Any]:
    return [pytest.param(part, id=part["name"]) for part in VECTORS[kind]]


def test_there_are_a_thousand_vectors_and_the_script_writes_the_same() -> None:
    assert sum(len(part["keys"]) for part in VECTORS["splits"]) >= 1000
    spec = importlib.util.spec_from_file_location("make_vectors", ROOT / "tools" / "make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.text() == FILE.read_text(), "run tools/make_vectors.py, and say in CHANGELOG.md what became different"


@pytest.mark.parametrize("part", by_name("splits"))
def test_the_router_and_the_rule_give_the_published_vectors(part: dict[str, Any]) -> None:
    salt, runs = bytes.fromhex(part["salt"]), pairs(part["runs"])
    assert first_table(part["weights"]).runs() == runs
    table = split.Splitter(runs, salt)
    for vector in part["keys"]:
        key = bytes.fromhex(vector["key"])
        u, slot, arm = table.assign(key)
        assert (f"{u:016x}", slot, arm) == (vector["u"], vector["slot"], vector["arm"])
        assert table.bucket(key) == vector["bucket"]
        assert u == xxhash.xxh3_64_intdigest(salt + b"\0" + key)
        assert slot == (u * SLOTS) >> 64
        assert arm == next(arm for end, arm in runs if slot < end)


@pytest.mark.parametrize("part", by_name("changes"))
def test_weight_changes_give_the_published_tables(part: dict[str, Any]) -> None:
    salt, keys = bytes.fromhex(part["salt"]), [bytes.fromhex(key) for key in part["keys"]]
    table: SlotTable | None = None
    for step in part["steps"]:
        before = table
        table = first_table(step["weights"]) if before is None else move(before, step["weights"])
        assert table.runs() == pairs(step["runs"])
        assert step["moved_slots"] == (0 if before is None else moved_slots(before, table))
        assert split.Splitter(pairs(step["runs"]), salt).arms(keys) == step["arms"]


@pytest.fixture
def routes(tmp_path: Path) -> str:
    path = tmp_path / "routes.yaml"
    path.write_text(ROUTES)
    return str(path)


def run(routes: str, pipeline: str, keys: bytes) -> tuple[int, bytes, BaseException | None]:
    result = CliRunner().invoke(cli, ["assign", "--routes", routes, "--pipeline", pipeline], input=keys)
    return result.exit_code, result.stdout_bytes, result.exception


def test_assign_takes_keys_byte_for_byte(routes: str) -> None:
    keys = [b"user-1", b"user-2", b" spaces ", b"\xff\x00\r", "жюри".encode(), b"k" * 1024]
    code, out, _ = run(routes, "aloha", b"\n".join(keys))
    assert code == 0
    names = [b"champion", b"challenger"]
    arms = [names[xxhash.xxh3_64_intdigest(b"pepper\0" + key) * SLOTS >> 64 >= 6667] for key in keys]
    assert out == b"".join(b"%b\t%b\n" % pair for pair in zip(keys, arms, strict=True))
    assert set(arms) == set(names)


def test_assign_reads_slots_and_the_default_salt_and_single_arms(routes: str) -> None:
    keys = [b"%d" % i for i in range(5000)]
    _, out, _ = run(routes, "slots", b"\n".join(keys) + b"\n")
    arms = [line.split(b"\t")[1] for line in out.splitlines()]
    assert arms == [
        b"ab"[low : low + 1]
        for key in keys
        for low in [xxhash.xxh3_64_intdigest(b"slots\0" + key) * SLOTS >> 64 < 1000]
    ]
    assert 400 < Counter(arms)[b"b"] < 600
    assert run(routes, "plain", b"x\n")[1] == b"x\tonly\n"
    assert run(routes, "plain", b"")[:2] == (0, b"")


@pytest.mark.parametrize(
    ("pipeline", "keys", "words"),
    [
        ("nobody", b"x\n", "no pipeline 'nobody'; its pipelines are plain, aloha, slots"),
        ("aloha", b"x\n\ny\n", "line 2 is empty"),
        ("aloha", b"k" * 1025, "line 1 has 1025 bytes"),
    ],
)
def test_assign_says_what_is_wrong(routes: str, pipeline: str, keys: bytes, words: str) -> None:
    code, _, error = run(routes, pipeline, keys)
    assert code == 1
    assert words in str(error)
