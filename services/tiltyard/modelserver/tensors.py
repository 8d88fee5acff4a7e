"""TensorProto to numpy and back. Nothing is ever cast: TensorFlow refuses an array of another type than the graph's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.modelserver.runtime import tf, types_pb2

MAX_TENSOR_BYTES = 2**31 - 1
"""A few bytes can ask for any size, by repeating one value; more than the largest message could hold is refused."""

_STRING_BYTES = 24  # what TensorFlow takes for a string beside its text
_NAMES_BY_FIELD = {
    "float_val": "FLOAT",
    "double_val": "DOUBLE",
    "int_val": "INT32 INT16 INT8 UINT16 UINT8 QINT32 QINT16 QINT8 QUINT16 QUINT8 INT4 UINT4",
    "scomplex_val": "COMPLEX64",
    "dcomplex_val": "COMPLEX128",
    "int64_val": "INT64",
    "bool_val": "BOOL",
    "half_val": "HALF BFLOAT16",
    "uint32_val": "UINT32",
    "uint64_val": "UINT64",
    "float8_val": "FLOAT8_E5M2 FLOAT8_E4M3FN FLOAT8_E4M3FNUZ FLOAT8_E4M3B11FNUZ FLOAT8_E5M2FNUZ",
    "string_val": "STRING",
}
_FIELDS: dict[int, str] = {
    types_pb2.DataType.Value(f"DT_{name}"): field
    for field, names in _NAMES_BY_FIELD.items()
    for name in names.split()
    if f"DT_{name}" in types_pb2.DataType.keys()  # noqa: SIM118  a protobuf enum wrapper is no mapping
}
# Several values, or another form of the value, stand in these fields for one element.
_VIEWS: dict[str, Any] = {"scomplex_val": np.float32, "dcomplex_val": np.float64, "half_val": np.uint16}


def parse_tensor(proto: Any) -> npt.NDArray[Any]:
    """Read a TensorProto with TensorFlow's own parser, which the ParseTensor op wraps.

    ``tensor_content`` counts alone when it is not empty; else the typed field, whose last value is repeated when it is
    too short, which means zeros when it is empty and whose surplus is ignored.

    Raises:
        ValueError: when the parser refuses it, or it would take more than ``MAX_TENSOR_BYTES``.
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


def emit_tensor(value: Any, dtype: int, proto: Any) -> None:
    """Write one fetched value: dtype, full shape, and the typed field with one value for each element.

    Args:
        value: what TensorFlow returned: an array, a numpy scalar, or bytes for a string of rank 0.
        dtype: the number of the graph tensor's type (numpy has one type for several of them).
        proto: an empty TensorProto.

    Raises:
        ValueError: when values of this dtype cannot be sent.
    """
    if dtype not in _FIELDS:
        raise ValueError(f"tensors of dtype {dtype} cannot be sent")
    field = _FIELDS[dtype]
    # numpy would take the zero bytes off the end of a lone string.
    array = np.array(value, object) if field == "string_val" else np.asarray(value)
    proto.dtype = dtype
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    flat = array.ravel()
    if field == "float8_val":
        proto.float8_val = flat.tobytes()
        return
    flat = flat.view(_VIEWS.get(field, flat.dtype))
    getattr(proto, field).extend(flat.tolist())
