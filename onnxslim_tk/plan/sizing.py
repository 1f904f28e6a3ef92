"""Sizing: of all settings on offer, those that make the least error at a size."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from onnxslim_tk.plan.policy import alternatives, asked_for, conflicts_of
from onnxslim_tk.plan.proposal import Proposal

_GAP = 1e-3
_NODES = 2000
_MOST_ERROR = 1e3


def is_graded(group: Sequence[Proposal]) -> bool:
    """Whether settings of one row trade bytes for error, and nothing else."""
    sizes = {p.bytes_saved for p in group}
    return len(sizes) > 1 and not any(p.cost_saved or p.macs_saved for p in group)


def sized(proposals: Sequence[Proposal], extra: int) -> list[Proposal]:
    """Rows that save ``extra`` bytes more than those asked for, with the least summed error.

    A negative ``extra`` leaves room for finer settings. Errors are taken as additive: a
    multiple-choice knapsack (Sinha and Zoltners, 1979), limited by gap and nodes, never by time.
    Where so much cannot be saved, what saves most.
    """
    asked = asked_for(proposals)
    groups = [group for group in alternatives(proposals) if is_graded(group)]
    graded = {id(p) for group in groups for p in group}
    others = [p for p in asked if id(p) not in graded]
    rows = [p for group in groups for p in group]
    if not rows:
        return asked
    bytes_saved = np.array([float(p.bytes_saved) for p in rows])
    errors = np.minimum(np.array([p.error for p in rows]), _MOST_ERROR)
    target = sum(p.bytes_saved for p in asked if id(p) in graded) + extra
    # Numbers near 1 suit the solver.
    unit = max(float(np.abs(bytes_saved).max()), 1.0)
    exclusions = conflicts_of(rows, groups)
    matrix = np.zeros((len(exclusions), len(rows)))
    for k, members in enumerate(exclusions):
        matrix[k, members] = 1
    fits = LinearConstraint(matrix, -np.inf, 1)
    whole = np.ones(len(rows), np.int8)
    most = milp(-bytes_saved / unit, constraints=[fits], integrality=whole, bounds=Bounds(0, 1))
    if most.x is None:
        return asked
    reachable = min(target, int(bytes_saved @ np.rint(most.x)))
    enough = LinearConstraint(bytes_saved[None] / unit, reachable / unit - 1e-9, np.inf)
    # Of equal errors the larger saving.
    cost = errors / max(float(errors.max()), 1e-30) - 1e-9 * bytes_saved / unit
    found = milp(
        cost,
        constraints=[fits, enough],
        integrality=whole,
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": _GAP, "node_limit": _NODES},
    )
    solution = most.x if found.x is None else found.x
    chosen = {id(p) for p, taken in zip(rows, solution, strict=True) if taken > 0.5}
    picked = [p for p in rows if id(p) in chosen]
    order = {id(p): k for k, p in enumerate(proposals)}
    return sorted([*others, *picked], key=lambda p: order[id(p)])
