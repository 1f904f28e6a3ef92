"""Carrying a recipe out, stage by stage: observe, propose, choose, apply."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import Statistics, observe, observed_shapes
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.plan.plan import Plan, StagePlan
from onnxslim_tk.plan.proposal import Context, Pass, Proposal, Refusal, matches
from onnxslim_tk.plan.recipe import Recipe, Stage
from onnxslim_tk.plan.targets import Target


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


def carry_out(model: Model, setting: Setting, choose: Chooser) -> tuple[StagePlan, ...]:
    """Run all stages on ``model`` in place and give what was chosen in each."""
    check_patterns(model, setting.recipe)
    done = []
    for stage in setting.recipe.stages:
        context = _context(model, stage, setting)
        proposals, refusals = _propose(model, stage, context)
        rows = choose(stage, proposals, model, context)
        for method in stage.passes:
            chosen = [row for row in rows if row.method == method.name]
            if chosen:
                method.apply(model, chosen, context)
                # A rewrite may leave what fed the old weight behind.
                drop_unused(model)
        done.append(StagePlan(stage.name, tuple(rows), tuple(refusals)))
    return tuple(done)


def _context(model: Model, stage: Stage, setting: Setting) -> Context:
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
        possible = {(p.method, p.targets) for p in proposals}
        methods: dict[str, Pass] = {method.name: method for method in stage.passes}
        for row in rows.get(stage.name, ()):
            if row.method not in methods or (row.method, row.targets) not in possible:
                raise RecipeError(
                    f"plan: {row.method} cannot be done on {row.targets[0]!r} in stage "
                    f"{stage.name!r} of this model"
                )
        return list(rows.get(stage.name, ()))

    return choose
