"""Sizing: of all settings on offer, those that make the least error at a size."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import LinearConstraint

from onnxslim_tk.plan.knapsack import alternatives, cheapest, exclusions
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Proposal

_MOST_ERROR = 1e3


def is_graded(group: Sequence[Proposal]) -> bool:
    """Whether settings of one row trade bytes for error, and nothing else."""
    sizes = {p.bytes_saved for p in group}
    return len(sizes) > 1 and not any(p.cost_saved or p.macs_saved for p in group)


def sized(proposals: Sequence[Proposal], extra: int, last_resorts: bool = False) -> list[Proposal]:
    """Rows that save ``extra`` bytes more than those asked for, with the least summed error.

    A negative ``extra`` leaves room for finer settings. Errors are taken as additive: a
    multiple-choice knapsack (Sinha and Zoltners, 1979). Where so much cannot be saved, what saves
    most. Last resorts are rows like any other only where ``last_resorts`` says so.
    """
    asked = asked_for(proposals)
    groups = [group for group in alternatives(proposals) if is_graded(group)]
    graded = {id(p) for group in groups for p in group}
    others = [p for p in asked if id(p) not in graded]
    rows = [p for group in groups for p in group if last_resorts or not p.is_last_resort]
    if not rows:
        return asked
    bytes_saved = np.array([float(p.bytes_saved) for p in rows])
    errors = np.minimum(np.array([p.error for p in rows]), _MOST_ERROR)
    target = sum(p.bytes_saved for p in asked if id(p) in graded) + extra
    # Numbers near 1 suit the solver.
    unit = max(float(np.abs(bytes_saved).max()), 1.0)
    exclusive = exclusions(rows, groups)
    most = cheapest(-bytes_saved / unit, exclusive)
    if most is None:
        return asked
    reachable = min(target, int(bytes_saved[most].sum()))
    enough = LinearConstraint(bytes_saved[None] / unit, reachable / unit - 1e-9, np.inf)
    # Of equal errors the larger saving.
    cost = errors / max(float(errors.max()), 1e-30) - 1e-9 * bytes_saved / unit
    taken = cheapest(cost, exclusive, [enough])
    wanted = most if taken is None else taken
    picked = [p for p, wish in zip(rows, wanted, strict=True) if wish]
    order = {id(p): k for k, p in enumerate(proposals)}
    return sorted([*others, *picked], key=lambda p: order[id(p)])
