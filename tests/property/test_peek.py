"""The peek against the protobuf library: the same model_spec, whatever the bytes look like and however they are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2

from tests.property.wirebytes import (
    VARINTS,
    Inputs,
    SpecOnly,
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
    from tiltyard_router import peek, status
else:
    peek = pytest.importorskip("tiltyard_router.peek", exc_type=ImportError)
    status = pytest.importorskip("tiltyard_router.status", exc_type=ImportError)

pytestmark = pytest.mark.router

UNHURRIED = settings(deadline=None)
STATUS = status.OWN_STATUSES
NAME_CAP = 256

WORDS = st.text(max_size=8).map(str.encode)
TEXTS = st.one_of(
    WORDS,
    WORDS,
    WORDS,
    st.text(st.characters(codec="ascii"), min_size=250, max_size=400).map(str.encode),
    st.binary(max_size=6),  # mostly no UTF-8
)
VERSIONS = joined(
    st.one_of(st.builds(lambda v, pad: tagged(1, 0, varint(v, pad)), VARINTS, st.integers(0, 1)), fields()), 3
)
SPECS = joined(
    st.one_of(
        st.builds(sized, st.sampled_from([1, 1, 3, 4]), TEXTS, st.integers(0, 2)),
        st.builds(sized, st.just(2), VERSIONS),
        fields(st.sampled_from([1, 2, 3, 4, 5, 900])),
    ),
    6,
)
REQUESTS = joined(
    st.one_of(
        st.builds(sized, st.just(1), SPECS, st.integers(0, 2)),
        st.builds(sized, st.just(1), st.text(min_size=1, max_size=8).map(lambda t: sized(1, t.encode()))),
        fields(st.sampled_from([2, 3, 4, 700])),
    ),
    6,
)


def sample(**spec: Any) -> bytes:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "aloha"
    for name, value in spec.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    tensor = request.inputs["text_input"]
    tensor.dtype = tensor_pb2.DATA_TYPE_FLOAT
    tensor.float_val.extend(float(i) for i in range(50))
    request.output_filter.append("main")
    return request.SerializeToString()


def refusal(pieces: list[bytes]) -> int:
    with pytest.raises(peek.PeekError) as caught:
        peek.scan(pieces)
    return caught.value.status


def check(message: bytes, pieces: list[bytes]) -> None:
    """The peek says what protobuf says."""
    try:
        spec = SpecOnly.FromString(message).model_spec
    except DecodeError:
        assert refusal(pieces) == STATUS["TY_ERR_MALFORMED"]
        return
    if not spec.name:
        assert refusal(pieces) == STATUS["TY_ERR_NO_SPEC"]
        return
    result = peek.scan(pieces)
    name, label = spec.name.encode(), spec.version_label.encode()
    choice = spec.WhichOneof("version_choice")
    assert (result.name, result.name_len) == (name[:NAME_CAP], len(name))
    assert result.version == (spec.version.value if choice == "version" else None)
    assert result.label == (label[:NAME_CAP] if choice == "version_label" else None)
    assert result.label_len == len(label)
    assert b"".join(pieces) == message
    rest = predict_pb2.ModelSpec.FromString(result.rest)
    assert (rest.signature_name, rest.name, rest.WhichOneof("version_choice")) == (spec.signature_name, "", None)


@UNHURRIED
@given(st.data())
def test_the_spec_is_what_protobuf_reads_in_any_order_and_any_chopping(data: st.DataObject) -> None:
    message = data.draw(REQUESTS)
    check(message, data.draw(chopped(message)))


@UNHURRIED
@given(st.data())
def test_damaged_messages_are_refused_exactly_when_protobuf_refuses_them(data: st.DataObject) -> None:
    message = data.draw(damaged(data.draw(REQUESTS)))
    check(message, data.draw(chopped(message)))


@UNHURRIED
@given(st.binary(max_size=30))
def test_noise_is_refused_exactly_when_protobuf_refuses_it(message: bytes) -> None:
    check(message, [message])
    check(message, every_byte(message))


@pytest.mark.parametrize("whole", [sample(signature_name="s", version_label="new"), sample(version=3)])
def test_a_message_cut_off_at_any_byte_is_read_as_protobuf_reads_it(whole: bytes) -> None:
    for end in range(len(whole) + 1):
        check(whole[:end], [whole[:end]])
        check(whole[:end], every_byte(whole[:end]))


@UNHURRIED
@given(st.data(), st.text(min_size=1, max_size=300), st.integers(-(2**63), 2**63 - 1))
@example(None, "m", 0)
@example(None, "m", -1)
def test_a_rewrite_changes_name_and_version_and_nothing_else(
    data: st.DataObject | None, model: str, version: int
) -> None:
    message = sample(signature_name="sig", version_label="arm") if data is None else data.draw(REQUESTS)
    pieces = [message] if data is None else data.draw(chopped(message))
    try:
        wanted = predict_pb2.PredictRequest.FromString(message)
    except DecodeError:
        return
    if not wanted.model_spec.name:
        return
    wanted.model_spec.name = model
    wanted.model_spec.ClearField("version_choice")
    wanted.model_spec.version.CopyFrom(wrappers_pb2.Int64Value(value=version))
    rewritten = peek.rewrite(pieces, model.encode(), version)
    result = predict_pb2.PredictRequest.FromString(rewritten)
    assert result == wanted
    assert result.model_spec.HasField("version")
    assert len(peek.scan([rewritten]).cuts) == 1


def test_cuts_name_every_byte_of_every_model_spec() -> None:
    spec = sized(1, sized(1, b"a"))
    other = tagged(9, 0, b"\x05")
    result = peek.scan(every_byte(spec + other + spec + spec))
    assert result.cuts == ((0, 5), (7, 12), (12, 17))


def test_the_later_of_version_and_label_counts_and_versions_merge_until_a_label_comes() -> None:
    def spec(*parts: bytes) -> bytes:
        return sized(1, b"".join(parts))

    name, label = sized(1, b"a"), sized(4, b"x")
    five, empty = sized(2, b"\x08\x05"), sized(2, b"")
    assert peek.scan([spec(name, five) + spec(empty)]).version == 5
    fresh = peek.scan([spec(name, five) + spec(label) + spec(empty)])
    assert (fresh.version, fresh.label) == (0, None)
    both = peek.scan([spec(name, five, label)])
    assert (both.version, both.label) == (None, b"x")
    assert peek.scan([spec(name, sized(4, b""))]).label == b""


@pytest.mark.parametrize("inside", [False, True], ids=["of the request", "of the model_spec"])
def test_groups_nest_as_deep_as_protobuf_allows(inside: bool) -> None:
    spec = sized(1, sized(1, b"a"))
    for depth in range(95, 104):
        nest = b""
        for _ in range(depth):
            nest = group(7, nest)
        message = spec + (sized(1, nest) if inside else nest)
        check(message, [message])
        check(message, every_byte(message))
    assert parses(SpecOnly, spec + group(7, group(8, b"")))
    check(spec + tagged(7, 3, b"") + tagged(8, 4, b""), [spec, tagged(7, 3, b""), tagged(8, 4, b"")])


def test_a_deep_nest_of_open_groups_is_refused() -> None:
    assert refusal([tagged(7, 3, b"") * 1_000_000]) == STATUS["TY_ERR_MALFORMED"]


@pytest.mark.parametrize(
    "bytes_", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"aaaaaaaa\x80", b"\xf8\x88"]
)
@pytest.mark.parametrize("number", [1, 3, 4])
def test_strings_that_are_no_utf8_are_refused(number: int, bytes_: bytes) -> None:
    message = sized(1, sized(1, b"a") + sized(number, bytes_))
    assert not parses(SpecOnly, message)
    assert refusal([message]) == STATUS["TY_ERR_MALFORMED"]


def test_limits() -> None:
    one = sized(1, sized(1, b"a"))
    assert len(peek.scan([one * 64]).cuts) == 64
    assert refusal([one * 65]) == STATUS["TY_ERR_LIMIT"]
    assert len(peek.scan([one, sized(1, sized(3, b"s" * 65_000))]).rest) == 65_004
    assert refusal([one, *[sized(1, sized(3, b"s" * 33_000))] * 2]) == STATUS["TY_ERR_LIMIT"]
    assert refusal([sized(1, sized(1, b"a" * 65_600))]) == STATUS["TY_ERR_LIMIT"]
    long = peek.scan(every_byte(sized(1, sized(1, b"n" * 700))))
    assert (long.name, long.name_len) == (b"n" * 256, 700)


def test_other_fields_of_the_spec_grow_beyond_the_room_in_the_struct() -> None:
    parts = [sized(1, sized(1, b"a") + sized(900, bytes([i]) * 100)) for i in range(20)]
    assert peek.scan(parts).rest == b"".join(sized(900, bytes([i]) * 100) for i in range(20))


def test_a_length_that_lies_is_refused_before_anything_is_taken() -> None:
    for length in (6, 2**31 - 1, 2**31, 2**32 + 5, 2**63, 2**64 - 1):
        assert refusal([b"\x0a" + varint(length) + b"\x0a\x03abc"]) == STATUS["TY_ERR_MALFORMED"]
        assert refusal([b"\x12" + varint(length) + b"\x0a\x03abc"]) == STATUS["TY_ERR_MALFORMED"]


def test_many_tiny_pieces_and_fields_take_no_more_than_their_number() -> None:
    # With a square of the number of pieces or fields this would take minutes.
    message = sized(1, sized(1, b"a")) + sized(2, sized(1, b"k") + sized(2, b"x" * 100)) * 5_000
    pieces = every_byte(message)
    assert peek.scan(pieces).name == b"a"
    assert peek.tensor_key(pieces, b"other") == b""


# ---- keys in tensors ---------------------------------------------------------------------------------------------

INTS = {
    tensor_pb2.DATA_TYPE_INT8: ("int_val", "i1"),
    tensor_pb2.DATA_TYPE_UINT8: ("int_val", "u1"),
    tensor_pb2.DATA_TYPE_INT16: ("int_val", "i2"),
    tensor_pb2.DATA_TYPE_UINT16: ("int_val", "u2"),
    tensor_pb2.DATA_TYPE_INT32: ("int_val", "i4"),
    tensor_pb2.DATA_TYPE_INT64: ("int64_val", "i8"),
    tensor_pb2.DATA_TYPE_UINT32: ("uint32_val", "u4"),
    tensor_pb2.DATA_TYPE_UINT64: ("uint64_val", "u8"),
}


def narrowed(value: int, code: str) -> int:
    """The value as so many bits hold it."""
    bits = int(code[1]) * 8
    value %= 1 << bits
    return value - (1 << bits) if code[0] == "i" and value >> (bits - 1) else value


def expected_key(tensor: tensor_pb2.Tensor) -> bytes | str:
    """The key, or the name of the refusal, from a parsed tensor: TensorFlow's rules once more, in plain Python."""
    if tensor.dtype != tensor_pb2.DATA_TYPE_STRING and tensor.dtype not in INTS:
        return "TY_ERR_KEY_DTYPE"
    dims = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in dims):
        return "TY_ERR_KEY_SHAPE"
    count = 1
    for size in dims:
        count *= size
    if count == 0 or count != (dims[0] if dims else 1):
        return "TY_ERR_KEY_SHAPE"
    values: list[bytes]
    if tensor.dtype == tensor_pb2.DATA_TYPE_STRING:
        if tensor.tensor_content:
            return "TY_ERR_KEY_SHAPE"
        values = list(tensor.string_val)[:count] or [b""]
    else:
        field, code = INTS[tensor.dtype]
        size, signed = int(code[1]), code[0] == "i"
        content = tensor.tensor_content
        if content:
            if len(content) != count * size:
                return "TY_ERR_KEY_SHAPE"
            parts = [content[i : i + size] for i in range(0, len(content), size)]
            numbers = [int.from_bytes(part, "little", signed=signed) for part in parts]
        else:
            numbers = [narrowed(value, code) for value in getattr(tensor, field)[:count]] or [0]
        values = [str(number).encode() for number in numbers]
    if len(set(values)) > 1:
        return "TY_ERR_KEY_SHAPE"
    return values[0] if len(values[0]) <= 1024 else "TY_ERR_KEY_LONG"


