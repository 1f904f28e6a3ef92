"""The knapsack: rows of which some exclude each other, and an exact solver that chooses."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from onnxslim_tk.plan.proposal import Proposal

_GAP = 1e-3
_NODES = 2000


def alternatives(proposals: Sequence[Proposal]) -> list[list[Proposal]]:
    """Proposals grouped into those of which at most one can be taken: same method and targets."""
    groups: dict[tuple[str, tuple[str, ...]], list[Proposal]] = {}
    for proposal in proposals:
        groups.setdefault((proposal.method, proposal.targets), []).append(proposal)
    return list(groups.values())


def exclusions(rows: Sequence[Proposal], groups: list[list[Proposal]]) -> list[list[int]]:
    """Sets of row numbers of which at most one may be taken."""
    index = {id(p): k for k, p in enumerate(rows)}
    sets = [[index[id(p)] for p in group if id(p) in index] for group in groups]
    found = [members for members in sets if len(members) > 1]
    by_target: dict[str, dict[str, list[int]]] = {}
    for k, row in enumerate(rows):
        for target in row.targets:
            by_target.setdefault(target, {}).setdefault(row.method, []).append(k)
    for methods in by_target.values():
        names = sorted(methods)
        for a, first in enumerate(names):
            for second in names[a + 1 :]:
                found.extend([i, j] for i in methods[first] for j in methods[second])
    return found


def cheapest(
    cost: NDArray[np.float64],
    exclusive: Sequence[Sequence[int]],
    limits: Sequence[LinearConstraint] = (),
) -> NDArray[np.bool_] | None:
    """Which of the rows ``(n,)`` to take for the least summed ``cost``, None where nothing fits.

    At most one of each set of ``exclusive`` row numbers. Limited by gap and nodes, never by time:
    the same rows give the same choice (HiGHS, Huangfu and Hall, 2018).
    """
    constraints = list(limits)
    if exclusive:
        matrix = np.zeros((len(exclusive), len(cost)))
        for k, members in enumerate(exclusive):
            matrix[k, members] = 1
        constraints.append(LinearConstraint(matrix, -np.inf, 1))
    found = milp(
        cost,
        constraints=constraints,
        integrality=np.ones(len(cost), np.int8),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": _GAP, "node_limit": _NODES},
    )
    return None if found.x is None else np.asarray(found.x > 0.5)
