"""What people give to ``infer``: forms, keys, metadata, names, shapes, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiltyard.api.tfs.v1 import tensor_pb2
from tiltyard.client.inputs import (
    Pairs,
    Prepared,
    check_metadata,
    check_timeout,
    key_bytes,
    metadata_of,
    prepare,
    read_file,
    rows_of,
)
from tiltyard.client.signatures import Signature, TensorSpec
from tiltyard.client.tensors import decode
from tiltyard.errors import InvalidArgumentError

FLOAT, STRING = tensor_pb2.DATA_TYPE_FLOAT, tensor_pb2.DATA_TYPE_STRING
ALOHA = Signature("", {"text_input": TensorSpec("text_input", FLOAT, (None, 3))}, {})


def _prepare(row: Any, signature: Signature = ALOHA, hash_key: str = "session_id", key: Any = None) -> Prepared:
    return prepare(row, signature, pipeline="p", hash_key=hash_key, key=key)


@pytest.mark.parametrize("value", [[[1, 2, 3]], np.array([[1.0, 2.0, 3.0]]), ((1, 2, 3),)])
def test_lists_and_arrays_become_the_models_input(value: Any) -> None:
    prepared = _prepare({"text_input": value})
    assert decode(prepared.tensors["text_input"]).tolist() == [[1.0, 2.0, 3.0]]
    assert prepared.key == b""


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("u-1", b"u-1"),
        (b"\x00\xff", b"\x00\xff"),
        ("é", "é".encode()),
        (42, b"42"),
        (-7, b"-7"),
        (np.int64(5), b"5"),
        (["u-1", "u-1"], b"u-1"),
        ([["u-1"], ["u-1"]], b"u-1"),
        (np.array([7, 7]), b"7"),
        ("", b""),
        (None, b""),
        ([None, None], b""),
    ],
)
def test_a_field_named_like_the_hash_key_is_the_key(field: Any, key: bytes) -> None:
    prepared = _prepare({"text_input": [[1, 2, 3]], "session_id": field})
    assert prepared.key == key
    assert set(prepared.tensors) == {"text_input"}
    assert "session_id" in prepared.original  # what was given is kept as it was


def test_the_key_argument_wins_over_the_field() -> None:
    assert _prepare({"text_input": [[1, 2, 3]], "session_id": "a"}, key="b").key == b"b"


def test_a_hash_key_that_is_an_input_stays_an_input() -> None:
    signature = Signature("", {"user": TensorSpec("user", STRING, (None,))}, {})
    prepared = _prepare({"user": ["u"]}, signature, hash_key="user")
    assert decode(prepared.tensors["user"]).tolist() == [b"u"]
    assert prepared.key == b""  # the router reads it from the tensor


@pytest.mark.parametrize(
    ("field", "says"),
    [
        (0.5, "round-off is not an identity"),
        (True, "bool"),
        ([], "empty"),
        (["a", "b"], "2 different keys"),
        (["a", None], "2 different keys"),
        ({"a": 1}, "dict"),
        ("x" * 1025, "1025 bytes"),
        ("\ud800", "no valid Unicode"),
    ],
)
def test_what_is_no_key_is_refused(field: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        _prepare({"text_input": [[1, 2, 3]], "session_id": field})


def test_a_key_for_a_pipeline_without_one_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="has no key"):
        _prepare({"text_input": [[1, 2, 3]]}, hash_key="", key="u")


def test_an_integer_and_its_text_are_one_key() -> None:
    assert key_bytes(17, "key=") == key_bytes("17", "key=") == key_bytes(b"17", "key=")


def _sent(metadata: Any, hash_key: str, key: bytes) -> Pairs:
    return metadata_of(check_metadata(metadata), hash_key, key)


@given(st.binary(min_size=1, max_size=64))
def test_every_key_travels_untouched(key: bytes) -> None:
    ((name, value),) = _sent(None, "session_id", key)
    if name == "session_id":
        assert isinstance(value, str)
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()
        assert value.encode() == key
    else:
        assert name == "session_id-bin"
        assert value == key


def test_a_binary_hash_key_keeps_its_name() -> None:
    assert _sent(None, "id-bin", b"abc") == [("id-bin", b"abc")]


def test_metadata_may_be_a_dict_or_pairs_and_keeps_its_order() -> None:
    pairs: list[tuple[str, str | bytes]] = [("A", "1"), ("b-bin", b"\x00"), ("a", "2")]
    assert _sent(pairs, "k", b"x") == [("a", "1"), ("b-bin", b"\x00"), ("a", "2"), ("k", "x")]
    assert _sent({"k": "mine"}, "k", b"") == [("k", "mine")]


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"k": "other"}, "given twice"),
        ({"k-bin": b"other"}, "given twice"),
        ({"a": b"1"}, "give str"),
        ({"a-bin": "1"}, "give str"),
        ({"a": "é"}, "printable ASCII"),
        ({"a": " 1"}, "printable ASCII"),
        ({"a": "1\n"}, "printable ASCII"),
        ({"a": "\ud800"}, "printable ASCII"),
        ({"a": 1}, "of type int; give str"),
        ({"a": None}, "of type NoneType; give str"),
        ({"a b": "1"}, "'a b': use letters, digits"),
        ({"": "1"}, "'': use letters, digits"),
        ({"a\n": "1"}, "use letters, digits"),
        ({"é": "1"}, "use letters, digits"),
        ({":path": "/"}, "use letters, digits"),
        ({"grpc-timeout": "1S"}, "'grpc-timeout' is one that gRPC or Tiltyard uses"),
        ({"Tiltyard-Arm": "x"}, "'tiltyard-arm' is one that"),
        ({"tiltyard-x-bin": b"x"}, "is one that"),
        ({"te": "trailers"}, "'te' is one that"),
        ({"Content-Type": "text/plain"}, "'content-type' is one that"),
        ({"connection": "close"}, "is one that"),
        ({"user-agent": "me"}, "is one that"),
        ({1: "a"}, "pairs with str names"),
        ([("a",)], "pairs with str names"),
        (["ab"], "pairs with str names"),
        ("ab", "of type str; give a dict"),
        (7, "of type int; give a dict"),
    ],
)
def test_metadata_that_cannot_be_sent_is_refused(metadata: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        _sent(metadata, "k", b"key")


@pytest.mark.parametrize("timeout", [0, -1, -0.5, float("nan"), float("inf"), 86_401, "1", None, True])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^timeout=.*; give "):
        check_timeout(timeout)


@pytest.mark.parametrize("timeout", [0.001, 1, 86_400, np.float32(2), np.int64(3)])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    assert check_timeout(timeout) == float(timeout)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": [[1, 2, 3]]}, r"no input 'text'.*text_input \(float32, \[\?, 3\]\), and 'session_id' for the key"),
        ({}, r"'text_input' of pipeline 'p' is missing"),
        ({"text_input": [[1, 2, 3]], "more": 1}, "no input 'more'"),
        ({"text_input": [1, 2, 3]}, r"shape \[3\].*takes \[\?, 3\]; put one more pair of brackets"),
        ({"text_input": [[1, 2]]}, r"shape \[1, 2\].*takes \[\?, 3\]$"),
        ({"text_input": []}, r"shape \[0\]"),
        ({"text_input": [[1, 2, "x"]]}, r"element \[0\]\[2\]"),
    ],
)
def test_a_wrong_input_is_refused_with_the_right_ones(row: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        _prepare(row)


def test_an_optional_input_may_be_left_out_and_any_rank_is_any_rank() -> None:
    specs = {"a": TensorSpec("a", FLOAT, None), "b": TensorSpec("b", FLOAT, (), optional=True)}
    signature = Signature("", specs, {})
    assert set(_prepare({"a": [[[1.0]]]}, signature).tensors) == {"a"}
    assert set(_prepare({"a": 1, "b": 2}, signature).tensors) == {"a", "b"}


def test_no_rows_are_rows_too() -> None:
    assert decode(_prepare({"text_input": np.zeros((0, 3))}).tensors["text_input"]).shape == (0, 3)


class _Frame:
    columns = ("a",)

    def to_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (_Frame(), "DataFrame is not accepted yet"),
        ([[1, 2, 3]], r"element \[0\] is of type list"),
        ([{"a": 1}, 5], r"element \[1\] is of type int"),
        (np.zeros((1, 3)), "type ndarray"),
        ("text", "type str"),
        (None, "type NoneType"),
    ],
)
def test_other_forms_are_refused_with_the_forms_there_are(x: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        rows_of(x)
    assert "a list of such dicts" in caught.value.message


def test_one_request_for_each_dict() -> None:
    assert rows_of({"a": 1}) == [{"a": 1}]
    assert rows_of([{"a": 1}, {"a": 2}]) == [{"a": 1}, {"a": 2}]
    assert rows_of([]) == []


def test_a_json_file_gives_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"x": [[1, 2.5, 12345678901234567890]]}))
    assert read_file(path) == {"x": [[1, 2.5, 12345678901234567890]]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"x": [1e400]}', "1e400 is too large"),
        ('{"x": -1e999}', "too large"),
        ("{x: 1}", "is no JSON"),
        ("", "is no JSON"),
        ('{"x": 1, "x": 2}', "'x' stands twice"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        read_file(path)
    assert "data.json" in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"nothing\.json.*No such file"):
        read_file(tmp_path / "nothing.json")
    with pytest.raises(InvalidArgumentError, match="Arrow"):
        read_file("data.arrow")
