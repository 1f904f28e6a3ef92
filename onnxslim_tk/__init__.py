"""onnxslim-tk: compresses neural networks at the level of the ONNX graph."""

from onnxslim_tk.version import VERSION as __version__

__all__ = ["__version__"]
