"""One loaded version: a TensorFlow session, run through the C API's ``TF_SessionRun``.

``tf.Session.run`` checks shapes and converts dtypes, which TensorFlow Serving does not, and takes 3 to 4 times as long
a call; ``tf.saved_model.load`` cannot read some older models. Hence the session loader and the call beneath ``run``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tiltyard.errors import TiltyardError
from tiltyard.modelserver.runtime import config_pb2, get_model_metadata_pb2, pywrap_tf_session, tf

_STATUS_BY_CODE = {status.value[0]: status for status in grpc.StatusCode}


class RunError(TiltyardError):
    """TensorFlow refused or failed; carries the status of the op that did."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.status = _STATUS_BY_CODE.get(code, grpc.StatusCode.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An input or output of a signature: where it is in the graph."""

    tensor_name: str
    output: Any
    """The C API's ``TF_Output``; None when the graph has no such dense tensor."""
    dtype: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What can be called, by the names requests use; ``defaults`` are TensorProtos."""

    inputs: Mapping[str, Endpoint]
    outputs: Mapping[str, Endpoint]
    defaults: Mapping[str, Any]


class Session:
    """A SavedModel in memory. ``run`` may be called from any thread; ``close`` fails the runs that still go on."""

    def __init__(self, session: Any, signatures: Mapping[str, Any]) -> None:
        self._session = session
        self.signature_defs = get_model_metadata_pb2.SignatureDefMap(signature_def=signatures)
        """All signatures as they stand in the SavedModel."""
        self.signatures = {name: _signature(session.graph, proto) for name, proto in signatures.items()}

    @classmethod
    def load(cls, path: Path) -> Session:
        """Load the graph tagged ``serve`` from ``path``, restore its variables and run its initialisers.

        Raises:
            RunError: with the loader's status; NOT_FOUND when there is no SavedModel of that tag.
        """
        session = tf.compat.v1.Session(graph=tf.Graph(), config=config_pb2.ConfigProto(allow_soft_placement=True))
        try:
            with session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
            # A graph with nothing to restore has not reached the C++ session yet.
            pywrap_tf_session.ExtendSession(session._session)
            session.graph.finalize()
            return cls(session, meta_graph.signature_def)
        except Exception as error:
            session.close()
            raise _load_error(error, path) from error

    def run(self, feeds: Mapping[Any, Any], fetches: Sequence[Any], timeout_ms: int | None) -> list[Any]:
        """Run once.

        Args:
            feeds: arrays by ``TF_Output``.
            fetches: the outputs wanted, as ``TF_Output``.
            timeout_ms: at least 1; None means no limit. The run stops at its next op or loop iteration.

        Returns:
            One array, numpy scalar or bytes for each fetch.

        Raises:
            RunError: with the status and text of what failed.
        """
        options = None
        if timeout_ms is not None:
            text = config_pb2.RunOptions(timeout_in_ms=timeout_ms).SerializeToString()
            options = pywrap_tf_session.TF_NewBufferFromString(text)
        try:
            answer: list[Any] = pywrap_tf_session.TF_SessionRun_wrapper(
                self._session._session, options, feeds, fetches, [], None
            )
            return answer
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


def _signature(graph: Any, proto: Any) -> Signature:
    return Signature(
        inputs={alias: _endpoint(graph, info) for alias, info in sorted(proto.inputs.items())},
        outputs={alias: _endpoint(graph, info) for alias, info in sorted(proto.outputs.items())},
        defaults=dict(proto.defaults),
    )


def _endpoint(graph: Any, info: Any) -> Endpoint:
    try:
        tensor = graph.get_tensor_by_name(info.name)
    except (KeyError, ValueError):  # sparse and composite tensors, and operations such as an initialiser
        return Endpoint(info.name, None, info.dtype)
    return Endpoint(info.name, tensor._as_tf_output(), tensor.dtype.as_datatype_enum)


def _load_error(error: Exception, path: Path) -> RunError:
    if isinstance(error, tf.errors.OpError):
        return RunError(error.error_code, f"cannot load {path}: {error.message}")
    # The loader itself raises OSError for a missing or unreadable saved_model.pb, RuntimeError for a missing tag.
    code = grpc.StatusCode.NOT_FOUND if isinstance(error, OSError | RuntimeError) else grpc.StatusCode.INVALID_ARGUMENT
    return RunError(code.value[0], f"cannot load {path}: {error}")
