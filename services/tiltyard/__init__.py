"""Tiltyard: contests between machine-learning models that serve live traffic.

``tiltyard.Client`` is the way in. The public names below are loaded when they are first used, so that the services,
which live in this package too, do not pay for the SDK.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiltyard.client import (
        Client,
        InferenceResult,
        MetricSpec,
        ModelVersion,
        Pipeline,
        Report,
        TensorSpec,
        Workspace,
    )
    from tiltyard.errors import (
        AlreadyExistsError,
        DeadlineError,
        DeployError,
        EntityNotFoundError,
        FailedPreconditionError,
        InferenceError,
        InvalidArgumentError,
        LimitError,
        ModelUploadError,
        TiltyardError,
        TiltyardWarning,
        UnavailableError,
        UnsupportedError,
    )

__all__ = [
    "AlreadyExistsError",
    "Client",
    "DeadlineError",
    "DeployError",
    "EntityNotFoundError",
    "FailedPreconditionError",
    "InferenceError",
    "InferenceResult",
    "InvalidArgumentError",
    "LimitError",
    "MetricSpec",
    "ModelUploadError",
    "ModelVersion",
    "Pipeline",
    "Report",
    "TensorSpec",
    "TiltyardError",
    "TiltyardWarning",
    "UnavailableError",
    "UnsupportedError",
    "Workspace",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'tiltyard' has no attribute {name!r}")
    module = "tiltyard.errors" if name.endswith(("Error", "Warning")) else "tiltyard.client"
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
