"""RawClient: an HTTP/2 client over a blocking socket that sends any frame, good or hostile."""

from __future__ import annotations

import select
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from wirebench.messages import PREDICT, Receipt, grpc_frame, grpc_messages, receipt
from wirebench.wires import (
    DEFAULT_WINDOW,
    FRAME_BYTES,
    LIMIT_S,
    PREFACE,
    FrameReader,
    Header,
    decode_block,
    headers_frames,
)

BIG_WINDOW = 2**31 - 1


@dataclass
class Answer:
    """What came back on one stream, so far."""

    headers: list[Header] = field(default_factory=list)
    interim: list[list[Header]] = field(default_factory=list)
    trailers: list[Header] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    frames: list[int] = field(default_factory=list)
    """Sizes of the DATA frames."""
    ended: bool = False
    reset: int | None = None
    send_window: int = DEFAULT_WINDOW
    uncredited: int = 0

    def get(self, name: str) -> str | None:
        """The last value of a field, trailers first."""
        for key, value in reversed([*self.headers, *self.trailers]):
            if key == name:
                return value
        return None

    @property
    def status(self) -> int:
        """The gRPC status; an AssertionError when there is none."""
        value = self.get("grpc-status")
        assert value is not None, self
        return int(value)

    @property
    def message(self) -> str:
        """``grpc-message``, decoded."""
        return urllib.parse.unquote(self.get("grpc-message") or "")

    @property
    def arm(self) -> str | None:
        """``tiltyard-arm``."""
        return self.get("tiltyard-arm")

    @property
    def receipt(self) -> Receipt:
        """``tiltyard-inference-id``, taken apart."""
        value = self.get("tiltyard-inference-id")
        assert value is not None, self
        return receipt(value)

    @property
    def body(self) -> bytes:
        """The one message of a unary answer."""
        (message,) = grpc_messages(bytes(self.data))
        return message


