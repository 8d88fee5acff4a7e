"""Tensors on the wire to numpy and back. Nothing is ever cast: TensorFlow refuses an array of the wrong type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.api.tfs.v1.tensor_pb2 import DataType, Tensor
from tiltyard.modelserver.runtime import tf

MAX_TENSOR_BYTES = 2**31 - 1
"""A few bytes can ask for any size, by repeating one value; more than the largest message could hold is refused."""

_STRING_BYTES = 24  # what TensorFlow takes for a string beside its text
_NAMES_BY_FIELD = {
    "float_val": "FLOAT",
    "double_val": "DOUBLE",
    "int_val": "INT32 INT16 INT8 UINT16 UINT8 QINT32 QINT16 QINT8 QUINT16 QUINT8",
    "scomplex_val": "COMPLEX64",
    "dcomplex_val": "COMPLEX128",
    "int64_val": "INT64",
    "bool_val": "BOOL",
    "half_val": "HALF BFLOAT16",
    "uint32_val": "UINT32",
    "uint64_val": "UINT64",
    "string_val": "STRING",
}
_FIELDS: dict[int, str] = {
    DataType.Value(f"DATA_TYPE_{name}"): field for field, names in _NAMES_BY_FIELD.items() for name in names.split()
}
# Several values, or another form of the value, stand in these fields for one element.
_VIEWS: dict[str, Any] = {"scomplex_val": np.float32, "dcomplex_val": np.float64, "half_val": np.uint16}


def parse_tensor(proto: Tensor) -> npt.NDArray[Any]:
    """Read a tensor with TensorFlow's own parser, which the ParseTensor op wraps.

    ``tensor_content`` counts alone when it is not empty; else the typed field, whose last value is repeated when it is
    too short, which means zeros when it is empty and whose surplus is ignored. Raises ValueError when it is refused.
    """
    if proto.dtype not in _FIELDS:
        raise ValueError(f"tensors of dtype {proto.dtype} cannot be sent")
    dtype = tf.as_dtype(proto.dtype)
    size = _STRING_BYTES if dtype == tf.string else dtype.size
    if math.prod(max(dim.size, 0) for dim in proto.tensor_shape.dim) * size > MAX_TENSOR_BYTES:
        raise ValueError("too many elements")
    try:
        value = tf.raw_ops.ParseTensor(serialized=proto.SerializeToString(), out_type=dtype).numpy()
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter when the text quotes bytes of the request
        raise ValueError("the shape is not fully known or the content does not fit it") from error
    if dtype == tf.string:
        return np.array(value, object)
    return np.asarray(value).view(dtype.as_numpy_dtype)  # numpy's own int8 would not pass for a qint8


def emit_tensor(value: Any, dtype: int, proto: Tensor) -> None:
    """Write a fetched value into an empty one: dtype, full shape, and one value in the typed field an element.

    ``dtype`` is the graph tensor's, for numpy has one type for several of them. Raises ValueError when it has no field.
    """
    if dtype not in _FIELDS:
        raise ValueError(f"tensors of dtype {dtype} cannot be sent")
    field = _FIELDS[dtype]
    # numpy would take the zero bytes off the end of a lone string.
    array = np.array(value, object) if field == "string_val" else np.asarray(value)
    proto.dtype = DataType.ValueType(dtype)
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    getattr(proto, field).extend(array.ravel().view(_VIEWS.get(field, array.dtype)).tolist())
