"""Sizing by measured errors: bits go where the model's outputs feel them."""

from collections.abc import Sequence
from typing import Final

from onnxslim_tk.graph.model import Model
from onnxslim_tk.pipeline.stages import Begun
from onnxslim_tk.pipeline.stepping import Measured
from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.policy import asked_for, trimmed
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.recipe import Stage
from onnxslim_tk.plan.sizing import is_graded, sized

_ROUNDS: Final = 4


class Sizing:
    """Takes the settings of least measured error at the size of those asked for.

    ``extra`` bytes less, that is, with ``last_resorts`` among the rows or without. Where settings
    don't trade bytes for error, rows out of proportion are given up as ever.
    """

    def __init__(self, measured: Measured) -> None:
        self.extra = 0
        self.last_resorts = False
        self._measured = measured

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        """One setting for every target."""
        groups = [g for g in alternatives(proposals) if is_graded(g) and g[0].error > 0]
        if groups:
            first = [group[0] for group in groups]
            asked = {group[0].targets: group[0].bytes_saved for group in groups}
            known = self._measured.rows(stage, proposals, first, model, begun)
            chosen = sized(known, self.extra, self.last_resorts)
            for _ in range(_ROUNDS):
                # Of coarser settings those are taken whose errors are foretold too small.
                coarser = [
                    p
                    for p in chosen
                    if not p.measured and p.bytes_saved > asked.get(p.targets, p.bytes_saved)
                ]
                if not coarser:
                    break
                known = self._measured.rows(stage, proposals, coarser, model, begun)
                chosen = sized(known, self.extra, self.last_resorts)
            return chosen
        rows = [g for g in alternatives(proposals) if len(g) > 1 and g[0].cost_saved > 0]
        if not rows:
            return asked_for(proposals)
        first = [group[0] for group in rows]
        return trimmed(self._measured.rows(stage, proposals, first, model, begun))
