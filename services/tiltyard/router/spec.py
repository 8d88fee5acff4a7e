"""What a router shall do, as plain values: the form in which a routes file and a snapshot become one table.

``tiltyard_router.routes.RouteTable`` takes a ``RouteSpec`` (by its attributes, so this module needs no compiled code)
and checks it once more; what is built here by hand or from a peer's message cannot harm the core.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ArmSpec", "MetricSpec", "PipelineSpec", "ReceiptKey", "RouteSpec"]


@dataclass(frozen=True, slots=True)
class ReceiptKey:
    """A key that signs inference ids."""

    number: int
    """Key number in the receipt, 0 to 15."""
    secret: bytes
    """32 bytes."""

    def __repr__(self) -> str:
        return f"ReceiptKey(number={self.number})"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One number read from every answer."""

    name: str
    output: str
    """Name of the output tensor."""
    index: int = 0
    """Flat index of the element within one row."""
    above: float | None = None
    """When set, the element counts 1 if it is greater and 0 otherwise."""


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One arm of a pipeline."""

    name: str
    model: str
    version: int
    backends: tuple[str, ...]
    """``host:port`` texts; at least one."""


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """One pipeline in force."""

    key: str
    """The name it is counted under."""
    uid: str
    """Identifies the deployment in counts."""
    request_names: tuple[str, ...]
    """What ``model_spec.name`` may say to mean this pipeline."""
    arms: tuple[ArmSpec, ...]
    """1 to 16; the first is the champion."""
    slots: tuple[tuple[int, int], ...]
    """Runs ``(end, arm index)`` with ``end`` the first slot after the run; the last ends at 10,000."""
    epoch: int = 1
    """Weight epoch, from 1."""
    hash_key: str = ""
    """Metadata key or input tensor that makes requests sticky; empty when there is none."""
    salt: bytes = b""
    metrics: tuple[MetricSpec, ...] = ()
    """At most 8."""
    timeout_s: float = 0.0
    """Longest a request may take, in seconds; 0: the router's default."""


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A whole route table."""

    revision: int
    """From 1; rises with every table that a router puts in force."""
    pipelines: tuple[PipelineSpec, ...]
    receipt_key: ReceiptKey | None = None
    """The key that signs; ``None``: the one in force stays."""
