"""What people give to ``infer`` becomes requests: forms, keys, names, types and shapes are checked before sending."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiltyard.api.tfs.v1 import tensor_pb2
from tiltyard.client import names
from tiltyard.client.dtypes import by_number
from tiltyard.client.signatures import Signature, TensorSpec, show_shape
from tiltyard.client.tensors import encode
from tiltyard.client.values import to_array
from tiltyard.errors import InvalidArgumentError

__all__ = [
    "MAX_KEY_BYTES",
    "MAX_TIMEOUT_S",
    "Metadata",
    "Pairs",
    "Prepared",
    "check_metadata",
    "check_timeout",
    "key_bytes",
    "metadata_of",
    "prepare",
    "read_file",
    "rows_of",
]

MAX_KEY_BYTES = 1024
"""Longest key the router takes."""
MAX_TIMEOUT_S = 86_400.0
"""Longest deadline of a request, in seconds: a day."""

Metadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
"""What callers may give."""
Pairs = list[tuple[str, str | bytes]]
"""What gRPC takes."""

_METADATA_NAME = re.compile(r"[0-9a-z_.-]+")

_FORMS = (
    "give a dict of inputs such as {'x': [[1.0, 2.0]]} (lists or numpy arrays), "
    "or a list of such dicts, one request each"
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request, ready to be sent.

    Attributes:
        original: what the user gave.
        tensors: the inputs of the model.
        key: bytes of the key, empty when there is none.
    """

    original: Mapping[str, Any]
    tensors: Mapping[str, tensor_pb2.Tensor]
    key: bytes


def rows_of(x: Any) -> list[Mapping[str, Any]]:
    """The requests in what was given to ``infer``: one for a dict, one for each dict of a list.

    Raises:
        InvalidArgumentError: it has neither form.
    """
    if isinstance(x, Mapping):
        return [x]
    if hasattr(x, "to_dict") and hasattr(x, "columns"):
        raise InvalidArgumentError(f"a DataFrame is not accepted yet; {_FORMS}")
    if isinstance(x, list | tuple):
        for i, row in enumerate(x):
            if not isinstance(row, Mapping):
                raise InvalidArgumentError(f"element [{i}] is of type {type(row).__name__}; {_FORMS}")
        return list(x)
    raise InvalidArgumentError(f"cannot infer from type {type(x).__name__}; {_FORMS}")


def read_file(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file for ``infer``.

    Raises:
        InvalidArgumentError: there is no such file, it is no JSON, or a number in it is out of every range.
    """
    place = Path(path).expanduser()
    if place.suffix == ".arrow":
        raise InvalidArgumentError(f"{str(path)!r}: Arrow files are not accepted yet; give a .json file")
    try:
        return json.loads(place.read_bytes(), parse_float=_parse_float, object_pairs_hook=_parse_object)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{str(path)!r}: {error.message}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{str(path)!r} is no JSON: {error}; {_FORMS}") from error


def prepare(
    row: Mapping[str, Any], signature: Signature, *, pipeline: str, hash_key: str, key: str | bytes | int | None
) -> Prepared:
    """Check one request and encode it.

    Args:
        row: inputs by name, and maybe the key under the name ``hash_key``.
        signature: what the model takes.
        pipeline: the pipeline's name, for messages.
        hash_key: name of the pipeline's key, ``""`` when it has none.
        key: the key given beside the inputs; it wins over the field.

    Raises:
        InvalidArgumentError: an input is wrong or missing, or the key is none.
    """
    fields = dict(row)
    found = b""
    if hash_key and hash_key in fields and hash_key not in signature.inputs:
        field = fields.pop(hash_key)
        if key is None:
            found = _field_key(field, hash_key)
    if key is not None:
        if not hash_key:
            raise InvalidArgumentError(
                f"pipeline {pipeline!r} has no key; leave key= out, "
                "or deploy it with add_random_split(..., 'session_id')"
            )
        found = key_bytes(key, "key=")
    _check_names(fields, signature, pipeline, hash_key)
    tensors = {name: _tensor(value, signature.inputs[name]) for name, value in fields.items()}
    return Prepared(row, tensors, found)


# -- keys --------------------------------------------------------------------------------------------------------------


def key_bytes(value: object, what: str) -> bytes:
    """The bytes a key stands for: text in UTF-8, bytes as they are, an integer in decimal digits.

    Raises:
        InvalidArgumentError: it is of another type, or too long.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, str | bytes | int):
        why = ": round-off is not an identity" if isinstance(value, float) else ""
        raise InvalidArgumentError(
            f"{what} is of type {type(value).__name__}, which is no key{why}; give text, bytes or an integer"
        )
    try:
        found = value if isinstance(value, bytes) else str(value).encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what} is text that is no valid Unicode; give it as bytes") from None
    if len(found) > MAX_KEY_BYTES:
        raise InvalidArgumentError(
            f"{what} has {len(found)} bytes; a key has at most {MAX_KEY_BYTES}, give a digest of it"
        )
    return found


