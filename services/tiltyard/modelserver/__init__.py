"""The embedded model server: TensorFlow Serving's gRPC API on the ``tensorflow`` package of PyPI.

The path of a request, file by file::

    servicer > store/versions > predict > tensors > session > TensorFlow > tensors > servicer

and of a new configuration: ``servicer > store/config > store/versions > session``. ``app`` wires them.

Importing this package does not load TensorFlow; ``runtime`` does, and everything that needs it imports it there.
Classify, Regress, MultiInference and SessionRun are not registered: calls get UNIMPLEMENTED.
"""
