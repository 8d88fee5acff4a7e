"""TensorFlow, loaded once, with the switches that must be set before. Import it from here only."""

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
from tensorflow.python.client import pywrap_tf_session  # TF_SessionRun is exposed nowhere else

__all__ = ["pywrap_tf_session", "tf"]

tf.get_logger().setLevel("ERROR")  # the session loader calls itself deprecated each time it is used
