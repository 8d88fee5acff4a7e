"""Values as people write them (nested lists, numbers, strings, numpy arrays) become arrays of a wanted type.

Exactly or not at all: an integer must be representable in the wanted type, a float becomes an integer only when it is
one, true and false are no numbers, and numbers are no strings. The one rounding there is: a decimal fraction for a
float input becomes the nearest value of that type, as it must (0.1 has no exact binary form). A finite number that
would become infinity is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tiltyard.client.dtypes import BFLOAT16, COMPLEX, STRING, DType, from_bfloat16, to_bfloat16
from tiltyard.errors import InvalidArgumentError

__all__ = ["to_array"]

Array = npt.NDArray[Any]


def to_array(value: Any, dtype: DType, name: str) -> Array:
    """Turn ``value`` into an array of ``dtype`` without changing what it says.

    Args:
        value: nested lists or tuples, one number or string, or a numpy array.
        dtype: type wanted; strings give an object array of ``bytes``, bfloat16 gives float32 values.
        name: the input's name, for messages.

    Raises:
        InvalidArgumentError: lists are ragged, or an element cannot be had in that type; names its position.
    """
    if not isinstance(value, np.ndarray | np.generic):
        array = _narrowest(*_flatten(value, name))
    elif np.asarray(value).dtype.kind in "OSU":
        array = _narrowest(list(np.asarray(value).reshape(-1)), np.asarray(value).shape)
    else:
        array = np.asarray(value)
    if dtype is STRING:
        return _strings(array, name)
    if array.dtype.kind == "O":
        return _objects(array, dtype, name)
    return _numbers(array, dtype, name)


# -- nested lists ------------------------------------------------------------------------------------------------------


def _flatten(value: Any, name: str) -> tuple[list[Any], tuple[int, ...]]:
    """The elements of nested lists in row-major order, and the shape.

    Raises:
        InvalidArgumentError: neighbours differ in length or depth.
    """
    level: list[Any] = [value]
    shape: list[int] = []
    while any(issubclass(kind, list | tuple | np.ndarray) for kind in set(map(type, level))):
        level = [item.tolist() if isinstance(item, np.ndarray) else item for item in level]
        first = level[0]
        size = len(first) if isinstance(first, list | tuple) else -1
        for i, item in enumerate(level):
            found = len(item) if isinstance(item, list | tuple) else -1
            if found != size:
                here, there = _element(name, i, shape), _element(name, 0, shape)
                raise InvalidArgumentError(
                    f"{here} holds {_what(found)} but {there} holds {_what(size)}; "
                    "rows of one input have the same length"
                )
        shape.append(size)
        level = list(chain.from_iterable(level))
    return level, tuple(shape)


def _what(size: int) -> str:
    return "a single value" if size < 0 else "1 element" if size == 1 else f"{size} elements"


def _narrowest(flat: list[Any], shape: tuple[int, ...]) -> Array:
    """An array of the first of bool, int64, uint64, float64, complex128 that holds every element, else of objects."""
    kinds = set(map(type, flat))
    if any(issubclass(kind, np.generic) for kind in kinds):
        flat = [item.item() if isinstance(item, np.generic) else item for item in flat]
        kinds = set(map(type, flat))
    array: Array | None = None
    if kinds <= {bool}:
        array = np.array(flat, np.bool_ if flat else np.int64)
    elif kinds == {int}:
        array = _integers(flat)
    elif kinds == {float}:
        array = np.array(flat, np.float64)
    elif kinds <= {int, float, complex} and all(abs(item) <= 2**53 for item in flat if type(item) is int):
        array = np.array(flat, np.complex128 if complex in kinds else np.float64)
    if array is None:
        array = np.empty(len(flat), object)
        for i, item in enumerate(flat):  # a slice assignment would look into elements that are sequences
            array[i] = item
    return array.reshape(shape)


def _integers(flat: list[int]) -> Array | None:
    for kind in (np.int64, np.uint64):
        try:
            return np.fromiter(flat, kind, len(flat))
        except OverflowError:
            continue
    return None


# -- strings -----------------------------------------------------------------------------------------------------------


def _strings(array: Array, name: str) -> Array:
    result = np.empty(array.size, object)
    for i, item in enumerate(array.reshape(-1).tolist()):
        if isinstance(item, str):
            try:
                result[i] = item.encode()
            except UnicodeEncodeError:
                raise InvalidArgumentError(
                    f"{_element(name, i, array.shape)} is text that is no valid Unicode; give it as bytes"
                ) from None
        elif isinstance(item, bytes):
            result[i] = item
        else:
            raise InvalidArgumentError(
                f"{_element(name, i, array.shape)} is {_show(item)}; the model wants strings, give str or bytes"
            )
    return result.reshape(array.shape)


# -- numbers -----------------------------------------------------------------------------------------------------------


def _numbers(array: Array, dtype: DType, name: str) -> Array:
    source, wanted = array.dtype.kind, dtype.numpy.kind
    if array.size == 0:
        return np.zeros(array.shape, dtype.numpy)
    if source not in "biufc" or (source == "b") != (wanted == "b"):
        _refuse(array, np.ones(array.shape, bool), dtype, name)
    if source == "c" and dtype.number not in COMPLEX:
        _refuse(array, np.ones(array.shape, bool), dtype, name)
    if wanted in "iu":
        return _to_integers(array, dtype, name)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if dtype is BFLOAT16:
            result: Array = from_bfloat16(to_bfloat16(array.astype(np.float32)))
        else:
            result = array.astype(dtype.numpy)
        if source in "iu":
            bad = ~_same_integers(array, result)
        elif source in "fc":
            bad = np.isfinite(array) & ~np.isfinite(result)
        else:
            return result
    if bad.any():
        _refuse(array, bad, dtype, name)
    return result


def _to_integers(array: Array, dtype: DType, name: str) -> Array:
    limits = np.iinfo(dtype.numpy)
    if array.dtype.kind == "f":
        # Both bounds are powers of two or 0, so they are exact in float64; the upper one is the first value outside.
        low, high = float(limits.min), float(limits.max + 1)
        wide = array.astype(np.float64)
        bad = ~((wide >= low) & (wide < high) & (wide == np.floor(wide)) & (wide == array))
        if bad.any():
            _refuse(array, bad, dtype, name)
        return wide.astype(dtype.numpy)
    own = np.iinfo(array.dtype)
    bad = np.zeros(array.shape, bool)
    if own.min < limits.min:
        bad |= array < limits.min
    if own.max > limits.max:
        bad |= array > limits.max
    if bad.any():
        _refuse(array, bad, dtype, name)
    return array.astype(dtype.numpy)


def _same_integers(array: Array, result: Array) -> npt.NDArray[np.bool_]:
    """Where the integers of ``array`` survived the way into the floats of ``result``."""
    wide = result.real.astype(np.float64)
    limits = np.iinfo(array.dtype)
    inside = (wide >= float(limits.min)) & (wide < float(limits.max + 1))  # also false for infinity
    back = np.where(inside, wide, 0.0).astype(array.dtype)
    return np.asarray(inside & (back == array), np.bool_)


def _objects(array: Array, dtype: DType, name: str) -> Array:
    """Elements without a common numpy type: integers beyond 64 bits, or a mixture; only the former can be had."""
    values = array.reshape(-1).tolist()
    numbers = (bool,) if dtype.numpy.kind == "b" else (int, float, complex) if dtype.number in COMPLEX else (int, float)
    for i, value in enumerate(values):
        if type(value) not in numbers:
            _refuse_one(value, i, array.shape, dtype, name)
    if set(map(type, values)) != {int}:
        large = next(i for i, value in enumerate(values) if type(value) is int and abs(value) > 2**53)
        raise InvalidArgumentError(
            f"{_element(name, large, array.shape)} is {_show(values[large])} among fractions; integers beyond 2^53 "
            "cannot be mixed with floats, give the whole input as integers or as a numpy array"
        )
    near = [_float_or_none(value) if dtype.numpy.kind in "fc" else None for value in values]
    for i, (value, found) in enumerate(zip(values, near, strict=True)):
        if found is None or int(found) != value:
            _refuse_one(value, i, array.shape, dtype, name)
    wide = np.array(near, np.float64).reshape(array.shape)
    narrow = _numbers(wide, dtype, name)
    changed = narrow.real.astype(np.float64) != wide
    if changed.any():
        i = int(np.argmax(changed.reshape(-1)))
        _refuse_one(values[i], i, array.shape, dtype, name)
    return narrow


def _float_or_none(value: int) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


# -- refusals ----------------------------------------------------------------------------------------------------------


def _refuse(array: Array, bad: npt.NDArray[np.bool_], dtype: DType, name: str) -> NoReturn:
    i = int(np.argmax(bad.reshape(-1)))
    _refuse_one(array.reshape(-1)[i], i, array.shape, dtype, name)


def _refuse_one(item: Any, i: int, shape: Sequence[int], dtype: DType, name: str) -> NoReturn:
    value = item.item() if isinstance(item, np.generic) else item
    raise InvalidArgumentError(
        f"{_element(name, i, shape)} is {_show(value)}, which is not exactly a value of type {dtype.name}; "
        f"{_advice(value, dtype)}"
    )


def _advice(value: Any, dtype: DType) -> str:
    if dtype.numpy.kind == "b":
        return "give true or false"
    if isinstance(value, bool):
        return "give 1 or 0 when a number is meant"
    if isinstance(value, str | bytes):
        return "give a number"
    if value is None:
        return "missing values have no form in a tensor, give a number"
    if isinstance(value, int | float):
        return f"round or clip it yourself if {dtype.name} is what you want"
    return "give a number"


def _show(value: Any) -> str:
    text = (
        {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else repr(value)
    )
    return text if len(text) <= 40 else text[:37] + "..."


def _element(name: str, i: int, shape: Sequence[int]) -> str:
    """Where element ``i`` in row-major order stands, as Python would write it: ``x[0][3]``."""
    if not shape:
        return f"input {name!r}"
    place = "".join(f"[{int(part)}]" for part in np.unravel_index(i, tuple(shape)))
    return f"input {name!r}, element {place},"
