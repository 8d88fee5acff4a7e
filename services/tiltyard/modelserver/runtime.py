"""TensorFlow and its messages, loaded once, with the switches that must be set before. Import them from here only."""

from __future__ import annotations

import os
import sys

if "tensorflow" in sys.modules and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
    raise ImportError("tensorflow was loaded before the model server, with oneDNN on: a bad request could abort it")
# With oneDNN a tensor of the wrong rank trips a fatal check in its convolution: SIGABRT instead of INVALID_ARGUMENT.
# Small models are faster without it, too.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its start-up notes are no news; errors still reach stderr

import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session  # TF_SessionRun is exposed nowhere else
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_management_pb2, predict_pb2

__all__ = [
    "config_pb2",
    "get_model_metadata_pb2",
    "get_model_status_pb2",
    "model_management_pb2",
    "predict_pb2",
    "pywrap_tf_session",
    "tf",
    "types_pb2",
]

tf.get_logger().setLevel("ERROR")  # the session loader calls itself deprecated each time it is used
