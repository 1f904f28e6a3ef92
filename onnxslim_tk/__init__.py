"""Compression of ONNX models: smaller and faster files, with proof that they still work."""

from onnxslim_tk.errors import (
    BudgetError,
    CalibrationError,
    ModelError,
    OnnxSlimError,
    RecipeError,
    SessionError,
)
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.images import ImageOptions
from onnxslim_tk.measure.metrics import Metric, load_metric
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.pipeline import (
    Limits,
    Options,
    apply,
    isolated,
    load,
    optimize,
    pack,
    plan,
    save,
    validate,
)
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.plan import Plan
from onnxslim_tk.plan.recipe import Recipe
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.version import VERSION

__version__ = VERSION

__all__ = [
    "Budget",
    "BudgetError",
    "CalibrationError",
    "ImageOptions",
    "Limits",
    "Metric",
    "Model",
    "ModelError",
    "OnnxSlimError",
    "Options",
    "Plan",
    "Recipe",
    "RecipeError",
    "Report",
    "Samples",
    "SessionError",
    "__version__",
    "apply",
    "isolated",
    "load",
    "load_metric",
    "optimize",
    "pack",
    "plan",
    "save",
    "validate",
]
