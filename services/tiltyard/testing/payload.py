"""PredictRequests of a chosen size, for load tests and benchmarks."""

from __future__ import annotations

import array
import sys

from tiltyard.api.tfs.v1 import predict_pb2, tensor_pb2
from tiltyard.errors import InvalidArgumentError

__all__ = ["predict_request"]

# Field 15, bytes: PredictRequest has no such field, so servers skip it and proxies must pass it on.
_PAD_TAG = b"\x7a"
_MAX_BYTES = 64 * 1024 * 1024


def predict_request(
    model: str, *, rows: int = 1, floats: int = 32, input_name: str = "x", signature: str = "", size: int = 0
) -> bytes:
    """Serialised PredictRequest with one float tensor of shape ``[rows, floats]``, values from 0 up to 1.

    Args:
        model: name in ``model_spec``; through the router, the pipeline's.
        rows: rows of the tensor.
        floats: values of a row.
        input_name: name of the input.
        signature: signature to run; ``""`` leaves it to the model.
        size: bytes of the whole message, padded with a field that servers skip; 0 adds nothing.

    Raises:
        InvalidArgumentError: the message is already longer than ``size``, or exactly one byte shorter.
    """
    if not (rows >= 1 and floats >= 1 and rows * floats * 4 <= _MAX_BYTES):
        raise InvalidArgumentError(f"rows x floats must be 1 to {_MAX_BYTES // 4}; {rows} x {floats} was given")
    values = array.array("f", ((i % 1000) / 1000 for i in range(rows * floats)))
    if sys.byteorder == "big":
        values.byteswap()
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT, tensor_content=values.tobytes())
    tensor.tensor_shape.dim.add(size=rows)
    tensor.tensor_shape.dim.add(size=floats)
    request = predict_pb2.PredictRequest(inputs={input_name: tensor})
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    message = request.SerializeToString()
    return message + _padding(size - len(message), size) if size else message


def _padding(gap: int, size: int) -> bytes:
    if gap == 0:
        return b""
    if gap < 0:
        raise InvalidArgumentError(f"the request has {size - gap} bytes; ask for at least as many, or for fewer floats")
    if gap == 1:
        raise InvalidArgumentError(f"the request has {size - 1} bytes, and one cannot be added; ask for another size")
    # The length is a varint of a fixed number of bytes, so that every gap can be filled.
    digits = 1 if gap <= 129 else 5
    length = gap - 1 - digits
    varint = bytes((length >> (7 * i)) & 0x7F | (0x80 if i < digits - 1 else 0) for i in range(digits))
    return _PAD_TAG + varint + bytes(length)
