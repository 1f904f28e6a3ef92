"""Lossless storage: `pack` writes constants in fewer bytes, `unpack` makes them plain again."""

from onnxslim_tk.packing.inspect import entropy
from onnxslim_tk.packing.options import packed_bytes
from onnxslim_tk.packing.pack import PackedTensor, pack
from onnxslim_tk.packing.unpack import unpack

__all__ = ["PackedTensor", "entropy", "pack", "packed_bytes", "unpack"]
