"""A Tiltyard in memory, behind a real gRPC server: what the SDK's tests talk to.

It keeps the contracts of the control plane, the outcomes service and the router as far as a client can see them:
names, versions, deployments, statuses, receipts, and that a key always gets the same arm. What models answer is a
function the test gives.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc

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
from tiltyard.api.outcomes.v1 import outcome_pb2, outcome_pb2_grpc
from tiltyard.api.tfs.v1 import predict_pb2, saved_model_pb2, tensor_pb2
from tiltyard.slots import SLOTS, shares

__all__ = ["FakeTiltyard", "Seen", "saved_model"]

Answer = Callable[[str, predict_pb2.PredictRequest], Mapping[str, tensor_pb2.Tensor]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One inference request as it arrived."""

    request: predict_pb2.PredictRequest
    metadata: dict[str, str | bytes]
    remaining_s: float


@dataclass(slots=True)
class _Failure:
    code: grpc.StatusCode
    detail: str
    metadata: tuple[tuple[str, str], ...]
    after: threading.Event | None


def saved_model(
    inputs: Mapping[str, tuple[int, tuple[int, ...] | None]],
    outputs: Mapping[str, tuple[int, tuple[int, ...] | None]],
    *,
    key: str = "serving_default",
    defaults: Mapping[str, tensor_pb2.Tensor] | None = None,
) -> bytes:
    """The bytes of a ``saved_model.pb`` with one signature.

    Args:
        inputs: type number and shape (-1 for any size, ``None`` for any rank) by name.
        outputs: the same.
        key: name of the signature.
        defaults: inputs that may be left out.
    """
    graph = saved_model_pb2.MetaGraphDef()
    graph.meta_info_def.tags.append("serve")
    signature = graph.signature_def[key]
    for specs, infos in ((inputs, signature.inputs), (outputs, signature.outputs)):
        for name, (number, shape) in specs.items():
            infos[name].name = f"{name}:0"
            infos[name].dtype = tensor_pb2.DataType.ValueType(number)
            infos[name].tensor_shape.SetInParent()
            infos[name].tensor_shape.unknown_rank = shape is None
            for size in shape or ():
                infos[name].tensor_shape.dim.add(size=size)
    for name, tensor in (defaults or {}).items():
        signature.defaults[name].CopyFrom(tensor)
    return saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[graph]).SerializeToString()


@dataclass
class _State:
    answer: Answer
    workspaces: dict[str, workspace_pb2.Workspace] = field(default_factory=dict)
    models: dict[str, list[model_pb2.ModelVersion]] = field(default_factory=dict)
    pipelines: dict[str, pipeline_pb2.Pipeline] = field(default_factory=dict)
    versions: dict[str, list[pipeline_pb2.PipelineVersion]] = field(default_factory=dict)
    deployments: dict[str, deployment_pb2.Deployment] = field(default_factory=dict)
    epochs: Counter[str] = field(default_factory=Counter)
    reports: dict[str, outcome_pb2.Report] = field(default_factory=dict)
    upload_chunks: list[int] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[_Failure]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    deploy_warnings: list[str] = field(default_factory=list)
    sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    page_limit: int = 1000