class RawClient:
    """One connection. Frames are read while something is waited for, never in between.

    Args:
        address: ``host:port``.
        settings: of our SETTINGS frame.
        window: credit for the connection and for each stream, given when it starts.
        credit: whether what was received is credited back by itself.
        hello: whether preface and SETTINGS are sent.
    """

    def __init__(
        self,
        address: str,
        *,
        settings: dict[int, int] | None = None,
        window: int = BIG_WINDOW,
        credit: bool = True,
        hello: bool = True,
        receive_buffer: int = 0,
    ) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.decoder.max_header_list_size = 1 << 20
        self.streams: dict[int, Answer] = {}
        self.goaways: list[tuple[int, int]] = []
        self.pongs: list[bytes] = []
        self.peer_settings: dict[int, int] = {}
        self.settings_seen = 0
        self.closed = False
        self.aborted = False
        self.deaf = False
        """Whether PINGs stay unanswered."""
        self.send_window = DEFAULT_WINDOW
        self._credit = credit
        self._uncredited = 0
        self._reader = FrameReader()
        self._next_id = 1
        if hello:
            wanted = {SettingsFrame.INITIAL_WINDOW_SIZE: window, SettingsFrame.ENABLE_PUSH: 0} | (settings or {})
            self.send(PREFACE, SettingsFrame(0, settings=wanted))
            if window > DEFAULT_WINDOW:
                self.send(WindowUpdateFrame(0, window_increment=window - DEFAULT_WINDOW))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def abort(self) -> None:
        """Close it with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    # -- sending

    def send(self, *parts: Frame | bytes) -> None:
        """Send frames or bytes as they are. A closed connection shows when it is read."""
        data = b"".join(part if isinstance(part, bytes) else part.serialize() for part in parts)
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def next_id(self) -> int:
        """A stream id that was not used."""
        self._next_id += 2
        return self._next_id - 2

    def open(
        self,
        path: str = PREDICT,
        metadata: Iterable[Header] = (),
        *,
        timeout: str | None = None,
        headers: Sequence[Header] | None = None,
        end: bool = False,
    ) -> int:
        """Open a stream with HEADERS; its id.

        Args:
            path: of the method.
            metadata: behind the usual headers.
            timeout: ``grpc-timeout``.
            headers: all of them, in place of the usual ones.
            end: whether END_STREAM is set.
        """
        stream = self.next_id()
        self.streams[stream] = Answer(send_window=self.peer_settings.get(4, DEFAULT_WINDOW))
        if headers is None:
            headers = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "router"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", "wirebench"),
                *([("grpc-timeout", timeout)] if timeout is not None else []),
                *metadata,
            ]
        self.send(headers_frames(self.encoder, stream, headers, end=end))
        return stream

    def data(self, stream: int, data: bytes, *, end: bool = False, frame_bytes: int = FRAME_BYTES) -> None:
        """Send DATA as flow control allows; gives up silently when the stream or connection ended."""
        answer = self.streams[stream]
        view = memoryview(data)
        while view:
            self.pump(
                lambda: min(self.send_window, answer.send_window) > 0 or answer.ended or answer.reset is not None,
                what="credit to send",
            )
            if self.closed or answer.ended or answer.reset is not None:
                return
            room = min(self.send_window, answer.send_window, 1 << 18)
            pieces = []
            while view and room > 0:
                piece = view[: min(frame_bytes, room)]
                view = view[len(piece) :]
                room -= len(piece)
                self.send_window -= len(piece)
                answer.send_window -= len(piece)
                last = end and not view
                pieces.append(DataFrame(stream, bytes(piece), flags=["END_STREAM"] if last else []).serialize())
            self.send(b"".join(pieces))
        if end and not data:
            self.send(DataFrame(stream, b"", flags=["END_STREAM"]))

    def start(
        self,
        message: bytes,
        metadata: Iterable[Header] = (),
        *,
        path: str = PREDICT,
        timeout: str | None = None,
        frame_bytes: int = FRAME_BYTES,
    ) -> int:
        """Send a whole unary request; its stream."""
        stream = self.open(path, metadata, timeout=timeout)
        self.data(stream, grpc_frame(message), end=True, frame_bytes=frame_bytes)
        return stream

    def call(
        self,
        message: bytes,
        metadata: Iterable[Header] = (),
        *,
        path: str = PREDICT,
        timeout: str | None = None,
        frame_bytes: int = FRAME_BYTES,
        limit_s: float = LIMIT_S,
    ) -> Answer:
        """A unary call, to its end."""
        return self.finish(self.start(message, metadata, path=path, timeout=timeout, frame_bytes=frame_bytes), limit_s)

    def cancel(self, stream: int, code: int = 0x8) -> None:
        """RST_STREAM."""
        self.send(RstStreamFrame(stream, error_code=code))

    # -- receiving

    def finish(self, stream: int, limit_s: float = LIMIT_S) -> Answer:
        """Wait until a stream has ended, one way or another."""
        answer = self.streams[stream]
        self.pump(lambda: answer.ended or answer.reset is not None, limit_s, f"the end of stream {stream}")
        assert answer.ended or answer.reset is not None, f"the connection closed before stream {stream} ended"
        return answer

    def finish_all(self, streams: Iterable[int]) -> list[Answer]:
        """Wait for each."""
        return [self.finish(stream) for stream in streams]

    def wait_closed(self, limit_s: float = LIMIT_S) -> None:
        """Wait until the peer has closed the connection."""
        self.pump(lambda: self.closed, limit_s, "the end of the connection")

    def ping(self, data: bytes = b"12345678") -> None:
        """Wait until the peer has answered a PING: it has read all that was sent before."""
        before = len(self.pongs)
        self.send(PingFrame(0, opaque_data=data))
        self.pump(lambda: len(self.pongs) > before, what="a PING's answer")

    def pump(self, until: Callable[[], bool], limit_s: float = LIMIT_S, what: str = "") -> None:
        """Read frames until something holds or the connection ends; an AssertionError when neither does in time."""
        end = time.monotonic() + limit_s
        while not until() and not self.closed:
            left = end - time.monotonic()
            assert left > 0, f"waited {limit_s:g} s for {what or 'something'}"
            self.read_once(min(left, 0.25))

    def idle(self, seconds: float) -> None:
        """Read what comes for a while."""
        end = time.monotonic() + seconds
        while not self.closed and (left := end - time.monotonic()) > 0:
            self.read_once(left)

    def read_once(self, wait_s: float) -> None:
        """Read what is there, waiting at most so long for it."""
        readable, _, _ = select.select([self.socket], [], [], wait_s)
        if not readable:
            return
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            self.aborted = self.closed = True
            return
        if not data:
            self.closed = True
            return
        replies = bytearray()
        for frame in self._reader.feed(data):
            self._handle(frame, replies)
        if self._credit and self._uncredited >= 1 << 16:
            replies += WindowUpdateFrame(0, window_increment=self._uncredited).serialize()
            self._uncredited = 0
        if replies:
            self.send(bytes(replies))

    def _handle(self, frame: Frame, replies: bytearray) -> None:
        answer = self.streams.get(frame.stream_id, Answer())
        if isinstance(frame, HeadersFrame):
            self._headers(answer, decode_block(self.decoder, frame.data))
        elif isinstance(frame, DataFrame):
            self._data(frame, answer, replies)
        elif isinstance(frame, RstStreamFrame):
            answer.reset = frame.error_code
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self._settings(frame)
            replies += SettingsFrame(0, flags=["ACK"]).serialize()
        elif isinstance(frame, WindowUpdateFrame):
            if frame.stream_id == 0:
                self.send_window += frame.window_increment
            else:
                answer.send_window += frame.window_increment
        elif isinstance(frame, PingFrame):
            if "ACK" in frame.flags:
                self.pongs.append(frame.opaque_data)
            elif not self.deaf:
                replies += PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]).serialize()
        elif isinstance(frame, GoAwayFrame):
            self.goaways.append((frame.last_stream_id, frame.error_code))
        if isinstance(frame, (HeadersFrame, DataFrame)) and "END_STREAM" in frame.flags:
            answer.ended = True

    def _headers(self, answer: Answer, headers: list[Header]) -> None:
        if headers and headers[0][0] == ":status" and headers[0][1].startswith("1"):
            answer.interim.append(headers)
        elif answer.headers:
            answer.trailers = headers
        else:
            answer.headers = headers

    def _data(self, frame: DataFrame, answer: Answer, replies: bytearray) -> None:
        answer.data += frame.data
        answer.frames.append(len(frame.data))
        size = frame.flow_controlled_length
        self._uncredited += size
        answer.uncredited += size
        if self._credit and answer.uncredited >= 1 << 16 and "END_STREAM" not in frame.flags:
            replies += WindowUpdateFrame(frame.stream_id, window_increment=answer.uncredited).serialize()
            answer.uncredited = 0

    def _settings(self, frame: SettingsFrame) -> None:
        before = self.peer_settings.get(4, DEFAULT_WINDOW)
        self.peer_settings |= frame.settings
        self.settings_seen += 1
        for answer in self.streams.values():
            answer.send_window += self.peer_settings.get(4, DEFAULT_WINDOW) - before

    def give_credit(self, stream: int, size: int) -> None:
        """Window updates for the connection and one stream."""
        self.send(WindowUpdateFrame(0, window_increment=size), WindowUpdateFrame(stream, window_increment=size))