def key_or_status(pieces: list[bytes], name: bytes = b"user") -> bytes | str:
    try:
        return peek.tensor_key(pieces, name)
    except peek.PeekError as error:
        return next(name for name, value in STATUS.items() if value == error.status)


SMALL = st.one_of(st.sampled_from([0, 1, 1, 7]), VARINTS)
DIMS = st.one_of(st.sampled_from([0, 1, 1, 1, 2, 3]), VARINTS)
PARTS = st.one_of(
    st.sampled_from([1, 3, 4, 5, 6, 7, 7, 7, 9, 10, 17, 22, 23]).map(lambda d: tagged(1, 0, varint(d))),
    st.lists(DIMS.map(lambda n: sized(2, tagged(1, 0, varint(n)))), max_size=2).map(lambda d: sized(2, b"".join(d))),
    st.builds(lambda n, v: tagged(n, 0, varint(v)), st.sampled_from([7, 10, 16, 17]), SMALL),
    st.builds(
        lambda n, vs: sized(n, b"".join(map(varint, vs))), st.sampled_from([7, 10, 16, 17]), st.lists(SMALL, max_size=3)
    ),
    st.sampled_from([b"u-1", b"u-1", b"", b"x" * 1024, b"x" * 1025]).map(lambda s: sized(8, s)),
    st.one_of(st.just(b""), st.binary(max_size=9), st.sampled_from([b"\x01" * 8, bytes(4)])).map(lambda b: sized(4, b)),
    fields(st.sampled_from([3, 14, 15, 18, 99])),
)
TENSORS = joined(PARTS, 6)
ENTRIES = joined(
    st.one_of(
        st.sampled_from([b"user", b"user", b"other"]).map(lambda k: sized(1, k)),
        TENSORS.map(lambda t: sized(2, t)),
        fields(st.sampled_from([3, 1])),
    ),
    4,
)
PLAIN = TENSORS.map(lambda t: sized(1, b"user") + sized(2, t))
KEYED = joined(st.one_of(ENTRIES, PLAIN).map(lambda e: sized(2, e)), 3)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_the_tensor_key_is_what_tensorflow_would_read(data: st.DataObject) -> None:
    message = data.draw(KEYED)
    pieces = data.draw(chopped(message))
    try:
        entries = Inputs.FromString(message).inputs
    except DecodeError:
        key_or_status(pieces)  # fields that are not read are not checked: any answer will do, but no crash
        return
    found = [entry.value for entry in entries if entry.key == "user"]
    assert key_or_status(pieces) == (expected_key(found[-1]) if found else b"")


