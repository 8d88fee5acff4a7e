"""The way in: one address, and from there workspaces, models and pipelines."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from tiltyard.api.control.v1 import deployment_pb2, model_pb2, pipeline_pb2, workspace_pb2
from tiltyard.api.outcomes.v1 import outcome_pb2
from tiltyard.client import names
from tiltyard.client.connection import PAGE_SIZE, Connection, pages
from tiltyard.client.models import ModelList, ModelVersion, is_tensorflow
from tiltyard.client.pipelines import Pipeline, PipelineList
from tiltyard.client.reports import Report, report_from
from tiltyard.client.uploads import Source, find_source, upload_requests
from tiltyard.client.workspaces import Workspace, WorkspaceList
from tiltyard.errors import (
    AlreadyExistsError,
    EntityNotFoundError,
    InvalidArgumentError,
    ModelUploadError,
    TiltyardError,
)

__all__ = ["DEFAULT_ADDRESS", "Client"]

DEFAULT_ADDRESS = "127.0.0.1:8500"

DEFAULT_WORKSPACE = "default"

UPLOAD_GRACE_S = 120.0
UPLOAD_BYTES_PER_S = 256 * 1024
"""An upload may take the grace time and as long as its size takes at this rate."""


class Client:
    """A connection to a Tiltyard, safe to use from several threads; nothing is sent before the first call.

    Args:
        address: ``host:port`` of the router, which ``tiltyard up`` prints.
        request_timeout: deadline of calls other than inference, in seconds.
        interactive: show the progress of slow calls on stderr; ``None`` when a terminal or notebook is there.

    Raises:
        InvalidArgumentError: the address is none.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, request_timeout: float = 45.0, interactive: bool | None = None
    ) -> None:
        self._connection = Connection(address, timeout_s=request_timeout, interactive=interactive)
        self._workspace: Workspace | None = None
        self._versions: dict[str, model_pb2.ModelVersion] = {}  # by resource name; they never change
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled. May be called twice."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"tiltyard.Client({self._connection.address!r})"

    # -- workspaces ----------------------------------------------------------------------------------------------------

    def list_workspaces(self) -> WorkspaceList:
        """All workspaces, by name."""

        def fetch(token: str) -> tuple[list[workspace_pb2.Workspace], str]:
            request = workspace_pb2.ListWorkspacesRequest(page_size=PAGE_SIZE, page_token=token)
            page = self._connection.call(self._connection.workspaces.ListWorkspaces, request, what="list workspaces")
            return list(page.workspaces), page.next_page_token

        return WorkspaceList([Workspace(self, proto) for proto in pages(fetch)])

    def create_workspace(self, name: str) -> Workspace:
        """Make a workspace.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidArgumentError: the name is none.
        """
        request = workspace_pb2.CreateWorkspaceRequest(workspace_id=names.check_name(name, "workspace"))
        response = self._connection.call(
            self._connection.workspaces.CreateWorkspace, request, what=f"create workspace {name!r}"
        )
        return Workspace(self, response.workspace)

    def get_workspace(self, name: str, create_if_not_exist: bool = False) -> Workspace:
        """The workspace of that name.

        Args:
            name: its name.
            create_if_not_exist: make it when there is none.

        Raises:
            EntityNotFoundError: there is none.
        """
        request = workspace_pb2.GetWorkspaceRequest(name=f"workspaces/{names.check_name(name, 'workspace')}")
        while True:
            try:
                response = self._connection.call(
                    self._connection.workspaces.GetWorkspace, request, what=f"get workspace {name!r}"
                )
            except EntityNotFoundError as error:
                if not create_if_not_exist:
                    raise EntityNotFoundError(
                        f"there is no workspace {name!r}; make it with create_workspace({name!r}), "
                        "list_workspaces() shows what there is"
                    ) from error
            else:
                return Workspace(self, response.workspace)
            try:
                return self.create_workspace(name)
            except AlreadyExistsError:  # somebody else made it in between
                continue

    def set_current_workspace(self, workspace: Workspace) -> Workspace:
        """Use this workspace for models and pipelines from now on, and get it back."""
        if not isinstance(workspace, Workspace):
            raise InvalidArgumentError(f"{workspace!r:.80} is no workspace; give what get_workspace(name) returns")
        self._workspace = workspace
        return workspace

    def get_current_workspace(self) -> Workspace:
        """The workspace in use; ``default`` until another is set."""
        return self._workspace if self._workspace is not None else self.get_workspace(DEFAULT_WORKSPACE)

    def _parent(self) -> str:
        return self._workspace._proto.name if self._workspace is not None else f"workspaces/{DEFAULT_WORKSPACE}"

    # -- models --------------------------------------------------------------------------------------------------------

    def upload_model(self, name: str, path: str | os.PathLike[str], *, framework: str | None = None) -> ModelVersion:
        """Upload a SavedModel as a new version of the model ``name`` in the current workspace.

        Args:
            name: the model's name.
            path: a zip file that holds a SavedModel, or a SavedModel folder.
            framework: ``"tensorflow"``, the only one there is; may be left out.

        Raises:
            ModelUploadError: there is no such file, or it is unsafe or no SavedModel; nothing of it was kept.
            InvalidArgumentError: the name is none, or the framework another.
        """
        names.check_name(name, "model")
        if framework is not None and not is_tensorflow(framework):
            raise InvalidArgumentError(
                f"framework {framework!r}: models run on 'tensorflow' only; export it as a SavedModel, "
                "and leave framework= out"
            )
        source = find_source(path)
        what = f"upload model {name!r}"
        try:
            response = self._upload(name, source, what)
        except InvalidArgumentError as error:
            raise ModelUploadError(error.message) from error
        self._remember(response.model_version)
        return ModelVersion(self, response.model_version)

    def _upload(self, name: str, source: Source, what: str) -> model_pb2.UploadModelResponse:
        sent = 0

        def count(size: int) -> None:
            nonlocal sent
            sent += size

        def state() -> str:
            return f"{sent / 1e6:.1f} of {source.size_bytes / 1e6:.1f} MB"

        failures: list[OSError] = []

        def requests() -> Iterator[model_pb2.UploadModelRequest]:
            try:
                yield from upload_requests(source, parent=self._parent(), model_id=name, sent=count)
            except OSError as error:  # gRPC runs this in a thread of its own and would only say UNKNOWN
                failures.append(error)
                raise

        try:
            return self._connection.call_patiently(
                self._connection.models.UploadModel,
                requests(),
                what=what,
                timeout_s=UPLOAD_GRACE_S + source.size_bytes / UPLOAD_BYTES_PER_S,
                state=state,
            )
        except TiltyardError as error:
            if failures:
                raise ModelUploadError(f"{what}: cannot read {failures[0].filename}: {failures[0].strerror}") from error
            raise

    def get_model(self, name: str, version: str | int | None = None) -> ModelVersion:
        """A model of the current workspace.

        Args:
            name: its name.
            version: its version; the newest when left out.

        Raises:
            EntityNotFoundError: there is none.
        """
        resource = f"{self._parent()}/models/{names.check_name(name, 'model')}"
        if version is not None:
            return ModelVersion(self, self._model_version(f"{resource}/versions/{_number(version)}"))
        try:
            response = self._connection.call(
                self._connection.models.GetModel, model_pb2.GetModelRequest(name=resource), what=f"get model {name!r}"
            )
        except EntityNotFoundError as error:
            raise EntityNotFoundError(
                f"{error.message}; list_models() shows what is in the current workspace"
            ) from error
        return ModelVersion(self, response.model.latest_version)

    def list_models(self) -> ModelList:
        """The newest version of each model in the current workspace, by name."""
        return self._list_models(self._parent())

    def _list_models(self, parent: str) -> ModelList:
        def fetch(token: str) -> tuple[list[model_pb2.Model], str]:
            request = model_pb2.ListModelsRequest(parent=parent, page_size=PAGE_SIZE, page_token=token)
            page = self._connection.call(self._connection.models.ListModels, request, what="list models")
            return list(page.models), page.next_page_token

        return ModelList([ModelVersion(self, model.latest_version) for model in pages(fetch)])

    def _model_versions(self, model: str) -> ModelList:
        def fetch(token: str) -> tuple[list[model_pb2.ModelVersion], str]:
            request = model_pb2.ListModelVersionsRequest(parent=model, page_size=PAGE_SIZE, page_token=token)
            page = self._connection.call(self._connection.models.ListModelVersions, request, what="list versions")
            return list(page.model_versions), page.next_page_token

        return ModelList([ModelVersion(self, version) for version in pages(fetch)])

    def _model_version(self, resource: str) -> model_pb2.ModelVersion:
        with self._lock:
            known = self._versions.get(resource)
        if known is not None:
            return known
        request = model_pb2.GetModelVersionRequest(name=resource)
        response = self._connection.call(
            self._connection.models.GetModelVersion, request, what=f"get model version {resource!r}"
        )
        return self._remember(response.model_version)

    def _remember(self, version: model_pb2.ModelVersion) -> model_pb2.ModelVersion:
        with self._lock:
            self._versions[version.name] = version
        return version

    # -- pipelines -----------------------------------------------------------------------------------------------------

    def build_pipeline(self, name: str) -> Pipeline:
        """The pipeline ``name`` of the current workspace, made when there is none, with no steps yet.

        Steps that are added take effect with ``deploy()``; a version in force serves on until then.

        Raises:
            InvalidArgumentError: the name is none.
        """
        resource = f"{self._parent()}/pipelines/{names.check_pipeline(name)}"
        while True:
            try:
                return Pipeline(self, self._pipeline(resource))
            except EntityNotFoundError:
                pass
            request = pipeline_pb2.CreatePipelineRequest(parent=self._parent(), pipeline_id=name)
            try:
                response = self._connection.call(
                    self._connection.pipelines.CreatePipeline, request, what=f"create pipeline {name!r}"
                )
            except AlreadyExistsError:  # somebody else made it in between
                continue
            return Pipeline(self, response.pipeline)

    def get_pipeline(self, name: str, version: str | int | None = None) -> Pipeline:
        """The pipeline ``name`` of the current workspace with all its steps and metrics.

        Args:
            name: its name.
            version: the version whose steps it gets; the newest when left out. ``deploy()`` of an older version that
                was not changed puts that version in force again.

        Raises:
            EntityNotFoundError: there is none.
        """
        try:
            proto = self._pipeline(f"{self._parent()}/pipelines/{names.check_pipeline(name)}")
        except EntityNotFoundError as error:
            raise EntityNotFoundError(
                f"{error.message}; list_pipelines() shows what is in the current workspace, "
                f"build_pipeline({name!r}) makes it"
            ) from error
        if version is None:
            return Pipeline(self, proto, load=proto.latest_version)
        request = pipeline_pb2.GetPipelineVersionRequest(name=f"{proto.name}/versions/{_number(version)}")
        response = self._connection.call(
            self._connection.pipelines.GetPipelineVersion, request, what=f"get version {version} of pipeline {name!r}"
        )
        return Pipeline(self, proto, load=response.pipeline_version)

    def list_pipelines(self) -> PipelineList:
        """The pipelines of the current workspace, by name."""
        return self._list_pipelines(self._parent())

    def _list_pipelines(self, parent: str) -> PipelineList:
        def fetch(token: str) -> tuple[list[pipeline_pb2.Pipeline], str]:
            request = pipeline_pb2.ListPipelinesRequest(parent=parent, page_size=PAGE_SIZE, page_token=token)
            page = self._connection.call(self._connection.pipelines.ListPipelines, request, what="list pipelines")
            return list(page.pipelines), page.next_page_token

        return PipelineList([Pipeline(self, proto, load=proto.latest_version) for proto in pages(fetch)])

    def _pipeline(self, resource: str) -> pipeline_pb2.Pipeline:
        request = pipeline_pb2.GetPipelineRequest(name=resource)
        response = self._connection.call(
            self._connection.pipelines.GetPipeline, request, what=f"get pipeline {names.last(resource)!r}"
        )
        return response.pipeline

    def _deployment(self, pipeline: str, timeout_s: float | None = None) -> deployment_pb2.Deployment:
        request = deployment_pb2.GetDeploymentRequest(name=f"{pipeline}/deployment")
        response = self._connection.call(
            self._connection.deployments.GetDeployment,
            request,
            what=f"get status of pipeline {names.last(pipeline)!r}",
            timeout_s=timeout_s,
        )
        return response.deployment

    # -- outcomes ------------------------------------------------------------------------------------------------------

    def report(self, pipeline: str, *, deployment_uid: str = "") -> Report:
        """What came of a pipeline's requests so far; counts arrive about a second after the requests.

        Args:
            pipeline: ``name``, ``workspace/name`` or the resource name. A plain name is looked for in the current
                workspace when one was set, and otherwise taken as requests use it.
            deployment_uid: the deployment meant, as ``Report.deployment_uid`` names it; the one heard of last when
                left out.

        Raises:
            EntityNotFoundError: no router has reported requests of that pipeline.
        """
        workspace, name = names.split_pipeline(pipeline)
        parent = f"workspaces/{workspace}" if workspace else self._parent() if self._workspace is not None else ""
        request = outcome_pb2.GetReportRequest(
            pipeline=f"{parent}/pipelines/{name}" if parent else name, deployment_uid=deployment_uid
        )
        response = self._connection.call(
            self._connection.outcomes.GetReport, request, what=f"report of pipeline {pipeline!r}"
        )
        return report_from(response.report)


def _number(version: str | int) -> int:
    if isinstance(version, bool) or not isinstance(version, str | int) or not str(version).isdigit():
        raise InvalidArgumentError(f"{version!r} is no version; versions are whole numbers from 1")
    return int(version)
