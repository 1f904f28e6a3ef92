"""The policy: which proposals are taken, and how it steps back when the budget does not hold."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint

from onnxslim_tk.plan.knapsack import alternatives, cheapest, exclusions
from onnxslim_tk.plan.proposal import Proposal

# Decibels that giving up one percent of the time saved has to bring, and those that any has to.
_WORTH = 0.25
_LEAST_GAIN = 0.3
CLEAR_DB = 28.0
"""A result as near as this to the original is not worth giving up speed for."""


def asked_for(proposals: Sequence[Proposal]) -> list[Proposal]:
    """The setting that was asked for at every target, as far as methods don't exclude another."""
    return _solve(alternatives(proposals), None)


def within(proposals: Sequence[Proposal], tolerance: float) -> list[Proposal]:
    """The rows that save most while their expected errors add up to ``tolerance`` at most.

    Errors are taken as additive. A multiple-choice knapsack, limited by gap and nodes, never by
    time.
    """
    return _solve(alternatives(proposals), tolerance)


def trimmed(proposals: Sequence[Proposal]) -> list[Proposal]:
    """What was asked for, but the milder setting where a row costs far more than it saves.

    Rows are given up one by one, those of the most error per time saved first, as long as that
    lowers the sum of errors by :data:`_WORTH` dB or more for each percent of the time saved by
    all, and until the sum is :data:`CLEAR_DB` below the signal. A row without a milder setting
    stays.
    """
    chosen = {(p.method, p.targets): p for p in asked_for(proposals)}
    milder = {
        (group[0].method, group[0].targets): group[1]
        for group in alternatives(proposals)
        if len(group) > 1 and group[0].cost_saved > group[1].cost_saved
    }
    gains = {
        key: (chosen[key].error - other.error, chosen[key].cost_saved - other.cost_saved)
        for key, other in milder.items()
        if key in chosen and chosen[key].error > other.error
    }
    total = sum(p.error for p in chosen.values())
    saved = sum(p.cost_saved for p in chosen.values()) or 1.0
    for key in sorted(gains, key=lambda key: (-gains[key][0] / gains[key][1], key)):
        lost, cost = gains[key]
        if total <= 10 ** (-CLEAR_DB / 10):
            break
        gain = 10 * np.log10(total / max(total - lost, 1e-12))
        if gain >= _LEAST_GAIN and gain >= _WORTH * 100 * cost / saved:
            chosen[key] = milder[key]
            total -= lost
    return list(chosen.values())


def _solve(groups: list[list[Proposal]], tolerance: float | None) -> list[Proposal]:
    # Without a tolerance only the first setting of each group counts; what alone is beyond the
    # tolerance would only spoil the solver's numbers.
    if tolerance is None:
        rows = [group[0] for group in groups]
    else:
        few = [p for group in groups for p in group if not p.is_last_resort]
        rows = [p for p in few if p.error <= tolerance]
    if not rows:
        return []
    conflicts = exclusions(rows, groups)
    if tolerance is None and not conflicts:
        return rows
    gain = np.array([_gain(p, rows) for p in rows])
    limits = []
    if tolerance:
        errors = np.array([[p.error for p in rows]])
        limits.append(LinearConstraint(errors / tolerance, -np.inf, 1))
    taken = cheapest(-gain, conflicts, limits)
    if taken is None:
        return _greedy(rows, conflicts, gain, tolerance)
    return [p for p, wanted in zip(rows, taken, strict=True) if wanted]


def _greedy(
    rows: Sequence[Proposal],
    conflicts: Sequence[Sequence[int]],
    gain: NDArray[np.float64],
    tolerance: float | None,
) -> list[Proposal]:
    """What fits, the greatest savings first: for the case that the solver finds nothing."""
    taken: set[int] = set()
    left = np.inf if tolerance is None else tolerance
    for k in np.argsort(-gain, kind="stable").tolist():
        clash = any(k in members and not taken.isdisjoint(members) for members in conflicts)
        if not clash and rows[k].error <= left:
            taken.add(k)
            left -= rows[k].error
    return [p for k, p in enumerate(rows) if k in taken]


def _gain(proposal: Proposal, rows: Sequence[Proposal]) -> float:
    """Share of all savings on the table, bytes and latency alike, so that neither rules."""
    total_bytes = sum(max(p.bytes_saved, 0) for p in rows) or 1
    total_cost = sum(max(p.cost_saved, 0.0) for p in rows) or 1.0
    saved = proposal.bytes_saved
    if proposal.cost_saved > 0:
        # A saving of time is worth the bytes of the nodes that it takes.
        saved = max(saved, 0)
    gain = saved / total_bytes + proposal.cost_saved / total_cost
    # What costs bytes and no error was asked for to spare later stages theirs.
    return (gain if proposal.error else max(gain, 0.0)) + 1e-9


Key = tuple[str, tuple[str, ...], float | int | str]
"""A row by method, targets and setting."""


def key_of(proposal: Proposal) -> Key:
    """What a row is known by from stage to stage."""
    return proposal.method, proposal.targets, proposal.setting


def rescaled(proposals: Sequence[Proposal], measured: Mapping[Key, float]) -> list[Proposal]:
    """Proposals with measured errors; what wasn't measured scales as its expected error does."""
    result = []
    for group in alternatives(proposals):
        first = measured.get(key_of(group[0]))
        if first is None:
            result.extend(group)
            continue
        base = group[0].error
        for proposal in group:
            error = first * (proposal.error / base if base > 0 else 1.0)
            own = measured.get(key_of(proposal))
            told = error if own is None else own
            result.append(replace(proposal, error=told, measured=own is not None))
    return result
