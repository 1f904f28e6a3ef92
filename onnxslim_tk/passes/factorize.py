"""Low-rank factorization: one layer becomes two thin ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.readers import by_layer, chosen_layers
from onnxslim_tk.recover.bias import moments_of, shift_bytes, shift_means
from onnxslim_tk.recover.factors import (
    Factors,
    Kind,
    split,
    split_cost,
    split_error,
    work_share,
    write_factors,
)

_SMALLEST = 256
# A node, its tensors' headers and, of a convolution, its attributes.
_NODE_BYTES = {"Conv": 150, "Gemm": 70, "MatMul": 50}


Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factorize:
    """Two layers of low rank for one: ``W x`` becomes ``L (R x)``.

    ``keep`` is the largest share of the layer's weights that the two may hold; it sets the rank,
    rounded down to the target's step. ``kinds`` are the ways to split a convolution: ``channel``
    (k x k to few channels, then 1 x 1; Zhang et al., 2015) and ``spatial`` (k x 1, then 1 x k;
    Jaderberg et al., 2014); the one of less error is taken. With samples the split is best for the
    inputs that the layer sees. A layer that would miss more than ``max_error`` of its output (the
    relative squared error) is left whole.
    """

    name: ClassVar[str] = "factorize"
    main: ClassVar[str] = "keep"
    observes: ClassVar[frozenset[Observable]] = frozenset({"mean", "covariance"})

    keep: float = 0.5
    max_error: float = 0.05
    kinds: tuple[Literal["channel", "spatial"], ...] = ("channel", "spatial")

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise RecipeError(f"factorize: keep must be in (0, 1], got {self.keep}")
        if not self.max_error >= 0:
            raise RecipeError(f"factorize: max_error must be 0 or more, got {self.max_error}")
        if not self.kinds or not set(self.kinds) <= {"channel", "spatial"}:
            raise RecipeError(f"factorize: kinds must be channel or spatial, got {self.kinds!r}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a layer with the share asked for, then a quarter and half way back to 1."""
        outputs = output_names(model)

        def rows(tuned: Factorize, layer: Layer) -> Iterator[Proposal | Refusal]:
            return _rows(tuned, layer, context, outputs)

        yield from by_layer(self, model, context, lambda _, layer: _refusal(layer), rows)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Split the chosen layers to the kind and rank in their rows' details."""
        outputs = output_names(model)
        for layer, row in chosen_layers(model, chosen):
            details = row.details
            covariance = _covariance(layer, context)
            before = layer.matrix()
            factors = split(layer, details["kind"], int(details["rank"]), covariance)
            after = factors.product()[None]
            write_factors(model, layer, factors)
            shift_means(model, layer, before, after, context.statistics, outputs)


def _refusal(layer: Layer) -> str:
    if layer.kind == "Gather":
        return "an embedding is not factored"
    if layer.kind == "ConvTranspose":
        return "a transposed convolution is not factored"
    if layer.is_half:
        return "a float16 weight is not factored"
    if layer.is_turned:
        return "a weight behind a Transpose is not factored"
    if layer.is_recurrent:
        return "a recurrent weight is not factored"
    if layer.node.attrs.get("auto_pad", "").startswith("SAME"):
        return "a convolution that pads by itself is not factored"
    if layer.groups > 1:
        return "a grouped convolution is not factored"
    return layer.obstacle(_SMALLEST)


def _covariance(layer: Layer, context: Context) -> Floats | None:
    moments = moments_of(layer, context.statistics)
    return None if moments is None or moments.second is None else moments.second[0]


def _kinds(tuned: Factorize, layer: Layer) -> list[Kind]:
    if layer.kind != "Conv":
        return ["channel"]
    square = len(layer.shape) == 4 and min(layer.shape[2:]) > 1
    return [kind for kind in tuned.kinds if kind == "channel" or square]


def _rows(
    tuned: Factorize, layer: Layer, context: Context, outputs: set[str]
) -> Iterator[Proposal | Refusal]:
    plain = packed_bytes(layer.weight) - _NODE_BYTES[layer.kind]
    plain -= shift_bytes(layer, context.statistics, outputs)
    macs = layer.macs(context.shapes) or 0
    kinds, keep = _kinds(tuned, layer), tuned.keep
    reason = ""
    ranks: set[int] = set()
    for share in (keep, keep + (1 - keep) / 4, keep + (1 - keep) / 2):
        found = _best(layer, kinds, share, context)
        if isinstance(found, str):
            reason = reason or found
            continue
        kind, rank, factors, error = found
        # What is best at the share asked for stays the way at milder ones.
        kinds = [kind]
        saved = plain - sum(
            packed_bytes(f.astype(np.float32)) for f in (factors.first, factors.second)
        )
        if error > tuned.max_error:
            reason = reason or (
                f"rank {rank} would miss {error:.0%} of the layer's output, "
                f"max_error allows {tuned.max_error:.0%}"
            )
        elif saved <= 0:
            reason = reason or "the two factors would not be smaller once packed"
        elif rank not in ranks:
            ranks.add(rank)
            saved_macs = round(macs * (1 - work_share(layer, kind, rank, context.shapes)))
            yield Proposal(
                (layer.id,),
                tuned.name,
                round(share, 4),
                {"kind": kind, "rank": rank},
                bytes_saved=saved,
                macs_saved=saved_macs,
                cost_saved=context.target.time_of_macs(saved_macs),
                error=error,
            )
    if not ranks:
        yield Refusal(layer.id, tuned.name, reason)


def _best(
    layer: Layer, kinds: list[Kind], share: float, context: Context
) -> tuple[Kind, int, Factors, float] | str:
    """The kind of least error with its rank, factors and error, or why there is none."""
    target, covariance = context.target, _covariance(layer, context)
    reason = f"{_described(layer)} has nothing to factor"
    best: tuple[Kind, int, Factors, float] | None = None
    for kind in kinds:
        # A share like 0.3 is a hair less in binary; that must not cost a rank.
        rank = int(share * layer.size / split_cost(layer, kind) + 1e-9)
        if rank >= target.channel_step:
            rank -= rank % target.channel_step
        if rank < 1:
            continue
        work = work_share(layer, kind, rank, context.shapes)
        if work > target.factor_share:
            reason = (
                f"two layers would take {work:.0%} of the multiply-accumulates, "
                f"the target gains only up to {target.factor_share:.0%}"
            )
            continue
        factors = split(layer, kind, rank, covariance)
        error = split_error(layer, factors, covariance)
        if best is None or error < best[3]:
            best = kind, rank, factors, error
    return reason if best is None else best


def _described(layer: Layer) -> str:
    if layer.kind != "Conv":
        return "a {} x {} matrix".format(*layer.shape)
    kernel = "x".join(str(n) for n in layer.shape[2:])
    return f"a {kernel} kernel of {layer.channels} channels"
