"""The inference id: what one answer can be recognised by, signed. The layout stands in docs/receipts.md."""

from typing import Self, final

FORCED: int
FALLBACK: int
KEYED: int

@final
class Signer:
    """Writes receipts under one key, for one boot.

    Args:
        secret: the key, 32 bytes.
        number: the key's number, 0 to 15.
        boot_id: 6 bytes.

    Raises:
        ValueError: a length or the number is wrong.
        MemoryError: memory is out, or OpenSSL has no HMAC-SHA-256.
    """

    def __new__(cls, secret: bytes, number: int, boot_id: bytes) -> Self: ...
    def write(
        self, *, arm: int, epoch: int, share_slots: int, unix_seconds: int, flags: int = 0, bucket: int = -1
    ) -> bytes:
        """Write the next receipt: 64 characters.

        Args:
            arm: index of the arm, 0 to 15.
            epoch: weight epoch.
            share_slots: the arm's share in slots of 10,000.
            unix_seconds: time of assignment.
            flags: any of ``FORCED``, ``FALLBACK``, ``KEYED``.
            bucket: analysis bucket of the key, 0 to 255; -1 makes it from the id.

        Raises:
            RuntimeError: OpenSSL failed.
        """

    def rekey(self, secret: bytes, number: int) -> None:
        """Sign with another key from the next receipt on; the sequence goes on."""

    def write_many(self, count: int) -> None:
        """Write ``count`` receipts and drop them: what one costs, without Python's share."""
