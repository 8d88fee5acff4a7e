"""gRPC servers: how errors reach the wire, and which addresses are allowed."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from tiltyard.errors import ConfigError, TiltyardError
from tiltyard.rpc.channel import MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 1024),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + 1024),
    # Without this two processes could share one port and each would get half of the calls.
    ("grpc.so_reuseport", 0),
    # Long streams are kept alive by pings every 10 s; by default a server takes more than one in 5 minutes for abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


if TYPE_CHECKING:  # generic for the type checker only
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor


class ErrorInterceptor(_Interceptor):
    """Maps ``TiltyardError`` to its status; anything else becomes INTERNAL and its detail stays in the log."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one method; gRPC calls this once a call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if handler.response_streaming:
            name = "stream_stream" if handler.request_streaming else "unary_stream"
            wrapped: Any = _wrap_stream(getattr(handler, name), method)
        else:
            name = "stream_unary" if handler.request_streaming else "unary_unary"
            wrapped = _wrap_unary(getattr(handler, name), method)
        return handler._replace(**{name: wrapped})


def _wrap_unary(behaviour: Callable[[Any, Any], Awaitable[Any]], method: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await _abort(error, context, method)

    return call


def _wrap_stream(
    behaviour: Callable[[Any, Any], AsyncIterator[Any]], method: str
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for answer in behaviour(request, context):
                yield answer
        except Exception as error:
            await _abort(error, context, method)

    return call


async def _abort(error: Exception, context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
    if isinstance(error, TiltyardError):
        await context.abort(error.status, error.message)
    if isinstance(error, grpc.aio.AbortError):  # the handler has answered already
        raise error
    log.error("call failed", exc_info=error, extra={"method": method})
    await context.abort(grpc.StatusCode.INTERNAL, "internal error; the service's log has the detail")


def create_server(interceptors: Sequence[_Interceptor] = ()) -> grpc.aio.Server:
    """Build an asyncio server with the mesh's limits; errors are mapped by ``ErrorInterceptor``."""
    return grpc.aio.server(interceptors=[*interceptors, ErrorInterceptor()], options=SERVER_OPTIONS)


def check_listen(address: str, *, insecure: bool) -> None:
    """Refuse a plaintext address other than loopback or a UNIX socket unless ``insecure`` says so.

    Raises:
        ConfigError: when the address is malformed, or open to others without ``--insecure-listen``.
    """
    if address.startswith("unix:"):
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--listen {address!r} is not HOST:PORT; for example 127.0.0.1:8500")
    host = host.removeprefix("[").removesuffix("]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not insecure:
        raise ConfigError(
            f"--listen {address}: plaintext is served on loopback only; use 127.0.0.1, or add --insecure-listen "
            "when the network between clients and this machine is trusted"
        )


def bind(server: grpc.aio.Server, address: str) -> str:
    """Bind ``address`` in plaintext and return it with the port that was really taken.

    Raises:
        ConfigError: when the address cannot be bound.
    """
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: is another process serving there? ({error})") from error
    if address.startswith("unix:"):
        return address
    if port == 0:
        raise ConfigError(f"cannot listen on {address}: is another process serving there?")
    return f"{address.rpartition(':')[0]}:{port}"