class FakeTiltyard:
    """Serves on a free port of 127.0.0.1 from construction to ``close``.

    Args:
        answer: gives the outputs for the served model's name (``workspace.model``) and a request.
    """

    def __init__(self, answer: Answer) -> None:
        self.state = _State(answer)
        self._add_workspace("default")
        self._server = grpc.server(
            ThreadPoolExecutor(8),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", 64 << 20),
                ("grpc.max_send_message_length", 64 << 20),
            ],
            interceptors=[_Gate(self.state)],
        )
        workspace_pb2_grpc.add_WorkspaceServiceServicer_to_server(_Workspaces(self), self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._server)
        pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(_Pipelines(self), self._server)
        deployment_pb2_grpc.add_DeploymentServiceServicer_to_server(_Deployments(self), self._server)
        outcome_pb2_grpc.add_OutcomeServiceServicer_to_server(_Outcomes(self), self._server)
        predict = grpc.unary_unary_rpc_method_handler(
            self._predict,
            request_deserializer=predict_pb2.PredictRequest.FromString,
            response_serializer=predict_pb2.PredictResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": predict}),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        """Stop serving at once."""
        self._server.stop(None).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fail_next(
        self, method: str, code: grpc.StatusCode, detail: str, *, after: threading.Event | None = None, **metadata: str
    ) -> None:
        """Let the next call of ``method`` fail, at once or once ``after`` is set (at most 10 s later).

        Underscores in the names of the metadata become dashes.
        """
        pairs = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        self.state.failures.setdefault(method, []).append(_Failure(code, detail, pairs, after))

    def _add_workspace(self, name: str) -> workspace_pb2.Workspace:
        workspace = workspace_pb2.Workspace(name=f"workspaces/{name}", id=len(self.state.workspaces) + 1)
        workspace.create_time.GetCurrentTime()
        self.state.workspaces[workspace.name] = workspace
        return workspace

    def _predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        metadata = {str(name): value for name, value in context.invocation_metadata()}
        self.state.seen.append(Seen(request, metadata, context.time_remaining() or 0.0))
        workspace, _, name = request.model_spec.name.rpartition("/")
        deployment = self.state.deployments.get(f"workspaces/{workspace}/pipelines/{name}")
        if deployment is None or deployment.state != deployment_pb2.DEPLOYMENT_STATE_RUNNING:
            return _abort(context, grpc.StatusCode.NOT_FOUND, f"no pipeline {request.model_spec.name!r}")
        number = next(self.state.sequence)
        key = _key(metadata, deployment.hash_key)
        draw = int.from_bytes(hashlib.sha256(key or str(number).encode()).digest()[:8], "big")
        arm = _arm(deployment, (draw * SLOTS) >> 64)
        receipt = bytearray(48)
        receipt[0], receipt[1] = 0x10, 0x40 if key else 0
        receipt[4:8] = deployment.epoch.to_bytes(4, "big")
        receipt[22:28] = number.to_bytes(6, "big")
        token = base64.urlsafe_b64encode(bytes(receipt)).decode()
        context.send_initial_metadata((("tiltyard-inference-id", token), ("tiltyard-arm", arm.name)))
        response = predict_pb2.PredictResponse(outputs=dict(self.state.answer(arm.served_model, request)))
        response.model_spec.name = arm.served_model
        response.model_spec.version.value = int(arm.model_version.rpartition("/")[2])
        return response


class _Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic for the type checker only
    """Counts calls by method and lets those fail that a test wants to."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        method = handler_call_details.method.rpartition("/")[2]
        self._state.calls[method] += 1
        waiting = self._state.failures.get(method)
        if not waiting:
            return continuation(handler_call_details)
        failure = waiting.pop(0)

        def fail(request: Any, context: grpc.ServicerContext) -> NoReturn:
            if failure.after is not None:
                failure.after.wait(10)
            context.set_trailing_metadata(failure.metadata)
            _abort(context, failure.code, failure.detail)

        handler = continuation(handler_call_details)
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(fail, handler.request_deserializer, handler.response_serializer)


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, detail: str) -> NoReturn:
    context.abort(code, detail)
    raise AssertionError("abort returned")


def _key(metadata: Mapping[str, str | bytes], hash_key: str) -> bytes:
    if not hash_key:
        return b""
    value = metadata.get(f"{hash_key}-bin", metadata.get(hash_key, b""))
    return value.encode() if isinstance(value, str) else value


def _arm(deployment: deployment_pb2.Deployment, slot: int) -> deployment_pb2.DeployedArm:
    for arm in deployment.arms:
        if slot < arm.slots:
            return arm
        slot -= arm.slots
    raise AssertionError("slots do not add up")


def _page(items: list[Any], request: Any, limit: int) -> tuple[list[Any], str]:
    start = int(request.page_token or 0)
    end = start + min(request.page_size or 100, limit)
    return items[start:end], str(end) if end < len(items) else ""


