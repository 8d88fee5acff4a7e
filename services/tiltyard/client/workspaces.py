"""Workspaces as users hold them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from tiltyard.api.control.v1 import workspace_pb2
from tiltyard.client import names
from tiltyard.client.tables import TableList, card, when
from tiltyard.errors import TiltyardError

if TYPE_CHECKING:
    from tiltyard.client.client import Client
    from tiltyard.client.models import ModelList
    from tiltyard.client.pipelines import PipelineList

__all__ = ["Workspace", "WorkspaceList"]


class Workspace:
    """A folder for models and pipelines."""

    def __init__(self, client: Client, proto: workspace_pb2.Workspace) -> None:
        self._client = client
        self._proto = proto

    def name(self) -> str:
        """Its name."""
        return names.last(self._proto.name)

    def id(self) -> int:
        """Its number, from 1."""
        return self._proto.id

    def created_at(self) -> datetime:
        """When it was made, in UTC."""
        return when(self._proto.create_time)

    def models(self) -> ModelList:
        """The newest version of each model in it, by name."""
        return self._client._list_models(self._proto.name)

    def pipelines(self) -> PipelineList:
        """The pipelines in it, by name."""
        return self._client._list_pipelines(self._proto.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Workspace) and other._proto.name == self._proto.name

    def __hash__(self) -> int:
        return hash(self._proto.name)

    def __repr__(self) -> str:
        return repr(self._fields())

    def _repr_html_(self) -> str:
        return card(self._fields().items())

    def _fields(self) -> dict[str, object]:
        fields: dict[str, object] = {"name": self.name(), "id": self.id(), "created_at": self.created_at().isoformat()}
        try:
            fields["models"] = [model.name() for model in self.models()]
            fields["pipelines"] = [pipeline.name() for pipeline in self.pipelines()]
        except TiltyardError:  # showing an object must not fail because nobody answers
            pass
        return fields


class WorkspaceList(TableList[Workspace]):
    """Workspaces; a table in a notebook."""

    def __init__(self, items: list[Workspace]) -> None:
        super().__init__(items, ("name", "id", "created"), _row)


def _row(workspace: Workspace) -> tuple[object, ...]:
    return workspace.name(), workspace.id(), workspace.created_at()
