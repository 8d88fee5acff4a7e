"""The Python SDK: workspaces, models, pipelines and inference over one address.

Start with ``Client``. In data-flow order: ``client`` > ``workspaces``, ``models`` (``uploads``, ``signatures``),
``pipelines`` (``steps``, ``status``) > ``inference`` (``inputs``, ``values``, ``dtypes``, ``tensors``) > ``results``;
``reports`` for what came of the requests. ``connection`` is the one place that knows gRPC.
"""

from tiltyard.client.client import DEFAULT_ADDRESS, Client
from tiltyard.client.models import ModelList, ModelVersion
from tiltyard.client.pipelines import Pipeline, PipelineList, PipelineVersion
from tiltyard.client.reports import ArmReport, Counts, MetricReport, Report
from tiltyard.client.results import InferenceResult, ResultList
from tiltyard.client.signatures import TensorSpec
from tiltyard.client.steps import Arm, MetricSpec, ModelStep, SplitStep
from tiltyard.client.workspaces import Workspace, WorkspaceList

__all__ = [
    "DEFAULT_ADDRESS",
    "Arm",
    "ArmReport",
    "Client",
    "Counts",
    "InferenceResult",
    "MetricReport",
    "MetricSpec",
    "ModelList",
    "ModelStep",
    "ModelVersion",
    "Pipeline",
    "PipelineList",
    "PipelineVersion",
    "Report",
    "ResultList",
    "SplitStep",
    "TensorSpec",
    "Workspace",
    "WorkspaceList",
]
