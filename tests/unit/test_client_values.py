"""Values as people write them become arrays: exactly or not at all, and every refusal says where."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiltyard.api.tfs.v1 import tensor_pb2
from tiltyard.client.dtypes import DType, by_number, from_bfloat16, to_bfloat16
from tiltyard.client.tensors import decode, encode
from tiltyard.client.values import to_array
from tiltyard.errors import InferenceError, InvalidArgumentError, UnsupportedError

T = tensor_pb2
KNOWN = [T.DATA_TYPE_FLOAT, T.DATA_TYPE_DOUBLE, T.DATA_TYPE_INT32, T.DATA_TYPE_UINT8, T.DATA_TYPE_INT16]
KNOWN += [T.DATA_TYPE_INT8, T.DATA_TYPE_STRING, T.DATA_TYPE_COMPLEX64, T.DATA_TYPE_INT64, T.DATA_TYPE_BOOL]
KNOWN += [T.DATA_TYPE_QINT8, T.DATA_TYPE_QUINT8, T.DATA_TYPE_QINT32, T.DATA_TYPE_BFLOAT16, T.DATA_TYPE_QINT16]
KNOWN += [T.DATA_TYPE_QUINT16, T.DATA_TYPE_UINT16, T.DATA_TYPE_COMPLEX128, T.DATA_TYPE_HALF, T.DATA_TYPE_UINT32]
KNOWN += [T.DATA_TYPE_UINT64]
FLOAT, DOUBLE, INT32, INT64 = (by_number(n) for n in (T.DATA_TYPE_FLOAT, T.DATA_TYPE_DOUBLE, T.DATA_TYPE_INT32, 9))
UINT8, UINT64, BOOL = (by_number(n) for n in (T.DATA_TYPE_UINT8, T.DATA_TYPE_UINT64, T.DATA_TYPE_BOOL))
HALF, BFLOAT16, STRING = (by_number(n) for n in (T.DATA_TYPE_HALF, T.DATA_TYPE_BFLOAT16, T.DATA_TYPE_STRING))
COMPLEX64 = by_number(T.DATA_TYPE_COMPLEX64)


def _elements(dtype: DType) -> st.SearchStrategy[Any]:
    """Python values that ``dtype`` can hold exactly."""
    kind = dtype.numpy.kind
    if dtype is STRING:
        return st.binary(max_size=6) | st.text(max_size=6)
    if dtype is BFLOAT16:
        patterns = st.integers(0, 0xFFFF).map(lambda bits: float(from_bfloat16(np.array([bits], np.uint16))[0]))
        return patterns.filter(lambda value: not math.isnan(value))
    if kind == "b":
        return st.booleans()
    if kind == "c":
        return st.complex_numbers(width=64 if dtype is COMPLEX64 else 128, allow_nan=False)
    if kind == "f":
        if dtype is HALF:
            return st.floats(width=16, allow_nan=False)
        return st.floats(width=32 if dtype is FLOAT else 64, allow_nan=False)
    limits = np.iinfo(dtype.numpy)
    return st.integers(int(limits.min), int(limits.max))


@st.composite
def _tensors(draw: st.DrawFn) -> tuple[DType, list[Any], tuple[int, ...]]:
    dtype = by_number(draw(st.sampled_from(KNOWN)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    flat = draw(st.lists(_elements(dtype), min_size=math.prod(shape), max_size=math.prod(shape)))
    return dtype, flat, shape


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    size = math.prod(shape[1:])
    return [_nested(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


@given(_tensors())
def test_what_goes_into_a_tensor_comes_out_of_it(case: tuple[DType, list[Any], tuple[int, ...]]) -> None:
    dtype, flat, shape = case
    array = to_array(_nested(flat, shape), dtype, "x")
    tensor = T.Tensor.FromString(encode(array, dtype).SerializeToString())
    back = decode(tensor)
    seen = shape[: shape.index(0) + 1] if 0 in shape else shape  # [[]] and [] cannot say what stands behind the zero
    assert back.shape == array.shape == seen
    assert tensor.dtype == dtype.number
    wanted = [item.encode() if isinstance(item, str) else item for item in flat]
    assert back.reshape(-1).tolist() == (wanted if 0 not in shape else [])


@pytest.mark.parametrize("number", KNOWN)
def test_a_numpy_array_of_the_right_type_goes_through_bit_for_bit(number: int) -> None:
    dtype = by_number(number)
    array = np.array([[1, 0], [1, 1]]).astype(dtype.numpy)
    if dtype is STRING:
        array = np.array([[b"\x00a\xff", b""], [b"b", b"c"]], object)
    tensor = encode(to_array(array, dtype, "x"), dtype)
    assert [dim.size for dim in tensor.tensor_shape.dim] == [2, 2]
    assert decode(tensor).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        ([7.0, -2.0], INT32, [7, -2]),
        ([1, 0.5], FLOAT, [1.0, 0.5]),
        (2**24, FLOAT, float(2**24)),
        (2**24 + 2, FLOAT, float(2**24 + 2)),
        (2**64 - 1, UINT64, 2**64 - 1),
        (2**100, DOUBLE, float(2**100)),
        ([0.1], FLOAT, [float(np.float32(0.1))]),
        (float("inf"), FLOAT, float("inf")),
        (np.int64(5), FLOAT, 5.0),
        ([np.float32(0.5), 1], DOUBLE, [0.5, 1.0]),
        (np.array([3.0]), UINT8, [3]),
        ([np.array([1, 2]), np.array([3, 4])], INT64, [[1, 2], [3, 4]]),
        (((1, 2), (3, 4)), INT64, [[1, 2], [3, 4]]),
        (np.array([1, 2], object), INT64, [1, 2]),
        (["é", b"\xff"], STRING, ["é".encode(), b"\xff"]),
        (np.array(["ab", "c"]), STRING, [b"ab", b"c"]),
        ([True, False], BOOL, [True, False]),
        ([1, 2.5], COMPLEX64, [1 + 0j, 2.5 + 0j]),
        ([256, 257.0], BFLOAT16, [256.0, 256.0]),  # floats round to the nearest, ties to even
        ([], FLOAT, []),
    ],
)
def test_values_that_say_the_same_in_the_wanted_type_are_taken(value: Any, dtype: DType, wanted: Any) -> None:
    assert to_array(value, dtype, "x").tolist() == wanted


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        ([[1, 2.5]], INT32, r"element \[0\]\[1\], is 2.5.*int32"),
        (2**24 + 1, FLOAT, "16777217"),
        ([1, 2**53 + 1], DOUBLE, r"element \[1\]"),
        (np.array([2**53 + 1]), DOUBLE, "9007199254740993"),
        (2**100 + 1, DOUBLE, "not exactly"),
        (2**100, INT64, "not exactly"),
        (2**63, INT64, "not exactly"),
        (float(2**63), INT64, "not exactly"),
        (2049, HALF, "2049"),
        (257, BFLOAT16, "257"),
        (-1, UINT8, "-1"),
        (256, UINT8, "256"),
        (1e39, FLOAT, "1e\\+39"),
        (1e5, HALF, "100000.0"),
        (10**400, DOUBLE, "not exactly"),
        (float("nan"), INT32, "nan"),
        (float("inf"), INT64, "inf"),
        (True, FLOAT, "give 1 or 0"),
        ([1, True], INT32, r"element \[1\].*true"),
        (1, BOOL, "give true or false"),
        ("7", INT32, "'7'"),
        (["a", 1], STRING, r"element \[1\].*strings"),
        ("\ud800", STRING, "no valid Unicode"),
        ([[1, None]], FLOAT, r"element \[0\]\[1\], is null"),
        ([{"a": 1}], FLOAT, r"element \[0\]"),
        (1j, FLOAT, "not exactly"),
        ([0.5, 2**60 + 1], DOUBLE, "among fractions"),
        (np.array(["2020-01-01"], "datetime64[D]"), INT64, "not exactly"),
        ([[1, 2], [3]], INT32, r"\[1\], holds 1 element but .*\[0\], holds 2 elements"),
        ([[1], 2], INT32, "a single value"),
        ([[[1]], [[1, 2]]], INT32, r"\[1\]\[0\], holds 2 elements"),
    ],
)
def test_values_that_would_change_are_refused_by_place(value: Any, dtype: DType, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        to_array(value, dtype, "x")
    assert "'x'" in caught.value.message


@given(st.integers(-(2**70), 2**70), st.sampled_from([FLOAT, DOUBLE, HALF, BFLOAT16, INT32, INT64, UINT8, UINT64]))
def test_an_integer_is_taken_unchanged_or_refused(value: int, dtype: DType) -> None:
    for given_value in (value, [value, 0], np.array([value]) if -(2**63) <= value < 2**63 else value):
        try:
            array = to_array(given_value, dtype, "x")
        except InvalidArgumentError:
            continue
        assert int(array.reshape(-1)[0]) == value


def test_integers_a_type_can_hold_are_never_refused() -> None:
    for dtype, value in [
        (FLOAT, 2**24),
        (FLOAT, 2**100),
        (HALF, 2048),
        (BFLOAT16, 256),
        (INT64, -(2**63)),
        (UINT64, 0),
    ]:
        assert int(to_array(value, dtype, "x")) == value


@given(st.integers(0, 0xFFFF))
def test_every_bfloat16_value_survives(bits: int) -> None:
    value = from_bfloat16(np.array(bits, np.uint16))
    assert struct.pack("<f", float(value)) == struct.pack("<I", bits << 16) or math.isnan(float(value))
    back = int(to_bfloat16(value))
    assert back == bits or math.isnan(float(value))


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, 3.4e38, float("nan")], np.float32)
    assert from_bfloat16(to_bfloat16(values))[:4].tolist() == [1.0, 1.0, 1.015625, float("inf")]
    assert math.isnan(float(from_bfloat16(to_bfloat16(values))[4]))


def test_a_large_input_is_quick() -> None:
    rows = [[float(i % 7) for i in range(50)]] * 5_000
    assert to_array(rows, FLOAT, "x").shape == (5_000, 50)


def _tensor(number: int, shape: list[int], **fields: Any) -> T.Tensor:
    tensor = T.Tensor(dtype=T.DataType.ValueType(number), **fields)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "wanted"),
    [
        (_tensor(T.DATA_TYPE_FLOAT, [3], float_val=[1.5, 2.5]), [1.5, 2.5, 2.5]),  # the last value repeats
        (_tensor(T.DATA_TYPE_FLOAT, [2]), [0.0, 0.0]),
        (_tensor(T.DATA_TYPE_FLOAT, [1], float_val=[1.5, 2.5]), [1.5]),  # surplus is ignored
        (_tensor(T.DATA_TYPE_FLOAT, [], float_val=[1.5]), 1.5),
        (T.Tensor(dtype=T.DATA_TYPE_INT64, int64_val=[-5]), -5),  # no shape is a scalar
        (_tensor(T.DATA_TYPE_DOUBLE, [1], double_val=[1e-300]), [1e-300]),
        (_tensor(T.DATA_TYPE_INT8, [2], int_val=[-128, 127]), [-128, 127]),
        (_tensor(T.DATA_TYPE_UINT16, [1], int_val=[65535]), [65535]),
        (_tensor(T.DATA_TYPE_UINT32, [1], uint32_val=[2**32 - 1]), [2**32 - 1]),
        (_tensor(T.DATA_TYPE_UINT64, [1], uint64_val=[2**64 - 1]), [2**64 - 1]),
        (_tensor(T.DATA_TYPE_BOOL, [2], bool_val=[True]), [True, True]),
        (_tensor(T.DATA_TYPE_HALF, [1], half_val=[0x3C00]), [1.0]),
        (_tensor(T.DATA_TYPE_HALF, [1], half_val=[0xC000]), [-2.0]),
        (_tensor(T.DATA_TYPE_BFLOAT16, [2], half_val=[0x3F80, 0xBF80]), [1.0, -1.0]),
        (_tensor(T.DATA_TYPE_COMPLEX64, [2], scomplex_val=[1, 2]), [1 + 2j, 1 + 2j]),
        (_tensor(T.DATA_TYPE_COMPLEX128, [1], dcomplex_val=[1, 2]), [1 + 2j]),
        (_tensor(T.DATA_TYPE_STRING, [3], string_val=[b"a", b"b"]), [b"a", b"b", b"b"]),
        (_tensor(T.DATA_TYPE_STRING, [1]), [b""]),
        (_tensor(T.DATA_TYPE_STRING, [2], tensor_content=b"\x01\x02abc"), [b"a", b"bc"]),
        (_tensor(T.DATA_TYPE_INT32, [1], tensor_content=b"\x01\x00\x00\x00", int_val=[9]), [1]),
        (_tensor(T.DATA_TYPE_FLOAT, [2, 0]), [[], []]),
    ],
)
def test_answers_are_read_wherever_their_values_stand(tensor: T.Tensor, wanted: Any) -> None:
    assert decode(tensor).tolist() == wanted


@pytest.mark.parametrize(
    "tensor",
    [
        _tensor(T.DATA_TYPE_FLOAT, [-1]),
        _tensor(T.DATA_TYPE_FLOAT, [2], tensor_content=b"1234"),
        _tensor(T.DATA_TYPE_STRING, [2], tensor_content=b"\x01\x09abc"),
        _tensor(T.DATA_TYPE_STRING, [1], tensor_content=b"\x80"),
    ],
)
def test_damaged_answers_are_errors(tensor: T.Tensor) -> None:
    with pytest.raises(InferenceError, match="faulty"):
        decode(tensor)


def test_a_decoded_array_is_the_users_own() -> None:
    array = decode(_tensor(T.DATA_TYPE_FLOAT, [1], tensor_content=struct.pack("<f", 1.0)))
    array[0] = 2.0
    assert array.tolist() == [2.0]


def test_a_type_nobody_can_read_is_named() -> None:
    with pytest.raises(UnsupportedError, match="DATA_TYPE_RESOURCE"):
        decode(_tensor(T.DATA_TYPE_RESOURCE, [1]))
    with pytest.raises(UnsupportedError, match="99"):
        by_number(99)
