"""Client channels with the limits and reconnect times the whole mesh agrees on."""

from __future__ import annotations

import grpc.aio

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message the router takes in either direction; gRPC's own default of 4 MiB is too small for models."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 1024),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + 1024),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Two channels to one address must not share a connection: tests and benchmarks count connections.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """Open an insecure asyncio channel.

    Args:
        address: ``host:port`` or ``unix:PATH``.
    """
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
