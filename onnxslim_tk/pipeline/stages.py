"""Carrying a recipe out, stage by stage: observe, propose, choose, apply."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.mapped import release_pages
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import Statistics, observe, observed_shapes
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.plan.plan import Plan, StagePlan
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal, matches
from onnxslim_tk.plan.recipe import Recipe, Stage
from onnxslim_tk.plan.targets import Target
from onnxslim_tk.plan.why import explained, given_up


@dataclass(frozen=True, slots=True)
class Setting:
    """What stages work with beside the model.

    ``samples`` are those for calibration, None without; ``feed`` is one run's inputs for shapes,
    made up where there are no samples.
    """

    recipe: Recipe
    target: Target
    samples: Samples | None
    feed: Feed | None
    seed: int
    progress: Progress


class Chooser(Protocol):
    """Picks rows from a stage's proposals."""

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, context: Context
    ) -> list[Proposal]:
        """The rows to be carried out."""
        ...


@dataclass(slots=True)
class _Round:
    """One stage as it was last carried out: what it began with, and what came of it."""

    before: Model
    reference: Model | None
    context: Context
    proposals: list[Proposal]
    refusals: list[Refusal]
    rows: list[Proposal] | None = None
    after: Model | None = None


class Memory:
    """The rounds of the last attempt; one that begins alike needs none of them again."""

    def __init__(self) -> None:
        self.rounds: list[_Round] = []


def carry_out(
    model: Model, setting: Setting, choose: Chooser, memory: Memory | None = None
) -> tuple[Model, tuple[StagePlan, ...]]:
    """Run all stages and give the model that comes of it and what was chosen in each.

    ``model`` is only read. ``memory`` is that of attempts on the same model with the same setting.
    """
    check_patterns(model, setting.recipe)
    rounds = [] if memory is None else memory.rounds
    reference: Model | None = None
    done = []
    for k, stage in enumerate(setting.recipe.stages):
        current = rounds[k] if k < len(rounds) else _begin(model, stage, setting, reference)
        rows = choose(stage, current.proposals, current.before, current.context)
        if current.after is None or rows != current.rows:
            del rounds[k:]
            current.rows, current.after = rows, _applied(current, rows, stage, setting)
            if memory is not None:
                rounds.append(current)
        model, reference = current.after, current.reference
        if reference is None and setting.samples is not None and any(r.error > 0 for r in rows):
            reference = current.before
        told = explained(rows, current.proposals)
        refusals = (*current.refusals, *given_up(rows, current.proposals))
        done.append(StagePlan(stage.name, tuple(told), refusals))
    return model, tuple(done)


def _begin(model: Model, stage: Stage, setting: Setting, reference: Model | None) -> _Round:
    context = _context(model, stage, setting, reference)
    setting.progress(f"{stage.name}: propose", 0, 1)
    proposals, refusals = _propose(model, stage, context)
    setting.progress(f"{stage.name}: propose", 1, 1)
    return _Round(model, reference, context, proposals, refusals)


def _applied(current: _Round, rows: Sequence[Proposal], stage: Stage, setting: Setting) -> Model:
    """A copy of what the stage began with, with ``rows`` carried out."""
    model = current.before.copy()
    for method in stage.passes:
        chosen = [row for row in rows if row.method == method.name]
        if chosen:
            setting.progress(f"{stage.name}: {method.name}", 0, 1)
            method.apply(model, chosen, current.context)
            # A rewrite may leave what fed the old weight behind.
            drop_unused(model)
            setting.progress(f"{stage.name}: {method.name}", 1, 1)
    return model


def _context(model: Model, stage: Stage, setting: Setting, reference: Model | None) -> Context:
    shapes = _shapes(model, setting.feed)
    wanted = frozenset(kind for method in stage.passes for kind in method.observes)
    statistics: Statistics | None = None
    if wanted and setting.samples is not None:
        step = f"{stage.name}: observe"
        statistics = observe(
            model,
            setting.samples.feeds,
            wanted,
            setting.seed,
            shapes,
            lambda done, total: setting.progress(step, done, total),
        )
    return Context(
        target=setting.target,
        statistics=statistics,
        feeds=() if setting.samples is None else setting.samples.feeds,
        shapes=shapes,
        overrides=setting.recipe.layers,
        exclude=setting.recipe.exclude,
        seed=setting.seed,
        reference=reference,
    )


def _shapes(model: Model, feed: Feed | None) -> dict[str, tuple[int, ...]]:
    """Shapes seen in a run; none where nothing can be run."""
    if feed is None:
        return {}
    try:
        return observed_shapes(model, feed)
    except SessionError:
        return {}


def _propose(model: Model, stage: Stage, context: Context) -> tuple[list[Proposal], list[Refusal]]:
    proposals: list[Proposal] = []
    refusals: list[Refusal] = []
    for method in stage.passes:
        for row in method.propose(model, context):
            if isinstance(row, Proposal):
                proposals.append(row)
            else:
                refusals.append(row)
            release_pages()
    return proposals, refusals


def check_patterns(model: Model, recipe: Recipe) -> None:
    """Raise RecipeError for a pattern of the recipe that no layer matches."""
    names = [layer.names for layer in layers(model)]
    patterns = [*(pattern for pattern, _ in recipe.layers), *recipe.exclude]
    for pattern in patterns:
        if not any(matches(pattern, known) for known in names):
            some = ", ".join(known[0] for known in names[:3])
            raise RecipeError(
                f"recipe: the pattern {pattern!r} matches no layer of this model; "
                f"its {len(names)} layers have names like {some or 'none'}"
            )


def following(plan: Plan) -> Chooser:
    """A chooser that takes the rows of ``plan``; it raises RecipeError for an impossible row."""
    rows = {stage.stage: stage.rows for stage in plan.stages}

    def choose(
        stage: Stage, proposals: Sequence[Proposal], model: Model, context: Context
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
