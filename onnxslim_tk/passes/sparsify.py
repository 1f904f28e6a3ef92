"""Sparsity: the weights that matter least become exact zeros, the others make up for them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.kernels.grouped import grouped_masked_refit
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import LEAST_ERROR, Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.readers import chosen_layers, suited
from onnxslim_tk.recover.bias import shift_bytes, shift_means, shift_outputs
from onnxslim_tk.recover.in_order import comparable
from onnxslim_tk.recover.masks import WAYS, Masking, Way, inputs_of, masked_error, seen
from onnxslim_tk.recover.sequential import can_follow, compensating, in_turn, lost_means
from onnxslim_tk.recover.zeros import Candidate, common_shares, sensitive_shares

Floats = NDArray[np.float64]
_SMALLEST: Final = 256
_MILDER: Final = (1.0, 2 / 3, 1 / 3)
_MOST_BLOCK: Final = 64


@dataclass(frozen=True, slots=True)
class Sparsify:
    """Zeros for the weights that matter least, which the packer then stores in few bits.

    ``sparsity`` is the share of zeros, in [0, 1). ``scope`` says of what: ``measured``, of all
    layers together, most of them where the model's outputs feel it least; ``layer``, of every
    layer; ``global``, of all together, their weights compared in units of each layer's root mean
    square. ``mask`` is how weights are compared within a layer: by ``magnitude``, by what they
    bring to the output (``wanda``; Sun et al., 2023), with those that stay making up for those
    that go as they go (``sparsegpt``; Frantar and Alistarh, 2023), or until what stays and what
    its refit makes of it agree (``alps``; Meng et al., 2024; magnitudes where nothing is
    refitted). Errors foretold for it are those of magnitudes. ``pattern`` ``"N:M"`` leaves N of
    each M weights along the input channels, whatever ``sparsity`` says; a ``block`` of neighbours
    along them goes or stays as one. ``recover`` refits the weights that stay to the layer's own
    outputs, by least squares under the covariance of its inputs as far as the samples tell it;
    with ``sequential`` one layer after the other, each making up for what those before it have
    lost.

    It saves bytes, not time: onnxruntime multiplies by zeros as by any number.
    """

    name: ClassVar[str] = "sparsify"
    main: ClassVar[str] = "sparsity"
    observes: ClassVar[frozenset[Observable]] = frozenset({"mean", "covariance"})

    sparsity: float = 0.5
    scope: Literal["measured", "layer", "global"] = "layer"
    mask: Way = "alps"
    pattern: str | None = None
    block: int = 1
    recover: bool = True
    sequential: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise RecipeError(f"sparsify: sparsity must be in [0, 1), got {self.sparsity}")
        if self.scope not in ("measured", "layer", "global"):
            raise RecipeError(
                f"sparsify: scope must be measured, layer or global, got {self.scope!r}"
            )
        if self.mask not in WAYS:
            known = f"{', '.join(WAYS[:-1])} or {WAYS[-1]}"
            raise RecipeError(f"sparsify: mask must be {known}, got {self.mask!r}")
        if self.pattern is not None and _pattern(self.pattern) is None:
            raise RecipeError(
                f"sparsify: pattern must be N:M with 0 < N < M <= 64, got {self.pattern!r}"
            )
        if not 1 <= self.block <= _MOST_BLOCK:
            raise RecipeError(f"sparsify: block must be in [1, {_MOST_BLOCK}], got {self.block}")
        if self.pattern is not None and self.block > 1:
            raise RecipeError("sparsify: pattern and block exclude each other; leave one out")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a layer with the zeros asked for, then two thirds and one third of them.

        Of a pattern there is one row alone.
        """
        outputs = output_names(model)

        def rows(pair: tuple[tuple[Sparsify, Layer], list[float]]) -> list[Proposal | Refusal]:
            return list(_rows(*pair[0], pair[1], context, outputs))

        found, refusals = suited(self, model, context, lambda _, layer: layer.obstacle(_SMALLEST))
        yield from refusals
        wanted = list(zip(found, _shares(model, found, context), strict=True))
        for each in context.each(f"{self.name}: propose", rows, wanted):
            yield from each

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Prune the chosen layers to the share of zeros in their rows' details."""
        outputs = output_names(model)
        pairs = list(chosen_layers(model, chosen))
        shares = {layer.id: float(row.details["sparsity"]) for layer, row in pairs}
        wrong = next((name for name, share in shares.items() if not 0 <= share <= 1), None)
        if wrong is not None:
            raise RecipeError(
                f"sparsify: sparsity of '{wrong}' must be in [0, 1], got {shares[wrong]}"
            )
        later = [layer for layer, _ in pairs if self._comes_in_turn(layer, context)]
        waiting = {layer.id for layer in later}
        reference = comparable(context.reference, model).copy() if later else model
        for layer, _ in pairs:
            if layer.id in waiting:
                continue
            tuned = context.tuned(self, layer.names) or self
            before = layer.matrix()
            inputs = inputs_of(layer, context.statistics)
            mask = tuned.masking.mask(layer, before, shares[layer.id], inputs)
            if tuned.recover and inputs is not None:
                after = grouped_masked_refit(before, mask, inputs.second)
                shift_means(model, layer, before, after, context.statistics, outputs)
            else:
                # A shift of means without a refit does harm: in depth the means drift apart.
                after = np.where(mask, before, 0.0)
            layer.set_dense(model, layer.from_matrix(after))
        for layer, pair in in_turn(model, reference, later, context.feeds, context.seed):
            tuned = context.tuned(self, layer.names) or self
            before, inputs = layer.matrix(), inputs_of(layer, context.statistics)
            # The mask is that of the row, whatever its layer reads by now.
            mask = tuned.masking.mask(layer, before, shares[layer.id], inputs)
            target = compensating(before, pair, centred=False)
            after = grouped_masked_refit(target, mask, seen(pair.second, pair.count).second)
            layer.set_dense(model, layer.from_matrix(after))
            shift_outputs(model, layer, lost_means(before, after, pair), outputs)

    def _comes_in_turn(self, layer: Layer, context: Context) -> bool:
        """Whether a layer is to make up for those before it, and samples show what they lost."""
        tuned = context.tuned(self, layer.names) or self
        return tuned.recover and tuned.sequential and can_follow(layer, context)

    @property
    def masking(self) -> Masking:
        """How the weights of a layer are compared."""
        # Where no refit follows, what it would make of weights says nothing.
        way = "magnitude" if self.mask == "alps" and not self.recover else self.mask
        return Masking(way, _pattern(self.pattern), self.block)


