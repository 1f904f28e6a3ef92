"""Sizing by measured errors: bits go where the model's outputs feel them."""

from collections.abc import Sequence

from onnxslim_tk.graph.model import Model
from onnxslim_tk.pipeline.stepping import Measured
from onnxslim_tk.plan.policy import alternatives, asked_for, trimmed
from onnxslim_tk.plan.proposal import Context, Proposal
from onnxslim_tk.plan.recipe import Stage
from onnxslim_tk.plan.sizing import is_graded, sized


class Sizing:
    """Takes the settings of least measured error at the size of those asked for.

    ``extra`` bytes less, that is. Where settings don't trade bytes for error, rows out of
    proportion are given up as ever.
    """

    def __init__(self, measured: Measured) -> None:
        self.extra = 0
        self._measured = measured

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, context: Context
    ) -> list[Proposal]:
        """One setting for every target."""
        groups = [g for g in alternatives(proposals) if is_graded(g) and g[0].error > 0]
        if groups:
            first = [group[0] for group in groups]
            known = self._measured.rows(stage, proposals, first, model, context)
            chosen = sized(known, self.extra)
            # What is far from the setting asked for is too far to be told by that one's error.
            asked = {id(group[0]) for group in alternatives(known)}
            moved = [p for p in chosen if id(p) not in asked and p.error > 0]
            known = self._measured.rows(stage, proposals, moved, model, context)
            return sized(known, self.extra)
        rows = [g for g in alternatives(proposals) if len(g) > 1 and g[0].cost_saved > 0]
        if not rows:
            return asked_for(proposals)
        first = [group[0] for group in rows]
        return trimmed(self._measured.rows(stage, proposals, first, model, context))
