"""Pipelines: put together, deployed, asked, watched."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from google.protobuf import duration_pb2

from tiltyard.api.control.v1 import deployment_pb2, pipeline_pb2
from tiltyard.client import names
from tiltyard.client.connection import PAGE_SIZE, pages
from tiltyard.client.inference import Inference
from tiltyard.client.inputs import Metadata, read_file, rows_of
from tiltyard.client.models import ModelVersion, refuse_set
from tiltyard.client.reports import Report
from tiltyard.client.results import ResultList
from tiltyard.client.signatures import check_arms_agree
from tiltyard.client.status import serves, status_of
from tiltyard.client.steps import (
    MAX_METRICS,
    MetricSpec,
    ModelStep,
    SplitStep,
    Step,
    WeightedModel,
    metric_from,
    split_step,
    step_from,
    whole_weights,
)
from tiltyard.client.tables import TableList, card, when
from tiltyard.errors import (
    DeployError,
    FailedPreconditionError,
    InvalidArgumentError,
    TiltyardError,
    TiltyardWarning,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tiltyard.client.client import Client

__all__ = ["Pipeline", "PipelineList", "PipelineVersion", "VersionList"]

CALL_GRACE_S = 60.0
"""Time a deploy or undeploy may take beside the waiting for models: publishing routes, draining, unloading."""


@dataclass(frozen=True, slots=True)
class _Definition:
    """What a version freezes."""

    steps: tuple[Step, ...]
    metrics: tuple[MetricSpec, ...]
    timeout_s: float | None

    @classmethod
    def of(cls, version: pipeline_pb2.PipelineVersion) -> _Definition:
        timeout = version.timeout.ToTimedelta().total_seconds() if version.HasField("timeout") else None
        return cls(tuple(map(step_from, version.steps)), tuple(map(metric_from, version.metrics)), timeout)

    def to_proto(self) -> pipeline_pb2.PipelineVersion:
        version = pipeline_pb2.PipelineVersion(
            steps=[step.to_proto() for step in self.steps], metrics=[metric.to_proto() for metric in self.metrics]
        )
        if self.timeout_s is not None:
            version.timeout.CopyFrom(_duration(self.timeout_s))
        return version


class PipelineVersion:
    """One frozen list of steps."""

    def __init__(self, proto: pipeline_pb2.PipelineVersion) -> None:
        self._proto = proto

    def version(self) -> str:
        """Its number, from "1"."""
        return str(self._proto.version)

    def id(self) -> str:
        """Resource name, ``workspaces/{workspace}/pipelines/{pipeline}/versions/{version}``."""
        return self._proto.name

    def created_at(self) -> datetime:
        """When it was made, in UTC."""
        return when(self._proto.create_time)

    def steps(self) -> list[Step]:
        """Its steps in order."""
        return list(_Definition.of(self._proto).steps)

    def metrics(self) -> list[MetricSpec]:
        """Its metrics in order."""
        return list(_Definition.of(self._proto).metrics)

    def __repr__(self) -> str:
        return f"PipelineVersion(version={self.version()!r}, steps={'; '.join(map(str, self.steps()))!r})"


class VersionList(TableList[PipelineVersion]):
    """Versions of a pipeline; a table in a notebook."""

    def __init__(self, items: list[PipelineVersion]) -> None:
        super().__init__(
            items,
            ("version", "created", "steps"),
            lambda version: (version.version(), version.created_at(), "; ".join(map(str, version.steps()))),
        )


class Pipeline:
    """A named list of steps. Edits stay here until ``deploy()``; ``infer`` asks what is deployed.

    Asking (``infer``, ``status``, ``report``) is safe from several threads; editing is for one.
    """

    def __init__(
        self, client: Client, proto: pipeline_pb2.Pipeline, *, load: pipeline_pb2.PipelineVersion | None = None
    ) -> None:
        self._client = client
        self._proto = proto
        # The version `deploy` uses again when nothing was changed.
        self._base = load if load is not None else proto.latest_version
        definition = _Definition.of(load) if load is not None else _Definition((), (), None)
        self._steps = list(definition.steps)
        self._metrics = list(definition.metrics)
        self._timeout_s = definition.timeout_s
        self._inference = Inference(client, proto.name)

    # -- what it is ----------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """Its name."""
        return names.last(self._proto.name)

    def id(self) -> str:
        """Resource name, ``workspaces/{workspace}/pipelines/{pipeline}``."""
        return self._proto.name

    def workspace(self) -> str:
        """Name of the workspace it lies in."""
        return self._proto.name.split("/")[1]

    def create_time(self) -> datetime:
        """When it was made, in UTC."""
        return when(self._proto.create_time)

    def last_update_time(self) -> datetime:
        """When a version was last added, or it was last deployed or undeployed, in UTC."""
        self._refresh()
        return when(self._proto.update_time)

    def deployed(self) -> bool:
        """Whether a version of it is in force."""
        self._refresh()
        return self._proto.deployed

    def versions(self) -> VersionList:
        """All its versions, newest first."""

        def fetch(token: str) -> tuple[list[pipeline_pb2.PipelineVersion], str]:
            request = pipeline_pb2.ListPipelineVersionsRequest(
                parent=self._proto.name, page_size=PAGE_SIZE, page_token=token
            )
            page = self._client._connection.call(
                self._client._connection.pipelines.ListPipelineVersions, request, what=self._what("list versions of")
            )
            return list(page.pipeline_versions), page.next_page_token

        return VersionList([PipelineVersion(version) for version in pages(fetch)])

    def steps(self) -> list[Step]:
        """The steps as they would be deployed."""
        return list(self._steps)

    def metrics(self) -> list[MetricSpec]:
        """The metrics as they would be deployed."""
        return list(self._metrics)

    def definition(self) -> dict[str, Any]:
        """The steps as plain values: ``{"id": name, "steps": [{"RandomSplit": {...}}]}``."""
        return {"id": self.name(), "steps": [self._step_definition(step) for step in self._steps]}

    def _step_definition(self, step: Step) -> dict[str, Any]:
        if isinstance(step, ModelStep):
            return {"ModelInference": {"models": [self._model_definition(step.model_version)]}}
        weights = [
            {"name": arm.name, "model": self._model_definition(arm.model_version), "weight": arm.weight}
            for arm in step.arms
        ]
        return {"RandomSplit": {"hash_key": step.hash_key or None, "weights": weights}}

    def _model_definition(self, resource: str) -> dict[str, str]:
        version = ModelVersion(self._client, self._client._model_version(resource))
        return {"name": version.name(), "version": version.version(), "sha": version.sha()}

    def _refresh(self) -> None:
        self._proto = self._client._pipeline(self._proto.name)

    def _what(self, doing: str) -> str:
        return f"{doing} pipeline {self.name()!r}"

    # -- putting it together -------------------------------------------------------------------------------------------

    def add_model_step(self, model: ModelVersion) -> Pipeline:
        """Let one model answer every request.

        Args:
            model: what ``upload_model`` or ``get_model`` returned.

        Raises:
            InvalidArgumentError: it is no model.
            FailedPreconditionError: the pipeline has a step already.
        """
        return self._append(self._model_step(model))

    def add_random_split(self, weighted: Iterable[WeightedModel], hash_key: str | None = None) -> Pipeline:
        """Let each request be answered by one of several models, drawn by weight; the first is the champion.

        Args:
            weighted: ``(weight, model)`` or ``(weight, model, "name of the arm")``, 2 to 16 of them. Weights are
                relative, 2 and 1 or 0.9 and 0.1; 0 sends an arm nothing. Arms are called after their models, with the
                version appended where two share a model.
            hash_key: requests with the same value under this name (metadata, or a field beside the inputs) always get
                the same arm; without it every request is drawn anew.

        Raises:
            InvalidArgumentError: the weights, names, key or models make no split.
            FailedPreconditionError: the pipeline has a step already.
        """
        return self._append(self._split_step(weighted, hash_key))

    def replace_with_model_step(self, index: int, model: ModelVersion) -> Pipeline:
        """Put a model step in the place of step ``index``, from 0; raises what ``add_model_step`` raises."""
        self._steps[self._check_index(index)] = self._model_step(model)
        return self

    def replace_with_random_split(
        self, index: int, weighted: Iterable[WeightedModel], hash_key: str | None = None
    ) -> Pipeline:
        """Put a split in the place of step ``index``, from 0; raises what ``add_random_split`` raises."""
        self._steps[self._check_index(index)] = self._split_step(weighted, hash_key)
        return self

    def remove_step(self, index: int) -> Pipeline:
        """Take out step ``index``, from 0.

        Raises:
            InvalidArgumentError: there is no such step.
        """
        del self._steps[self._check_index(index)]
        return self

    def clear(self) -> Pipeline:
        """Take out all steps and metrics."""
        self._steps.clear()
        self._metrics.clear()
        return self

    def add_metric(self, name: str, *, output: str, index: int = 0, above: float | None = None) -> Pipeline:
        """Read one number from every answer, to compare the arms by.

        Args:
            name: the metric's name.
            output: the output it is read from.
            index: flat index of the element within one row, from 0.
            above: count 1 for an element above this and 0 otherwise; left out, the value itself counts.

        Raises:
            InvalidArgumentError: the name is taken or none, or there are 8 metrics already.
        """
        metric = MetricSpec(name, output, index, above)
        if any(known.name == name for known in self._metrics):
            raise InvalidArgumentError(f"metric {name!r} is there already; remove_metric({name!r}) takes it out")
        if len(self._metrics) == MAX_METRICS:
            raise InvalidArgumentError(
                f"a pipeline has at most {MAX_METRICS} metrics; remove_metric(name) takes one out"
            )
        self._metrics.append(metric)
        return self

    def remove_metric(self, name: str) -> Pipeline:
        """Take out a metric.

        Raises:
            InvalidArgumentError: there is none of that name.
        """
        kept = [metric for metric in self._metrics if metric.name != name]
        if len(kept) == len(self._metrics):
            have = ", ".join(metric.name for metric in self._metrics) or "none"
            raise InvalidArgumentError(f"there is no metric {name!r}; the metrics are: {have}")
        self._metrics = kept
        return self

    def _model_step(self, model: ModelVersion) -> ModelStep:
        if not isinstance(model, ModelVersion):
            raise InvalidArgumentError(f"{model!r:.80} is no model; give what upload_model or get_model returned")
        return ModelStep(model.id())

    def _split_step(self, weighted: Iterable[WeightedModel], hash_key: str | None) -> SplitStep:
        step = split_step(weighted, hash_key)
        check_arms_agree([self._client._model_version(resource) for resource in step.model_versions])
        return step

    def _append(self, step: Step) -> Pipeline:
        if self._steps:
            raise FailedPreconditionError(
                f"pipeline {self.name()!r} has a step already ({self._steps[0]}), and for now a pipeline has one; "
                "use clear() or replace_with_...(0, ...) first"
            )
        self._steps.append(step)
        return self

    def _check_index(self, index: int) -> int:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self._steps):
            have = f"steps 0 to {len(self._steps) - 1}" if self._steps else "no steps"
            raise InvalidArgumentError(f"there is no step {index!r}; pipeline {self.name()!r} has {have}")
        return index

    # -- deployment ----------------------------------------------------------------------------------------------------

    def deploy(
        self,
        *,
        wait: float = 45.0,
        reshuffle: bool = False,
        deployment_config: None = None,
        wait_for_status: bool = True,
    ) -> Pipeline:
        """Put the pipeline in force and wait until it serves; what was in force before serves until then.

        The steps become a new version unless they are those of the version this object was loaded from. Things worth
        knowing that do not stop it (byte-identical models, for one) are warned of as ``TiltyardWarning``.

        Args:
            wait: how long models may take to become available, in seconds; at most 600.
            reshuffle: deal keys to the arms afresh.
            deployment_config: of the Wallaroo SDK; None is all it may be.
            wait_for_status: of the Wallaroo SDK; True is all it may be.

        Raises:
            UnsupportedError: ``deployment_config`` is set, or ``wait_for_status`` is not True.
            DeployError: a model did not become available; what was in force before still is.
            FailedPreconditionError: the pipeline has no steps.
            InvalidArgumentError: the steps or metrics make no sense together.
        """
        refuse_set("deploy", {"deployment_config": deployment_config}, "model servers run where they were started")
        if wait_for_status is not True:
            raise UnsupportedError(
                f"deploy(wait_for_status={wait_for_status!r}) is not supported: deploy returns once the pipeline "
                "serves; leave it out, and limit the time with wait="
            )
        if not self._steps:
            raise FailedPreconditionError(
                f"pipeline {self.name()!r} has no steps; add_model_step(model) or add_random_split([...]) first, "
                f"or take what was there before with get_pipeline({self.name()!r})"
            )
        version = self._freeze()
        request = deployment_pb2.DeployPipelineRequest(
            pipeline_version=version.name, wait=_duration(wait), reshuffle=reshuffle
        )
        self._inference.forget()
        try:
            response = self._client._connection.call_patiently(
                self._client._connection.deployments.DeployPipeline,
                request,
                what=self._what("deploy"),
                timeout_s=wait + CALL_GRACE_S,
            )
        except FailedPreconditionError as error:
            raise DeployError(error.message) from error
        for message in response.warnings:
            warnings.warn(message, TiltyardWarning, stacklevel=2)
        return self

    def undeploy(self) -> Pipeline:
        """Take the pipeline out of force; does nothing when it is not."""
        self._inference.forget()
        self._client._connection.call_patiently(
            self._client._connection.deployments.UndeployPipeline,
            deployment_pb2.UndeployPipelineRequest(pipeline=self._proto.name),
            what=self._what("undeploy"),
            timeout_s=2 * CALL_GRACE_S,
        )
        return self

    def set_weights(self, weights: Mapping[str, Any] | Sequence[Any]) -> Pipeline:
        """Change the shares of the split in force, at once and without a new version; keys move only where they must.

        Args:
            weights: a weight for each arm, by the arm's name or in the arms' order.

        Raises:
            InvalidArgumentError: an arm is missing or unknown, or the weights make no split.
            FailedPreconditionError: the pipeline is not deployed, or has no split.
        """
        deployment = self._client._deployment(self._proto.name)
        arms = [arm.name for arm in deployment.arms]
        if not serves(deployment):
            raise FailedPreconditionError(f"pipeline {self.name()!r} is not deployed; call deploy() first")
        if isinstance(weights, Mapping):
            if set(weights) != set(arms):
                raise InvalidArgumentError(f"give a weight for each of the arms {', '.join(arms)}, and for no other")
            weights = [weights[arm] for arm in arms]
        values = list(weights)
        if len(values) != len(arms):
            raise InvalidArgumentError(f"{len(values)} weights for {len(arms)} arms; the arms are {', '.join(arms)}")
        entries = [
            deployment_pb2.ArmWeight(arm=arm, weight=weight)
            for arm, weight in zip(arms, whole_weights(values, arms), strict=True)
        ]
        self._client._connection.call(
            self._client._connection.deployments.SetWeights,
            deployment_pb2.SetWeightsRequest(pipeline=self._proto.name, weights=entries),
            what=self._what("set weights of"),
        )
        return self

    def status(self) -> dict[str, Any]:
        """Whether it serves, and what on which model server.

        ``{"status": "Running", "details": [], "engines": [...], "arms": [...]}``; an undeployed pipeline has only
        ``{"status": "Pipeline <name> is not deployed"}``.
        """
        deployment = self._client._deployment(self._proto.name)
        return status_of(deployment, self.name())

    def _freeze(self) -> pipeline_pb2.PipelineVersion:
        """The version with the steps and metrics of this object, made when there is none."""
        wanted = _Definition(tuple(self._steps), tuple(self._metrics), self._timeout_s)
        if self._base.name and _Definition.of(self._base) == wanted:
            return self._base
        request = pipeline_pb2.CreatePipelineVersionRequest(parent=self._proto.name, pipeline_version=wanted.to_proto())
        response = self._client._connection.call(
            self._client._connection.pipelines.CreatePipelineVersion, request, what=self._what("add a version to")
        )
        self._base = response.pipeline_version
        return self._base

    # -- inference -----------------------------------------------------------------------------------------------------

    def infer(
        self,
        x: Any,
        *,
        key: str | bytes | int | None = None,
        metadata: Metadata | None = None,
        timeout: float = 15.0,
    ) -> ResultList:
        """Ask the deployed pipeline; one request, and one result, for each dict.

        Nothing is ever sent twice: a request that fails raises.

        Args:
            x: inputs by name, ``{"text_input": [[...], [...]]}`` with lists or numpy arrays, or a list of such dicts.
                A field named like the pipeline's ``hash_key`` that is no input of the model is sent as the key.
            key: the key of all requests of this call; wins over the field.
            metadata: gRPC metadata to send along, a dict or pairs: str values, bytes for names ending in ``-bin``.
            timeout: deadline of each request in seconds, more than 0 and at most a day.

        Raises:
            InvalidArgumentError: an input is missing, unknown, or not exactly representable, or the metadata or timeout
                cannot be; nothing was sent.
            FailedPreconditionError: the pipeline is not deployed.
            InferenceError: a request failed; carries the status, the receipt, the arm, and the results before it.
        """
        return self._inference.infer(rows_of(x), key=key, metadata=metadata, timeout_s=timeout)

    def infer_from_file(
        self,
        path: str | os.PathLike[str],
        *,
        key: str | bytes | int | None = None,
        metadata: Metadata | None = None,
        timeout: float = 15.0,
    ) -> ResultList:
        """``infer`` with the content of a JSON file: one object, or a list of them.

        Args:
            path: the file.
            key: as in ``infer``.
            metadata: as in ``infer``.
            timeout: as in ``infer``.

        Raises:
            InvalidArgumentError: the file cannot be read or is no JSON; and what ``infer`` raises.
        """
        return self.infer(read_file(path), key=key, metadata=metadata, timeout=timeout)

    def report(self) -> Report:
        """What came of the requests to the deployment in force, or to the last one, per arm.

        Counts arrive about a second after the requests.

        Raises:
            EntityNotFoundError: no request to it was reported yet.
        """
        deployment = self._client._deployment(self._proto.name)
        return self._client.report(self._proto.name, deployment_uid=deployment.uid if serves(deployment) else "")

    # -- showing -------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Pipeline(name={self.name()!r}, steps={'; '.join(map(str, self._steps))!r})"

    def _repr_html_(self) -> str:
        return card(self._fields())

    def _fields(self) -> list[tuple[str, object]]:
        steps = "; ".join(map(str, self._steps))
        try:
            self._refresh()
            versions = ", ".join(version.version() for version in self.versions())
        except TiltyardError:  # showing an object must not fail because nobody answers
            return [("name", self.name()), ("created", self.create_time()), ("steps", steps)]
        return [
            ("name", self.name()),
            ("created", self.create_time()),
            ("last_updated", when(self._proto.update_time)),
            ("deployed", self._proto.deployed),
            ("versions", versions),
            ("steps", steps),
        ]


class PipelineList(TableList[Pipeline]):
    """Pipelines; a table in a notebook."""

    def __init__(self, items: list[Pipeline]) -> None:
        super().__init__(items, ("name", "created", "last_updated", "deployed", "steps"), _row)


def _row(pipeline: Pipeline) -> tuple[object, ...]:
    proto = pipeline._proto
    steps = "; ".join(map(str, pipeline.steps()))
    return pipeline.name(), pipeline.create_time(), when(proto.update_time), proto.deployed, steps


def _duration(seconds: float) -> duration_pb2.Duration:
    if not 0 < seconds <= 600:
        raise InvalidArgumentError(f"{seconds:g} s is no time to wait; give more than 0 and at most 600 seconds")
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
