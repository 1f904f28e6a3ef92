"""Which weights of a layer go, and what that costs at its output."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.kernels.grouped import grouped_damped, grouped_error, grouped_masked_refit
from onnxslim_tk.kernels.sparsity import (
    alternating_mask,
    block_mask,
    magnitude_mask,
    pattern_mask,
    relative_scores,
    swept_mask,
)
from onnxslim_tk.measure.observe import Statistics
from onnxslim_tk.recover.bias import moments_of
from onnxslim_tk.recover.damping import ALIKE_IN_REFITS, damping_for

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Way = Literal["magnitude", "wanda", "sparsegpt", "alps"]
WAYS: Final = get_args(Way)
# An estimate looks at some rows and stops early: more iterations only lower the error.
_ROWS: Final = 256
_ITERATIONS: Final = 10
# Columns that a sweep chooses among at once.
_SWEPT: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What samples show of a layer's inputs.

    ``second`` are their second moments ``(groups, inputs, inputs)``, damped as far as the rows are
    too few to tell them; ``energies`` the mean squares ``(groups, inputs)``, as they are.
    """

    second: Floats
    energies: Floats


def seen(second: Floats, count: int) -> Seen:
    """What ``count`` rows with second moments ``(groups, inputs, inputs)`` show."""
    damped = grouped_damped(second, damping_for(second, count, ALIKE_IN_REFITS))
    return Seen(damped, np.diagonal(second, axis1=1, axis2=2))


def inputs_of(layer: Layer, statistics: Statistics | None) -> Seen | None:
    """What samples show of a layer's inputs about zero; None where that is nothing.

    Means that drift in depth do less harm than about the mean.
    """
    moments = moments_of(layer, statistics)
    if moments is None or moments.second is None:
        return None
    return seen(moments.second, moments.count)


@dataclass(frozen=True, slots=True)
class Masking:
    """How weights are compared, and the form in which they go.

    ``pattern`` (N, M) leaves N of each M neighbours along the input channels; a ``block`` of
    neighbours goes or stays as one. Without samples every way compares magnitudes.
    """

    way: Way
    pattern: tuple[int, int] | None = None
    block: int = 1

    def mask(self, layer: Layer, matrix: Floats, sparsity: float, inputs: Seen | None) -> Mask:
        """True where a weight of ``matrix`` ``(groups, rows, inputs)`` stays.

        A pattern has a share of zeros of its own, whatever ``sparsity`` says.
        """
        channels = layer.shape[1] if layer.kind == "Conv" else matrix.shape[-1]
        # Neighbours are input channels at one position of the kernel.
        order = np.arange(matrix.shape[-1]).reshape(channels, -1).T.ravel()
        weights = matrix[..., order]
        choose = partial(self._chosen, channels, sparsity)
        if self.way == "magnitude" or inputs is None:
            keep = choose(relative_scores(weights))
        elif self.way == "wanda":
            keep = choose(relative_scores(weights, inputs.energies[:, order]))
        elif self.way == "alps":
            keep = alternating_mask(weights, inputs.second[:, order[:, None], order], choose)
        else:
            turned = (c[np.ix_(order, order)] for c in inputs.second)
            step = channels if self.pattern is not None or self.block > 1 else _SWEPT
            parts = zip(weights, turned, strict=True)
            keep = np.stack(
                [
                    swept_mask(w, c, lambda s: choose(relative_scores(s)), block=step)
                    for w, c in parts
                ]
            )
        back = np.empty_like(keep)
        back[..., order] = keep
        return back

    def estimate(self, layer: Layer, matrix: Floats, sparsity: float, inputs: Seen | None) -> Mask:
        """A mask for figures alone: of magnitudes where the real one would take its time."""
        quick = replace(self, way="magnitude") if self.way == "alps" else self
        return quick.mask(layer, matrix, sparsity, inputs)

    def _chosen(self, channels: int, sparsity: float, scores: Floats) -> Mask:
        if self.pattern is None and self.block == 1:
            return magnitude_mask(scores, sparsity)
        by_position = scores.reshape(*scores.shape[:-1], -1, channels)
        if self.pattern is not None:
            keep = pattern_mask(by_position, *self.pattern)
        else:
            keep = block_mask(by_position, sparsity, self.block)
        return keep.reshape(scores.shape)


def masked_error(matrix: Floats, mask: Mask, inputs: Seen | None, refit: bool) -> float:
    """Relative squared error of a layer's output, told from some of its rows.

    With ``refit``, what it is once the weights that stay make up for the others.
    """
    step = -(-matrix.shape[1] // _ROWS)
    weights, keep = matrix[:, ::step], mask[:, ::step]
    second = None if inputs is None else inputs.second
    if refit and second is not None:
        changed = grouped_masked_refit(weights, keep, second, iterations=_ITERATIONS)
    else:
        changed = np.where(keep, weights, 0.0)
    return grouped_error(weights, changed, second)
