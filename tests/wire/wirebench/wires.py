"""Frames of HTTP/2 as both benches need them."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator

from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hyperframe.exceptions import HyperframeError, InvalidFrameError
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame

SANITIZED = os.environ.get("TILTYARD_SANITIZED") == "1"

SLOW = 4.0 if SANITIZED else 1.0
"""How much longer things may take under the sanitizers."""

LIMIT_S = 15.0 * SLOW
"""Longest any one thing may take; reaching it is a failure."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16_384
DEFAULT_WINDOW = 65_535

# RFC 9113, 7
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 0x5, 0x6, 0x7, 0x8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x9, 0xB

Header = tuple[str, str]


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Ask until it holds; an AssertionError when it does not in time."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}"
        time.sleep(0.005)


def headers_frames(encoder: Encoder, stream_id: int, headers: Iterable[Header], *, end: bool) -> bytes:
    """One header block, in as many frames as it takes."""
    block = encoder.encode([plain_or_secret(name, value) for name, value in headers])
    pieces = [block[i : i + FRAME_BYTES] for i in range(0, len(block), FRAME_BYTES)] or [b""]
    first = HeadersFrame(stream_id, data=pieces[0], flags=["END_STREAM"] if end else [])
    frames: list[HeadersFrame | ContinuationFrame] = [first]
    frames += [ContinuationFrame(stream_id, data=piece) for piece in pieces[1:]]
    frames[-1].flags.add("END_HEADERS")
    return b"".join(frame.serialize() for frame in frames)


def plain_or_secret(name: str, value: str) -> HeaderTuple:
    """Fields that differ in every request are kept out of the dynamic table, as careful clients do."""
    kind = HeaderTuple if name.startswith((":", "content-type", "te", "user-agent")) else NeverIndexedHeaderTuple
    return kind(name.encode("latin-1"), value.encode("latin-1"))


def decode_block(decoder: Decoder, block: bytes) -> list[Header]:
    """Names and values of a header block."""
    return [(bytes(n).decode("latin-1"), bytes(v).decode("latin-1")) for n, v in decoder.decode(block, raw=True)]


class FrameReader:
    """Cuts a byte stream into frames; joins CONTINUATION frames to their HEADERS."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._open: HeadersFrame | None = None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now.

        Raises:
            InvalidFrameError: this is no HTTP/2.
        """
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= 9:
                frame, length = Frame.parse_frame_header(memoryview(bytes(self._buffer[at : at + 9])))
                if len(self._buffer) - at < 9 + length:
                    break
                frame.parse_body(memoryview(bytes(self._buffer[at + 9 : at + 9 + length])))
                at += 9 + length
                whole = self._joined(frame)
                if whole is not None:
                    yield whole
        except (HyperframeError, struct.error) as error:
            raise InvalidFrameError(str(error)) from error
        finally:
            del self._buffer[:at]

    def _joined(self, frame: Frame) -> Frame | None:
        if isinstance(frame, ContinuationFrame):
            assert self._open is not None, "CONTINUATION without HEADERS"
            self._open.data += frame.data
            if "END_HEADERS" not in frame.flags:
                return None
            frame, self._open = self._open, None
            return frame
        assert self._open is None, "a frame inside a header block"
        if isinstance(frame, HeadersFrame) and "END_HEADERS" not in frame.flags:
            self._open = frame
            return None
        return frame
