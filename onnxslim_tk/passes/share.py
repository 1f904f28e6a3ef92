"""Weight sharing: a few distinct values a tensor, found by K-means, with error feedback."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.ends import end_nodes
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.readers import by_layer, chosen_layers
from onnxslim_tk.recover.bias import (
    keeps_mean,
    moments_of,
    shift_bytes,
    shift_means,
    shift_outputs,
)
from onnxslim_tk.recover.codebook import CodebookFit, Effort, is_pruned, whole_grid
from onnxslim_tk.recover.feedback import Codebook
from onnxslim_tk.recover.sequential import (
    can_follow,
    compensating,
    in_turn,
    lost_means,
    moments_in,
)

Floats = NDArray[np.float64]
_SMALLEST = 512
# Fewer weights would not pay for a codebook of pairs.
_ENOUGH_FOR_PAIRS = 8192
# Entry counts that fill their codes: base-3 digits, planes of bits, bytes.
_STEPS = (3, 4, 6, 8, 12, 16, 24, 32, 64, 256)
# Vectors that take 3 and 2 bits a weight, for layers of at least this share of all weights: what
# they gain there counts, and fitting them takes its time.
_VECTORS = ((64, 2), (256, 4))
_MUCH = 0.1
# The Cast and the Mul that bring a scale, and the headers of the tensors between.
_DECODE_BYTES = 60


@dataclass(frozen=True, slots=True)
class Share:
    """At most ``clusters`` distinct values (vectors of ``dimensions`` values) in every weight.

    ``scaled`` puts them on whole numbers times one scale per output channel, which a later
    quantization keeps; otherwise they are floats. ``effort`` says how far rounding goes: ``quick``
    takes nearest values; ``normal`` lets the columns to come make up for each column's error (GPTQ,
    Frantar et al., 2022) and refits and rounds once more; ``thorough`` does so four times, and
    takes layers in turn, so that each makes up for what those before it have lost. More than quick
    needs samples. Exact zeros of a pruned weight stay zeros.
    """

    name: ClassVar[str] = "share"
    main: ClassVar[str] = "clusters"
    observes: ClassVar[frozenset[Observable]] = frozenset({"mean", "covariance"})

    clusters: int = 16
    dimensions: Literal[1, 2, 4, 8] = 1
    scaled: bool = True
    effort: Effort = "normal"

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 256:
            raise RecipeError(f"share: clusters must be in [2, 256], got {self.clusters}")
        if self.dimensions not in (1, 2, 4, 8):
            raise RecipeError(f"share: dimensions must be 1, 2, 4 or 8, got {self.dimensions}")
        if self.effort not in get_args(Effort):
            raise RecipeError(
                f"share: effort must be quick, normal or thorough, got {self.effort!r}"
            )

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a layer with the codebook asked for, then finer ones."""
        outputs, every = output_names(model), list(layers(model))
        ends, much = end_nodes(model, every), _MUCH * sum(layer.size for layer in every)

        def rows(tuned: Share, layer: Layer) -> Iterator[Proposal | Refusal]:
            place = _Place(id(layer.node) in ends, layer.size >= much)
            return _rows(tuned, layer, context, outputs, place)

        yield from by_layer(self, model, context, _refusal, rows)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Give the chosen layers values of the codebooks in their rows' details."""
        outputs = output_names(model)
        pairs = list(chosen_layers(model, chosen))
        rows = {layer.id: row for layer, row in pairs}
        later = [layer for layer, _ in pairs if self._comes_in_turn(layer, context)]
        reference = model.copy() if later else model
        waiting = {layer.id for layer in later}
        first = [layer for layer, _ in pairs if layer.id not in waiting]

        def rounded(layer: Layer) -> tuple[CodebookFit, NDArray[Any], NDArray[Any]]:
            fit = _fit(context.tuned(self, layer.names) or self, layer, context, outputs)
            return fit, *fit.round(_book(rows[layer.id].details))

        for layer, (fit, values, scales) in zip(
            first, context.each(f"{self.name}: round", rounded, first), strict=True
        ):
            after = _put(model, layer, fit, values, scales, rows[layer.id])
            shift_means(model, layer, fit.matrix, after, context.statistics, outputs)
        for layer, pair in in_turn(model, reference, later, context.feeds, context.seed):
            matrix, centred = layer.matrix(), keeps_mean(layer, outputs)
            target = compensating(matrix, pair, centred)
            fit = CodebookFit(layer, moments_in(pair), "thorough", centred, target)
            row = rows[layer.id]
            after = _put(model, layer, fit, *fit.round(_book(row.details)), row)
            shift_outputs(model, layer, lost_means(matrix, after, pair), outputs)

    def _comes_in_turn(self, layer: Layer, context: Context) -> bool:
        """Whether a layer is to make up for those before it, and samples show what they lost.

        Zeros of a pruned weight could not stay.
        """
        tuned = context.tuned(self, layer.names) or self
        thorough = tuned.effort == "thorough"
        return thorough and can_follow(layer, context) and not is_pruned(layer.weight)


def _put(
    model: Model,
    layer: Layer,
    fit: CodebookFit,
    values: NDArray[Any],
    scales: NDArray[Any],
    row: Proposal,
) -> Floats:
    """Give the layer rounded values; what they stand for, as a matrix."""
    after = fit.rebuilt(values, scales)
    if _book(row.details).unit is None:
        layer.set_dense(model, values)
    else:
        layer.set_scaled(model, values, scales)
    return after


