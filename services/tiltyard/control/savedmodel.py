"""Reads the signatures of a SavedModel without TensorFlow."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from tiltyard.api.tfs.v1 import metadata_pb2, saved_model_pb2
from tiltyard.errors import LimitError, ModelUploadError

_SERVE = ["serve"]
# The whole graph is in memory while it is read. Weights are in files of their own, so graphs are far smaller.
_MAX_GRAPH_BYTES = 1024**3


def read_signatures(saved_model: Path) -> bytes:
    """The signatures of the graph tagged ``serve``, as bytes of a ``tiltyard.api.tfs.v1.SignatureDefMap``.

    Args:
        saved_model: the file ``saved_model.pb``.

    Raises:
        ModelUploadError: when the file cannot be read as a SavedModel, or has not exactly one graph to serve.
        LimitError: when it is too large to be looked at.
    """
    if saved_model.stat().st_size > _MAX_GRAPH_BYTES:
        raise LimitError(
            f"saved_model.pb is larger than {_MAX_GRAPH_BYTES} bytes; keep weights in variables, not in it"
        )
    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(saved_model.read_bytes())
    except DecodeError as error:
        raise ModelUploadError("saved_model.pb cannot be read; was the file cut short or changed?") from error
    graphs = [graph for graph in model.meta_graphs if list(graph.meta_info_def.tags) == _SERVE]
    if len(graphs) != 1:
        found = ", ".join(sorted("+".join(graph.meta_info_def.tags) or "(none)" for graph in model.meta_graphs))
        raise ModelUploadError(
            f"saved_model.pb has {len(graphs)} graphs tagged 'serve' and needs exactly one; "
            f"tags found: {found or 'none'}"
        )
    signatures = metadata_pb2.SignatureDefMap()
    for name, signature in graphs[0].signature_def.items():
        signatures.signature_def[name].CopyFrom(signature)
    return signatures.SerializeToString(deterministic=True)
