"""One loaded version: a TensorFlow session, run through the C API's ``TF_SessionRun``.

``tf.Session.run`` checks shapes and converts dtypes, which TensorFlow Serving does not, and takes 3 to 4 times as long
a call; ``tf.saved_model.load`` cannot read some older models. Hence the session loader and the call beneath ``run``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tiltyard.api.tfs.v1 import metadata_pb2, saved_model_pb2, tensor_pb2
from tiltyard.errors import TiltyardError
from tiltyard.modelserver.runtime import pywrap_tf_session, tf

_STATUS_BY_CODE = {status.value[0]: status for status in grpc.StatusCode}


class RunError(TiltyardError):
    """TensorFlow refused or failed; carries the status of the op that did."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.status = _STATUS_BY_CODE.get(code, grpc.StatusCode.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An input or output of a signature; ``output`` is its ``TF_Output``, None when it is no dense tensor."""

    tensor_name: str
    output: Any
    dtype: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What can be called, by the names requests use."""

    inputs: Mapping[str, Endpoint]
    outputs: Mapping[str, Endpoint]
    defaults: Mapping[str, tensor_pb2.Tensor]


class Session:
    """A SavedModel in memory. ``run`` may be called from any thread; ``close`` fails the runs that still go on."""

    def __init__(self, session: Any, signatures: Mapping[str, Any]) -> None:
        self._session = session
        parse, graph = saved_model_pb2.SignatureDef.FromString, session.graph
        protos = {name: parse(signature.SerializeToString()) for name, signature in signatures.items()}
        self.signature_defs = metadata_pb2.SignatureDefMap(signature_def=protos)
        """All signatures as they stand in the SavedModel."""
        self.signatures = {
            name: Signature(_endpoints(graph, proto.inputs), _endpoints(graph, proto.outputs), proto.defaults)
            for name, proto in protos.items()
        }

    @classmethod
    def load(cls, path: Path) -> Session:
        """Load the graph tagged ``serve``, restore its variables, run its initialisers; RunError when that fails."""
        session = tf.compat.v1.Session(graph=tf.Graph(), config=tf.compat.v1.ConfigProto(allow_soft_placement=True))
        try:
            with session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
            # A graph with nothing to restore has not reached the C++ session yet.
            pywrap_tf_session.ExtendSession(session._session)
            session.graph.finalize()
            return cls(session, meta_graph.signature_def)
        except Exception as error:
            session.close()
            # Without a status: a file is missing or unreadable (OSError), no graph has that tag (RuntimeError).
            code = grpc.StatusCode.NOT_FOUND.value[0]
            raise RunError(getattr(error, "error_code", code), f"cannot load {path}: {error}") from error

    def run(self, feeds: Mapping[Any, Any], fetches: Sequence[Any], deadline: float | None) -> list[Any]:
        """Run once: arrays by ``TF_Output`` in; one array, numpy scalar or bytes for each fetch out. Raises RunError.

        After ``deadline`` (of the monotonic clock; None means none) the run stops at its next op or loop iteration.
        """
        options = None
        if deadline is not None:
            left_ms = max(math.ceil((deadline - time.monotonic()) * 1000), 1)  # TensorFlow takes 0 for no limit
            text = tf.compat.v1.RunOptions(timeout_in_ms=left_ms).SerializeToString()
            options = pywrap_tf_session.TF_NewBufferFromString(text)
        try:
            handle, call = self._session._session, pywrap_tf_session.TF_SessionRun_wrapper
            return list(call(handle, options, feeds, fetches, [], None))
        except tf.errors.OpError as error:
            raise RunError(error.error_code, error.message) from error
        except UnicodeDecodeError as error:
            # The wrapper cannot make a str of an op's text that quotes the request's bytes; the status is lost with it.
            text = bytes(error.object).decode("utf-8", "replace")
            raise RunError(grpc.StatusCode.INVALID_ARGUMENT.value[0], text) from error
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)

    def close(self) -> None:
        """Free the session; runs that still go on fail."""
        self._session.close()


def _endpoints(graph: Any, infos: Mapping[str, saved_model_pb2.TensorInfo]) -> dict[str, Endpoint]:
    endpoints = {}
    for alias, info in sorted(infos.items()):
        endpoints[alias] = Endpoint(info.name, None, info.dtype)
        try:
            tensor = graph.get_tensor_by_name(info.name)
        except (KeyError, ValueError):  # sparse and composite tensors, and operations such as an initialiser
            continue
        endpoints[alias] = Endpoint(info.name, tensor._as_tf_output(), tensor.dtype.as_datatype_enum)
    return endpoints
