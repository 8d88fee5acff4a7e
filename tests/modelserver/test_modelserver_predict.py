"""Predict: what is checked, in which order, with which status; how tensors are read and written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.modelserver.conftest import Client, Gate

pytestmark = pytest.mark.serve

Refused = Callable[[Callable[[], Any]], tuple[grpc.StatusCode, str]]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ONE = np.array([[1.0]], np.float32)
ROW = np.array([[1.0, 2.0]], np.float32)


@pytest.fixture(scope="module")
def served(client: Client, models: Path) -> Client:
    names = ("echo", "many", "counter", "gate")
    client.reload(
        {"name": "plus", "base_path": models / "plus", "versions": [1, 2]},
        *({"name": name, "base_path": models / name} for name in names),
    )
    client.wait_state("plus", 1, "AVAILABLE")
    return client


def test_it_answers_with_the_version_and_signature_that_ran(served: Client) -> None:
    response = served.predict("plus", {"x": np.array([[1.0], [3.0]], np.float32)})
    assert list(response.outputs) == ["y"]
    assert list(response.outputs["y"].float_val) == [2.5, 3.5]
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [2, 1]
    assert response.outputs["y"].tensor_content == b""
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("plus", 2, "serving_default")
    assert spec.WhichOneof("version_choice") == "version"


def test_a_version_can_be_named(served: Client) -> None:
    assert served.y("plus", version=1) == 1.5
    assert served.y("plus", version=2) == 2.5


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "nobody"}, "Servable not found for request: Latest(nobody)"),
        ({"name": "nobody", "version": 3}, "Servable not found for request: Specific(nobody, 3)"),
        ({"name": "plus", "version": 7}, "Servable not found for request: Specific(plus, 7)"),
        ({"name": "plus", "version": 0}, "Servable not found for request: Specific(plus, 0)"),
    ],
)
def test_what_is_not_served_is_not_found(
    served: Client, refused: Refused, choice: dict[str, Any], message: str
) -> None:
    assert refused(lambda: served.predict(inputs={"x": ONE}, **choice)) == (grpc.StatusCode.NOT_FOUND, message)


def test_a_request_must_name_its_model(served: Client, refused: Refused) -> None:
    empty = served.tfs.predict_pb2.PredictRequest()
    assert refused(lambda: served.prediction.Predict(empty)) == (INVALID, "Missing ModelSpec")
    code, text = refused(lambda: served.predict("", {"x": ONE}))
    assert code is INVALID
    assert "name" in text


@pytest.mark.parametrize("name", ["plus", "nobody"])
def test_an_unknown_label_is_invalid_for_any_model(served: Client, refused: Refused, name: str) -> None:
    code, text = refused(lambda: served.predict(name, {"x": ONE}, label="canary"))
    assert code is INVALID
    assert "Unrecognized" in text
    assert "canary" in text


# The numbered steps of Predict.


def test_1_an_unknown_signature_fails_the_precondition(served: Client, refused: Refused) -> None:
    code, text = refused(lambda: served.predict("plus", {"x": ONE}, signature="nope"))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert '"nope" not found' in text
    code, text = refused(lambda: served.predict("many", {"a": ROW, "b": ROW}))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert '"serving_default" not found' in text


def test_2_the_number_of_inputs_must_fit(served: Client, refused: Refused) -> None:
    code, text = refused(lambda: served.predict("plus", {"x": ONE, "extra": ONE}))
    assert code is INVALID
    assert "2!=1" in text
    assert "{extra}" in text
    code, text = refused(lambda: served.predict("many", {"b": ROW}, signature="both"))
    assert code is INVALID
    assert "1!=2" in text
    assert "Missing but required: {a}" in text
    assert refused(lambda: served.predict("counter", {"x": ONE}))[0] is INVALID


def test_3_an_input_without_default_must_be_sent(served: Client, refused: Refused) -> None:
    code, text = refused(lambda: served.predict("many", {"b": ROW}, signature="defaults"))
    assert code is INVALID
    assert "input a " in text
    assert "a:0" in text


def test_3_an_input_with_default_may_be_left_out(served: Client) -> None:
    response = served.predict("many", {"a": ROW}, signature="defaults")
    assert list(response.outputs["sum"].float_val) == [11.0, 22.0]
    response = served.predict("many", {"a": ROW, "b": ROW}, signature="defaults")
    assert list(response.outputs["sum"].float_val) == [2.0, 4.0]


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": 1, "tensor_content": b"abc"},
        {"dtype": 1, "tensor_content": b"\0" * 8},
        {"dtype": 1, "tensor_content": b"\0" * 4, "shape": [2]},
        {"dtype": 1, "float_val": [1.0], "shape": [-1]},
        {"dtype": 1, "float_val": [1.0], "shape": [2, -1]},
        {"dtype": 0, "float_val": [1.0]},
        {"dtype": 20},
        {"dtype": 999},
        {"dtype": 1, "float_val": [1.0], "shape": [2**40]},
        {"dtype": 1, "float_val": [1.0], "shape": [2**40, 2**40]},
        {"dtype": 7, "string_val": [b"a"], "shape": [2**30]},
        {"dtype": 7, "tensor_content": b"\x05abc"},
        {},
    ],
    ids=str,
)
def test_4_a_tensor_must_be_readable(served: Client, refused: Refused, fields: dict[str, Any]) -> None:
    code, text = refused(lambda: served.predict("plus", {"x": _proto(served, **fields)}))
    assert code is INVALID
    assert "tensor parsing error: x" in text


def test_5_an_unknown_input_is_named_or_the_missing_one_is(served: Client, refused: Refused) -> None:
    code, text = refused(lambda: served.predict("plus", {"z": ONE}))
    assert code is INVALID
    assert "x" in text
    code, text = refused(lambda: served.predict("many", {"a": ROW, "z": ROW}, signature="defaults"))
    assert code is INVALID
    assert "invalid name" in text
    assert "z" in text


def test_6_an_unknown_output_is_refused(served: Client, refused: Refused) -> None:
    inputs = {"a": ROW, "b": ROW}
    code, text = refused(lambda: served.predict("many", inputs, signature="both", outputs=("sum", "mean")))
    assert code is INVALID
    assert "mean" in text
    assert "product,sum" in text


def test_7_an_output_may_be_named_once(served: Client, refused: Refused) -> None:
    inputs = {"a": ROW, "b": ROW}
    code, text = refused(lambda: served.predict("many", inputs, signature="both", outputs=("sum", "sum")))
    assert code is INVALID
    assert "duplicate" in text
    assert "sum" in text


@pytest.mark.parametrize(("dtype", "name"), [(np.float64, "double"), (np.int32, "int32"), (np.int64, "int64")])
def test_8_nothing_is_cast(served: Client, refused: Refused, dtype: Any, name: str) -> None:
    code, text = refused(lambda: served.predict("plus", {"x": ONE.astype(dtype)}))
    assert (code, text) == (INVALID, f"Expects arg[0] to be float but {name} is provided")


def test_9_a_failing_op_gives_its_own_status(served: Client, refused: Refused) -> None:
    inputs = {"a": ROW, "b": np.ones((1, 3), np.float32)}
    code, text = refused(lambda: served.predict("many", inputs, signature="matmul"))
    assert code is INVALID
    assert "matmul" in text


@pytest.mark.parametrize("example", [b"", b"junk", b"\xff\xfe\x80junk\xff", b"\xc3(" * 900], ids=repr)
def test_9_an_unreadable_example_is_invalid(served: Client, refused: Refused, example: bytes) -> None:
    inputs = {"inputs": np.array([example], object)}
    assert refused(lambda: served.predict("many", inputs, signature="examples"))[0] is INVALID


def test_10_a_deadline_stops_the_run(served: Client, gate: Gate, refused: Refused) -> None:
    """More runs that would never end than the server can have threads: each must free its own when time is up."""
    request = served.request("gate", gate.inputs)
    with ThreadPoolExecutor(8) as pool:
        calls = 4 * (os.cpu_count() or 1) + 8
        begun = time.monotonic()
        codes = list(
            pool.map(lambda _: refused(lambda: served.prediction.Predict(request, timeout=0.25))[0], range(calls))
        )
    assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * calls
    gate.wait_started()
    assert served.prediction.Predict(served.request("plus", {"x": ONE}), timeout=10).outputs["y"].float_val[0] == 2.5
    assert time.monotonic() - begun < 60


def test_the_checks_come_in_order(served: Client, refused: Refused) -> None:
    bad = _proto(served, dtype=0)
    both = {"signature": "both", "outputs": ("nope",)}
    assert "not found" in refused(lambda: served.predict("many", {"z": bad}, signature="nope"))[1]
    assert "size" in refused(lambda: served.predict("many", {"a": bad}, **both))[1]
    assert "parsing" in refused(lambda: served.predict("many", {"a": bad, "b": ROW}, **both))[1]
    assert "alias not found" in refused(lambda: served.predict("many", {"a": ROW.astype(int), "b": ROW}, **both))[1]


# Shapes, outputs, signatures.


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 1)], ids=str)
def test_the_signatures_shape_is_not_checked(served: Client, shape: tuple[int, ...]) -> None:
    response = served.predict("plus", {"x": np.full(shape, 2, np.float32)})
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == list(shape)
    assert response.outputs["y"].HasField("tensor_shape")
    assert list(response.outputs["y"].float_val) == [3.0] * int(np.prod(shape))


def test_without_a_filter_all_outputs_come(served: Client) -> None:
    inputs = {"a": ROW, "b": ROW * 3}
    response = served.predict("many", inputs, signature="both")
    assert {alias: list(value.float_val) for alias, value in response.outputs.items()} == {
        "sum": [4.0, 8.0],
        "product": [3.0, 12.0],
        "matmul": [15.0],
    }


def test_a_filter_leaves_the_rest_uncomputed(served: Client) -> None:
    """The product of matrices that do not fit would fail if it were computed."""
    inputs = {"a": ROW, "b": np.array([[5.0]], np.float32)}
    response = served.predict("many", inputs, signature="both", outputs=("sum",))
    assert {alias: list(value.float_val) for alias, value in response.outputs.items()} == {"sum": [6.0, 7.0]}


def test_a_signature_may_have_no_inputs(served: Client) -> None:
    first = served.predict("counter").outputs["count"]
    second = served.predict("counter").outputs["count"]
    assert second.int64_val[0] == first.int64_val[0] + 1
    assert len(second.int64_val) == 1


def test_the_signatures_method_is_not_checked(served: Client) -> None:
    assert served.predict("plus", {"inputs": ONE}, signature="regress").outputs["outputs"].float_val[0] == 2.5
    tf = served.tfs.tf
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=[7.5]))
    example = tf.train.Example(features=tf.train.Features(feature={"value": feature})).SerializeToString()
    response = served.predict("many", {"inputs": np.array([example], object)}, signature="examples")
    assert list(response.outputs["outputs"].float_val) == [7.5]
    assert response.model_spec.signature_name == "examples"


# Reading and writing tensors.


def _proto(client: Client, shape: list[int] | None = None, **fields: Any) -> Any:
    proto: Any = client.tfs.tf.make_tensor_proto(0.0).__class__(**fields)
    for size in shape or []:
        proto.tensor_shape.dim.add().size = size
    return proto


def _echo(client: Client, signature: str, **fields: Any) -> Any:
    return client.predict("echo", {"x": _proto(client, **fields)}, signature=signature).outputs["y"]


F2 = np.array([1.5, -2.0])
TYPED = [
    ("float32", 1, "float_val", [1.5, -2.0], F2.astype("<f4").tobytes()),
    ("float64", 2, "double_val", [1.5, -2.0], F2.astype("<f8").tobytes()),
    ("int32", 3, "int_val", [7, -8], np.array([7, -8], "<i4").tobytes()),
    ("uint8", 4, "int_val", [7, 255], b"\x07\xff"),
    ("int16", 5, "int_val", [7, -300], np.array([7, -300], "<i2").tobytes()),
    ("int8", 6, "int_val", [7, -8], b"\x07\xf8"),
    ("string", 7, "string_val", [b"a\0", b"\xff\xfe"], b"\x02\x02a\0\xff\xfe"),
    ("complex64", 8, "scomplex_val", [1.0, 2.0, 3.0, 4.0], np.array([1, 2, 3, 4], "<f4").tobytes()),
    ("int64", 9, "int64_val", [2**60, -8], np.array([2**60, -8], "<i8").tobytes()),
    ("bool", 10, "bool_val", [True, False], b"\x01\x00"),
    ("bfloat16", 14, "half_val", [0x3FC0, 0xC000], b"\xc0\x3f\x00\xc0"),
    ("uint16", 17, "int_val", [7, 65535], b"\x07\x00\xff\xff"),
    ("complex128", 18, "dcomplex_val", [1.0, 2.0, 3.0, 4.0], np.array([1, 2, 3, 4], "<f8").tobytes()),
    ("float16", 19, "half_val", [0x3E00, 0xC000], F2.astype("<f2").tobytes()),
    ("uint32", 22, "uint32_val", [7, 2**32 - 1], np.array([7, 2**32 - 1], "<u4").tobytes()),
    ("uint64", 23, "uint64_val", [7, 2**64 - 1], np.array([7, 2**64 - 1], "<u8").tobytes()),
]
each_type = pytest.mark.parametrize(("name", "dtype", "field", "values", "content"), TYPED, ids=[t[0] for t in TYPED])


@each_type
def test_every_type_comes_back_in_its_typed_field(
    served: Client, name: str, dtype: int, field: str, values: list[Any], content: bytes
) -> None:
    for sent in ({field: values}, {"tensor_content": content}):
        answer = _echo(served, name, dtype=dtype, shape=[2], **sent)
        assert answer.dtype == dtype
        assert list(getattr(answer, field)) == values
        assert [dim.size for dim in answer.tensor_shape.dim] == [2]
        assert [described.name for described, _ in answer.ListFields()] == sorted(
            ["dtype", "tensor_shape", field], key=lambda n: answer.DESCRIPTOR.fields_by_name[n].number
        )


@each_type
def test_a_typed_field_is_filled_up_or_cut(
    served: Client, name: str, dtype: int, field: str, values: list[Any], content: bytes
) -> None:
    width = len(values) // 2
    last = values[-width:]
    short = _echo(served, name, dtype=dtype, shape=[2, 2], **{field: values})
    assert list(getattr(short, field)) == values + last * 2
    surplus = _echo(served, name, dtype=dtype, shape=[1], **{field: values})
    assert list(getattr(surplus, field)) == values[:width]
    nothing = _echo(served, name, dtype=dtype, shape=[3])
    assert list(getattr(nothing, field)) == [type(values[0])()] * 3 * width
    scalar = _echo(served, name, dtype=dtype, **{field: values[:width]})
    assert list(getattr(scalar, field)) == values[:width]
    assert scalar.HasField("tensor_shape")
    assert not scalar.tensor_shape.dim


@each_type
def test_a_dimension_of_zero_is_legal(
    served: Client, name: str, dtype: int, field: str, values: list[Any], content: bytes
) -> None:
    answer = _echo(served, name, dtype=dtype, shape=[0, 3])
    assert [dim.size for dim in answer.tensor_shape.dim] == [0, 3]
    assert not getattr(answer, field)


def test_content_counts_alone(served: Client) -> None:
    content = np.array([5.0, 6.0], "<f4").tobytes()
    answer = _echo(served, "float32", dtype=1, shape=[2], tensor_content=content, float_val=[1.0, 2.0])
    assert list(answer.float_val) == [5.0, 6.0]


def test_an_answer_has_one_value_an_element(served: Client) -> None:
    answer = _echo(served, "int32", dtype=3, shape=[100], int_val=[4])
    assert list(answer.int_val) == [4] * 100


def test_odd_floats_keep_their_bits(served: Client) -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    answer = _echo(served, "float32", dtype=1, shape=[5], tensor_content=values.tobytes())
    assert np.array(answer.float_val, np.float32).tobytes() == values.tobytes()


def test_messages_may_be_large(served: Client) -> None:
    values = np.arange(3_000_000, dtype=np.float32)
    answer = _echo(served, "float32", dtype=1, shape=[values.size], tensor_content=values.tobytes())
    assert np.array_equal(np.array(answer.float_val, np.float32), values)


# Errors as such, other methods.


def test_long_error_texts_are_cut(served: Client, refused: Refused) -> None:
    code, text = refused(lambda: served.predict("plus", {"x": ONE}, signature="n" * 5000))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text.endswith("n...TRUNCATED")
    assert len(text) == 1024 + len("...TRUNCATED")
    code, text = refused(lambda: served.predict("plus", {"x": ONE}, signature="\U0001f40e" * 3000))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text.endswith("...TRUNCATED")


def test_undecodable_bytes_are_an_internal_error(served: Client, refused: Refused) -> None:
    for method in ("PredictionService/Predict", "ModelService/GetModelStatus"):
        code, _ = refused(lambda method=method: served.raw(f"/tensorflow.serving.{method}", b"\xff\xff\xff"))  # type: ignore[misc]
        assert code is grpc.StatusCode.INTERNAL
    assert served.y("plus") == 2.5


def test_unknown_fields_are_no_error(served: Client) -> None:
    raw = served.request("plus", {"x": ONE}).SerializeToString() + b"\xc2\x3e\x03abc"
    answer = served.raw("/tensorflow.serving.PredictionService/Predict", raw)
    assert served.tfs.predict_pb2.PredictResponse.FromString(answer).outputs["y"].float_val[0] == 2.5


def test_methods_that_are_not_served_are_unimplemented(served: Client, refused: Refused) -> None:
    for method in ("SessionService/SessionRun", "PredictionService/NoSuchMethod", "NoSuchService/Predict"):
        code, _ = refused(lambda method=method: served.raw(f"/tensorflow.serving.{method}", b""))  # type: ignore[misc]
        assert code is grpc.StatusCode.UNIMPLEMENTED


def test_many_callers_at_once_get_their_own_answers(served: Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda x: served.y("plus", float(x)), range(200))) == [x / 2 + 2 for x in range(200)]
