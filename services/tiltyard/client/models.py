"""Uploaded models as users hold them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from tiltyard.api.control.v1 import model_pb2
from tiltyard.client import names
from tiltyard.client.signatures import TensorSpec, signature_of
from tiltyard.client.tables import TableList, card, when
from tiltyard.errors import UnsupportedError

if TYPE_CHECKING:
    from tiltyard.client.client import Client

__all__ = ["ModelList", "ModelVersion"]


class ModelVersion:
    """One uploaded SavedModel. It never changes; another upload under the same name is another version."""

    def __init__(self, client: Client, proto: model_pb2.ModelVersion) -> None:
        self._client = client
        self._proto = proto

    def name(self) -> str:
        """Name of the model."""
        return names.version_of(self._proto.name)[0]

    def version(self) -> str:
        """Number of the version, from "1"; TensorFlow Serving's version."""
        return str(self._proto.version)

    def id(self) -> str:
        """Resource name, ``workspaces/{workspace}/models/{model}/versions/{version}``."""
        return self._proto.name

    def workspace(self) -> str:
        """Name of the workspace it lies in."""
        return self._proto.name.split("/")[1]

    def sha(self) -> str:
        """SHA-256 in hex over the content; two uploads of the same model have the same."""
        return self._proto.digest

    def file_name(self) -> str:
        """Name of the file or folder it was uploaded from."""
        return self._proto.file_name

    def size_bytes(self) -> int:
        """Size of the content in bytes."""
        return self._proto.size_bytes

    def created_at(self) -> datetime:
        """When it was uploaded, in UTC."""
        return when(self._proto.create_time)

    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs requests must hold, by name.

        Raises:
            FailedPreconditionError: the model has no signature that could be meant.
        """
        return signature_of(self._proto).inputs

    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs answers hold, by name.

        Raises:
            FailedPreconditionError: the model has no signature that could be meant.
        """
        return signature_of(self._proto).outputs

    def versions(self) -> ModelList:
        """All versions of this model, newest first."""
        return self._client._model_versions(self._proto.name.rpartition("/versions/")[0])

    def configure(self, runtime: str | None = None) -> ModelVersion:
        """Say what the model runs on, and get the model back.

        Args:
            runtime: ``"tensorflow"``; the only one there is.

        Raises:
            UnsupportedError: another runtime was asked for.
        """
        if runtime is not None and str(runtime).lower() != "tensorflow":
            raise UnsupportedError(f"runtime {runtime!r}: models run on 'tensorflow' only; export it as a SavedModel")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelVersion) and other._proto.name == self._proto.name

    def __hash__(self) -> int:
        return hash(self._proto.name)

    def __repr__(self) -> str:
        return f"ModelVersion(name={self.name()!r}, version={self.version()!r}, sha={self.sha()[:12]!r})"

    def _repr_html_(self) -> str:
        return card(zip(_HEADER, _row(self), strict=True))


class ModelList(TableList[ModelVersion]):
    """Models; a table in a notebook."""

    def __init__(self, items: list[ModelVersion]) -> None:
        super().__init__(items, _HEADER, _row)


_HEADER = ("name", "version", "file", "sha", "size in bytes", "created")


def _row(model: ModelVersion) -> tuple[object, ...]:
    return model.name(), model.version(), model.file_name(), model.sha(), model.size_bytes(), model.created_at()
