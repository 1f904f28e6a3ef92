"""Limits of work: where a recipe meets them, and the rows of least error that save enough."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from scipy.optimize import LinearConstraint

from onnxslim_tk.plan.knapsack import alternatives, cheapest, exclusions
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.recipe import Methods, Recipe, Stage

_TIDYING: Final = ("clean", "fuse", "canonicalize")
_BESIDE: Final = ("blocks", "operators", "factorize")
# No layer loses more than half, unless the whole has to.
_LEAST_KEPT: Final = 0.5
_MOST_ERROR: Final = 1e3
_FLOAT_BYTES: Final = 4

SAVED: Final[Mapping[str, Callable[[Proposal], float]]] = {
    "macs": lambda row: float(row.macs_saved),
    "latency": lambda row: row.cost_saved,
    # Rows tell the bytes of what they leave; weights are floats at this point.
    "parameters": lambda row: row.bytes_saved / _FLOAT_BYTES,
}
"""What a row saves of each figure of a model."""


def least_error(proposals: Sequence[Proposal], needs: Mapping[str, float]) -> list[Proposal] | None:
    """Rows that save ``needs`` of each figure with the least summed error; None where none do.

    Errors and savings are taken as additive: a multiple-choice knapsack over all methods (Sinha
    and Zoltners, 1979).
    """
    rows = list(proposals)
    wanted = {figure: need for figure, need in needs.items() if need > 0}
    if not rows or not wanted:
        return None if wanted else []
    errors = np.minimum(np.array([row.error for row in rows]), _MOST_ERROR)
    saved = {figure: np.array([SAVED[figure](row) for row in rows]) for figure in wanted}
    limits = [
        LinearConstraint(saved[figure][None] / need, 1.0, np.inf) for figure, need in wanted.items()
    ]
    # Of equal errors the larger saving; numbers near 1 suit the solver.
    more = sum(saved[figure] / need for figure, need in wanted.items())
    cost = errors / max(float(errors.max()), 1e-30) - 1e-9 * more
    taken = cheapest(cost, exclusions(rows, alternatives(rows)), limits)
    return None if taken is None else [row for row, wish in zip(rows, taken, strict=True) if wish]


def limited(recipe: Recipe, shares: Mapping[str, float], methods: Methods) -> Recipe:
    """The recipe with ``shares`` of macs, latency or parameters as limits of its channels.

    One that prunes no channels gets a stage that does, behind those that only tidy, and in which
    other methods may do part of it.
    """
    if not shares:
        return recipe
    if any(p.name == "channels" for stage in recipe.stages for p in stage.passes):
        for figure, share in shares.items():
            recipe = recipe.with_setting(f"channels.{figure}={share}")
        return recipe
    least = min(_LEAST_KEPT, *shares.values())
    others = tuple(methods[name]() for name in _BESIDE)
    taken = {stage.name for stage in recipe.stages}
    name = "structure" if "structure" not in taken else "limits"
    stage = Stage(name, (*others, methods["channels"](keep=least, **shares)))
    tidy = [all(p.name in _TIDYING for p in stage.passes) for stage in recipe.stages]
    place = tidy.index(False) if False in tidy else len(tidy)
    return replace(recipe, stages=(*recipe.stages[:place], stage, *recipe.stages[place:]))