class _Workspaces(workspace_pb2_grpc.WorkspaceServiceServicer):
    def __init__(self, fake: FakeTiltyard) -> None:
        self._fake, self._state = fake, fake.state

    def CreateWorkspace(self, request: Any, context: Any) -> Any:  # noqa: N802
        if f"workspaces/{request.workspace_id}" in self._state.workspaces:
            _abort(context, grpc.StatusCode.ALREADY_EXISTS, f"workspace {request.workspace_id!r} exists already")
        return workspace_pb2.CreateWorkspaceResponse(workspace=self._fake._add_workspace(request.workspace_id))

    def GetWorkspace(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in self._state.workspaces:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"there is no {request.name!r}")
        return workspace_pb2.GetWorkspaceResponse(workspace=self._state.workspaces[request.name])

    def ListWorkspaces(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = sorted(self._state.workspaces.values(), key=lambda workspace: workspace.name)
        page, token = _page(found, request, self._state.page_limit)
        return workspace_pb2.ListWorkspacesResponse(workspaces=page, next_page_token=token)


class _Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, fake: FakeTiltyard) -> None:
        self._state = fake.state

    def UploadModel(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        header = next(request_iterator).header
        files: dict[str, bytes] = {}
        current = ""
        for part in request_iterator:
            if part.WhichOneof("part") == "file":
                current = part.file.path
                files[current] = b""
            else:
                self._state.upload_chunks.append(len(part.chunk))
                files[current] = files.get(current, b"") + part.chunk
        if header.format == model_pb2.UPLOAD_FORMAT_ZIP:
            with zipfile.ZipFile(io.BytesIO(files[""])) as archive:
                files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
        graph = next((files[name] for name in sorted(files) if name.rpartition("/")[2] == "saved_model.pb"), None)
        if graph is None:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "no saved_model.pb in it")
        known = self._state.models.setdefault(f"{header.parent}/models/{header.model_id}", [])
        content = b"".join(name.encode() + b"\0" + files[name] for name in sorted(files))
        version = model_pb2.ModelVersion(
            name=f"{header.parent}/models/{header.model_id}/versions/{len(known) + 1}",
            version=len(known) + 1,
            digest=hashlib.sha256(content).hexdigest(),
            size_bytes=sum(map(len, files.values())),
            signatures=saved_model_pb2.SavedModel.FromString(graph).meta_graphs[0].signature_def,
            file_name=header.file_name,
        )
        version.create_time.GetCurrentTime()
        known.append(version)
        return model_pb2.UploadModelResponse(model_version=version)

    def _model(self, name: str) -> model_pb2.Model:
        return model_pb2.Model(name=name, latest_version=self._state.models[name][-1])

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in self._state.models:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"there is no {request.name!r}")
        return model_pb2.GetModelResponse(model=self._model(request.name))

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = [self._model(name) for name in sorted(self._state.models) if name.startswith(request.parent + "/")]
        page, token = _page(found, request, self._state.page_limit)
        return model_pb2.ListModelsResponse(models=page, next_page_token=token)

    def GetModelVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        for version in self._state.models.get(request.name.rpartition("/versions/")[0], []):
            if version.name == request.name:
                return model_pb2.GetModelVersionResponse(model_version=version)
        return _abort(context, grpc.StatusCode.NOT_FOUND, f"there is no {request.name!r}")

    def ListModelVersions(self, request: Any, context: Any) -> Any:  # noqa: N802
        page, token = _page(self._state.models[request.parent][::-1], request, self._state.page_limit)
        return model_pb2.ListModelVersionsResponse(model_versions=page, next_page_token=token)


