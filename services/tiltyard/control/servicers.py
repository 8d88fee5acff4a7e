"""The gRPC services of the control plane: messages in, messages out, no decision of their own."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tiltyard.api.control.v1 import (
    deployment_pb2,
    deployment_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    workspace_pb2,
    workspace_pb2_grpc,
)
from tiltyard.api.tfs.v1 import metadata_pb2, saved_model_pb2, tensor_pb2
from tiltyard.control.deployer import Deployer, Status
from tiltyard.control.names import (
    PipelineRef,
    check_id,
    check_pipeline_id,
    parse_deployment,
    parse_model,
    parse_model_version,
    parse_pipeline,
    parse_pipeline_version,
    parse_workspace,
)
from tiltyard.control.pipelines import (
    ArmSpec,
    MetricSpec,
    PipelineSpec,
    Signature,
    Signatures,
    StepSpec,
    TensorSpec,
    check,
)
from tiltyard.control.placement import Placement
from tiltyard.control.records import (
    ModelRecord,
    ModelVersionRecord,
    PipelineRecord,
    PipelineVersionRecord,
    WorkspaceRecord,
)
from tiltyard.control.store import Store
from tiltyard.control.uploads import Uploads
from tiltyard.errors import InvalidArgumentError

_T = TypeVar("_T")

_PAGE = 100
_MAX_PAGE = 1000
_DEFAULT_WAIT_S = 45.0
_MAX_WAIT_S = 600.0


class WorkspaceServicer(workspace_pb2_grpc.WorkspaceServiceServicer):
    """``tiltyard.api.control.v1.WorkspaceService``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def CreateWorkspace(  # noqa: N802
        self, request: workspace_pb2.CreateWorkspaceRequest, context: Any
    ) -> workspace_pb2.CreateWorkspaceResponse:
        """See the contract."""
        name = check_id("workspace", request.workspace_id)
        return workspace_pb2.CreateWorkspaceResponse(workspace=_workspace(await self._store.create_workspace(name)))

    async def GetWorkspace(  # noqa: N802
        self, request: workspace_pb2.GetWorkspaceRequest, context: Any
    ) -> workspace_pb2.GetWorkspaceResponse:
        """See the contract."""
        found = await self._store.get_workspace(parse_workspace(request.name))
        return workspace_pb2.GetWorkspaceResponse(workspace=_workspace(found))

    async def ListWorkspaces(  # noqa: N802
        self, request: workspace_pb2.ListWorkspacesRequest, context: Any
    ) -> workspace_pb2.ListWorkspacesResponse:
        """See the contract."""
        size, (after,) = _page(request, 1)
        rows = await self._store.list_workspaces(after, size + 1)
        page, token = _cut(rows, size, lambda row: [row.name])
        return workspace_pb2.ListWorkspacesResponse(workspaces=map(_workspace, page), next_page_token=token)


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """``tiltyard.api.control.v1.ModelService``."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self._store = store
        self._uploads = uploads

    async def UploadModel(self, request_iterator: Any, context: Any) -> model_pb2.UploadModelResponse:  # noqa: N802
        """See the contract."""
        version = await self._uploads.receive(aiter(request_iterator))
        return model_pb2.UploadModelResponse(model_version=_model_version(version))

    async def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: Any
    ) -> model_pb2.GetModelResponse:
        """See the contract."""
        return model_pb2.GetModelResponse(model=_model(await self._store.get_model(*parse_model(request.name))))

    async def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: Any
    ) -> model_pb2.ListModelsResponse:
        """See the contract."""
        size, (after,) = _page(request, 1)
        rows = await self._store.list_models(parse_workspace(request.parent), after, size + 1)
        page, token = _cut(rows, size, lambda row: [row.name])
        return model_pb2.ListModelsResponse(models=map(_model, page), next_page_token=token)

    async def GetModelVersion(  # noqa: N802
        self, request: model_pb2.GetModelVersionRequest, context: Any
    ) -> model_pb2.GetModelVersionResponse:
        """See the contract."""
        ref = parse_model_version(request.name)
        found = await self._store.get_model_versions([ref])
        return model_pb2.GetModelVersionResponse(model_version=_model_version(found[ref]))

    async def ListModelVersions(  # noqa: N802
        self, request: model_pb2.ListModelVersionsRequest, context: Any
    ) -> model_pb2.ListModelVersionsResponse:
        """See the contract."""
        size, (before,) = _page(request, 1)
        rows = await self._store.list_model_versions(*parse_model(request.parent), _number(before), size + 1)
        page, token = _cut(rows, size, lambda row: [str(row.ref.version)])
        return model_pb2.ListModelVersionsResponse(model_versions=map(_model_version, page), next_page_token=token)


class PipelineServicer(pipeline_pb2_grpc.PipelineServiceServicer):
    """``tiltyard.api.control.v1.PipelineService``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def CreatePipeline(  # noqa: N802
        self, request: pipeline_pb2.CreatePipelineRequest, context: Any
    ) -> pipeline_pb2.CreatePipelineResponse:
        """See the contract."""
        ref = PipelineRef(parse_workspace(request.parent), check_pipeline_id(request.pipeline_id))
        return pipeline_pb2.CreatePipelineResponse(pipeline=_pipeline(await self._store.create_pipeline(ref)))

    async def GetPipeline(  # noqa: N802
        self, request: pipeline_pb2.GetPipelineRequest, context: Any
    ) -> pipeline_pb2.GetPipelineResponse:
        """See the contract."""
        found = await self._store.get_pipeline(parse_pipeline(request.name))
        return pipeline_pb2.GetPipelineResponse(pipeline=_pipeline(found))

    async def ListPipelines(  # noqa: N802
        self, request: pipeline_pb2.ListPipelinesRequest, context: Any
    ) -> pipeline_pb2.ListPipelinesResponse:
        """See the contract."""
        size, after = _page(request, 2)
        rows = await self._store.list_pipelines(parse_workspace(request.parent, wildcard=True), after, size + 1)
        page, token = _cut(rows, size, lambda row: [row.ref.workspace, row.ref.pipeline])
        return pipeline_pb2.ListPipelinesResponse(pipelines=map(_pipeline, page), next_page_token=token)

    async def CreatePipelineVersion(  # noqa: N802
        self, request: pipeline_pb2.CreatePipelineVersionRequest, context: Any
    ) -> pipeline_pb2.CreatePipelineVersionResponse:
        """See the contract."""
        ref = parse_pipeline(request.parent)
        await self._store.get_pipeline(ref)
        spec = _spec(request.pipeline_version)
        models = await self._store.get_model_versions({arm.model for step in spec.steps for arm in step.arms})
        checked = check(ref, spec, {model.ref: _signatures(model) for model in models.values()})
        added = await self._store.add_pipeline_version(ref, checked)
        return pipeline_pb2.CreatePipelineVersionResponse(pipeline_version=_pipeline_version(added))

    async def GetPipelineVersion(  # noqa: N802
        self, request: pipeline_pb2.GetPipelineVersionRequest, context: Any
    ) -> pipeline_pb2.GetPipelineVersionResponse:
        """See the contract."""
        found = await self._store.get_pipeline_version(*parse_pipeline_version(request.name))
        return pipeline_pb2.GetPipelineVersionResponse(pipeline_version=_pipeline_version(found))

    async def ListPipelineVersions(  # noqa: N802
        self, request: pipeline_pb2.ListPipelineVersionsRequest, context: Any
    ) -> pipeline_pb2.ListPipelineVersionsResponse:
        """See the contract."""
        size, (before,) = _page(request, 1)
        rows = await self._store.list_pipeline_versions(parse_pipeline(request.parent), _number(before), size + 1)
        page, token = _cut(rows, size, lambda row: [str(row.version)])
        versions = map(_pipeline_version, page)
        return pipeline_pb2.ListPipelineVersionsResponse(pipeline_versions=versions, next_page_token=token)


