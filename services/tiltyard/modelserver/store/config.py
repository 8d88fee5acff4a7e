"""The configuration of a model server: read from a ModelServerConfig, and matched with the folders on disk."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tiltyard.api.tfs.v1.config_pb2 import ModelServerConfig
from tiltyard.errors import InvalidArgumentError

PLATFORM = "tensorflow"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model to be served; ``base_path`` holds one folder per version, named by its number."""

    name: str
    base_path: Path
    platform: str = PLATFORM
    latest: int = 1
    """Serve this many of the greatest versions; 0 means all. Not used when ``specific`` is set."""
    specific: frozenset[int] | None = None
    labels: Mapping[str, int] = field(default_factory=dict)

    def choose(self, on_disk: Collection[int]) -> list[int]:
        """The versions to serve of those on disk, greatest first."""
        ordered = sorted(on_disk, reverse=True)
        if self.specific is not None:
            return [number for number in ordered if number in self.specific]
        return ordered[: self.latest or None]


def scan(base_path: Path) -> dict[int, Path] | None:
    """The version folders in ``base_path`` by number; None when there is no such folder."""
    try:
        folders = sorted(child for child in base_path.iterdir() if child.is_dir())
    except OSError:
        return None
    numbered = {int(folder.name): folder for folder in folders if re.fullmatch("[+-]?[0-9]+", folder.name)}
    return {number: folder for number, folder in numbered.items() if -(2**63) <= number < 2**63}


def read_config(config: ModelServerConfig) -> dict[str, ModelEntry]:
    """Entries by model name, from a ModelServerConfig. Platforms are judged later: that comes after the labels.

    Raises InvalidArgumentError: no model list, a model without name or twice, or a base path that is not absolute.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise InvalidArgumentError("the configuration has no model_config_list; other kinds are not supported")
    entries: dict[str, ModelEntry] = {}
    for model in config.model_config_list.config:
        if not model.name or model.name in entries:
            raise InvalidArgumentError(f"a model needs a name of its own; {model.name!r} is empty or there twice")
        policy = model.model_version_policy
        kind = policy.WhichOneof("policy_choice")
        entries[model.name] = ModelEntry(
            name=model.name,
            base_path=Path(model.base_path),
            platform=model.model_platform,
            latest=0 if kind == "all" else policy.latest.num_versions or 1,
            specific=frozenset(policy.specific.versions) if kind == "specific" else None,
            labels=dict(model.version_labels),
        )
    for name, entry in entries.items():
        if not entry.base_path.is_absolute():
            raise InvalidArgumentError(f"base_path {entry.base_path} of model {name} is no absolute path of a folder")
    return entries
