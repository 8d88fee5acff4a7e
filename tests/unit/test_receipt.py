"""Inference ids: the layout and the MAC, read back with Python's own tools."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiltyard_router import receipt
else:
    receipt = pytest.importorskip("tiltyard_router.receipt")

pytestmark = pytest.mark.router

SECRET = bytes(range(32))
BOOT = bytes.fromhex("a1b2c3d4e5f6")


def decoded(text: bytes, secret: bytes = SECRET) -> bytes:
    """The 48 bytes of a receipt whose MAC is right."""
    assert len(text) == 64
    raw = base64.b64decode(text, altchars=b"-_", validate=True)
    assert hmac.new(secret, raw[:32], hashlib.sha256).digest()[:16] == raw[32:]
    return raw


def test_each_field_stands_where_the_layout_says() -> None:
    signer = receipt.Signer(SECRET, 11, BOOT)
    raw = decoded(
        signer.write(
            arm=13, epoch=0x01020304, share_slots=3_333, unix_seconds=0xF1F2F3F4, flags=receipt.KEYED, bucket=201
        )
    )
    version_key, arm_flags, bucket, zero, epoch, contest, share, boot, sequence, seconds = struct.unpack(
        ">BBBBI6sH6s6sI", raw[:32]
    )
    assert (version_key, arm_flags, bucket, zero) == (0x1B, 0x4D, 201, 0)
    assert (epoch, contest, share) == (0x01020304, bytes(6), 3_333)
    assert (boot, int.from_bytes(sequence, "big"), seconds) == (BOOT, 1, 0xF1F2F3F4)


def test_flags_do_not_meet_the_arm() -> None:
    signer = receipt.Signer(SECRET, 0, BOOT)
    flags = [receipt.FORCED, receipt.FALLBACK, receipt.KEYED, receipt.FORCED | receipt.KEYED]
    got = [decoded(signer.write(arm=15, epoch=1, share_slots=1, unix_seconds=1, flags=flag))[1] for flag in flags]
    assert got == [0x1F, 0x2F, 0x4F, 0x5F]


def test_the_sequence_is_dense_and_every_mac_is_right() -> None:
    signer = receipt.Signer(SECRET, 1, BOOT)
    for number in range(1, 2_001):
        raw = decoded(signer.write(arm=number % 16, epoch=number, share_slots=number, unix_seconds=number))
        assert int.from_bytes(raw[22:28], "big") == number


def test_another_key_signs_on_without_a_gap() -> None:
    signer = receipt.Signer(SECRET, 1, BOOT)
    decoded(signer.write(arm=0, epoch=1, share_slots=1, unix_seconds=1))
    signer.rekey(bytes(32), 2)
    raw = decoded(signer.write(arm=0, epoch=1, share_slots=1, unix_seconds=1), bytes(32))
    assert raw[0] == 0x12
    assert int.from_bytes(raw[22:28], "big") == 2


def test_keyless_buckets_come_from_the_id_and_spread_evenly() -> None:
    signer = receipt.Signer(SECRET, 1, BOOT)
    again = receipt.Signer(bytes(32), 2, BOOT)
    buckets: Counter[int] = Counter()
    for _ in range(25_600):
        bucket = base64.urlsafe_b64decode(signer.write(arm=0, epoch=1, share_slots=1, unix_seconds=1))[2]
        assert bucket == base64.urlsafe_b64decode(again.write(arm=1, epoch=2, share_slots=3, unix_seconds=4))[2]
        buckets[bucket] += 1
    chi2 = sum((buckets[bucket] - 100) ** 2 / 100 for bucket in range(256))
    assert 160 < chi2 < 370  # 255 degrees of freedom: beyond 4 standard deviations on either side is no chance


@pytest.mark.parametrize(("secret", "number", "boot"), [(b"x" * 31, 1, BOOT), (SECRET, 16, BOOT), (SECRET, 1, b"abc")])
def test_wrong_keys_and_boot_ids_are_refused(secret: bytes, number: int, boot: bytes) -> None:
    with pytest.raises(ValueError, match=r"this one has|0 to 15"):
        receipt.Signer(secret, number, boot)
