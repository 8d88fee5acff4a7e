"""Messages and what is in them: requests, answers, gRPC framing, receipts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2

PREDICT = "/tensorflow.serving.PredictionService/Predict"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 0, 1, 2, 3, 4, 5
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 9, 12, 13, 14

FORCED, KEYED = 0x10, 0x40


def grpc_frame(message: bytes, *, compressed: bool = False) -> bytes:
    """A length-prefixed message."""
    return struct.pack(">BI", compressed, len(message)) + message


def grpc_messages(data: bytes) -> list[bytes]:
    """The messages in a body; it must end with one."""
    out = []
    at = 0
    while at < len(data):
        flag, size = struct.unpack_from(">BI", data, at)
        assert flag == 0, "compressed"
        assert len(data) >= at + 5 + size, "the last message is cut off"
        out.append(bytes(data[at + 5 : at + 5 + size]))
        at += 5 + size
    return out


def varint(value: int) -> bytes:
    """Base-128 varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def spec(name: str = "", *, version: int | None = None, label: str | None = None, signature: str = "") -> bytes:
    """A serialised ModelSpec."""
    message = predict_pb2.ModelSpec(name=name, signature_name=signature)
    if version is not None:
        message.version.value = version
    if label is not None:
        message.version_label = label
    return message.SerializeToString()


def floats(values: Sequence[float], shape: Sequence[int] | None = None) -> tensor_pb2.Tensor:
    """A float tensor, in a typed field; one dimension unless a shape is given."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT, float_val=values)
    for size in [len(values)] if shape is None else shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def strings(values: Sequence[bytes]) -> tensor_pb2.Tensor:
    """A string tensor of one dimension."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_STRING, string_val=values)
    tensor.tensor_shape.dim.add(size=len(values))
    return tensor


def int64s(values: Sequence[int]) -> tensor_pb2.Tensor:
    """An int64 tensor of one dimension."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_INT64, int64_val=values)
    tensor.tensor_shape.dim.add(size=len(values))
    return tensor


def request(
    name: str = "p", *, label: str = "", inputs: Mapping[str, tensor_pb2.Tensor] | None = None, signature: str = ""
) -> bytes:
    """A serialised PredictRequest; one float input ``x`` unless others are given."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = name
    message.model_spec.signature_name = signature
    if label:
        message.model_spec.version_label = label
    for key, tensor in ({"x": floats([1.0])} if inputs is None else inputs).items():
        message.inputs[key].CopyFrom(tensor)
    return message.SerializeToString(deterministic=True)


def answer(outputs: Mapping[str, tensor_pb2.Tensor] | None = None) -> bytes:
    """A serialised PredictResponse; one float output ``main`` of 0.75 unless others are given."""
    message = predict_pb2.PredictResponse()
    for key, tensor in ({"main": floats([0.75])} if outputs is None else outputs).items():
        message.outputs[key].CopyFrom(tensor)
    return message.SerializeToString(deterministic=True)


def padded(message: bytes, size: int) -> bytes:
    """The message with an unknown field behind it that makes it exactly so long. Bytes differ from place to place."""
    gap = size - len(message)
    assert gap >= 6, "too little room"
    length = gap - 6
    digits = bytes((length >> (7 * i)) & 0x7F | (0x80 if i < 4 else 0) for i in range(5))
    pattern = bytes(range(251))  # 251 is prime: no two 16 KiB pieces are alike
    return message + b"\x7a" + digits + (pattern * (length // 251 + 1))[:length]


@dataclass(frozen=True)
class Receipt:
    """A ``tiltyard-inference-id``, taken apart."""

    version: int
    key_number: int
    arm: int
    flags: int
    bucket: int
    zero: int
    epoch: int
    contest: bytes
    share: int
    boot_id: bytes
    sequence: int
    seconds: int
    signed: bytes
    mac: bytes

    def good(self, secret: bytes) -> bool:
        """Whether the MAC is right."""
        return hmac.new(secret, self.signed, hashlib.sha256).digest()[:16] == self.mac


def receipt(text: str) -> Receipt:
    """Take one apart; an AssertionError when it has not the right form."""
    assert len(text) == 64
    raw = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    assert len(raw) == 48
    first, second, bucket, zero, epoch, contest, share, boot_id, sequence, seconds = struct.unpack(
        ">BBBBI6sH6s6sI", raw[:32]
    )
    return Receipt(
        version=first >> 4,
        key_number=first & 15,
        arm=second & 15,
        flags=second & 0xF0,
        bucket=bucket,
        zero=zero,
        epoch=epoch,
        contest=contest,
        share=share,
        boot_id=boot_id,
        sequence=int.from_bytes(sequence, "big"),
        seconds=seconds,
        signed=raw[:32],
        mac=raw[32:],
    )
