"""The configuration of a model server: read from a ModelServerConfig, and matched with the folders on disk."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiltyard.errors import InvalidArgumentError

PLATFORM = "tensorflow"
_VERSION = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model to be served."""

    name: str
    base_path: Path
    """Holds one folder per version, named by its number."""
    platform: str = PLATFORM
    latest: int = 1
    """Serve this many of the greatest versions; 0 means all. Not used when ``specific`` is set."""
    specific: frozenset[int] | None = None
    labels: Mapping[str, int] = field(default_factory=dict)

    def choose(self, on_disk: Collection[int]) -> list[int]:
        """The versions to serve of those on disk, greatest first."""
        if self.specific is not None:
            return sorted(self.specific.intersection(on_disk), reverse=True)
        ordered = sorted(on_disk, reverse=True)
        return ordered[: self.latest] if self.latest else ordered


def scan(base_path: Path) -> dict[int, Path] | None:
    """The version folders in ``base_path`` by number; None when there is no such folder."""
    try:
        children = sorted(child for child in base_path.iterdir() if child.is_dir())
    except OSError:
        return None
    numbered = {int(child.name): child for child in children if _VERSION.fullmatch(child.name)}
    return {number: child for number, child in numbered.items() if -(2**63) <= number < 2**63}


def read_config(config: Any) -> dict[str, ModelEntry]:
    """Entries by model name, from a ModelServerConfig.

    Raises:
        InvalidArgumentError: no model list, a model without name or twice, or a base path that is not absolute. The
            platform is not judged yet: that comes after the labels.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise InvalidArgumentError("the configuration has no model_config_list; other kinds are not supported")
    models = list(config.model_config_list.config)
    names = [model.name for model in models]
    for name in names:
        if not name:
            raise InvalidArgumentError("a model in the configuration has no name")
        if names.count(name) > 1:
            raise InvalidArgumentError(f"model {name} is in the configuration more than once")
    for model in models:
        if not model.base_path.startswith("/"):
            raise InvalidArgumentError(
                f"base_path of model {model.name} must be an absolute path of a local folder, not {model.base_path!r}"
            )
    return {model.name: _entry(model) for model in models}


def _entry(model: Any) -> ModelEntry:
    policy = model.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    return ModelEntry(
        name=model.name,
        base_path=Path(model.base_path),
        platform=model.model_platform,
        latest=0 if kind == "all" else policy.latest.num_versions or 1,
        specific=frozenset(policy.specific.versions) if kind == "specific" else None,
        labels=dict(model.version_labels),
    )
