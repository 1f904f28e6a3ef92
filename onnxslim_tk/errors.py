"""The errors that the package raises on purpose: one tree with one root."""

from typing import ClassVar


class OnnxSlimError(Exception):
    """Root of every error that the package raises on purpose.

    ``exit_code`` is what the command line returns for the error: 1, or 3 when a budget
    doesn't hold. The message is one line that says who, the rule and the value.
    """

    exit_code: ClassVar[int] = 1


class ModelError(OnnxSlimError):
    """The model can't be read, isn't valid ONNX, or holds something that isn't supported."""


class RecipeError(OnnxSlimError):
    """A recipe, a setting or a plan is malformed or out of range."""


class CalibrationError(OnnxSlimError):
    """The samples are missing, unreadable, too few, or don't fit the model's inputs."""


class BudgetError(OnnxSlimError):
    """The budget doesn't hold, or the samples can't show whether it does."""

    exit_code: ClassVar[int] = 3


class SessionError(OnnxSlimError):
    """The runtime refuses to load or run a model."""


class TrainingError(OnnxSlimError):
    """PyTorch is missing, or a graph or a setting doesn't allow training."""
