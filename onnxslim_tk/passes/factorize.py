"""Factorization: one layer becomes a few thin ones, or a weight that is stored in few numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import LEAST_ERROR, Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.readers import by_layer, chosen_layers
from onnxslim_tk.plan.targets import Work
from onnxslim_tk.recover.bias import moments_of, shift_bytes, shift_means
from onnxslim_tk.recover.chain import Parts
from onnxslim_tk.recover.factors import Form, described
from onnxslim_tk.recover.forms import (
    FORMS,
    Kind,
    form_error,
    gain_of,
    run_obstacle,
    write_form,
)

Floats = NDArray[np.float64]
_SMALLEST: Final = 256
# A node, its tensors' headers and, of a convolution, its attributes.
_NODE_BYTES: Final = {"Conv": 150, "Gemm": 70, "MatMul": 50, "Gather": 50}
_STORED_BYTES: Final = 250


@dataclass(frozen=True, slots=True)
class Factorize:
    """A few thin layers for one, such as two of low rank: ``W x`` becomes ``L (R x)``.

    ``keep`` is the largest share of the layer's weights that they may hold; it sets the rank,
    rounded down to the target's step. ``kinds`` are the forms that are tried, of which the one of
    least error is taken: ``channel`` (of a convolution k x k to few channels, then 1 x 1; Zhang et
    al., 2015; of a matrix its SVD), ``spatial`` (k x 1, then 1 x k; Jaderberg et al., 2014),
    ``tucker`` (1 x 1, k x k between few channels, 1 x 1; Kim et al., 2016), ``cp`` (1 x 1,
    depthwise k x k, 1 x 1; Lebedev et al., 2015), ``separable`` (depthwise k x k, then 1 x 1;
    Howard et al., 2017), ``blocks`` (a convolution in groups), and ``kronecker``, ``toeplitz``,
    ``hankel`` and ``circulant`` matrices. With samples each is best for the inputs that the layer
    sees. A layer that would miss more than ``max_error`` of its
    output (the relative squared error) is left whole.

    A form has to be faster by the target's table; with ``pays`` ``bytes`` one that isn't is stored
    in few numbers, and expanded to the whole weight when the model is loaded. Embeddings, which
    take no time, are factored then too.
    """

    name: ClassVar[str] = "factorize"
    main: ClassVar[str] = "keep"
    observes: ClassVar[frozenset[Observable]] = frozenset({"mean", "covariance"})

    keep: float = 0.5
    max_error: float = 0.05
    kinds: tuple[Kind, ...] = ("channel", "spatial", "tucker")
    pays: Literal["latency", "bytes"] = "latency"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise RecipeError(f"factorize: keep must be in (0, 1], got {self.keep}")
        if not self.max_error >= 0:
            raise RecipeError(f"factorize: max_error must be 0 or more, got {self.max_error}")
        if not self.kinds or not set(self.kinds) <= FORMS.keys():
            known = ", ".join(FORMS)
            raise RecipeError(f"factorize: kinds must be of {known}, got {self.kinds!r}")
        if self.pays not in ("latency", "bytes"):
            raise RecipeError(f"factorize: pays must be latency or bytes, got {self.pays!r}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a layer with the share asked for, then a quarter and half way back to 1."""
        outputs = output_names(model)

        def refused(tuned: Factorize, layer: Layer) -> str:
            reason = run_obstacle(layer) or layer.obstacle(_SMALLEST)
            if not reason and layer.kind == "Gather" and tuned.pays == "latency":
                reason = "an embedding takes no time to save; pays: bytes stores it in factors"
            return reason

        def rows(tuned: Factorize, layer: Layer) -> Iterator[Proposal | Refusal]:
            return _rows(tuned, layer, context, outputs)

        yield from by_layer(self, model, context, refused, rows)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Write the chosen layers in the forms and ranks of their rows' details."""
        outputs = output_names(model)
        for layer, row in chosen_layers(model, chosen):
            form, rank, stored = _checked(layer, row)
            try:
                parts = form.split(layer, rank, _covariance(layer, context))
            except ValueError as error:
                raise RecipeError(f"factorize: '{layer.id}' has no rank {rank}: {error}") from error
            before, after = layer.matrix(), form.product(layer, parts)[None]
            shift_means(model, layer, before, after, context.statistics, outputs)
            write_form(model, layer, form, rank, parts, stored)