def _pattern(text: str | None) -> tuple[int, int] | None:
    """N and M of ``N:M``; None for anything else."""
    parts = re.fullmatch(r"([0-9]{1,2}):([0-9]{1,2})", text or "")
    if parts is None:
        return None
    keep, of = int(parts[1]), int(parts[2])
    return (keep, of) if 0 < keep < of <= _MOST_BLOCK else None


def _shares(
    model: Model, found: Sequence[tuple[Sparsify, Layer]], context: Context
) -> list[list[float]]:
    """For every layer the share of zeros at the sparsity asked for and at the milder ones."""
    shares = [[t.sparsity * f for f in _MILDER] for t, _ in found]
    pools: dict[Sparsify, list[int]] = {}
    for k, (tuned, _) in enumerate(found):
        if tuned.pattern:
            keep, of = _pattern(tuned.pattern) or (1, 1)
            shares[k] = [1 - keep / of]
        elif tuned.scope != "layer":
            pools.setdefault(tuned, []).append(k)
    for tuned, members in pools.items():
        mine = [found[k][1] for k in members]
        if tuned.scope == "global":
            told = common_shares(mine, [tuned.sparsity * f for f in _MILDER])
        else:
            offers = [_candidate(tuned, layer, context) for layer in mine]
            told = [
                [share * f for f in _MILDER]
                for share in sensitive_shares(model, offers, tuned.sparsity, context)
            ]
        for k, own in zip(members, told, strict=True):
            shares[k] = own
    return shares


def _candidate(tuned: Sparsify, layer: Layer, context: Context) -> Candidate:
    return Candidate(layer, tuned.masking, inputs_of(layer, context.statistics), tuned.recover)


def _rows(
    tuned: Sparsify, layer: Layer, wanted: list[float], context: Context, outputs: set[str]
) -> Iterator[Proposal | Refusal]:
    matrix, plain = layer.matrix(), packed_bytes(layer.weight)
    inputs = inputs_of(layer, context.statistics)
    refit = tuned.recover and inputs is not None
    extra = shift_bytes(layer, context.statistics, outputs) if refit else 0
    proposed = False
    reason = "no weight is to go"
    if tuned.scope == "measured" and tuned.sparsity > 0:
        reason = "the model's outputs feel its weights more than those of other layers"
    for share, factor in zip(wanted, _MILDER, strict=False):
        mask = tuned.masking.estimate(layer, matrix, share, inputs)
        if mask.all():
            continue
        pruned = layer.from_matrix(np.where(mask, matrix, 0.0)).astype(np.float32)
        saved = plain - packed_bytes(pruned) - extra
        if saved <= 0:
            reason = "zeros would not make the packed weight smaller"
            continue
        proposed = True
        # Nothing is lost where only zeros go.
        least = LEAST_ERROR if matrix[~mask].any() else 0.0
        yield Proposal(
            (layer.id,),
            tuned.name,
            tuned.pattern or round(tuned.sparsity * factor, 4),
            {"sparsity": 1.0 - int(np.count_nonzero(mask)) / mask.size},
            bytes_saved=saved,
            error=max(masked_error(matrix, mask, inputs, refit), least),
        )
    if not proposed:
        yield Refusal(layer.id, tuned.name, reason)
