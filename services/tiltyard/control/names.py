"""Resource names: what may be called what, and how the parts are read out of a name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tiltyard.errors import InvalidArgumentError

_ID = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_PIPELINE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

ANY_WORKSPACE = "-"
"""In a list's parent: all workspaces."""


@dataclass(frozen=True, slots=True, order=True)
class ModelRef:
    """One version of a model.

    Attributes:
        workspace: name of the workspace it is in.
        model: name of the model.
        version: version number, from 1.
    """

    workspace: str
    model: str
    version: int

    @property
    def served_name(self) -> str:
        """The name model servers know the model by. Names hold no dot, so it says both parts."""
        return f"{self.workspace}.{self.model}"

    def __str__(self) -> str:
        return f"workspaces/{self.workspace}/models/{self.model}/versions/{self.version}"


@dataclass(frozen=True, slots=True, order=True)
class PipelineRef:
    """One pipeline.

    Attributes:
        workspace: name of the workspace it is in.
        pipeline: name of the pipeline.
    """

    workspace: str
    pipeline: str

    def __str__(self) -> str:
        return f"workspaces/{self.workspace}/pipelines/{self.pipeline}"


def check_id(what: str, text: str) -> str:
    """Return ``text`` when it may name a new workspace or model.

    Raises:
        InvalidArgumentError: when it may not.
    """
    if not _ID.fullmatch(text):
        raise InvalidArgumentError(
            f"{what} name {text!r}: use ASCII letters, digits and dashes, a letter first, no dash last, "
            "fewer than 64 characters"
        )
    return text


def check_pipeline_id(text: str) -> str:
    """Return ``text`` when it may name a new pipeline.

    Raises:
        InvalidArgumentError: when it may not.
    """
    if not _PIPELINE_ID.fullmatch(text):
        raise InvalidArgumentError(
            f"pipeline name {text!r}: use lower-case letters, digits and dashes, a letter or digit first and last, "
            "fewer than 64 characters"
        )
    return text


def parse_workspace(name: str, *, wildcard: bool = False) -> str:
    """The workspace in ``workspaces/{workspace}``; with ``wildcard`` also ``-`` for all.

    Raises:
        InvalidArgumentError: when the name has another form.
    """
    (workspace,) = _parts(name, "workspaces/{workspace}")
    if workspace == ANY_WORKSPACE and not wildcard:
        raise InvalidArgumentError(f"{name!r}: name one workspace here")
    return workspace


def parse_model(name: str) -> tuple[str, str]:
    """Workspace and model in ``workspaces/{workspace}/models/{model}``; raises ``InvalidArgumentError``."""
    workspace, model = _parts(name, "workspaces/{workspace}/models/{model}")
    return workspace, model


def parse_model_version(name: str) -> ModelRef:
    """The version in ``workspaces/{workspace}/models/{model}/versions/{version}``; raises ``InvalidArgumentError``."""
    workspace, model, version = _parts(name, "workspaces/{workspace}/models/{model}/versions/{version}")
    return ModelRef(workspace, model, _number(name, version))


def parse_pipeline(name: str) -> PipelineRef:
    """The pipeline in ``workspaces/{workspace}/pipelines/{pipeline}``; raises ``InvalidArgumentError``."""
    return PipelineRef(*_parts(name, "workspaces/{workspace}/pipelines/{pipeline}"))


def parse_pipeline_version(name: str) -> tuple[PipelineRef, int]:
    """Pipeline and version in ``.../pipelines/{pipeline}/versions/{version}``; raises ``InvalidArgumentError``."""
    workspace, pipeline, version = _parts(name, "workspaces/{workspace}/pipelines/{pipeline}/versions/{version}")
    return PipelineRef(workspace, pipeline), _number(name, version)


def parse_deployment(name: str) -> PipelineRef:
    """The pipeline in ``workspaces/{workspace}/pipelines/{pipeline}/deployment``; raises ``InvalidArgumentError``."""
    return PipelineRef(*_parts(name, "workspaces/{workspace}/pipelines/{pipeline}/deployment"))


def _parts(name: str, form: str) -> list[str]:
    given, wanted = name.split("/"), form.split("/")
    fits = len(given) == len(wanted) and all(
        part if word.startswith("{") else part == word for part, word in zip(given, wanted, strict=True)
    )
    if not fits:
        raise InvalidArgumentError(f"{name!r} is no resource name of the form {form}")
    return [part for part, word in zip(given, wanted, strict=True) if word.startswith("{")]


def _number(name: str, text: str) -> int:
    if not _VERSION.fullmatch(text):
        raise InvalidArgumentError(f"{name!r}: a version is a whole number from 1")
    return int(text)
