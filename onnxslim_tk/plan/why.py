"""Why the rows of a plan are what they are, told from what else was on offer."""

from collections.abc import Sequence
from dataclasses import replace

from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.proposal import Proposal, Refusal


def explained(rows: Sequence[Proposal], proposals: Sequence[Proposal]) -> list[Proposal]:
    """The chosen rows, each with a reason; one that has a reason already keeps it."""
    offers = {(group[0].method, group[0].targets): group for group in alternatives(proposals)}
    return [
        row if row.why else replace(row, why=_why(row, offers.get((row.method, row.targets), [])))
        for row in rows
    ]


def given_up(rows: Sequence[Proposal], proposals: Sequence[Proposal]) -> list[Refusal]:
    """A refusal for every target that something was on offer for and that no row was chosen for."""
    chosen = {(row.method, row.targets) for row in rows}
    taken = {target: row for row in rows for target in row.targets}
    found = []
    for method, targets in dict.fromkeys((p.method, p.targets) for p in proposals):
        if (method, targets) in chosen:
            continue
        for target in targets:
            other = taken.get(target)
            reason = "given up to hold the budget"
            if other is not None:
                reason = f"{other.method} was taken in its place: it saves more"
            found.append(Refusal(target, method, reason))
    return found


def _why(row: Proposal, offers: Sequence[Proposal]) -> str:
    own = next((offer for offer in offers if offer.setting == row.setting), None)
    if own is None:
        return ""
    asked = offers[0]
    if own is asked:
        return "as asked for" if row.error else "as asked for; it changes no output"
    found = f"{asked.setting} was asked for"
    if own.error < asked.error:
        return f"{found}; that would err too much here"
    return f"{found}; the outputs feel little of it here, and it saves more"
