"""Limits of work: the rows of least error of all methods that meet them."""

from collections.abc import Callable, Mapping, Sequence

from onnxslim_tk.graph.model import Model
from onnxslim_tk.pipeline.stages import Begun, Chooser
from onnxslim_tk.pipeline.stepping import Measured
from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.limiting import least_error
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.recipe import Recipe, Stage

# The method that meets a limit by itself.
ALONE = "channels"


class Limiting:
    """Chooses in the stage that prunes channels; where others stand beside, from all of them.

    ``shares`` of the original's figures may stay, ``totals`` tells what a model has of a figure.
    Unless ``mixed``, channels alone meet the limits. What rows save together is less than the sum
    of what they save alone; ``more`` asks for as much more of each figure.
    """

    def __init__(
        self,
        measured: Measured,
        original: Model,
        shares: Mapping[str, float],
        totals: Callable[[Model, str], float],
    ) -> None:
        self.mixed = False
        self.more: dict[str, float] = dict.fromkeys(shares, 1.0)
        self._measured, self._shares, self._totals = measured, shares, totals
        self._original = {figure: totals(original, figure) for figure in shares}

    def has_choice(self, recipe: Recipe) -> bool:
        """Whether other methods stand beside the one that meets limits by itself."""
        named = [{method.name for method in stage.passes} for stage in recipe.stages]
        return any(ALONE in names and len(names) > 1 for names in named)

    def beside(self, choose: Chooser) -> Chooser:
        """``choose`` for all stages but those that prune channels."""

        def either(
            stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
        ) -> list[Proposal]:
            if any(method.name == ALONE for method in stage.passes):
                return self._chosen(stage, proposals, model, begun)
            return choose(stage, proposals, model, begun)

        return either

    def correct(self, model: Model) -> bool:
        """Ask for more where ``model`` has more left than its share; whether it has."""
        over = False
        for figure, share in self._shares.items():
            whole = self._original[figure]
            left = self._totals(model, figure) / whole if whole else 0.0
            if left > share:
                over = True
                saved = max(1 - left, 1e-3)
                self.more[figure] *= 1.02 * (1 - share) / saved
        return over

    def _chosen(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        alone = asked_for([row for row in proposals if row.method == ALONE])
        if not self.mixed:
            return alone
        first = [group[0] for group in alternatives(proposals)]
        known = self._measured.rows(stage, proposals, first, model, begun)
        needs = {}
        for figure, share in self._shares.items():
            over = self._totals(model, figure) - share * self._original[figure]
            needs[figure] = self.more[figure] * over
        found = least_error(known, needs)
        return alone if found is None else found
