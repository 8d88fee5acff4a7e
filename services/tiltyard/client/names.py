"""Resource names: checked before they are sent, built and taken apart in one place."""

from __future__ import annotations

import re

from tiltyard.errors import InvalidArgumentError

__all__ = [
    "check_arm",
    "check_metric",
    "check_name",
    "check_pipeline",
    "is_taken_metadata",
    "last",
    "split_pipeline",
    "version_of",
]

_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PIPELINE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_ARM = re.compile(r"[A-Za-z0-9_-]{1,64}")
_METRIC = re.compile(r"[a-z0-9_.-]{1,64}")

# Metadata of these names never reaches the router as the caller wrote it, or ends the call.
_TAKEN_PREFIXES = ("grpc-", "tiltyard-", ":")
_TAKEN_METADATA = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)


def check_name(name: str, what: str) -> str:
    """The name of a workspace or model.

    Raises:
        InvalidArgumentError: no such name can exist.
    """
    return _check(
        _NAME, name, what, "up to 63 ASCII letters, digits and dashes, beginning with a letter and not ending in a dash"
    )


def check_pipeline(name: str) -> str:
    """The name of a pipeline.

    Raises:
        InvalidArgumentError: no such name can exist.
    """
    return _check(
        _PIPELINE, name, "pipeline", "up to 63 lower-case letters, digits and dashes, not beginning or ending in a dash"
    )


def is_taken_metadata(name: str) -> bool:
    """Whether gRPC, HTTP/2 or Tiltyard uses metadata of this (lower-case) name itself."""
    return name.startswith(_TAKEN_PREFIXES) or name in _TAKEN_METADATA


def check_arm(name: str) -> str:
    """The name of an arm.

    Raises:
        InvalidArgumentError: no such name can exist.
    """
    return _check(_ARM, name, "arm", "up to 64 ASCII letters, digits, dashes and underscores")


def check_metric(name: str) -> str:
    """The name of a metric.

    Raises:
        InvalidArgumentError: no such name can exist.
    """
    return _check(_METRIC, name, "metric", "up to 64 of the characters a-z 0-9 _ . -")


def _check(pattern: re.Pattern[str], name: str, what: str, rule: str) -> str:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise InvalidArgumentError(f"{name!r} is no {what} name; use {rule}")
    return name


def last(resource: str) -> str:
    """``fraud`` of ``workspaces/w/models/fraud``."""
    return resource.rpartition("/")[2]


def version_of(resource: str) -> tuple[str, str]:
    """``("fraud", "3")`` of ``workspaces/w/models/fraud/versions/3``."""
    parent, _, version = resource.rpartition("/versions/")
    return last(parent), version


def split_pipeline(name: str) -> tuple[str, str]:
    """Workspace and pipeline of ``fraud`` (workspace ``""``), ``w/fraud`` or ``workspaces/w/pipelines/fraud``.

    Raises:
        InvalidArgumentError: the text has none of these forms.
    """
    parts = name.split("/")
    if len(parts) == 4 and parts[0] == "workspaces" and parts[2] == "pipelines":
        parts = [parts[1], parts[3]]
    if len(parts) == 1:
        return "", check_pipeline(parts[0])
    if len(parts) == 2:
        return check_name(parts[0], "workspace"), check_pipeline(parts[1])
    raise InvalidArgumentError(f"{name!r} is no pipeline; write NAME or WORKSPACE/NAME")