class _Pipelines(pipeline_pb2_grpc.PipelineServiceServicer):
    def __init__(self, fake: FakeTiltyard) -> None:
        self._state = fake.state

    def _found(self, name: str, context: Any) -> pipeline_pb2.Pipeline:
        if name not in self._state.pipelines:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"there is no {name!r}")
        pipeline = pipeline_pb2.Pipeline()
        pipeline.CopyFrom(self._state.pipelines[name])
        if self._state.versions[name]:
            pipeline.latest_version.CopyFrom(self._state.versions[name][-1])
        deployment = self._state.deployments.get(name)
        pipeline.deployed = deployment is not None and deployment.state == deployment_pb2.DEPLOYMENT_STATE_RUNNING
        return pipeline

    def CreatePipeline(self, request: Any, context: Any) -> Any:  # noqa: N802
        name = f"{request.parent}/pipelines/{request.pipeline_id}"
        pipeline = pipeline_pb2.Pipeline(name=name)
        pipeline.create_time.GetCurrentTime()
        pipeline.update_time.GetCurrentTime()
        self._state.pipelines[name] = pipeline
        self._state.versions[name] = []
        return pipeline_pb2.CreatePipelineResponse(pipeline=self._found(name, context))

    def GetPipeline(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pipeline_pb2.GetPipelineResponse(pipeline=self._found(request.name, context))

    def ListPipelines(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = [name for name in sorted(self._state.pipelines) if name.startswith(request.parent + "/")]
        page, token = _page([self._found(name, context) for name in names], request, self._state.page_limit)
        return pipeline_pb2.ListPipelinesResponse(pipelines=page, next_page_token=token)

    def CreatePipelineVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        known = self._state.versions[request.parent]
        version = pipeline_pb2.PipelineVersion()
        version.CopyFrom(request.pipeline_version)
        version.version = len(known) + 1
        version.name = f"{request.parent}/versions/{version.version}"
        version.create_time.GetCurrentTime()
        known.append(version)
        return pipeline_pb2.CreatePipelineVersionResponse(pipeline_version=version)

    def GetPipelineVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        for version in self._state.versions.get(request.name.rpartition("/versions/")[0], []):
            if version.name == request.name:
                return pipeline_pb2.GetPipelineVersionResponse(pipeline_version=version)
        return _abort(context, grpc.StatusCode.NOT_FOUND, f"there is no {request.name!r}")

    def ListPipelineVersions(self, request: Any, context: Any) -> Any:  # noqa: N802
        page, token = _page(self._state.versions[request.parent][::-1], request, self._state.page_limit)
        return pipeline_pb2.ListPipelineVersionsResponse(pipeline_versions=page, next_page_token=token)


class _Deployments(deployment_pb2_grpc.DeploymentServiceServicer):
    def __init__(self, fake: FakeTiltyard) -> None:
        self._state = fake.state

    def _deployment(self, pipeline: str) -> deployment_pb2.Deployment:
        return self._state.deployments.setdefault(
            pipeline,
            deployment_pb2.Deployment(name=f"{pipeline}/deployment", state=deployment_pb2.DEPLOYMENT_STATE_UNDEPLOYED),
        )

    def DeployPipeline(self, request: Any, context: Any) -> Any:  # noqa: N802
        pipeline, _, number = request.pipeline_version.rpartition("/versions/")
        version = self._state.versions[pipeline][int(number) - 1]
        step = version.steps[0]
        deployment = deployment_pb2.Deployment(
            name=f"{pipeline}/deployment",
            pipeline_version=version.name,
            state=deployment_pb2.DEPLOYMENT_STATE_RUNNING,
            request_names=[pipeline.replace("workspaces/", "").replace("pipelines/", "")],
            hash_key=step.random_split.hash_key,
        )
        split = list(step.random_split.arms)
        if not split:
            name = step.model.model_version.split("/")[3]
            split = [pipeline_pb2.SplitArm(name=name, model_version=step.model.model_version, weight=1)]
        for arm, slots in zip(split, shares([arm.weight for arm in split]), strict=True):
            parts = arm.model_version.split("/")
            deployed = deployment.arms.add(
                name=arm.name,
                model_version=arm.model_version,
                served_model=f"{parts[1]}.{parts[3]}",
                weight=arm.weight,
                slots=slots,
            )
            deployed.backends.add(address="127.0.0.1:9001", state="AVAILABLE")
        self._begin_epoch(pipeline, deployment)
        return deployment_pb2.DeployPipelineResponse(deployment=deployment, warnings=self._state.deploy_warnings)

    def _begin_epoch(self, pipeline: str, deployment: deployment_pb2.Deployment) -> None:
        self._state.epochs[pipeline] += 1
        deployment.epoch = self._state.epochs[pipeline]
        deployment.uid = deployment.uid or f"d{deployment.epoch}"
        self._state.deployments[pipeline] = deployment

    def UndeployPipeline(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._state.deployments.pop(request.pipeline, None)
        return deployment_pb2.UndeployPipelineResponse(deployment=self._deployment(request.pipeline))

    def SetWeights(self, request: Any, context: Any) -> Any:  # noqa: N802
        changed = deployment_pb2.Deployment()
        changed.CopyFrom(self._deployment(request.pipeline))
        weights = {entry.arm: entry.weight for entry in request.weights}
        slots = shares([weights[arm.name] for arm in changed.arms])
        for arm, held in zip(changed.arms, slots, strict=True):
            arm.weight, arm.slots = weights[arm.name], held
        self._begin_epoch(request.pipeline, changed)
        return deployment_pb2.SetWeightsResponse(deployment=changed)

    def GetDeployment(self, request: Any, context: Any) -> Any:  # noqa: N802
        pipeline = request.name.removesuffix("/deployment")
        if pipeline not in self._state.pipelines:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"there is no {pipeline!r}")
        return deployment_pb2.GetDeploymentResponse(deployment=self._deployment(pipeline))

    def ListDeployments(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = [found for _, found in sorted(self._state.deployments.items()) if found.arms]
        page, token = _page(found, request, self._state.page_limit)
        return deployment_pb2.ListDeploymentsResponse(deployments=page, next_page_token=token)


class _Outcomes(outcome_pb2_grpc.OutcomeServiceServicer):
    def __init__(self, fake: FakeTiltyard) -> None:
        self._state = fake.state

    def GetReport(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self._state.reports.get(request.pipeline)
        if found is None or request.deployment_uid not in ("", found.deployment_uid):
            _abort(context, grpc.StatusCode.NOT_FOUND, f"no router has reported {request.pipeline!r}")
        return outcome_pb2.GetReportResponse(report=found)

    def ListReports(self, request: Any, context: Any) -> Any:  # noqa: N802
        page, token = _page([found for _, found in sorted(self._state.reports.items())], request, 1000)
        return outcome_pb2.ListReportsResponse(reports=page, next_page_token=token)

    def WatchReport(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield outcome_pb2.WatchReportResponse(report=self._state.reports[request.pipeline])
