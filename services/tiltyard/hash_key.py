"""The name under which requests carry the key of a split: one rule for routes file, control plane and SDK."""

from __future__ import annotations

import re

from tiltyard.errors import InvalidArgumentError

__all__ = ["check_hash_key"]

_NAME = re.compile(r"[a-z0-9_.-]{1,64}")
_TAKEN_PREFIXES = ("grpc-", "tiltyard-")
# Fields of HTTP: HTTP/2 forbids the first five (RFC 9113, 8.2.2), the others never say who asks.
_TAKEN = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"),
        *("content-length", "content-type", "host", "te", "trailer"),
    }
)


def check_hash_key(key: str) -> None:
    """Refuse a name under which no request can carry a key.

    Raises:
        InvalidArgumentError: it is no name of metadata, or metadata of that name never reaches the split.
    """
    if not _NAME.fullmatch(key):
        raise InvalidArgumentError(
            f"hash_key {key!r} is not allowed; use 1 to 64 of a-z 0-9 _ . - (names of metadata are lower case)"
        )
    if key.startswith(_TAKEN_PREFIXES) or key in _TAKEN:
        raise InvalidArgumentError(f"hash_key {key!r}: metadata of this name never reaches the split; use another")