def _checked(layer: Layer, row: Proposal) -> tuple[Form, int, bool]:
    """Form, rank and whether it is only stored; RecipeError for what the layer can't be."""
    kind, rank = row.details["kind"], row.details["rank"]
    stored = bool(row.details.get("stored", False))
    form, table = FORMS.get(kind), layer.kind == "Gather"
    if form is None or run_obstacle(layer) or form.obstacle(layer) or (table and kind != "channel"):
        raise RecipeError(f"factorize: '{layer.id}' can't be written as {kind!r}")
    if rank < 1 or rank != int(rank):
        raise RecipeError(f"factorize: rank must be a whole number from 1 on, got {rank}")
    if not table and (form.expand is None if stored else not form.steps(layer, int(rank))):
        way = "be expanded at load" if stored else "run as nodes"
        raise RecipeError(f"factorize: what is written as {kind!r} can't {way}")
    return form, int(rank), stored


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """A form that fits a layer at some rank, what it saves of a run, and what it misses."""

    kind: Kind
    rank: int
    parts: Parts
    error: float
    stored: bool
    macs: int
    cost: float


def _covariance(layer: Layer, context: Context) -> Floats | None:
    moments = moments_of(layer, context.statistics)
    return None if moments is None or moments.second is None else moments.second[0]


def _rows(
    tuned: Factorize, layer: Layer, context: Context, outputs: set[str]
) -> Iterator[Proposal | Refusal]:
    plain = packed_bytes(layer.weight) - shift_bytes(layer, context.statistics, outputs)
    keep, kinds = tuned.keep, tuned.kinds
    reason = ""
    seen: set[tuple[str, int]] = set()
    for share in (keep, keep + (1 - keep) / 4, keep + (1 - keep) / 2):
        found = _best(tuned, layer, kinds, share, context)
        if isinstance(found, str):
            reason = reason or found
            continue
        # What is best at the share asked for stays the way at milder ones.
        kinds = (found.kind,)
        saved = plain - sum(packed_bytes(part.astype(np.float32)) for part in found.parts)
        saved -= _STORED_BYTES if found.stored else _nodes(layer, found)
        if found.error > tuned.max_error:
            reason = reason or (
                f"{found.kind} of rank {found.rank} would miss {found.error:.0%} of the layer's "
                f"output, max_error allows {tuned.max_error:.0%}"
            )
        elif saved <= 0:
            reason = reason or f"the {len(found.parts)} factors would not be smaller once packed"
        elif (found.kind, found.rank) not in seen:
            seen.add((found.kind, found.rank))
            yield Proposal(
                (layer.id,),
                tuned.name,
                round(share, 4),
                {"kind": found.kind, "rank": found.rank, "stored": found.stored},
                bytes_saved=saved,
                macs_saved=found.macs,
                cost_saved=found.cost,
                error=max(found.error, LEAST_ERROR),
            )
    if not seen:
        yield Refusal(layer.id, tuned.name, reason)


def _nodes(layer: Layer, found: _Found) -> int:
    return _NODE_BYTES[layer.kind] * max(len(found.parts) - 1, 0)


def _best(
    tuned: Factorize, layer: Layer, kinds: Sequence[Kind], share: float, context: Context
) -> _Found | str:
    """The form of least error with its rank and parts, or why there is none."""
    covariance = _covariance(layer, context)
    reason = ""
    best: _Found | None = None
    for kind in kinds:
        form = FORMS[kind]
        why = form.obstacle(layer)
        rank = 0 if why else form.rank(layer, share * layer.size, context.target.channel_step)
        if rank < 1:
            reason = reason or why or f"{described(layer)} has nothing to factor"
            continue
        paid = _paid(tuned, layer, kind, rank, context)
        if isinstance(paid, str):
            # What the target says tells more than that there is no kernel to split.
            reason = paid
            continue
        parts = form.split(layer, rank, covariance)
        found = _Found(kind, rank, parts, form_error(layer, form, parts, covariance), *paid)
        if best is None or found.error < best.error:
            best = found
    return reason if best is None else best


def _paid(
    tuned: Factorize, layer: Layer, kind: Kind, rank: int, context: Context
) -> tuple[bool, int, float] | str:
    """Whether a form is only stored, what it saves of a run; or why it does not pay."""
    form, target = FORMS[kind], context.target
    if layer.kind == "Gather":
        if kind != "channel":
            return f"an embedding is not written as {kind}"
        rows = int(np.prod(context.shapes.get(layer.output.name, (1,))[:-1]))
        width = layer.shape[1]
        work = Work("MatMul", rows * width, rows * rank * width, weights=rank * width)
        return False, -work.macs, -target.float_time(work)
    steps = form.steps(layer, rank)
    reason = f"{kind} has no operators that run as fast"
    if steps:
        share, macs, cost = gain_of(layer, steps, context.shapes, target)
        if share <= target.factor_share and (cost > 0 or not macs):
            return False, macs, cost
        many = {1: "one grouped layer", 2: "two layers", 3: "three layers"}[len(steps)]
        reason = (
            f"{many} would take {share:.0%} of the multiply-accumulates, "
            f"the target gains only up to {target.factor_share:.0%}"
        )
        if share <= target.factor_share:
            reason = f"{many} would take longer by the target's table"
    if tuned.pays == "bytes" and form.expand is not None:
        return True, 0, 0.0
    return reason