def check_timeout(timeout: object) -> float:
    """The deadline of a request in seconds.

    Raises:
        InvalidArgumentError: it is no time that a request could take.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.integer | np.floating):
        raise InvalidArgumentError(f"timeout= is of type {type(timeout).__name__}; give a number of seconds")
    if not 0 < timeout <= MAX_TIMEOUT_S or math.isnan(timeout):
        raise InvalidArgumentError(
            f"timeout={timeout:g} is no time to wait; give more than 0 and at most {MAX_TIMEOUT_S:g} seconds"
        )
    return float(timeout)


def check_metadata(metadata: Metadata | None) -> Pairs:
    """The caller's metadata as gRPC takes it: names in lower case, in the order they were given.

    Raises:
        InvalidArgumentError: gRPC could not send it, or would send something else.
    """
    if isinstance(metadata, str | bytes) or not isinstance(metadata, Iterable | None):
        raise InvalidArgumentError(
            f"metadata= is of type {type(metadata).__name__}; give a dict, or (name, value) pairs"
        )
    pairs: Iterable[Any] = metadata.items() if isinstance(metadata, Mapping) else metadata or ()
    return [_check_pair(pair) for pair in pairs]


def _check_pair(pair: Any) -> tuple[str, str | bytes]:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise InvalidArgumentError(f"metadata holds {pair!r:.80}; give a dict, or (name, value) pairs with str names")
    name, value = pair[0].lower(), pair[1]
    if not _METADATA_NAME.fullmatch(name):
        raise InvalidArgumentError(f"metadata name {name!r:.80}: use letters, digits, '_', '.' and '-'")
    if names.is_taken_metadata(name):
        raise InvalidArgumentError(f"metadata name {name!r} is one that gRPC or Tiltyard uses itself; take another")
    if not isinstance(value, bytes if name.endswith("-bin") else str):
        raise InvalidArgumentError(
            f"metadata {name!r} has a value of type {type(value).__name__}; give str, or bytes for names ending in -bin"
        )
    if isinstance(value, str) and not (value.isascii() and _is_plain(value.encode())):
        raise InvalidArgumentError(
            f"metadata {name!r} has a value gRPC cannot carry; give printable ASCII, or bytes under {name + '-bin'!r}"
        )
    return name, value


def metadata_of(pairs: Pairs, hash_key: str, key: bytes) -> Pairs:
    """What is sent beside a request: the caller's metadata as ``check_metadata`` gave it, then the key.

    A key that is no plain printable ASCII goes under ``<hash_key>-bin``, whose values gRPC carries untouched.

    Raises:
        InvalidArgumentError: the caller's metadata holds the key a second time.
    """
    if not key:
        return pairs
    for name, _ in pairs:
        if name in (hash_key, f"{hash_key}-bin"):
            raise InvalidArgumentError(
                f"the key is given twice: as metadata {name!r} and as key= or field; leave one out"
            )
    if hash_key.endswith("-bin"):
        return [*pairs, (hash_key, key)]
    if _is_plain(key):
        return [*pairs, (hash_key, key.decode("ascii"))]
    return [*pairs, (f"{hash_key}-bin", key)]


def _is_plain(value: bytes) -> bool:
    # Spaces at the ends may be stripped on the way, so they count as special.
    return all(0x20 <= byte <= 0x7E for byte in value) and value == value.strip()


def _field_key(field: Any, hash_key: str) -> bytes:
    """One key out of a field: a single value, or one per row that are all equal."""
    values = list(_leaves(field))
    if not values:
        raise InvalidArgumentError(f"field {hash_key!r} is empty; give one key for the request, or leave it out")
    keys = {key_bytes(value, f"field {hash_key!r}") for value in values if value is not None}
    if len(keys) > 1 or (keys and None in values):
        raise InvalidArgumentError(
            f"field {hash_key!r} holds {len(set(values))} different keys, and a request goes to one arm; "
            "send rows of different keys as requests of their own (a list of dicts)"
        )
    return keys.pop() if keys else b""


def _leaves(field: Any) -> Iterator[Any]:
    if isinstance(field, np.ndarray):
        field = field.tolist()
    if isinstance(field, list | tuple):
        for item in field:
            yield from _leaves(item)
    else:
        yield field


# -- inputs ------------------------------------------------------------------------------------------------------------


def _check_names(fields: Mapping[str, Any], signature: Signature, pipeline: str, hash_key: str) -> None:
    also = f", and {hash_key!r} for the key" if hash_key and hash_key not in signature.inputs else ""
    right = (", ".join(map(str, signature.inputs.values())) or "none") + also
    for name in fields:
        if name not in signature.inputs:
            raise InvalidArgumentError(f"pipeline {pipeline!r} has no input {name!r}; its inputs are: {right}")
    for name, spec in signature.inputs.items():
        if name not in fields and not spec.optional:
            raise InvalidArgumentError(f"input {name!r} of pipeline {pipeline!r} is missing; its inputs are: {right}")


def _tensor(value: Any, spec: TensorSpec) -> tensor_pb2.Tensor:
    dtype = by_number(spec.number)
    array = to_array(value, dtype, spec.name)
    if not spec.fits(array.shape):
        wanted = spec.shape or ()
        one_row = len(array.shape) + 1 == len(wanted) and wanted[0] is None
        hint = "; put one more pair of brackets around a single row" if one_row else ""
        raise InvalidArgumentError(
            f"input {spec.name!r} has the shape {show_shape(array.shape)}, "
            f"the model takes {show_shape(spec.shape)}{hint}"
        )
    return encode(array, dtype)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _parse_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InvalidArgumentError(f"the number {text[:40]} is too large for any float type; correct it")
    return value


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        all_names = [name for name, _ in pairs]
        twice = next(name for name in all_names if all_names.count(name) > 1)
        raise InvalidArgumentError(f"the name {twice!r} stands twice in one object; keep one of them")
    return found
