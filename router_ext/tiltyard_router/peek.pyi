"""What the router must know of a PredictRequest, found in its bytes."""

from collections.abc import Sequence
from typing import NamedTuple

class SpecResult(NamedTuple):
    """The model_spec fields of one request, merged as protobuf does."""

    name: bytes
    """At most 256 bytes of it."""
    name_len: int
    """Bytes as sent."""
    label: bytes | None
    """At most 256 bytes of ``version_label``; ``None`` when it is unset."""
    label_len: int
    version: int | None
    """``None`` when it is unset."""
    cuts: tuple[tuple[int, int], ...]
    """Where the fields stand: first byte, and first byte after."""
    rest: bytes
    """``signature_name`` and unknown fields as sent."""

class PeekError(ValueError):
    """The core refuses the message; ``status`` is one of ``tiltyard_router.status.OWN_STATUSES``."""

    status: int
    def __init__(self, status: int) -> None: ...

def scan(pieces: Sequence[bytes]) -> SpecResult:
    """Find and merge the model_spec fields of a PredictRequest that lies in these pieces.

    Raises:
        PeekError: the core refuses the message.
    """

def rewrite(pieces: Sequence[bytes], model: bytes, version: int) -> bytes:
    """The message as it is forwarded: one model_spec for this model and version, then the rest untouched.

    Raises:
        PeekError: the core refuses the message.
    """

def tensor_key(pieces: Sequence[bytes], name: bytes) -> bytes:
    """The key bytes in the input tensor of this name; empty when there is none.

    Raises:
        PeekError: the core refuses the message or the tensor.
    """

def scan_many(pieces: Sequence[bytes], count: int, model: bytes | None = None) -> None:
    """Do ``count`` times what the router does with one request, and drop it: for measuring.

    With ``model`` the new model_spec is written too.
    """
