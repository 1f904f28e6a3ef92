"""How many zeros each layer gets of those that all are to have together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint

from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.kernels.grouped import grouped_error, grouped_masked_refit
from onnxslim_tk.kernels.sparsity import magnitude_threshold
from onnxslim_tk.plan.knapsack import cheapest
from onnxslim_tk.plan.proposal import Context
from onnxslim_tk.recover.bias import moments_of
from onnxslim_tk.recover.held_out import held_out
from onnxslim_tk.recover.masks import Masking, Seen, inputs_of, masked_error

Floats = NDArray[np.float64]
# What stays of a layer, over what would stay were all to lose the same share.
_DENSITIES: Final = (0.5, 0.65, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0)
_MOST: Final = 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A layer that may lose weights, how they are chosen, and what samples show of its inputs."""

    layer: Layer
    masking: Masking
    inputs: Seen | None
    refit: bool

    def error(self, share: float) -> float:
        """Expected relative squared error of the layer's output with ``share`` of zeros."""
        matrix = self.layer.matrix()
        mask = self.masking.estimate(self.layer, matrix, share, self.inputs)
        return masked_error(matrix, mask, self.inputs, self.refit)

    def pruned(self, share: float) -> NDArray[Any]:
        """The layer's weight with ``share`` of zeros."""
        matrix = self.layer.matrix()
        mask = self.masking.estimate(self.layer, matrix, share, self.inputs)
        if self.refit and self.inputs is not None:
            return self.layer.from_matrix(grouped_masked_refit(matrix, mask, self.inputs.second))
        return self.layer.from_matrix(np.where(mask, matrix, 0.0))


def common_shares(found: Sequence[Layer], wanted: Sequence[float]) -> list[list[float]]:
    """For every layer its shares of zeros, where one threshold for all reaches each of ``wanted``.

    Weights are compared in units of their layer's root mean square.
    """
    magnitudes = [_relative_magnitudes(layer) for layer in found]
    shares: list[list[float]] = [[] for _ in found]
    for sparsity in wanted:
        threshold = magnitude_threshold(magnitudes, sparsity) if sparsity else -1.0
        for own, values in zip(shares, magnitudes, strict=True):
            # Weights of one magnitude would all go at once, and with them the whole layer.
            below = np.count_nonzero(values <= threshold) / values.size
            own.append(min(below, (1.0 + sparsity) / 2))
    return shares


def _relative_magnitudes(layer: Layer) -> NDArray[Any]:
    magnitudes = np.abs(layer.weight.astype(np.float64))
    scale = float(np.sqrt(np.mean(magnitudes**2)))
    return magnitudes / scale if scale > 0 else magnitudes


def sensitive_shares(
    model: Model, found: Sequence[Candidate], sparsity: float, context: Context
) -> list[float]:
    """Shares of zeros that come to ``sparsity`` of all weights, and make the least error.

    Each layer's error is foretold for ten shares, in units of what the model's outputs feel of
    it: how much of its error reaches them, with ``sparsity`` in that layer alone, on a few feeds
    that it wasn't fitted to; without feeds all count the same. A multiple-choice knapsack
    chooses, errors taken as additive.
    """
    if not found or not sparsity:
        return [0.0] * len(found)
    density = 1 - sparsity
    offers = sorted({max(0.0, 1 - density * f) for f in _DENSITIES})
    weights = _sensitivities(model, found, sparsity, context)
    errors, zeros = [], []
    for candidate, weight in zip(found, weights, strict=True):
        errors += [min(weight * candidate.error(s) if s else 0.0, _MOST) for s in offers]
        zeros += [s * candidate.layer.size for s in offers]
    every = np.arange(len(errors)).reshape(len(found), -1)
    wanted = sparsity * sum(candidate.layer.size for candidate in found)
    enough = LinearConstraint(np.array(zeros)[None] / wanted, 1 - 1e-9, np.inf)
    cost = np.array(errors) / max(max(errors), 1e-30)
    taken = cheapest(cost, every.tolist(), [enough])
    if taken is None:
        return [sparsity] * len(found)
    chosen = [[s for s, k in zip(offers, row, strict=True) if taken[k]] for row in every]
    return [max(own, default=0.0) for own in chosen]


def _sensitivities(
    model: Model, found: Sequence[Candidate], sparsity: float, context: Context
) -> list[float]:
    """What each layer's relative error comes to at the model's outputs."""
    apart = held_out(model, context, frozenset({"covariance"}))
    if apart is None:
        return [1.0] * len(found)
    felt = []
    for candidate in found:
        layer, moments = candidate.layer, moments_of(candidate.layer, apart.shown)
        if candidate.inputs is not None and moments is None:
            # A branch that no sample held out takes is not free.
            felt.append(1.0)
            continue
        inputs = inputs_of(layer, apart.context.statistics)
        pruned = replace(candidate, inputs=inputs).pruned(sparsity)

        def put(twin: Model, key: str = layer.id, weight: Any = pruned) -> None:
            next(layer for layer in layers(twin) if layer.id == key).set_dense(twin, weight)

        second = None if moments is None else moments.second
        own = grouped_error(layer.matrix(), layer.to_matrix(pruned), second)
        felt.append(apart.probe.error(put) / own if own > 0 else 1.0)
    return felt
