"""The compiled route table: what goes in comes out, what makes no sense is refused, and it scales."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiltyard.router.spec import ArmSpec, MetricSpec, PipelineSpec, ReceiptKey, RouteSpec

pytestmark = pytest.mark.router
routes = pytest.importorskip("tiltyard_router.routes", reason="the compiled router is not installed")

ARMS = (
    ArmSpec("champion", "team.control", 3, ("127.0.0.1:9001", "model-a:9001")),
    ArmSpec("challenger", "team.neu-é", 2**63 - 1, ("127.0.0.1:9001",)),
)
PIPELINE = PipelineSpec(
    key="workspaces/team/pipelines/aloha",
    uid="d-1",
    request_names=("aloha", "team/aloha"),
    arms=ARMS,
    slots=((6000, 0), (9000, 1), (10000, 0)),
    epoch=7,
    hash_key="session_id",
    salt=b"\x00\xff\x00",
    metrics=(MetricSpec("main", "main", 5, 0.5), MetricSpec("raw", "ö", 0, None)),
    timeout_s=1.5,
)


def table(*pipelines: PipelineSpec, revision: int = 1, key: ReceiptKey | None = None) -> Any:
    return routes.RouteTable(RouteSpec(revision, pipelines or (PIPELINE,), key))


def test_what_goes_in_comes_out() -> None:
    one = table(revision=2**63 - 1, key=ReceiptKey(15, b"s" * 32))
    assert (one.revision, len(one)) == (2**63 - 1, 1)
    assert one.describe("team/aloha") == {
        "key": "workspaces/team/pipelines/aloha",
        "uid": "d-1",
        "hash_key": "session_id",
        "salt": b"\x00\xff\x00",
        "epoch": 7,
        "timeout_us": 1_500_000,
        "arms": [
            {
                "name": "champion",
                "model": "team.control",
                "version": 3,
                "share_slots": 7000,
                "backends": ["127.0.0.1:9001", "model-a:9001"],
            },
            {
                "name": "challenger",
                "model": "team.neu-é",
                "version": 2**63 - 1,
                "share_slots": 3000,
                "backends": ["127.0.0.1:9001"],
            },
        ],
        "slots": [(6000, 0), (9000, 1), (10000, 0)],
        "metrics": [
            {"name": "main", "output": "main", "index": 5, "above": 0.5},
            {"name": "raw", "output": "ö", "index": 0, "above": None},
        ],
    }


def test_a_request_finds_its_pipeline_by_any_of_its_names_and_by_no_other() -> None:
    other = replace(PIPELINE, key="other", request_names=("o", "ö", "x" * 256))
    one = table(PIPELINE, other)
    for name in ("aloha", "team/aloha"):
        assert one.find(name) == PIPELINE.key
    for name in other.request_names:
        assert one.find(name) == "other"
    for name in ("", "aloh", "aloha ", "aloha\0", "Aloha", "x" * 255, "x" * 257, "\ud800"):
        assert one.find(name) is None
    with pytest.raises(KeyError):
        one.describe("nobody")


def test_a_table_may_be_empty() -> None:
    one = routes.RouteTable(RouteSpec(1, ()))
    assert len(one) == 0
    assert one.find("aloha") is None


def test_many_runs_of_slots_are_kept() -> None:
    runs = tuple((end, end % 2) for end in range(1, 10_001))
    described = table(replace(PIPELINE, slots=runs)).describe("aloha")
    assert tuple(described["slots"]) == runs
    assert [arm["share_slots"] for arm in described["arms"]] == [5000, 5000]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60), unique=True))
def test_every_name_is_found_whatever_they_are(names: list[str]) -> None:
    pipelines = [replace(PIPELINE, key=f"p{i}", request_names=(name,)) for i, name in enumerate(names)]
    one = routes.RouteTable(RouteSpec(1, tuple(pipelines)))
    assert [one.find(name) for name in names] == [f"p{i}" for i in range(len(names))]


def arm(**changes: Any) -> tuple[ArmSpec, ...]:
    return (replace(ARMS[0], **changes), ARMS[1])


def metric(**changes: Any) -> tuple[MetricSpec, ...]:
    return (replace(PIPELINE.metrics[0], **changes),)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"key": ""}, ValueError, "has 0 bytes"),
    ({"key": "a\0b"}, ValueError, "control character"),
    ({"key": "x" * 1025}, ValueError, "1025 bytes"),
    ({"key": 5}, TypeError, "not a text"),
    ({"uid": ""}, ValueError, "uid has 0 bytes"),
    ({"request_names": ()}, ValueError, "no request names"),
    ({"request_names": ("",)}, ValueError, "has 0 bytes"),
    ({"request_names": ("x" * 257,)}, ValueError, "257 bytes"),
    ({"request_names": ("aloha", "aloha")}, ValueError, "request name 'aloha' belongs to"),
    ({"hash_key": "Session"}, ValueError, "hash_key 'Session'"),
    ({"hash_key": "a" * 65}, ValueError, "hash_key"),
    ({"hash_key": None}, ValueError, "hash_key None"),
    ({"salt": "text"}, TypeError, "salt is no bytes"),
    ({"salt": b"s" * 1025}, ValueError, "the salt has 1025 bytes"),
    ({"epoch": 0}, ValueError, "epoch is 0"),
    ({"epoch": 2**32}, ValueError, "epoch is 4294967296"),
    ({"epoch": True}, TypeError, "not a whole number"),
    ({"epoch": 2**200}, ValueError, "it must be"),
    ({"timeout_s": -1.0}, ValueError, "timeout_s is -1"),
    ({"timeout_s": float("nan")}, ValueError, "timeout_s is nan"),
    ({"timeout_s": float("inf")}, ValueError, "timeout_s is inf"),
    ({"timeout_s": 1e-9}, ValueError, "timeout_s"),
    ({"timeout_s": "1"}, TypeError, "not a number"),
    ({"arms": ()}, ValueError, "0 arms"),
    ({"arms": (ARMS[0], ARMS[0])}, ValueError, "two arms have one name"),
    ({"arms": tuple(replace(ARMS[0], name=f"a{i}") for i in range(17))}, ValueError, "17 arms"),
    ({"arms": arm(name="a\r\nb")}, ValueError, "control character"),
    ({"arms": arm(name="é")}, ValueError, "not ASCII"),
    ({"arms": arm(model="")}, ValueError, "model has 0 bytes"),
    ({"arms": arm(version=0)}, ValueError, "version is 0"),
    ({"arms": arm(version=2**63)}, ValueError, "it must be"),
    ({"arms": arm(version=1.0)}, TypeError, "not a whole number"),
    ({"arms": arm(backends=())}, ValueError, "no backends"),
    ({"arms": arm(backends=("a:1", "a:1"))}, ValueError, "given twice"),
    ({"arms": arm(backends=("",))}, ValueError, "has 0 bytes"),
    ({"slots": ()}, ValueError, "0 runs of slots"),
    ({"slots": ((9999, 0),)}, ValueError, "the slots end at 9999"),
    ({"slots": ((10001, 0),)}, ValueError, "it must be 1 to 10000"),
    ({"slots": ((5000, 0), (5000, 1), (10000, 0))}, ValueError, "it must be 5001 to 10000"),
    ({"slots": ((10000, 2),)}, ValueError, "it must be 0 to 1"),
    ({"slots": ((10000, -1),)}, ValueError, "it must be 0 to 1"),
    ({"slots": ((2**70, 0),)}, ValueError, "it must be"),
    ({"slots": ((10000,),)}, ValueError, "unpack"),
    ({"slots": ((10000, "a"),)}, TypeError, "not a whole number"),
    ({"slots": tuple((i, 0) for i in range(1, 10_002))}, ValueError, "10001 runs of slots"),
    ({"metrics": tuple(MetricSpec(f"m{i}", "o") for i in range(9))}, ValueError, "9 metrics"),
    ({"metrics": (MetricSpec("m", "o"), MetricSpec("m", "p"))}, ValueError, "two metrics have one name"),
    ({"metrics": metric(name="Main")}, ValueError, "metric name 'Main'"),
    ({"metrics": metric(output="")}, ValueError, "output has 0 bytes"),
    ({"metrics": metric(index=-1)}, ValueError, "index is -1"),
    ({"metrics": metric(above=float("inf"))}, ValueError, "above is inf"),
    ({"metrics": metric(above="1")}, TypeError, "not a number"),
]


@pytest.mark.parametrize(("changes", "kind", "reason"), BAD)
def test_what_makes_no_sense_is_refused_and_says_why(
    changes: dict[str, Any], kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        table(replace(PIPELINE, **changes))


def test_pipelines_may_not_share_a_key_or_a_name() -> None:
    with pytest.raises(ValueError, match="two pipelines have one key"):
        table(PIPELINE, replace(PIPELINE, request_names=("b",)))
    with pytest.raises(ValueError, match=r"'team/aloha' belongs to pipeline 'workspaces/team/.*' and to 'b'"):
        table(PIPELINE, replace(PIPELINE, key="b", request_names=("b", "team/aloha")))


@pytest.mark.parametrize(
    ("revision", "key", "reason"),
    [
        (0, None, "the revision is 0"),
        (2**63, None, "the revision is"),
        (1, ReceiptKey(16, b"s" * 32), "number is 16"),
        (1, ReceiptKey(0, b"s" * 31), "has 31 bytes"),
    ],
)
def test_revision_and_receipt_key_are_checked(revision: int, key: ReceiptKey | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        table(revision=revision, key=key)


def test_something_else_than_a_spec_is_refused() -> None:
    with pytest.raises(AttributeError):
        routes.RouteTable(None)
    with pytest.raises(TypeError):
        routes.RouteTable()


def test_ten_thousand_pipelines_are_built_fast_and_all_found() -> None:
    runs = ((4000, 0), (6000, 1), (8000, 2), (10000, 3))
    pipelines = tuple(
        replace(
            PIPELINE,
            key=f"workspaces/team/pipelines/p{i}",
            request_names=(f"p{i}", f"team/p{i}"),
            arms=tuple(ArmSpec(f"arm-{k}", f"team.m{i}-{k}", 1, (f"10.0.{k}.{i % 200}:9001",)) for k in range(4)),
            slots=runs,
        )
        for i in range(10_000)
    )
    spec = RouteSpec(1, pipelines)
    start = time.process_time()
    one = routes.RouteTable(spec)
    took_s = time.process_time() - start
    assert took_s < 1.0
    assert all(one.find(f"team/p{i}") == f"workspaces/team/pipelines/p{i}" for i in range(10_000))
    assert one.describe("p9999")["arms"][3]["backends"] == ["10.0.3.199:9001"]
