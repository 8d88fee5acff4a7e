"""What can go wrong, as one small tree.

    TiltyardError                     base of everything this project raises on purpose
    ├── InvalidArgumentError          INVALID_ARGUMENT     what was asked makes no sense as written
    ├── EntityNotFoundError           NOT_FOUND            no workspace, model, version, pipeline of that name
    ├── AlreadyExistsError            ALREADY_EXISTS       the name is taken
    ├── FailedPreconditionError       FAILED_PRECONDITION  right request, wrong state (not deployed, in use)
    ├── LimitError                    RESOURCE_EXHAUSTED   a size or count limit was reached
    ├── DeadlineError                 DEADLINE_EXCEEDED    it took longer than allowed
    ├── UnavailableError              UNAVAILABLE          nobody answers there; safe to try again
    ├── UnsupportedError              UNIMPLEMENTED        this build or service does not do that
    ├── DeployError                   FAILED_PRECONDITION  models could not be placed or did not become available
    ├── ModelUploadError              INVALID_ARGUMENT     the upload is unsafe or no SavedModel
    ├── InferenceError                (carries its own)    a call through a pipeline failed
    └── ConfigError                   (never on the wire)  a file or flag is wrong: names file, line and reason

    TiltyardWarning                   (a UserWarning)      worth knowing, and nothing was stopped

Every message says what was wrong, names the thing, and says what to do.
"""

from __future__ import annotations

from typing import Any

import grpc

__all__ = [
    "AlreadyExistsError",
    "ConfigError",
    "DeadlineError",
    "DeployError",
    "EntityNotFoundError",
    "FailedPreconditionError",
    "InferenceError",
    "InvalidArgumentError",
    "LimitError",
    "ModelUploadError",
    "TiltyardError",
    "TiltyardWarning",
    "UnavailableError",
    "UnsupportedError",
]


class TiltyardError(Exception):
    """Base of every error Tiltyard raises on purpose."""

    status: grpc.StatusCode = grpc.StatusCode.INTERNAL
    """The gRPC status a service answers with when this error reaches the top."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgumentError(TiltyardError):
    """What was asked makes no sense as written."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class EntityNotFoundError(TiltyardError):
    """There is no workspace, model, version or pipeline of that name."""

    status = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(TiltyardError):
    """The name is taken."""

    status = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(TiltyardError):
    """The request is right, but the state is not (not deployed, still in use)."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class LimitError(TiltyardError):
    """A limit on size or count was reached."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineError(TiltyardError):
    """It took longer than allowed."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(TiltyardError):
    """Nobody answers there; the same call may be tried again."""

    status = grpc.StatusCode.UNAVAILABLE


class UnsupportedError(TiltyardError):
    """This build or service does not do that."""

    status = grpc.StatusCode.UNIMPLEMENTED


class DeployError(FailedPreconditionError):
    """Models could not be placed on a model server, or did not become available in time."""


class ModelUploadError(InvalidArgumentError):
    """The upload is unsafe, or is no SavedModel. Nothing of it was kept."""


class InferenceError(TiltyardError):
    """A call through a pipeline failed.

    Attributes:
        code: the gRPC status of the answer.
        inference_id: the receipt of the failed call, or ``""`` when the router did not give one.
        arm: name of the arm the call was assigned to, or ``""``.
        results: what the requests before it in the same call gave, in order.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        inference_id: str = "",
        arm: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.inference_id = inference_id
        self.arm = arm
        self.results: tuple[Any, ...] = ()


class TiltyardWarning(UserWarning):
    """Something worth knowing that stopped nothing, such as an A/B test between byte-identical models."""


class ConfigError(TiltyardError):
    """A file or flag is wrong.

    Attributes:
        path: the file, or ``""`` when a flag is meant.
        line: 1-based line in the file, or 0 when unknown.
    """

    status = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, message: str, *, path: str = "", line: int = 0) -> None:
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(where + message)
        self.path = path
        self.line = line


_BY_STATUS: dict[grpc.StatusCode, type[TiltyardError]] = {
    cls.status: cls
    for cls in (
        InvalidArgumentError,
        EntityNotFoundError,
        AlreadyExistsError,
        FailedPreconditionError,
        LimitError,
        DeadlineError,
        UnavailableError,
        UnsupportedError,
    )
}


def from_rpc_error(error: grpc.RpcError, *, what: str) -> TiltyardError:
    """Turn a failed gRPC call into the error of this tree that its status stands for.

    Args:
        error: what a stub raised.
        what: the thing that was being done, for the message ("upload model 'fraud'").
    """
    # Every error a stub raises is a grpc.Call too, but the type stubs of grpc deny that the two can meet.
    call: Any = error
    has_status = hasattr(error, "code") and hasattr(error, "details")
    code = call.code() if has_status else grpc.StatusCode.UNKNOWN
    detail = (call.details() if has_status else str(error)) or code.name
    cls = _BY_STATUS.get(code, TiltyardError)
    return cls(f"{what}: {detail}")
