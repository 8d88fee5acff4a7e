"""The errors under the name that people who come from other SDKs import them by."""

from tiltyard.errors import EntityNotFoundError, InferenceError, ModelUploadError, TiltyardError

__all__ = ["EntityNotFoundError", "InferenceError", "ModelUploadError", "TiltyardError"]
