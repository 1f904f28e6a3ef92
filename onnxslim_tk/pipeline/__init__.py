"""The way of the data: optimize, plan, apply, validate, pack, load and save."""

from onnxslim_tk.pipeline.cache import Cache
from onnxslim_tk.pipeline.files import load, save
from onnxslim_tk.pipeline.isolate import Limits, isolated
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.pipeline.run import apply, optimize, pack, plan, validate

__all__ = [
    "Cache",
    "Limits",
    "Options",
    "apply",
    "isolated",
    "load",
    "optimize",
    "pack",
    "plan",
    "save",
    "validate",
]
