"""The SDK's tensors against TensorFlow's own: what either writes the other reads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiltyard.api.tfs.v1 import tensor_pb2
from tiltyard.client.dtypes import by_number
from tiltyard.client.tensors import decode, encode
from tiltyard.client.values import to_array

pytestmark = pytest.mark.serve

NUMERIC = [
    ("float32", [0.1, -1.5, 3e38, float("inf")]),
    ("float64", [0.1, -1e-300]),
    ("float16", [0.1, 65504.0]),
    ("bfloat16", [0.1, 3.3e38, 1.00390625]),
    ("int8", [-128, 127]),
    ("int16", [-32768, 32767]),
    ("int32", [-(2**31), 2**31 - 1]),
    ("int64", [-(2**63), 2**63 - 1]),
    ("uint8", [0, 255]),
    ("uint16", [0, 65535]),
    ("uint32", [0, 2**32 - 1]),
    ("uint64", [0, 2**64 - 1]),
    ("bool", [True, False]),
    ("complex64", [1 + 2j, -0.5]),
    ("complex128", [1 + 2j, 1e300j]),
]


@pytest.mark.parametrize(("name", "values"), NUMERIC)
def test_tensorflow_reads_what_the_sdk_writes(tfs: SimpleNamespace, name: str, values: list[float]) -> None:
    wanted = tfs.tf.constant(values, getattr(tfs.tf, name))
    dtype = by_number(wanted.dtype.as_datatype_enum)
    content = encode(to_array([values], dtype, "x"), dtype).SerializeToString()
    read = tfs.tf.io.parse_tensor(content, wanted.dtype)
    assert read.shape == (1, len(values))
    assert read.numpy().tobytes() == wanted.numpy().tobytes()


@pytest.mark.parametrize("writer", ["content", "fields"])
@pytest.mark.parametrize(("name", "values"), NUMERIC)
def test_the_sdk_reads_what_tensorflow_writes(
    tfs: SimpleNamespace, name: str, values: list[float], writer: str
) -> None:
    wanted = tfs.tf.constant(values, getattr(tfs.tf, name))
    if writer == "content":
        content = tfs.tf.io.serialize_tensor(wanted).numpy()
    else:
        content = tfs.tf.make_tensor_proto(wanted.numpy()[:1], shape=[len(values)]).SerializeToString()
        wanted = tfs.tf.fill([len(values)], wanted[0])  # one value stands for all of them
    read = decode(tensor_pb2.Tensor.FromString(content))
    assert read.tolist() == wanted.numpy().tolist()


def test_strings_either_way(tfs: SimpleNamespace) -> None:
    values = [["a", "é"], [b"\xff\x00", "x" * 300]]
    dtype = by_number(tensor_pb2.DATA_TYPE_STRING)
    array = to_array(values, dtype, "x")
    read = tfs.tf.io.parse_tensor(encode(array, dtype).SerializeToString(), tfs.tf.string)
    assert read.numpy().tolist() == array.tolist()
    content = tfs.tf.io.serialize_tensor(read).numpy()
    assert decode(tensor_pb2.Tensor.FromString(content)).tolist() == array.tolist()
    packed = tfs.tf.make_ndarray(tfs.tf.make_tensor_proto(array))
    assert np.array_equal(packed, array)


def test_the_types_are_tensorflows(tfs: SimpleNamespace) -> None:
    for name in ("float32", "bfloat16", "float16", "qint8", "quint16", "uint64", "string", "bool", "complex64"):
        dtype = getattr(tfs.tf, name)
        found = by_number(dtype.as_datatype_enum)
        assert found.name == dtype.name == name
