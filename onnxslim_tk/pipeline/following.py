"""Following a plan: its rows are taken, as far as the model and the methods allow them."""

from collections.abc import Sequence
from dataclasses import replace

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.pipeline.stages import Begun, Chooser
from onnxslim_tk.plan.plan import Plan
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.recipe import Stage


def following(plan: Plan) -> Chooser:
    """A chooser that takes the rows of ``plan``; it raises RecipeError for an impossible row."""
    rows = {stage.stage: stage.rows for stage in plan.stages}

    def choose(
        stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        possible = {(p.method, p.targets, p.setting): p for p in proposals}
        chosen = []
        for row in rows.get(stage.name, ()):
            proposal = possible.get((row.method, row.targets, row.setting))
            if proposal is None:
                known = [p.setting for p in proposals if p.targets == row.targets]
                raise RecipeError(
                    f"plan: {row.method} {row.setting!r} cannot be done on {row.targets[0]!r} in "
                    f"stage {stage.name!r} of this model; possible: {known or 'nothing'}"
                )
            _check_details(row, proposal)
            chosen.append(replace(row, details={**proposal.details, **row.details}))
        return chosen

    return choose


def _check_details(row: Proposal, proposal: Proposal) -> None:
    """Raise RecipeError for a detail of a row that is not of the kind that its method writes."""
    for key, value in row.details.items():
        expected = proposal.details.get(key)
        if key not in proposal.details or not _alike(value, expected):
            raise RecipeError(
                f"plan: {row.method} on {row.targets[0]!r}: detail {key!r} must be like "
                f"{expected!r}, got {value!r}"
            )


def _alike(value: object, expected: object) -> bool:
    if isinstance(expected, (list, tuple)):
        kinds = {type(item) for item in expected} or {int, float}
        return isinstance(value, (list, tuple)) and all(_is_one_of(v, kinds) for v in value)
    return _is_one_of(value, {type(expected)})


def _is_one_of(value: object, kinds: set[type]) -> bool:
    # JSON knows one kind of number.
    number = {int, float} if kinds & {int, float} else set()
    return type(value) in kinds | number
