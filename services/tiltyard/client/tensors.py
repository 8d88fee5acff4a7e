"""Arrays to Tensor messages and back: the mirror of ``tensorflow.make_tensor_proto`` and ``make_ndarray``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.api.tfs.v1 import tensor_pb2
from tiltyard.client.dtypes import BFLOAT16, COMPLEX, STRING, DType, by_number, from_bfloat16, to_bfloat16
from tiltyard.errors import InferenceError

__all__ = ["decode", "encode"]

Array = npt.NDArray[Any]


def encode(array: Array, dtype: DType) -> tensor_pb2.Tensor:
    """A Tensor message with the values of ``array``, which has the type ``dtype`` shows to users.

    Numbers go as ``tensor_content``, strings as ``string_val``.
    """
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DataType.ValueType(dtype.number))
    tensor.tensor_shape.SetInParent()  # a scalar has a shape too: one without dimensions
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if dtype is STRING:
        tensor.string_val.extend(array.reshape(-1).tolist())
    else:
        wire = to_bfloat16(array) if dtype is BFLOAT16 else array
        tensor.tensor_content = wire.astype(dtype.wire, order="C").tobytes()
    return tensor


def decode(tensor: tensor_pb2.Tensor) -> Array:
    """The array of a Tensor message, wherever it keeps its values.

    A typed field that is too short repeats its last value, an empty one means zeros, surplus values are ignored.
    Strings come as an object array of ``bytes``, bfloat16 as float32.

    Raises:
        InferenceError: the message is damaged: a negative size, or content of the wrong length.
        UnsupportedError: its type is none the SDK knows.
    """
    dtype = by_number(tensor.dtype)
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if any(size < 0 for size in shape):
        raise InferenceError(f"the answer holds a tensor of shape {shape}; the model server is faulty")
    count = math.prod(shape)
    if dtype is STRING:
        return _objects(_strings(tensor, count)).reshape(shape)
    if tensor.tensor_content:
        if len(tensor.tensor_content) != count * dtype.wire.itemsize:
            raise InferenceError(
                f"the answer holds {len(tensor.tensor_content)} bytes for a {dtype.name} tensor of shape {shape}; "
                "the model server is faulty"
            )
        wire: Array = np.frombuffer(tensor.tensor_content, dtype.wire, count)
    else:
        wire = _typed(tensor, dtype, count)
    values = from_bfloat16(wire) if dtype is BFLOAT16 else wire.astype(dtype.numpy)
    return values.reshape(shape)


def _typed(tensor: tensor_pb2.Tensor, dtype: DType, count: int) -> Array:
    field = getattr(tensor, dtype.field)
    parts = 2 if dtype.number in COMPLEX else 1
    values = np.fromiter(field, _field_type(dtype), len(field))
    if dtype.number in COMPLEX:
        values = values[: len(values) // parts * parts].view(dtype.numpy)
    elif dtype.field == "half_val":
        values = values.astype(np.uint16).view(dtype.wire)
    else:
        values = values.astype(dtype.wire)
    if len(values) >= count:
        return values[:count]
    if not len(values):
        return np.zeros(count, dtype.wire)
    return np.concatenate([values, np.full(count - len(values), values[-1])])


def _field_type(dtype: DType) -> np.dtype[Any]:
    """What the elements of a typed field are as Python hands them over."""
    if dtype.field in ("int_val", "half_val"):
        return np.dtype(np.int32)
    if dtype.field == "scomplex_val":
        return np.dtype(np.float32)
    if dtype.field == "dcomplex_val":
        return np.dtype(np.float64)
    return dtype.numpy


def _strings(tensor: tensor_pb2.Tensor, count: int) -> list[bytes]:
    if tensor.tensor_content:
        return _packed_strings(tensor.tensor_content, count)
    values = list(tensor.string_val[:count])
    return values + [values[-1] if values else b""] * (count - len(values))


def _packed_strings(content: bytes, count: int) -> list[bytes]:
    """TensorFlow's form of a string tensor in ``tensor_content``: all lengths as varints, then all bytes."""
    lengths: list[int] = []
    at = 0
    while len(lengths) < count and at < len(content):
        length = shift = 0
        while True:
            if at >= len(content) or shift > 63:
                raise InferenceError("the answer holds a damaged string tensor; the model server is faulty")
            byte = content[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if len(lengths) != count or at + sum(lengths) != len(content):
        raise InferenceError("the answer holds a damaged string tensor; the model server is faulty")
    values = []
    for length in lengths:
        values.append(content[at : at + length])
        at += length
    return values


def _objects(values: list[bytes]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array