@UNHURRIED
@given(st.data())
def test_damaged_tensors_never_read_outside(data: st.DataObject) -> None:
    message = data.draw(damaged(data.draw(KEYED)))
    pieces = data.draw(chopped(message))
    assert key_or_status(pieces) == key_or_status([message])


def keyed(tensor: tensor_pb2.Tensor) -> list[bytes]:
    request = predict_pb2.PredictRequest()
    request.inputs["user"].CopyFrom(tensor)
    return [request.SerializeToString()]


def shape(*dims: int) -> tensor_pb2.TensorShape:
    return tensor_pb2.TensorShape(dim=[tensor_pb2.TensorShape.Dim(size=n) for n in dims])


T = tensor_pb2


@pytest.mark.parametrize(
    ("tensor", "key"),
    [
        (T.Tensor(dtype=T.DATA_TYPE_STRING, string_val=[b"u\x00\xff"]), b"u\x00\xff"),
        (T.Tensor(dtype=T.DATA_TYPE_STRING, tensor_shape=shape(3, 1), string_val=[b"u"]), b"u"),
        (T.Tensor(dtype=T.DATA_TYPE_STRING, tensor_shape=shape(2), string_val=[b"u", b"v"]), "TY_ERR_KEY_SHAPE"),
        (T.Tensor(dtype=T.DATA_TYPE_STRING, tensor_shape=shape(1, 2), string_val=[b"u"]), "TY_ERR_KEY_SHAPE"),
        (T.Tensor(dtype=T.DATA_TYPE_STRING, tensor_shape=shape(0)), "TY_ERR_KEY_SHAPE"),
        (T.Tensor(dtype=T.DATA_TYPE_STRING), b""),
        (T.Tensor(dtype=T.DATA_TYPE_STRING, string_val=[b"k" * 1024]), b"k" * 1024),
        (T.Tensor(dtype=T.DATA_TYPE_STRING, string_val=[b"k" * 1025]), "TY_ERR_KEY_LONG"),
        (T.Tensor(dtype=T.DATA_TYPE_INT64, int64_val=[-(2**63)]), b"-9223372036854775808"),
        (T.Tensor(dtype=T.DATA_TYPE_UINT64, uint64_val=[2**64 - 1]), b"18446744073709551615"),
        (T.Tensor(dtype=T.DATA_TYPE_INT32, tensor_content=b"\xfe\xff\xff\xff"), b"-2"),
        (T.Tensor(dtype=T.DATA_TYPE_INT32, int_val=[7, 8, 9]), b"7"),
        (T.Tensor(dtype=T.DATA_TYPE_INT64), b"0"),
        (T.Tensor(dtype=T.DATA_TYPE_INT8, int_val=[200]), b"-56"),
        (T.Tensor(dtype=T.DATA_TYPE_INT16, int_val=[40_000]), b"-25536"),
        (T.Tensor(dtype=T.DATA_TYPE_UINT16, int_val=[-1]), b"65535"),
        (T.Tensor(dtype=T.DATA_TYPE_INT64, tensor_content=b"\1\2\3"), "TY_ERR_KEY_SHAPE"),
        (T.Tensor(dtype=T.DATA_TYPE_FLOAT, float_val=[1.0]), "TY_ERR_KEY_DTYPE"),
        (T.Tensor(dtype=T.DATA_TYPE_BOOL, bool_val=[True]), "TY_ERR_KEY_DTYPE"),
        (T.Tensor(dtype=T.DATA_TYPE_COMPLEX64), "TY_ERR_KEY_DTYPE"),
        (T.Tensor(int64_val=[1]), "TY_ERR_KEY_DTYPE"),
    ],
)
def test_keys_by_example(tensor: tensor_pb2.Tensor, key: bytes | str) -> None:
    (message,) = keyed(tensor)
    assert key_or_status([message]) == key
    assert key_or_status(every_byte(message)) == key
    assert expected_key(tensor) == key  # the reference of the test above knows the rules too


def test_a_huge_shape_costs_nothing() -> None:
    tensor = T.Tensor(dtype=T.DATA_TYPE_STRING, tensor_shape=shape(2**62), string_val=[b"u"])
    assert key_or_status(keyed(tensor)) == b"u"
    tensor.tensor_shape.CopyFrom(shape(2**62, 2**62))
    assert key_or_status(keyed(tensor)) == "TY_ERR_KEY_SHAPE"
