"""Compression of ONNX models: smaller and faster files, with proof that they still work."""

__version__ = "0.1.0"
