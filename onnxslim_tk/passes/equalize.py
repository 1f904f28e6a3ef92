"""Equalization: channels that share a grid are brought to like ranges, the function kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log10
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.scale_flow import ScaleGroup
from onnxslim_tk.graph.scaling import scale_groups
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal, matches
from onnxslim_tk.recover.equalization import group_factors, integer_error, write_factors

Floats = NDArray[np.float64]
_CALIBRATE = 24
_JUDGE = 8
_FEWEST = 4
# A new constant and the Mul that reads it.
_NODE_BYTES = 60


@dataclass(frozen=True, slots=True)
class Equalize:
    """Channels that share a grid of int8 are multiplied so that none drowns in its steps.

    What reads them is divided, so that the function stays: between layers (Nagel et al., 2019;
    Meller et al., 2019), and from a LayerNormalization into the matrix products behind it (Xiao et
    al., 2023). Factors are those for which int8 is expected to err least, in activations and
    weights together. Only where that is ``min_gain_db`` less at the readers of a group, and where
    int8 really errs less at the model's outputs on samples that did not set the factors.
    """

    name: ClassVar[str] = "equalize"
    main: ClassVar[str] = "min_gain_db"
    observes: ClassVar[frozenset[Observable]] = frozenset({"channels"})

    min_gain_db: float = 1.0

    def __post_init__(self) -> None:
        if not self.min_gain_db >= 0:
            raise RecipeError(f"equalize: min_gain_db must not be negative, got {self.min_gain_db}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a group of channels; none at all where int8 gains nothing by them together."""
        rows: list[Proposal] = []
        for group in scale_groups(model, context.shapes):
            tuned = self._tuned(group, context)
            if tuned is None:
                continue
            row = tuned._row(group, context)
            if isinstance(row, Refusal):
                yield row
            else:
                rows.append(row)
        reason = self._objection(model, rows, context) if rows else ""
        for row in rows:
            yield Refusal(row.targets[0], self.name, reason) if reason else row

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Multiply and divide the constants of all chosen groups."""
        groups = {_key(group): group for group in scale_groups(model, context.shapes)}
        for row in chosen:
            group = groups.get((row.targets, str(row.setting)))
            factors = np.asarray(row.details["factors"], np.float64)
            usable = np.isfinite(factors).all() and (factors > 0).all()
            if group is None or len(factors) != group.count or not usable:
                raise RecipeError(
                    f"equalize: {row.targets[0]!r} needs a positive factor for each channel of a "
                    f"group of this model, got {len(factors)} factors"
                )
            write_factors(model, group, factors)

    def _tuned(self, group: ScaleGroup, context: Context) -> "Equalize | None":
        """The settings for a group: those of its first layer; None where one is left out."""
        names = [name for layer in group.layers for name in layer.names]
        if any(matches(pattern, names) for pattern in context.exclude):
            return None
        tuned = [context.tuned(self, layer.names) for layer in group.layers]
        return None if any(each is None for each in tuned) else tuned[0]

    def _row(self, group: ScaleGroup, context: Context) -> Proposal | Refusal:
        targets, kind = _key(group)
        seen = {} if context.statistics is None else context.statistics.channels
        found = group_factors(group, seen)
        if found is None:
            return Refusal(targets[0], self.name, "no samples show the ranges of its channels")
        factors, left = found
        gain = -10 * log10(max(left, 1e-12))
        if gain < self.min_gain_db or gain <= 0:
            reason = f"int8 would gain {gain:.1f} dB, less than {self.min_gain_db:g}"
            return Refusal(targets[0], self.name, reason)
        details = {"factors": [float(f"{f:.6g}") for f in factors], "gain_db": round(gain, 2)}
        cost = 4 * group.count + _NODE_BYTES if group.restored else 0
        return Proposal(targets, self.name, kind, details, bytes_saved=-cost)

    def _objection(self, model: Model, rows: Sequence[Proposal], context: Context) -> str:
        """Why the rows are not worth it, as measured; empty where they are.

        The factors are set anew from the feeds that don't judge.
        """
        if len(context.feeds) < _FEWEST:
            return f"fewer than {_FEWEST} samples cannot show whether it helps"
        count = min(_JUDGE, len(context.feeds) // 2)
        seen, judge = context.feeds[:-count][:_CALIBRATE], context.feeds[-count:]
        channels = observe(model, seen, self.observes, context.seed, context.shapes).channels
        twin, wanted = model.copy(), {(row.targets, str(row.setting)) for row in rows}
        for group in scale_groups(twin, context.shapes):
            found = group_factors(group, channels) if _key(group) in wanted else None
            if found is not None:
                write_factors(twin, group, found[0])
        try:
            after = integer_error(twin, model, seen, judge)
            before = integer_error(model, model, seen, judge)
        except SessionError as error:
            return str(error)
        if after < before:
            return ""
        return f"measured, int8 errs no less with it ({after:.2g}) than without ({before:.2g})"


def _key(group: ScaleGroup) -> tuple[tuple[str, ...], str]:
    """What tells groups apart: their layers, and whether a normalization makes the channels."""
    kind = "layers" if group.makers else "normalization"
    return tuple(dict.fromkeys(layer.id for layer in group.layers)), kind