class DeploymentServicer(deployment_pb2_grpc.DeploymentServiceServicer):
    """``tiltyard.api.control.v1.DeploymentService``."""

    def __init__(self, store: Store, deployer: Deployer, placement: Placement) -> None:
        self._store = store
        self._deployer = deployer
        self._placement = placement

    async def DeployPipeline(  # noqa: N802
        self, request: deployment_pb2.DeployPipelineRequest, context: Any
    ) -> deployment_pb2.DeployPipelineResponse:
        """See the contract."""
        wait_s = request.wait.ToNanoseconds() / 1e9 if request.HasField("wait") else _DEFAULT_WAIT_S
        if not 0 < wait_s <= _MAX_WAIT_S:
            raise InvalidArgumentError(f"wait must be above 0 and at most {_MAX_WAIT_S:g} seconds")
        version = await self._store.get_pipeline_version(*parse_pipeline_version(request.pipeline_version))
        outcome = await self._deployer.deploy(version, wait_s=wait_s, reshuffle=request.reshuffle)
        return deployment_pb2.DeployPipelineResponse(
            deployment=self._deployment(outcome.status), warnings=outcome.warnings
        )

    async def UndeployPipeline(  # noqa: N802
        self, request: deployment_pb2.UndeployPipelineRequest, context: Any
    ) -> deployment_pb2.UndeployPipelineResponse:
        """See the contract."""
        status = await self._deployer.undeploy(parse_pipeline(request.pipeline))
        return deployment_pb2.UndeployPipelineResponse(deployment=self._deployment(status))

    async def SetWeights(  # noqa: N802
        self, request: deployment_pb2.SetWeightsRequest, context: Any
    ) -> deployment_pb2.SetWeightsResponse:
        """See the contract."""
        weights = [(weight.arm, weight.weight) for weight in request.weights]
        status, moved = await self._deployer.set_weights(parse_pipeline(request.pipeline), weights)
        return deployment_pb2.SetWeightsResponse(deployment=self._deployment(status), moved_slots=moved)

    async def GetDeployment(  # noqa: N802
        self, request: deployment_pb2.GetDeploymentRequest, context: Any
    ) -> deployment_pb2.GetDeploymentResponse:
        """See the contract."""
        status = await self._deployer.status(parse_deployment(request.name))
        if status.deployment is not None:
            await self._placement.refresh(status.deployment.models)
        return deployment_pb2.GetDeploymentResponse(deployment=self._deployment(status))

    async def ListDeployments(  # noqa: N802
        self, request: deployment_pb2.ListDeploymentsRequest, context: Any
    ) -> deployment_pb2.ListDeploymentsResponse:
        """See the contract."""
        size, after = _page(request, 2)
        rows = await self._store.list_deployments(parse_workspace(request.parent, wildcard=True), after, size + 1)
        page, token = _cut(rows, size, lambda row: [row.ref.workspace, row.ref.pipeline])
        deployments = [self._deployment(self._deployer.status_of(row)) for row in page]
        return deployment_pb2.ListDeploymentsResponse(deployments=deployments, next_page_token=token)

    def _deployment(self, status: Status) -> deployment_pb2.Deployment:
        message = deployment_pb2.Deployment(
            name=f"{status.ref}/deployment",
            state=deployment_pb2.DeploymentState.Value(f"DEPLOYMENT_STATE_{status.phase.value}"),
            error=status.error,
        )
        deployment = status.deployment
        if deployment is None:
            return message
        message.pipeline_version = f"{deployment.ref}/versions/{deployment.version}"
        message.epoch = deployment.epoch
        message.uid = deployment.uid
        message.request_names.extend(deployment.request_names)
        message.deploy_time.CopyFrom(_time(deployment.deployed))
        message.hash_key = deployment.spec.step.hash_key
        counts = deployment.table.counts()
        for arm, weight, slots in zip(deployment.arms, deployment.weights, counts, strict=True):
            added = message.arms.add(
                name=arm.name,
                model_version=str(arm.model),
                served_model=arm.model.served_name,
                weight=weight,
                slots=slots,
            )
            for address, state in self._placement.states(arm.model).items():
                added.backends.add(address=address, state=state.state, error=state.error)
        return message


