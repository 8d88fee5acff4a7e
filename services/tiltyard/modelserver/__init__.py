"""The embedded model server: TensorFlow Serving's gRPC API on PyPI's ``tensorflow``, which ``runtime`` alone loads.

A request goes ``servicer > store/versions > predict > tensors > session > TensorFlow``, a new configuration
``servicer > store/config > store/versions > session``; ``app`` wires them. Classify, Regress, MultiInference and
SessionRun are not served: UNIMPLEMENTED.
"""
