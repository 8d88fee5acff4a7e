"""What metrics read from an answer, against the protobuf library and TensorFlow's rules in plain Python."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2

from tests.property.wirebytes import (
    VARINTS,
    Framing,
    Outputs,
    chopped,
    damaged,
    every_byte,
    fields,
    group,
    joined,
    parses,
    sized,
    tagged,
    varint,
)

if TYPE_CHECKING:
    from tiltyard_router import score
else:
    score = pytest.importorskip("tiltyard_router.score", exc_type=ImportError)

pytestmark = pytest.mark.router

UNHURRIED = settings(deadline=None)
T = tensor_pb2
Metric = tuple[bytes, int, float | None]

# Typed field, and struct code of one element in tensor_content ("b16": bfloat16, which struct does not know).
NUMERIC = {
    T.DATA_TYPE_FLOAT: ("float_val", "f"),
    T.DATA_TYPE_DOUBLE: ("double_val", "d"),
    T.DATA_TYPE_INT32: ("int_val", "i"),
    T.DATA_TYPE_UINT8: ("int_val", "B"),
    T.DATA_TYPE_INT16: ("int_val", "h"),
    T.DATA_TYPE_INT8: ("int_val", "b"),
    T.DATA_TYPE_INT64: ("int64_val", "q"),
    T.DATA_TYPE_BOOL: ("bool_val", "?"),
    T.DATA_TYPE_BFLOAT16: ("half_val", "b16"),
    T.DATA_TYPE_UINT16: ("int_val", "H"),
    T.DATA_TYPE_HALF: ("half_val", "e"),
    T.DATA_TYPE_UINT32: ("uint32_val", "I"),
    T.DATA_TYPE_UINT64: ("uint64_val", "Q"),
}


def from_bits(code: str, raw: bytes) -> float:
    if code == "b16":
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    return float(struct.unpack("<" + code, raw)[0])


def from_value(code: str, value: float) -> float:
    """One value of a typed field as TensorFlow narrows it."""
    if code in ("f", "d", "?"):
        return float(value)
    size = 2 if code == "b16" else struct.calcsize("<" + code)
    return from_bits(code, (int(value) % (1 << 8 * size)).to_bytes(size, "little"))


def expected(tensor: Any, index: int, above: float | None) -> float | str | None:
    """A number or a reason; ``None`` when there are too many rows to go through here."""
    if tensor.dtype not in NUMERIC:
        return "dtype"
    field, code = NUMERIC[tensor.dtype]
    dims = [dim.size for dim in tensor.tensor_shape.dim]
    count = math.prod(dims)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in dims) or not 0 < count < 2**63:
        return "index"
    rows = dims[0] if dims else 1
    row = count // rows
    if index >= row:
        return "index"
    if tensor.tensor_content:
        content = tensor.tensor_content
        size = 2 if code == "b16" else struct.calcsize("<" + code)
        if len(content) != count * size:
            return "index"
        values = [from_bits(code, content[i : i + size]) for i in range(0, len(content), size)]
    else:
        values = [from_value(code, value) for value in getattr(tensor, field)] or [0.0]
    if rows > 10_000:
        return None
    picked = [values[min(index + i * row, len(values) - 1)] for i in range(rows)]
    if not all(map(math.isfinite, picked)):
        return "nan"
    if above is not None:
        picked = [float(value > above) for value in picked]
    mean = sum(picked) / rows
    return mean if math.isfinite(mean) else "nan"


def same(got: float | str, wanted: float | str | None, scale: float = 1.0) -> bool:
    if isinstance(got, str) or isinstance(wanted, str):
        return got == wanted or wanted is None
    return wanted is None or math.isclose(got, wanted, rel_tol=1e-12, abs_tol=1e-12 * scale)


SMALL = st.one_of(st.sampled_from([0, 1, 7, 0x7C00, 0x3F80]), VARINTS)
DIMS = st.one_of(st.sampled_from([0, 1, 1, 2, 2, 3]), st.integers(0, 40), VARINTS)
WORDS = st.sampled_from([2, 4, 8, 16, 24]).flatmap(lambda n: st.binary(min_size=n, max_size=n))
FLOATS = st.one_of(
    st.floats(width=32).map(lambda v: sized(5, struct.pack("<f", v))),
    st.floats(width=32).map(lambda v: tagged(5, 5, struct.pack("<f", v))),
    st.lists(st.floats(-4, 4, width=32), max_size=12).map(lambda vs: sized(5, struct.pack(f"<{len(vs)}f", *vs))),
    st.lists(st.floats(-4, 4), max_size=12).map(lambda vs: sized(6, struct.pack(f"<{len(vs)}d", *vs))),
    st.floats().map(lambda v: tagged(6, 1, struct.pack("<d", v))),
)
INT_FIELDS = st.sampled_from([7, 10, 11, 13, 16, 17])
PARTS = st.one_of(
    st.sampled_from([0, *NUMERIC, 1, 1, 2, 7, 8, 11]).map(lambda d: tagged(1, 0, varint(d))),
    st.lists(DIMS.map(lambda n: sized(2, tagged(1, 0, varint(n)))), max_size=2).map(lambda d: sized(2, b"".join(d))),
    FLOATS,
    FLOATS,
    st.builds(lambda n, v: tagged(n, 0, varint(v)), INT_FIELDS, SMALL),
    st.builds(lambda n, vs: sized(n, b"".join(map(varint, vs))), INT_FIELDS, st.lists(SMALL, max_size=9)),
    st.one_of(st.just(b""), WORDS).map(lambda b: sized(4, b)),
    fields(st.sampled_from([3, 14, 15, 18, 99])),
)
TENSORS = joined(PARTS, 6)
NAMES = st.sampled_from([b"main", b"main", b"other", b"x" * 200, "näme".encode()])
ENTRIES = st.one_of(
    st.builds(lambda k, t: sized(1, k) + sized(2, t), NAMES, TENSORS),
    st.builds(lambda t, k: sized(2, t) + sized(1, k), TENSORS, NAMES),
    joined(st.one_of(NAMES.map(lambda k: sized(1, k)), TENSORS.map(lambda t: sized(2, t)), fields()), 4),
)
ANSWERS = joined(
    st.one_of(ENTRIES.map(lambda e: sized(1, e)), ENTRIES.map(lambda e: sized(1, e, 2)), fields(st.integers(1, 5))), 5
)
METRICS: st.SearchStrategy[list[Metric]] = st.lists(
    st.tuples(NAMES, st.sampled_from([0, 0, 0, 1, 2, 39]), st.sampled_from([None, None, 0.0, 0.5])),
    min_size=1,
    max_size=8,
)


def check(message: bytes, pieces: list[bytes], metrics: list[Metric]) -> None:
    got = score.read(pieces, metrics)
    if not parses(Framing, message):
        assert got == ["malformed"] * len(metrics)
        return
    try:
        outputs = Outputs.FromString(message).outputs
    except DecodeError:
        return  # fields that are not read are not checked: any answer will do, but no crash
    tensors = {entry.key: entry.value for entry in outputs}
    for (name, index, above), value in zip(metrics, got, strict=True):
        tensor = tensors.get(name.decode())
        if tensor is None:
            assert value == "missing"
        else:
            largest = max((abs(v) for v in [*tensor.float_val, *tensor.double_val] if math.isfinite(v)), default=1.0)
            assert same(value, expected(tensor, index, above), largest)


@settings(deadline=None, max_examples=300)
@given(st.data(), METRICS)
def test_scores_are_what_tensorflow_would_read_in_any_order_and_any_chopping(
    data: st.DataObject, metrics: list[Metric]
) -> None:
    message = data.draw(ANSWERS)
    check(message, data.draw(chopped(message)), metrics)


@UNHURRIED
@given(st.data(), METRICS)
def test_any_chopping_reads_the_same(data: st.DataObject, metrics: list[Metric]) -> None:
    message = data.draw(st.one_of(ANSWERS, ANSWERS.flatmap(damaged), st.binary(max_size=20)))
    whole = score.read([message], metrics)
    assert repr(score.read(every_byte(message), metrics)) == repr(whole)
    assert repr(score.read(data.draw(chopped(message)), metrics)) == repr(whole)


@UNHURRIED
@given(st.data(), METRICS)
def test_damaged_answers_are_malformed_when_their_framing_is(data: st.DataObject, metrics: list[Metric]) -> None:
    message = data.draw(damaged(data.draw(ANSWERS)))
    check(message, data.draw(chopped(message)), metrics)


def answer(**outputs: tensor_pb2.Tensor) -> bytes:
    message = predict_pb2.PredictResponse()
    for name, tensor in outputs.items():
        message.outputs[name].CopyFrom(tensor)
    message.model_spec.name = "aloha"
    return message.SerializeToString()


def shape(*dims: int) -> tensor_pb2.TensorShape:
    return T.TensorShape(dim=[T.TensorShape.Dim(size=n) for n in dims])


def floats(*values: float, dims: tuple[int, ...] = ()) -> tensor_pb2.Tensor:
    return T.Tensor(dtype=T.DATA_TYPE_FLOAT, tensor_shape=shape(*dims), float_val=values)


def test_an_answer_cut_off_at_any_byte_is_malformed_unless_it_ends_with_a_field() -> None:
    message = answer(banjori=floats(0.25, dims=(1, 1)), main=floats(0.5, dims=(1, 1)))
    metrics: list[Metric] = [(b"main", 0, None), (b"banjori", 0, 0.1)]
    ends = 0
    for end in range(len(message) + 1):
        check(message[:end], [message[:end]], metrics)
        check(message[:end], every_byte(message[:end]), metrics)
        ends += score.read([message[:end]], metrics)[0] != "malformed"
    assert ends == 4
    assert score.read([message], metrics) == [0.5, 1.0]


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("tensor", "index", "above", "value"),
    [
        (floats(0.25), 0, None, 0.25),
        (floats(0.25), 1, None, "index"),
        (floats(1, 2, 3, 4, 5, 6, dims=(2, 3)), 1, None, 3.5),
        (floats(1, 2, 3, 4, 5, 6, dims=(2, 3)), 2, 3.0, 0.5),
        (floats(1, 2, 3, 4, 5, 6, dims=(2, 3)), 3, None, "index"),
        (floats(0.5, dims=(4, 1)), 0, 0.5, 0.0),
        (floats(0.5, 1, dims=(4, 1)), 0, 0.5, 0.75),
        (floats(dims=(4,)), 0, None, 0.0),
        (floats(7, 8, 9), 0, None, 7.0),
        (floats(1, dims=(0, 3)), 0, None, "index"),
        (floats(1, dims=(3, 0)), 0, None, "index"),
        (floats(1, dims=(2**62, 1)), 0, None, 1.0),
        (floats(1, dims=(2**62, 4)), 0, None, "index"),
        (floats(1, dims=(-1,)), 0, None, "index"),
        (floats(NAN), 0, 0.5, "nan"),
        (floats(INF), 0, None, "nan"),
        (floats(1, NAN, dims=(2,)), 0, None, "nan"),
        (floats(1, NAN, dims=(1, 2)), 0, None, 1.0),
        (T.Tensor(dtype=T.DATA_TYPE_STRING, string_val=[b"1"]), 0, None, "dtype"),
        (T.Tensor(dtype=T.DATA_TYPE_COMPLEX64, scomplex_val=[1, 0]), 0, None, "dtype"),
        (T.Tensor(dtype=T.DATA_TYPE_QINT8, int_val=[1]), 0, None, "dtype"),
        (T.Tensor(), 0, None, "dtype"),
        (T.Tensor(dtype=T.DATA_TYPE_BOOL, bool_val=[True]), 0, None, 1.0),
        (T.Tensor(dtype=T.DATA_TYPE_BOOL, tensor_shape=shape(2), tensor_content=b"\x00\x01"), 0, None, 0.5),
        (T.Tensor(dtype=T.DATA_TYPE_INT64, int64_val=[-5]), 0, None, -5.0),
        (T.Tensor(dtype=T.DATA_TYPE_UINT64, uint64_val=[2**63]), 0, None, 2.0**63),
        (T.Tensor(dtype=T.DATA_TYPE_UINT8, int_val=[300]), 0, None, 44.0),
        (T.Tensor(dtype=T.DATA_TYPE_INT8, tensor_content=b"\xff"), 0, None, -1.0),
        (T.Tensor(dtype=T.DATA_TYPE_INT16, int_val=[40_000]), 0, None, -25536.0),
        (T.Tensor(dtype=T.DATA_TYPE_HALF, half_val=[0x3C00]), 0, None, 1.0),
        (T.Tensor(dtype=T.DATA_TYPE_HALF, half_val=[0x8001]), 0, None, -(2.0**-24)),
        (T.Tensor(dtype=T.DATA_TYPE_HALF, half_val=[0x7C00]), 0, None, "nan"),
        (T.Tensor(dtype=T.DATA_TYPE_BFLOAT16, half_val=[0x3F80]), 0, None, 1.0),
        (T.Tensor(dtype=T.DATA_TYPE_DOUBLE, double_val=[1e308, 1e308], tensor_shape=shape(2)), 0, None, "nan"),
        (T.Tensor(dtype=T.DATA_TYPE_FLOAT, tensor_content=b"123"), 0, None, "index"),
        (T.Tensor(dtype=T.DATA_TYPE_FLOAT, tensor_content=struct.pack("<f", 0.5), float_val=[1]), 0, None, 0.5),
    ],
)
def test_values_by_example(tensor: tensor_pb2.Tensor, index: int, above: float | None, value: float | str) -> None:
    message = answer(main=tensor, other=floats(9))
    assert score.read([message], [(b"main", index, above)]) == [value]
    assert score.read(every_byte(message), [(b"main", index, above)]) == [value]
    assert same(value, expected(tensor, index, above))  # the reference of the tests above knows the rules too


def test_values_that_come_in_several_runs() -> None:
    def packed(*values: float) -> bytes:
        return sized(5, struct.pack(f"<{len(values)}f", *values))

    for dims, index, mean in (((6,), 0, 3.5), ((2, 3), 1, 3.5), ((3, 2), 1, 4.0), ((9,), 0, 39 / 9)):
        head = tagged(1, 0, b"\x01") + sized(2, b"".join(sized(2, tagged(1, 0, varint(n))) for n in dims))
        runs = [packed(1, 2), packed(), tagged(5, 5, struct.pack("<f", 3)), packed(4, 5, 6)]
        one = sized(2, b"".join(runs) + head)
        several = sized(2, runs[0]) + sized(2, runs[2] + head) + sized(2, runs[3])  # repeated values of an entry merge
        for value in (one, several):
            message = sized(1, sized(1, b"main") + value)
            assert score.read([message], [(b"main", index, None)]) == [pytest.approx(mean)]


def test_the_last_of_repeated_keys_of_an_entry_counts() -> None:
    value = sized(2, floats(0.5).SerializeToString())
    metrics: list[Metric] = [(b"main", 0, None), (b"other", 0, None)]
    for keys, wanted in (([b"other", b"main"], [0.5, "missing"]), ([b"main", b"other"], ["missing", 0.5])):
        for entry in (sized(1, keys[0]) + value + sized(1, keys[1]), sized(1, keys[0]) + sized(1, keys[1]) + value):
            message = sized(1, entry) + sized(2, b"")
            assert score.read([message], metrics) == wanted
            assert score.read(every_byte(message), metrics) == wanted
            assert score.read([message], metrics[:1]) == score.read(every_byte(message), metrics[:1]) == wanted[:1]


def test_halves_of_every_bit_pattern() -> None:
    for bits in range(0, 2**16, 7):
        raw = struct.pack("<H", bits)
        value = struct.unpack("<e", raw)[0]
        tensor = T.Tensor(dtype=T.DATA_TYPE_HALF, tensor_content=raw)
        wanted = value if math.isfinite(value) else "nan"
        assert score.read([answer(main=tensor)], [(b"main", 0, None)]) == [wanted]


def test_the_last_of_repeated_outputs_counts_also_when_it_gives_no_value() -> None:
    one, two, bad = (answer(main=tensor) for tensor in (floats(1), floats(2), T.Tensor(dtype=T.DATA_TYPE_STRING)))
    metrics: list[Metric] = [(b"main", 0, None)]
    assert score.read([one + two], metrics) == [2.0]
    assert score.read(every_byte(two + one), metrics) == [1.0]
    assert score.read([one + bad], metrics) == ["dtype"]
    assert score.read([bad + one], metrics) == [1.0]


def test_groups_nest_as_deep_as_protobuf_allows() -> None:
    one = answer(main=floats(1))
    for depth in range(95, 104):
        nest = b""
        for _ in range(depth):
            nest = group(7, nest)
        for message in (nest + one, one + nest, group(7, one) + nest):
            check(message, [message], [(b"main", 0, None)])
            check(message, every_byte(message), [(b"main", 0, None)])
    assert score.read([tagged(7, 3, b"") * 1_000_000], [(b"main", 0, None)]) == ["malformed"]
    assert score.read([tagged(7, 3, b"") + tagged(8, 4, b"")], [(b"main", 0, None)]) == ["malformed"]


def test_large_outputs_that_nobody_wants_are_stepped_over_and_wanted_ones_are_collected() -> None:
    big = floats(*([0.5] * 300_000), dims=(300_000, 1))
    message = answer(big=big, main=floats(1))
    pieces = [message[i : i + 16_384] for i in range(0, len(message), 16_384)]
    assert score.read(pieces, [(b"main", 0, None), (b"big", 0, None)]) == [1.0, 0.5]
    assert score.read(pieces, [(b"main", 0, None)]) == [1.0]


def test_an_output_above_the_limit_is_unscored_and_the_others_are_not() -> None:
    value = tagged(1, 0, varint(1)) + sized(4, bytes(4 * 17_000_000))
    long, short = sized(1, sized(1, b"long") + sized(2, value)), answer(main=floats(1))
    metrics: list[Metric] = [(b"long", 0, None), (b"main", 0, None)]
    assert score.read([long[:9000], long[9000:], short], metrics) == ["limit", 1.0]
    assert score.read([long[:9000], long[9000:], short], [(b"main", 0, None)]) == [1.0]
    odd = sized(1, sized(2, value) + sized(1, b"any"))  # whose it is comes too late
    assert score.read([short, odd[:9000], odd[9000:]], metrics) == ["limit", "limit"]
    assert score.read([odd[:9000], odd[9000:], short], metrics) == ["limit", 1.0]


def test_many_tiny_pieces_and_outputs_take_no_more_than_their_number() -> None:
    # With a square of the number of pieces, entries or runs this would take minutes.
    entry = sized(1, sized(1, b"x" * 90) + sized(2, b"y" * 3))
    message = entry * 10_000 + answer(main=floats(1))
    assert score.read(every_byte(message), [(b"main", 0, None)]) == [1.0]
    runs = tagged(1, 0, b"\x01") + sized(2, sized(2, tagged(1, 0, varint(200_000)))) + tagged(5, 5, bytes(4)) * 200_000
    entry = sized(1, b"main") + sized(2, runs)
    assert score.read([sized(1, entry)], [(b"main", 0, None)] * 8) == [0.0] * 8


def test_an_empty_answer_misses_every_output() -> None:
    assert score.read([], [(b"main", 0, None)]) == ["missing"]
    assert score.read([b"", b""], [(b"main", 0, None)] * 8) == ["missing"] * 8
    assert score.read([sized(1, b"")], [(b"main", 0, None)]) == ["missing"]
    with pytest.raises(ValueError, match="at most 8"):
        score.read([], [(b"main", 0, None)] * 9)
