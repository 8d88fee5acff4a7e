"""Protobuf messages as bytes that no library would write: for tests of what reads them without protobuf."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st
from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2

NUMBERS = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 2047, 2048, 536_870_911]))
VARINTS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))


def varint(value: int, pad: int = 0) -> bytes:
    """A varint, by ``pad`` bytes longer than need be."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(pad):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def tagged(number: int, wire: int, content: bytes) -> bytes:
    return varint(number << 3 | wire) + content


def sized(number: int, content: bytes, pad: int = 0) -> bytes:
    """A field with a length: a submessage, string, bytes or packed values."""
    return tagged(number, 2, varint(len(content), pad) + content)


def group(number: int, content: bytes) -> bytes:
    return tagged(number, 3, content) + tagged(number, 4, b"")


def joined(parts: st.SearchStrategy[bytes], most: int) -> st.SearchStrategy[bytes]:
    return st.lists(parts, max_size=most).map(b"".join)


def fields(numbers: st.SearchStrategy[int] = NUMBERS) -> st.SearchStrategy[bytes]:
    """Any well-formed field, its type whatever it should be."""
    flat = st.one_of(
        st.builds(lambda n, v: tagged(n, 0, varint(v)), numbers, VARINTS),
        st.builds(lambda n, b: tagged(n, 1, b), numbers, st.binary(min_size=8, max_size=8)),
        st.builds(lambda n, b, pad: sized(n, b, pad), numbers, st.binary(max_size=20), st.integers(0, 3)),
        st.builds(lambda n, b: tagged(n, 5, b), numbers, st.binary(min_size=4, max_size=4)),
    )
    return st.recursive(flat, lambda inner: st.builds(group, numbers, joined(inner, 3)), max_leaves=6)


@st.composite
def chopped(draw: st.DrawFn, message: bytes) -> list[bytes]:
    """The message in pieces, some of them empty."""
    ends = sorted(draw(st.lists(st.integers(0, len(message)), max_size=12)))
    return [message[start:end] for start, end in zip([0, *ends], [*ends, len(message)], strict=True)]


@st.composite
def damaged(draw: st.DrawFn, message: bytes) -> bytes:
    """The message with a few bytes changed, lost or added."""
    data = bytearray(message)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut", "add", "drop"]))
        if kind == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at:]
        elif kind == "add":
            data[at:at] = draw(st.binary(min_size=1, max_size=3))
        elif kind == "drop":
            del data[at : at + 1]
    return bytes(data)


def every_byte(message: bytes) -> list[bytes]:
    return [message[i : i + 1] for i in range(len(message))]


def _messages() -> dict[str, Any]:
    """Messages that hold what a reader looks into, and leave the rest to unknown fields.

    Map entries are plain messages here. The Python library keeps an entry with a field of its own as an unknown field
    of the message around it; TensorFlow Serving's C++ library takes it into the map.
    """
    spec, tensor, entry = ".tiltyard.api.tfs.v1.ModelSpec", ".tiltyard.api.tfs.v1.Tensor", ".tiltyard.tests.Entry"
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(
        name="tiltyard/tests/wirebytes.proto",
        package="tiltyard.tests",
        syntax="proto3",
        dependency=[predict_pb2.DESCRIPTOR.name, tensor_pb2.DESCRIPTOR.name],
        message_type=[
            descriptor_pb2.DescriptorProto(name=name, field=members)
            for name, members in {
                "SpecOnly": [field(number=1, name="model_spec", type=field.TYPE_MESSAGE, type_name=spec, label=one)],
                "Entry": [
                    field(number=1, name="key", type=field.TYPE_STRING, label=one),
                    field(number=2, name="value", type=field.TYPE_MESSAGE, type_name=tensor, label=one),
                ],
                "Inputs": [field(number=2, name="inputs", type=field.TYPE_MESSAGE, type_name=entry, label=many)],
                "Outputs": [field(number=1, name="outputs", type=field.TYPE_MESSAGE, type_name=entry, label=many)],
                "Framing": [field(number=1, name="outputs", type=field.TYPE_BYTES, label=many)],
            }.items()
        ],
    )
    pool = descriptor_pool.DescriptorPool()
    for known in (wrappers_pb2.DESCRIPTOR, tensor_pb2.DESCRIPTOR, predict_pb2.DESCRIPTOR):
        pool.AddSerializedFile(known.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tiltyard.tests.{message.name}"))
        for message in file.message_type
    }


_BY_NAME = _messages()
SpecOnly = _BY_NAME["SpecOnly"]
"""``ModelSpec model_spec = 1``: what the peek looks into."""
Inputs = _BY_NAME["Inputs"]
"""``repeated Entry inputs = 2``, an entry being key and tensor."""
Outputs = _BY_NAME["Outputs"]
"""``repeated Entry outputs = 1``."""
Framing = _BY_NAME["Framing"]
"""``repeated bytes outputs = 1``: well formed when the fields of the message are, whatever stands in them."""


def parses(kind: type[Message], data: bytes) -> bool:
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return True
