"""Whether all of it serves, asked the way users ask: through the router's address."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from tiltyard.api.control.v1 import workspace_pb2, workspace_pb2_grpc
from tiltyard.api.outcomes.v1 import outcome_pb2, outcome_pb2_grpc
from tiltyard.rpc import open_channel

__all__ = ["wait_until_serving"]

_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}; the question may be empty: the whole server
_CALL_LIMIT_S = 2.0
_POLL_S = 0.05


async def wait_until_serving(router: str, model_server: str) -> None:
    """Wait until the router has a table in force and passes calls on, and the model server can be reached.

    Args:
        router: ``HOST:PORT``.
        model_server: ``HOST:PORT``.
    """
    async with open_channel(model_server) as channel:
        await channel.channel_ready()
    while True:
        if await _all_answer(router):
            return
        await asyncio.sleep(_POLL_S)


async def _all_answer(router: str) -> bool:
    # A channel for each look: one that was refused would wait before it connects again.
    async with open_channel(router) as channel:
        try:
            check: Any = channel.unary_unary(_HEALTH, request_serializer=None, response_deserializer=None)
            if await check(b"", timeout=_CALL_LIMIT_S) != _SERVING:
                return False
            control: workspace_pb2_grpc.WorkspaceServiceAsyncStub = workspace_pb2_grpc.WorkspaceServiceStub(channel)
            await control.ListWorkspaces(workspace_pb2.ListWorkspacesRequest(page_size=1), timeout=_CALL_LIMIT_S)
            outcomes: outcome_pb2_grpc.OutcomeServiceAsyncStub = outcome_pb2_grpc.OutcomeServiceStub(channel)
            await outcomes.ListReports(outcome_pb2.ListReportsRequest(page_size=1), timeout=_CALL_LIMIT_S)
        except grpc.aio.AioRpcError:
            return False
    return True
