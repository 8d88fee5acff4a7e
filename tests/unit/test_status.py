"""One int for every layer's status: the ranges keep apart, and each has a name."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from tiltyard_router import status
else:
    status = pytest.importorskip("tiltyard_router.status", exc_type=ImportError)

pytestmark = pytest.mark.router


def strerror(library: str, function: str) -> Callable[[int], bytes]:
    found = ctypes.util.find_library(library)
    if found is None:
        pytest.skip(f"lib{library} is not to be found by name")
    call: Any = getattr(ctypes.CDLL(found), function)
    call.argtypes, call.restype = [ctypes.c_int], ctypes.c_char_p
    return cast("Callable[[int], bytes]", call)


def test_our_own_statuses_lie_below_every_other_and_are_named() -> None:
    values = list(status.OWN_STATUSES.values())
    assert len(set(values)) == len(values)
    assert all(-20_000 < value < -10_000 for value in values)
    texts = [status.status_name(value) for value in values]
    assert len(set(texts)) == len(texts)
    assert "unknown status" not in texts


def test_libuv_statuses_have_libuvs_text_and_lie_outside_the_other_ranges() -> None:
    uv_strerror = strerror("uv", "uv_strerror")
    numbers = {-code for code in errno.errorcode} | set(range(-3016, -2999)) | {-4095}
    assert not any(-905 <= number <= -501 or number <= -10_000 for number in numbers)
    for number in numbers:
        assert status.status_name(number) == uv_strerror(number).decode()
    assert status.status_name(-errno.EPERM) == "operation not permitted"


def test_nghttp2_statuses_have_nghttp2s_text() -> None:
    nghttp2_strerror = strerror("nghttp2", "nghttp2_strerror")
    named = [n for n in range(-905, -500) if nghttp2_strerror(n) != b"Unknown error code"]
    assert {-501, -901, -902, -904} <= set(named)
    for number in named:
        assert status.status_name(number) == nghttp2_strerror(number).decode()


def test_no_error_is_ok_and_a_status_of_nobodys_is_unknown() -> None:
    assert status.status_name(0) == status.status_name(7) == "ok"
    assert status.status_name(-19_999) == "unknown status"
