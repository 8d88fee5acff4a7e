"""Tensor element types: their names, their numpy types and where a Tensor message keeps their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.api.tfs.v1 import tensor_pb2
from tiltyard.errors import UnsupportedError

__all__ = ["BFLOAT16", "COMPLEX", "STRING", "DType", "by_number", "from_bfloat16", "to_bfloat16"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        number: TensorFlow's number of the type.
        name: TensorFlow's short name, for messages ("float32", "string").
        tag: the name raw results show it under ("Float", "String").
        numpy: type of the arrays users see. Strings are arrays of ``bytes`` objects; bfloat16 values are float32.
        field: the typed field of a Tensor message.
        wire: little-endian numpy type of ``tensor_content``; the bit patterns for bfloat16.
    """

    number: int
    name: str
    tag: str
    numpy: np.dtype[Any]
    field: str
    wire: np.dtype[Any]


def _dtype(number: int, name: str, tag: str, field: str, numpy: str | None = None, wire: str | None = None) -> DType:
    seen = np.dtype(numpy or name)
    return DType(number, name, tag, seen, field, np.dtype(wire).newbyteorder("<") if wire else seen.newbyteorder("<"))


_T = tensor_pb2
STRING = _dtype(_T.DATA_TYPE_STRING, "string", "String", "string_val", "object")
BFLOAT16 = _dtype(_T.DATA_TYPE_BFLOAT16, "bfloat16", "BFloat16", "half_val", "float32", "uint16")
COMPLEX = frozenset({_T.DATA_TYPE_COMPLEX64, _T.DATA_TYPE_COMPLEX128})

_BY_NUMBER: dict[int, DType] = {
    dtype.number: dtype
    for dtype in (
        _dtype(_T.DATA_TYPE_FLOAT, "float32", "Float", "float_val"),
        _dtype(_T.DATA_TYPE_DOUBLE, "float64", "Double", "double_val"),
        _dtype(_T.DATA_TYPE_INT32, "int32", "Int32", "int_val"),
        _dtype(_T.DATA_TYPE_UINT8, "uint8", "UInt8", "int_val"),
        _dtype(_T.DATA_TYPE_INT16, "int16", "Int16", "int_val"),
        _dtype(_T.DATA_TYPE_INT8, "int8", "Int8", "int_val"),
        STRING,
        _dtype(_T.DATA_TYPE_COMPLEX64, "complex64", "Complex64", "scomplex_val"),
        _dtype(_T.DATA_TYPE_INT64, "int64", "Int64", "int64_val"),
        _dtype(_T.DATA_TYPE_BOOL, "bool", "Bool", "bool_val"),
        _dtype(_T.DATA_TYPE_QINT8, "qint8", "QInt8", "int_val", "int8"),
        _dtype(_T.DATA_TYPE_QUINT8, "quint8", "QUInt8", "int_val", "uint8"),
        _dtype(_T.DATA_TYPE_QINT32, "qint32", "QInt32", "int_val", "int32"),
        BFLOAT16,
        _dtype(_T.DATA_TYPE_QINT16, "qint16", "QInt16", "int_val", "int16"),
        _dtype(_T.DATA_TYPE_QUINT16, "quint16", "QUInt16", "int_val", "uint16"),
        _dtype(_T.DATA_TYPE_UINT16, "uint16", "UInt16", "int_val"),
        _dtype(_T.DATA_TYPE_COMPLEX128, "complex128", "Complex128", "dcomplex_val"),
        _dtype(_T.DATA_TYPE_HALF, "float16", "Half", "half_val"),
        _dtype(_T.DATA_TYPE_UINT32, "uint32", "UInt32", "uint32_val"),
        _dtype(_T.DATA_TYPE_UINT64, "uint64", "UInt64", "uint64_val"),
    )
}


def by_number(number: int) -> DType:
    """The element type with TensorFlow's number ``number``.

    Raises:
        UnsupportedError: the SDK does not know that type (handles, 4- and 8-bit floats and the like).
    """
    dtype = _BY_NUMBER.get(number)
    if dtype is None:
        try:
            name = _T.DataType.Name(_T.DataType.ValueType(number))
        except ValueError:
            name = str(number)
        raise UnsupportedError(f"tensors of type {name} are not supported by the SDK; call the gRPC API for them")
    return dtype


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16 values, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    patterns = np.where(np.isnan(values).reshape(-1), (bits >> 16) | 0x40, rounded)
    return patterns.astype(np.uint16).reshape(values.shape)


def from_bfloat16(patterns: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The values of bfloat16 bit patterns, exactly."""
    flat = np.ascontiguousarray(patterns, np.uint16).reshape(-1).astype(np.uint32) << 16
    return flat.view(np.float32).reshape(patterns.shape)
