"""What the services share when they speak gRPC: servers, channels, and errors on the wire."""

from tiltyard.rpc.channel import CHANNEL_OPTIONS, open_channel
from tiltyard.rpc.server import SERVER_OPTIONS, ErrorInterceptor, bind, check_listen, create_server

__all__ = [
    "CHANNEL_OPTIONS",
    "SERVER_OPTIONS",
    "ErrorInterceptor",
    "bind",
    "check_listen",
    "create_server",
    "open_channel",
]
