"""The key that signs inference ids when no control plane brings one."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from tiltyard.errors import ConfigError
from tiltyard.router.spec import ReceiptKey

__all__ = ["load_key", "own_key"]

_BYTES = 32
_HEX = re.compile(rb"[0-9a-fA-F]{64}")


def load_key(path: Path) -> ReceiptKey:
    """Read a key file: 32 bytes as they are, or 64 hex digits.

    Raises:
        ConfigError: it cannot be read, or holds something else. (The message does not show what.)
    """
    try:
        with path.open("rb") as file:
            data = file.read(1024)
    except OSError as error:
        raise ConfigError(f"the receipt key cannot be read: {error.strerror or error}", path=str(path)) from error
    if len(data) != _BYTES:
        text = data.strip()
        if not _HEX.fullmatch(text):
            raise ConfigError(
                f"this holds {len(data)} bytes; a receipt key is {_BYTES} bytes, or {2 * _BYTES} hex digits "
                "(openssl rand -hex 32)",
                path=str(path),
            )
        data = bytes.fromhex(text.decode("ascii"))
    return ReceiptKey(number=0, secret=data)


def own_key(folder: Path) -> ReceiptKey:
    """The key in ``receipt.key`` of the data folder, made at the first start, readable by its owner only.

    It appears there whole or not at all, and two routers that start at once use the same one.

    Raises:
        ConfigError: the file cannot be made or read, or holds something else.
    """
    path = folder / "receipt.key"
    if not path.exists():
        try:
            _make(path)
        except OSError as error:
            raise ConfigError(f"the receipt key cannot be made: {error.strerror or error}", path=str(path)) from error
    return load_key(path)


def _make(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another router was first: its key is the one
            os.link(draft, path)
    finally:
        draft.unlink()