def _refusal(tuned: Share, layer: Layer) -> str:
    reason = layer.obstacle(_SMALLEST)
    if reason:
        return reason
    if layer.size % tuned.dimensions:
        return f"{layer.size} weights do not split into vectors of {tuned.dimensions}"
    if tuned.dimensions > 1 and is_pruned(layer.weight):
        return "pruned zeros would not survive in vectors"
    return ""


def _fit(tuned: Share, layer: Layer, context: Context, outputs: set[str]) -> CodebookFit:
    moments = moments_of(layer, context.statistics)
    return CodebookFit(layer, moments, tuned.effort, keeps_mean(layer, outputs))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer stands: first or last, and whether it holds much of all weights."""

    is_end: bool
    is_large: bool


def _levels(tuned: Share, place: _Place, vectors: Sequence[int]) -> list[tuple[int, int]]:
    """Clusters and dimensions: as asked for, what takes more bits a weight, then what takes less.

    ``vectors`` has the lengths of those that may be offered beside single values: pairs that take
    as many bits, and in a large layer what takes 3 and 2 bits.
    """
    asked: tuple[int, int] = (tuned.clusters, tuned.dimensions)
    if tuned.dimensions == 1:
        coarser = [(step, 1) for step in _STEPS if step < tuned.clusters]
        pairs = [(tuned.clusters**2, 2)] if 2 in vectors and 4 <= tuned.clusters <= 16 else []
        if place.is_large:
            coarser += [
                (count, width)
                for count, width in _VECTORS
                if width in vectors and count < tuned.clusters**width
            ]
        # Of equal bits vectors first, since they take a few bytes more for their codebook.
        coarser.sort(key=lambda level: (-log2(level[0]) / level[1], -level[1]))
        finer = [(step, 1) for step in _STEPS if step > tuned.clusters]
        return [asked, *pairs, *finer, *coarser]
    levels = [asked]
    width: int = tuned.dimensions if tuned.clusters < _STEPS[-1] else tuned.dimensions // 2
    while width > 1:
        levels.append((_STEPS[-1], width))
        width //= 2
    return [*levels, *((step, 1) for step in _STEPS if step >= 16)]


def _rows(
    tuned: Share, layer: Layer, context: Context, outputs: set[str], place: _Place
) -> Iterator[Proposal | Refusal]:
    plain = packed_bytes(layer.weight)
    extra = shift_bytes(layer, context.statistics, outputs)
    fit = _fit(tuned, layer, context, outputs)
    most = 0
    vectors = [width for width in (2, 4) if _may_join(layer, tuned, fit, width)]
    for clusters, dimensions in _levels(tuned, place, vectors):
        if clusters < _STEPS[-1] and _is_unseen(layer, tuned, context):
            continue
        book = fit.fit(clusters, dimensions, tuned.scaled, context.seed)
        seen = fit.foretell(book)
        taken = packed_bytes(seen.values.astype(np.int8 if tuned.scaled else np.float32))
        if tuned.scaled:
            taken += packed_bytes(seen.scales)
        taken = int(taken * seen.times) + (_DECODE_BYTES if tuned.scaled else 0)
        saved = plain - taken - extra
        # What errs more has to save more than all that err less.
        coarser = tuned.dimensions == 1 and clusters < tuned.clusters**dimensions
        if saved <= (most if coarser else 0):
            continue
        most = max(most, saved)
        yield Proposal(
            (layer.id,),
            tuned.name,
            clusters if dimensions == 1 else f"{clusters}x{dimensions}",
            # Measured errors mislead at the first and the last layers of a model.
            _details(book) | ({"last_resort": True} if coarser and place.is_end else {}),
            bytes_saved=saved,
            error=seen.error,
        )
    if not most:
        yield Refusal(layer.id, tuned.name, "a codebook would not make the packed weight smaller")


def _may_join(layer: Layer, tuned: Share, fit: CodebookFit, width: int) -> bool:
    """Whether vectors of so many values, at as many bits as single ones, can come nearer."""
    splits = layer.size >= _ENOUGH_FOR_PAIRS and layer.size % width == 0
    single = tuned.dimensions == 1 and not is_pruned(layer.weight)
    return splits and single and fit.sweeps_vectors(width)


def _is_unseen(layer: Layer, tuned: Share, context: Context) -> bool:
    """Whether samples were to steer the rounding, and could not: none shows what the layer reads.

    A coarse codebook without them costs far more than elsewhere.
    """
    hidden = context.statistics is not None and moments_of(layer, context.statistics) is None
    return tuned.effort != "quick" and hidden and layer.kind != "Gather"


def _details(book: Codebook) -> dict[str, Any]:
    """A codebook as JSON; no entries stand for the whole grid."""
    return {"entries": [] if book.unit == 0.0 else book.entries.tolist(), "unit": book.unit}


def _book(details: Any) -> Codebook:
    entries, unit = details["entries"], details["unit"]
    if unit == 0.0:
        return whole_grid()
    return Codebook(np.asarray(entries, np.float64), None if unit is None else float(unit))
