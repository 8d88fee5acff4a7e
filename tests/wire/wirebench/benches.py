"""The usual set-up: one backend, one router before it, one client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tiltyard.router.spec import MetricSpec

from wirebench.backend import Script, ScriptedBackend, echo
from wirebench.client import RawClient
from wirebench.routers import CoreRouter, arm, pipeline


class Bench(NamedTuple):
    """What a test plays with."""

    backend: ScriptedBackend
    router: CoreRouter
    client: RawClient


@contextmanager
def one_arm(
    script: Script = echo,
    *,
    metrics: Sequence[MetricSpec] = (),
    counters: Path | None = None,
    backend: dict[str, Any] | None = None,
    client: dict[str, Any] | None = None,
    timeout_s: float = 0.0,
    **settings: Any,
) -> Iterator[Bench]:
    """Pipeline ``p`` with the arm ``a`` alone.

    Args:
        script: of the backend.
        metrics: of the pipeline.
        counters: file to count in.
        backend: more settings of the backend.
        client: more settings of the client.
        timeout_s: of the pipeline.
        settings: of the router's core.
    """
    with ScriptedBackend(script, **(backend or {})) as served:
        table = pipeline(arm("a", served.address), metrics=metrics, timeout_s=timeout_s)
        with (
            CoreRouter(table, counters=counters, **settings) as router,
            RawClient(router.address, **(client or {})) as raw,
        ):
            yield Bench(served, router, raw)
