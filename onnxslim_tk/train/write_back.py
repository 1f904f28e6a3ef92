"""Trained tensors back into their model; nothing else of it changes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.train.holders import holders
from onnxslim_tk.train.module import GraphModule


def write_back(module: GraphModule, model: Model) -> int:
    """Put the parameters of ``module`` into ``model``, which it was made of; give their number.

    Tensors keep their names, types and shapes, and what the runtime computes then is what the
    module does. Raises TrainingError where one of them isn't in ``model`` or has another shape.
    """
    values = trained_values(module)
    found = holders(model, values)
    missing = values.keys() - {key for key, _ in found}
    if missing:
        raise TrainingError(f"train: the model has no tensor {min(missing)!r} to write back to")
    for key, holder in found:
        _check(holder, values[key], key)
    for key, holder in found:
        holder.values = values[key]
    return len(values)


def trained_values(module: GraphModule) -> dict[str, NDArray[Any]]:
    """The trained tensors by key, as the file holds them."""
    stored = [weight.stored() for weight in module.weights]
    found = {}
    for key, tie in module.ties.items():
        values = stored[tie.weight]
        if tie.turned:
            values = np.ascontiguousarray(values.T)
        found[key] = values if tie.shape is None else values.reshape(tie.shape)
    return found


def _check(holder: Any, values: NDArray[Any], key: str) -> None:
    if tuple(holder.shape) != values.shape:
        raise TrainingError(
            f"train: the tensor {key!r} has the shape {tuple(holder.shape)} in the model, "
            f"{values.shape} in what was trained"
        )