# pages


def _page(request: Any, parts: int) -> tuple[int, list[str]]:
    """The size asked for, and the key after which the page begins (empty strings for the first page)."""
    if request.page_size < 0:
        raise InvalidArgumentError("page_size must not be negative")
    size = min(request.page_size or _PAGE, _MAX_PAGE)
    if not request.page_token:
        return size, [""] * parts
    try:
        key = base64.urlsafe_b64decode(request.page_token.encode()).decode().split("/")
    except (UnicodeError, binascii.Error):
        key = []
    if len(key) != parts:
        raise InvalidArgumentError("page_token is none that this service gave out; begin again without one")
    return size, key


def _cut(rows: Sequence[_T], size: int, key: Callable[[_T], Sequence[str]]) -> tuple[Sequence[_T], str]:
    """The page, and the token of the next one when there are more rows than fit."""
    if len(rows) <= size:
        return rows, ""
    return rows[:size], base64.urlsafe_b64encode("/".join(key(rows[size - 1])).encode()).decode()


def _number(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or len(text) > 18:
        raise InvalidArgumentError("page_token is none that this service gave out; begin again without one")
    return int(text)


# messages to values


def _spec(message: pipeline_pb2.PipelineVersion) -> PipelineSpec:
    metrics = tuple(
        MetricSpec(metric.name, metric.output, metric.index, metric.above if metric.HasField("above") else None)
        for metric in message.metrics
    )
    return PipelineSpec(
        steps=tuple(_step(step) for step in message.steps),
        metrics=metrics,
        timeout_ns=_nanoseconds(message.timeout) if message.HasField("timeout") else None,
    )


def _step(message: pipeline_pb2.Step) -> StepSpec:
    kind = message.WhichOneof("kind")
    if kind == "model":
        return StepSpec(split=False, arms=(ArmSpec("", parse_model_version(message.model.model_version), 1),))
    if kind == "random_split":
        split = message.random_split
        arms = tuple(ArmSpec(arm.name, parse_model_version(arm.model_version), arm.weight) for arm in split.arms)
        return StepSpec(split=True, arms=arms, hash_key=split.hash_key)
    raise InvalidArgumentError("a step has no kind; make it a model step or a random split")


def _nanoseconds(duration: Duration) -> int:
    return duration.seconds * 10**9 + duration.nanos


def _signatures(record: ModelVersionRecord) -> Signatures:
    found = metadata_pb2.SignatureDefMap.FromString(record.signatures)
    return {
        name: Signature(
            {alias: _tensor(info) for alias, info in signature.inputs.items()},
            {alias: _tensor(info) for alias, info in signature.outputs.items()},
        )
        for name, signature in found.signature_def.items()
    }


def _tensor(info: saved_model_pb2.TensorInfo) -> TensorSpec:
    known = info.dtype in tensor_pb2.DataType.values()
    dtype = tensor_pb2.DataType.Name(info.dtype).removeprefix("DATA_TYPE_") if known else f"type {info.dtype}"
    if not info.HasField("tensor_shape") or info.tensor_shape.unknown_rank:
        return TensorSpec(dtype)
    return TensorSpec(dtype, tuple(dim.size for dim in info.tensor_shape.dim))


# values to messages


def _time(when: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(when)
    return stamp


def _workspace(record: WorkspaceRecord) -> workspace_pb2.Workspace:
    return workspace_pb2.Workspace(name=f"workspaces/{record.name}", id=record.id, create_time=_time(record.created))


def _model(record: ModelRecord) -> model_pb2.Model:
    return model_pb2.Model(
        name=f"workspaces/{record.workspace}/models/{record.name}",
        create_time=_time(record.created),
        latest_version=_model_version(record.latest),
    )


def _model_version(record: ModelVersionRecord) -> model_pb2.ModelVersion:
    message = model_pb2.ModelVersion(
        name=str(record.ref),
        version=record.ref.version,
        digest=record.digest,
        size_bytes=record.size_bytes,
        create_time=_time(record.created),
        file_name=record.file_name,
    )
    for name, signature in metadata_pb2.SignatureDefMap.FromString(record.signatures).signature_def.items():
        message.signatures[name].CopyFrom(signature)
    return message


def _pipeline(record: PipelineRecord) -> pipeline_pb2.Pipeline:
    message = pipeline_pb2.Pipeline(
        name=str(record.ref),
        create_time=_time(record.created),
        update_time=_time(record.updated),
        deployed=record.deployed,
    )
    if record.latest is not None:
        message.latest_version.CopyFrom(_pipeline_version(record.latest))
    return message


def _pipeline_version(record: PipelineVersionRecord) -> pipeline_pb2.PipelineVersion:
    message = pipeline_pb2.PipelineVersion(
        name=f"{record.ref}/versions/{record.version}", version=record.version, create_time=_time(record.created)
    )
    for step in record.spec.steps:
        added = message.steps.add()
        if not step.split:
            added.model.model_version = str(step.arms[0].model)
            continue
        added.random_split.hash_key = step.hash_key
        for arm in step.arms:
            added.random_split.arms.add(name=arm.name, model_version=str(arm.model), weight=arm.weight)
    for metric in record.spec.metrics:
        message.metrics.add(name=metric.name, output=metric.output, index=metric.index, above=metric.above)
    if record.spec.timeout_ns is not None:
        message.timeout.FromNanoseconds(record.spec.timeout_ns)
    return message
