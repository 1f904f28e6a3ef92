"""Unstructured sparsity: the smallest weights become exact zeros, the others make up for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.kernels.grouped import grouped_error, grouped_masked_refit
from onnxslim_tk.kernels.sparsity import magnitude_mask, magnitude_threshold
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.readers import chosen_layers, suited
from onnxslim_tk.recover.bias import moments_of, shift_bytes, shift_means

Floats = NDArray[np.float64]
_SMALLEST = 256
_MILDER = (2 / 3, 1 / 3)
# A proposal looks at some rows and stops early: more iterations only lower the error.
_ROWS = 256
_ITERATIONS = 10


@dataclass(frozen=True, slots=True)
class Sparsify:
    """Zeros for the weights of least magnitude, which the packer then stores in few bits.

    ``sparsity`` is the share of zeros, in [0, 1): of every layer, or with ``scope`` ``global`` of
    all layers together, their weights compared in units of each layer's root mean square.
    ``recover`` refits the weights that stay to the layer's own outputs, by least squares under
    the covariance of its inputs. It saves bytes, not time.
    """

    name: ClassVar[str] = "sparsify"
    main: ClassVar[str] = "sparsity"
    observes: ClassVar[frozenset[Observable]] = frozenset({"mean", "covariance"})

    sparsity: float = 0.5
    scope: Literal["layer", "global"] = "layer"
    recover: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise RecipeError(f"sparsify: sparsity must be in [0, 1), got {self.sparsity}")
        if self.scope not in ("layer", "global"):
            raise RecipeError(f"sparsify: scope must be layer or global, got {self.scope!r}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a layer with the sparsity asked for, then two thirds and one third of it."""
        outputs = output_names(model)

        def rows(pair: tuple[tuple[Sparsify, Layer], list[float]]) -> list[Proposal | Refusal]:
            return list(_rows(*pair[0], pair[1], context, outputs))

        found, refusals = suited(self, model, context, lambda _, layer: layer.obstacle(_SMALLEST))
        yield from refusals
        wanted = list(zip(found, _shares(found), strict=True))
        for each in context.each(f"{self.name}: propose", rows, wanted):
            yield from each

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Prune the chosen layers to the share of zeros in their rows' details."""
        outputs = output_names(model)
        for layer, row in chosen_layers(model, chosen):
            tuned = context.tuned(self, layer.names) or self
            before = layer.matrix()
            mask = magnitude_mask(before, float(row.details["sparsity"]))
            moments = moments_of(layer, context.statistics)
            if tuned.recover and moments is not None and moments.second is not None:
                after = grouped_masked_refit(before, mask, moments.second)
                shift_means(model, layer, before, after, context.statistics, outputs)
            else:
                # A shift of means without a refit does harm: in depth the means drift apart.
                after = np.where(mask, before, 0.0)
            layer.set_dense(model, layer.from_matrix(after))


def _shares(found: Sequence[tuple[Sparsify, Layer]]) -> list[list[float]]:
    """For every layer the share of zeros at the sparsity asked for and at the milder ones."""
    shares = [[t.sparsity * f for f in (1.0, *_MILDER)] for t, _ in found]
    pools: dict[Sparsify, list[int]] = {}
    for k, (tuned, _) in enumerate(found):
        if tuned.scope == "global":
            pools.setdefault(tuned, []).append(k)
    for tuned, members in pools.items():
        magnitudes = [_relative_magnitudes(found[k][1]) for k in members]
        for j, factor in enumerate((1.0, *_MILDER)):
            sparsity = tuned.sparsity * factor
            threshold = magnitude_threshold(magnitudes, sparsity) if sparsity else -1.0
            for k, values in zip(members, magnitudes, strict=True):
                # Weights of one magnitude would all go at once, and with them the whole layer.
                below = np.count_nonzero(values <= threshold) / values.size
                shares[k][j] = min(below, (1.0 + sparsity) / 2)
    return shares


def _relative_magnitudes(layer: Layer) -> NDArray[Any]:
    magnitudes = np.abs(layer.weight.astype(np.float64))
    scale = float(np.sqrt(np.mean(magnitudes**2)))
    return magnitudes / scale if scale > 0 else magnitudes


def _rows(
    tuned: Sparsify, layer: Layer, wanted: list[float], context: Context, outputs: set[str]
) -> Iterator[Proposal | Refusal]:
    matrix, plain = layer.matrix(), packed_bytes(layer.weight)
    moments = moments_of(layer, context.statistics)
    second = moments.second if tuned.recover and moments is not None else None
    extra = 0 if second is None else shift_bytes(layer, context.statistics, outputs)
    proposed = False
    reason = "no weight is to go"
    for share, factor in zip(wanted, (1.0, *_MILDER), strict=True):
        mask = magnitude_mask(matrix, share)
        if mask.all():
            continue
        pruned = layer.from_matrix(np.where(mask, matrix, 0.0)).astype(np.float32)
        saved = plain - packed_bytes(pruned) - extra
        if saved <= 0:
            reason = "zeros would not make the packed weight smaller"
            continue
        proposed = True
        yield Proposal(
            (layer.id,),
            tuned.name,
            round(tuned.sparsity * factor, 4),
            {"sparsity": 1.0 - int(np.count_nonzero(mask)) / mask.size},
            bytes_saved=saved,
            error=_expected_error(
                matrix, mask, None if moments is None else moments.second, second
            ),
        )
    if not proposed:
        yield Refusal(layer.id, tuned.name, reason)


def _expected_error(
    matrix: Floats, mask: NDArray[np.bool_], covariance: Floats | None, refit: Floats | None
) -> float:
    step = -(-matrix.shape[1] // _ROWS)
    weights, keep = matrix[:, ::step], mask[:, ::step]
    if refit is None:
        return grouped_error(weights, np.where(keep, weights, 0.0), covariance)
    changed = grouped_masked_refit(weights, keep, refit, iterations=_ITERATIONS)
    return grouped_error(weights, changed, covariance)
