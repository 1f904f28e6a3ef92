"""The methods: one file each, one line each in :data:`PASSES`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from onnxslim_tk.passes.blocks import Blocks
from onnxslim_tk.passes.canonicalize import Canonicalize
from onnxslim_tk.passes.channels import Channels
from onnxslim_tk.passes.clean import Clean
from onnxslim_tk.passes.dynamic_int8 import DynamicInt8
from onnxslim_tk.passes.equalize import Equalize
from onnxslim_tk.passes.factorize import Factorize
from onnxslim_tk.passes.fuse import Fuse
from onnxslim_tk.passes.operators import Operators
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.passes.share import Share
from onnxslim_tk.passes.sparsify import Sparsify

PASSES: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        method.name: method
        for method in (
            Clean,
            Fuse,
            Canonicalize,
            Blocks,
            Operators,
            Factorize,
            Channels,
            Equalize,
            Sparsify,
            Share,
            Quantize,
            DynamicInt8,
        )
    }
)
"""Every method by the name that recipes use."""
