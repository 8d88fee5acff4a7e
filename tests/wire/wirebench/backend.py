"""ScriptedBackend: a model server or service on hand-built frames, in a thread, that does as its script says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from hpack import Decoder, Encoder
from hyperframe.exceptions import InvalidFrameError
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

from wirebench.messages import answer as default_answer
from wirebench.messages import grpc_frame, grpc_messages
from wirebench.wires import (
    CANCEL,
    DEFAULT_WINDOW,
    FRAME_BYTES,
    LIMIT_S,
    PREFACE,
    FrameReader,
    Header,
    decode_block,
    headers_frames,
)

Script = Callable[["Call"], Awaitable[None]]

GRPC_HEADERS: tuple[Header, ...] = ((":status", "200"), ("content-type", "application/grpc"))


class GoneError(Exception):
    """The call or its connection ended before the script did."""


class Call:
    """One stream, as the backend sees it. Attributes may be read from any thread; methods run in scripts only."""

    def __init__(self, conn: Connection, stream: int, headers: list[Header], number: int) -> None:
        self.conn = conn
        self.stream = stream
        self.headers = headers
        self.number = number
        """How many requests the backend had before."""
        self.body = bytearray()
        self.trailers: list[Header] | None = None
        self.request_ended = False
        self.reset: int | None = None
        """Code of the router's RST_STREAM."""
        self.gone = False
        """Reset, or the connection is closed."""
        self.answer_ended = False
        self.send_window = conn.peer_window
        self.uncredited = 0

    def get(self, name: str) -> str | None:
        """A request header's last value."""
        return next((value for key, value in reversed(self.headers) if key == name), None)

    @property
    def path(self) -> str:
        """The method."""
        return self.get(":path") or ""

    @property
    def message(self) -> bytes:
        """The request's one message, once it has ended."""
        (message,) = grpc_messages(bytes(self.body))
        return message

    # -- for scripts

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something about this call; GoneError when it ends before."""
        changed = self.conn.backend.changed
        async with changed:
            while not condition():
                if self.gone:
                    raise GoneError
                await changed.wait()

    async def request(self) -> bytes:
        """Wait for the whole request; its message."""
        await self.until(lambda: self.request_ended)
        return self.message

    async def received(self, size: int) -> bytes:
        """Wait until so many bytes came, take them away."""
        await self.until(lambda: len(self.body) >= size)
        taken = bytes(self.body[:size])
        del self.body[:size]
        return taken

    async def cancelled(self) -> None:
        """Wait until the router has reset the call or closed the connection."""
        with contextlib.suppress(GoneError):
            await self.until(lambda: False)

    def head(
        self, extra: Iterable[Header] = (), headers: Iterable[Header] = GRPC_HEADERS, *, end: bool = False
    ) -> None:
        """Answer headers."""
        self.conn.send(headers_frames(self.conn.encoder, self.stream, [*headers, *extra], end=end))
        self.answer_ended = self.answer_ended or end

    async def data(self, data: bytes, *, end: bool = False, frame_bytes: int = FRAME_BYTES) -> None:
        """DATA, as flow control allows."""
        view = memoryview(data)
        while view:
            await self.until(lambda: min(self.conn.send_window, self.send_window) > 0)
            room = min(self.conn.send_window, self.send_window, frame_bytes)
            piece, view = view[:room], view[room:]
            self.conn.send_window -= len(piece)
            self.send_window -= len(piece)
            last = end and not view
            self.conn.send(DataFrame(self.stream, bytes(piece), flags=["END_STREAM"] if last else []))
            await self.conn.drain()
        if end and not data:
            self.conn.send(DataFrame(self.stream, b"", flags=["END_STREAM"]))
        self.answer_ended = self.answer_ended or end

    def tail(self, status: int | None = 0, text: str = "", extra: Iterable[Header] = ()) -> None:
        """Trailers; ``None`` leaves the status out."""
        trailers = [*([("grpc-status", str(status))] if status is not None else []), *extra]
        if text:
            trailers.append(("grpc-message", text))
        self.conn.send(headers_frames(self.conn.encoder, self.stream, trailers or [("x-nothing", "1")], end=True))
        self.answer_ended = True

    async def reply(
        self,
        message: bytes,
        *,
        status: int = 0,
        text: str = "",
        head: Iterable[Header] = (),
        tail: Iterable[Header] = (),
        frame_bytes: int = FRAME_BYTES,
    ) -> None:
        """A whole unary answer."""
        self.head(head)
        await self.data(grpc_frame(message), frame_bytes=frame_bytes)
        self.tail(status, text, tail)

    def only_trailers(self, status: int | None, text: str = "", extra: Iterable[Header] = ()) -> None:
        """An answer of one header block."""
        fields = [*([("grpc-status", str(status))] if status is not None else []), *extra]
        if text:
            fields.append(("grpc-message", text))
        self.head(fields, end=True)

    def rst(self, code: int = CANCEL) -> None:
        """RST_STREAM."""
        self.conn.send(RstStreamFrame(self.stream, error_code=code))
        self.answer_ended = True

    def credit(self, size: int) -> None:
        """Stream window by hand."""
        self.conn.send(WindowUpdateFrame(self.stream, window_increment=size))


class Connection(asyncio.Protocol):
    """One connection of the router to the backend."""

    def __init__(self, backend: ScriptedBackend) -> None:
        self.backend = backend
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.decoder.max_header_list_size = 1 << 20
        self.calls: dict[int, Call] = {}
        self.send_window = DEFAULT_WINDOW
        self.peer_window = DEFAULT_WINDOW
        self.peer_settings: dict[int, int] = {}
        self.goaways: list[tuple[int, int]] = []
        self.most_open = 0
        self.closed = False
        self.error: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._preface = bytearray()
        self._reader = FrameReader()
        self._writable = asyncio.Event()
        self._writable.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._uncredited = 0

    # -- for scripts

    def send(self, *parts: Frame | bytes) -> None:
        """Send frames or bytes as they are."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(part if isinstance(part, bytes) else part.serialize() for part in parts))

    async def drain(self) -> None:
        """Wait until the socket takes more."""
        await self._writable.wait()

    def goaway(self, last_stream: int, code: int = 0) -> None:
        """GOAWAY."""
        self.send(GoAwayFrame(0, last_stream_id=last_stream, error_code=code))

    def close(self) -> None:
        """Close it once all is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close it with a TCP reset."""
        if self._transport is not None and not self.closed:
            linger: Any = self._transport.get_extra_info("socket")
            linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self._transport.abort()

    def open_calls(self) -> int:
        """Streams that count against SETTINGS_MAX_CONCURRENT_STREAMS."""
        return sum(not (call.gone or (call.answer_ended and call.request_ended)) for call in self.calls.values())

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.backend.connections.append(self)
        if self.backend.on_connect is not None:
            self.backend.on_connect(self)
            return
        self.send(SettingsFrame(0, settings=dict(self.backend.settings)))
        if self.backend.window > DEFAULT_WINDOW:
            self.send(WindowUpdateFrame(0, window_increment=self.backend.window - DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._writable.set()
        for call in self.calls.values():
            call.gone = True
        self._notify()
        if self.backend.stopping:
            for task in self._tasks:
                task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self.backend.received_bytes += len(data)
        if self.backend.on_connect is not None:
            return
        if len(self._preface) < len(PREFACE):
            missing = len(PREFACE) - len(self._preface)
            self._preface += data[:missing]
            data = data[missing:]
            assert PREFACE.startswith(bytes(self._preface))
        try:
            for frame in self._reader.feed(data):
                self._handle(frame)
        except (InvalidFrameError, AssertionError) as error:
            self.error = error
            self.close()
        if self._uncredited >= 1 << 16:
            self.send(WindowUpdateFrame(0, window_increment=self._uncredited))
            self._uncredited = 0
        self._notify()

    def _notify(self) -> None:
        async def notify() -> None:
            async with self.backend.changed:
                self.backend.changed.notify_all()

        self._keep(asyncio.get_running_loop().create_task(notify()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _handle(self, frame: Frame) -> None:
        call = self.calls.get(frame.stream_id)
        if isinstance(frame, HeadersFrame):
            self._headers(frame, call)
        elif isinstance(frame, DataFrame):
            self._data(frame, call)
        elif isinstance(frame, RstStreamFrame):
            if call is not None:
                call.reset = frame.error_code
                call.gone = True
        elif isinstance(frame, SettingsFrame):
            if "ACK" not in frame.flags:
                self._settings(frame)
        elif isinstance(frame, WindowUpdateFrame):
            if frame.stream_id == 0:
                self.send_window += frame.window_increment
            elif call is not None:
                call.send_window += frame.window_increment
        elif isinstance(frame, PingFrame):
            if "ACK" not in frame.flags:
                self.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, GoAwayFrame):
            self.goaways.append((frame.last_stream_id, frame.error_code))

    def _headers(self, frame: HeadersFrame, call: Call | None) -> None:
        headers = decode_block(self.decoder, frame.data)
        if call is None:
            call = Call(self, frame.stream_id, headers, len(self.backend.calls))
            self.calls[frame.stream_id] = call
            self.backend.calls.append(call)
            self.most_open = max(self.most_open, self.open_calls())
            self._keep(asyncio.get_running_loop().create_task(self._run(call, self.backend.script)))
        else:
            call.trailers = headers
        if "END_STREAM" in frame.flags:
            call.request_ended = True

    async def _run(self, call: Call, script: Script) -> None:
        try:
            await script(call)
        except GoneError:
            pass
        except Exception as error:
            self.backend.errors.append(error)

    def _data(self, frame: DataFrame, call: Call | None) -> None:
        self._uncredited += frame.flow_controlled_length
        if call is None:
            return
        call.body += frame.data
        call.uncredited += frame.flow_controlled_length
        if "END_STREAM" in frame.flags:
            call.request_ended = True
        elif self.backend.credit and call.uncredited >= 1 << 15:
            self.send(WindowUpdateFrame(call.stream, window_increment=call.uncredited))
            call.uncredited = 0

    def _settings(self, frame: SettingsFrame) -> None:
        self.peer_settings |= frame.settings
        window = self.peer_settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
        for call in self.calls.values():
            call.send_window += window - self.peer_window
        self.peer_window = window
        self.send(SettingsFrame(0, flags=["ACK"]))


async def echo(call: Call) -> None:
    """The default script: one float output ``main`` of 0.75."""
    await call.request()
    await call.reply(default_answer())


def replies(message: bytes, **how: Any) -> Script:
    """A script that gives this answer; ``how`` as in ``Call.reply``."""

    async def script(call: Call) -> None:
        await call.request()
        await call.reply(message, **how)

    return script


def refuses(status: int, text: str = "") -> Script:
    """A script that answers with a status and no message."""

    async def script(call: Call) -> None:
        await call.request()
        call.only_trailers(status, text)

    return script


async def silence(call: Call) -> None:
    """A script that never answers."""
    await call.cancelled()


class ScriptedBackend:
    """Serves on a free port of 127.0.0.1 until it is stopped; use it as a context manager.

    Args:
        script: what is done with each call; may be changed at any time.
        settings: of its SETTINGS frame.
        window: receive window of the connection.
        credit: whether received bytes are credited back to the stream by themselves.
        on_connect: when set it gets each new connection, and nothing is sent or understood otherwise.
        address: ``host:port`` or ``unix:PATH`` to serve on.
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        settings: Mapping[int, int] | None = None,
        window: int = 1 << 24,
        credit: bool = True,
        on_connect: Callable[[Connection], None] | None = None,
        address: str = "127.0.0.1:0",
    ) -> None:
        self.script = script
        self.settings: dict[int, int] = {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20} | dict(settings or {})
        self.window = window
        self.credit = credit
        self.on_connect = on_connect
        self.address = address
        self.calls: list[Call] = []
        self.connections: list[Connection] = []
        self.errors: list[Exception] = []
        """What scripts raised; looked at when it stops."""
        self.received_bytes = 0
        self.stopping = False
        self.changed = asyncio.Condition()
        """Told after whatever came on any connection."""
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.AbstractServer | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted-backend", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping = True
        self.stop_listening()
        self.close_connections()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()
        if error is None and self.errors:
            raise self.errors[0]

    def run(self, work: Any) -> Any:
        """Run a coroutine on its loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def do(self, action: Callable[..., None], *args: Any) -> None:
        """Call something on its loop and wait for it."""

        async def call() -> None:
            action(*args)

        self.run(call())

    async def _listen(self) -> None:
        if self.address.startswith("unix:"):
            self._server = await self._loop.create_unix_server(lambda: Connection(self), self.address[5:])
            return
        host, _, port = self.address.rpartition(":")
        server = await self._loop.create_server(lambda: Connection(self), host.strip("[]"), int(port))
        self.address = f"{host}:{server.sockets[0].getsockname()[1]}"
        self._server = server

    def wake(self) -> None:
        """Let scripts look again at what they wait for."""

        async def wake() -> None:
            async with self.changed:
                self.changed.notify_all()

        self.run(wake())

    def listen(self) -> None:
        """Listen again, on the same port."""
        self.run(self._listen())

    def stop_listening(self) -> None:
        """Refuse new connections; those there are stay."""

        def close() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None

        self.do(close)

    def close_connections(self) -> None:
        """Close all connections, and wait for their scripts to notice."""

        async def close() -> None:
            for conn in self.connections:
                conn.close()
                for call in conn.calls.values():
                    call.gone = True
            for conn in self.connections:
                if conn.closed or conn._transport is None:
                    continue
                conn._transport.abort()
            await asyncio.sleep(0)
            tasks = [task for conn in self.connections for task in conn._tasks]
            if self.stopping:
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(close())

    def die(self) -> None:
        """Stop listening and drop every connection, as a killed process does."""
        self.stop_listening()

        def abort() -> None:
            for conn in self.connections:
                conn.abort()

        self.do(abort)

    @property
    def open_connections(self) -> list[Connection]:
        """Those not closed."""
        return [conn for conn in self.connections if not conn.closed]
