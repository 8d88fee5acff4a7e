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

__all__ = ["ModelList", "ModelVersion", "is_tensorflow", "refuse_set"]


def is_tensorflow(name: object) -> bool:
    """Whether a framework or runtime, as people name it, is TensorFlow; members of enums of ``str`` are names too."""
    return isinstance(name, str) and name.lower() == "tensorflow"


def refuse_set(call: str, options: Mapping[str, object], instead: str) -> None:
    """Refuse options of the Wallaroo SDK that mean nothing here, unless they are None.

    Args:
        call: the method, for the message.
        options: by name.
        instead: what to do.

    Raises:
        UnsupportedError: one of them is set.
    """
    for name, value in options.items():
        if value is not None:
            raise UnsupportedError(f"{call}({name}={value!r:.80}) is not supported: {instead}; leave {name}= out")


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

    def configure(
        self,
        runtime: str | None = None,
        *,
        tensor_fields: None = None,
        filter_threshold: None = None,
        input_schema: None = None,
        output_schema: None = None,
        batch_config: None = None,
        dynamic_batching_config: None = None,
        continuous_batching_config: None = None,
        openai_config: None = None,
    ) -> ModelVersion:
        """Say what the model runs on, and get the model back.

        The other options are those of the Wallaroo SDK, for scripts that name them with their default, None.

        Args:
            runtime: ``"tensorflow"``; the only one there is.

        Raises:
            UnsupportedError: another runtime was asked for, or another option is set.
        """
        if runtime is not None and not is_tensorflow(runtime):
            raise UnsupportedError(f"runtime {runtime!r}: models run on 'tensorflow' only; export it as a SavedModel")
        options = {
            "tensor_fields": tensor_fields,
            "filter_threshold": filter_threshold,
            "input_schema": input_schema,
            "output_schema": output_schema,
            "batch_config": batch_config,
            "dynamic_batching_config": dynamic_batching_config,
            "continuous_batching_config": continuous_batching_config,
            "openai_config": openai_config,
        }
        refuse_set("configure", options, "a model's inputs and outputs are those its SavedModel declares")
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
