"""Carrying a recipe out, stage by stage: observe, propose, choose, apply."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Protocol

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.mapped import release_pages
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.weight_grid import WeightGrids
from onnxslim_tk.measure.observe import Statistics, observe, observed_shapes
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.threads import Threads, one_thread_each
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline.cache import Cache, digest, key_of
from onnxslim_tk.pipeline.kept import (
    Offers,
    model_arrays,
    model_of,
    offers_arrays,
    offers_of,
    rows_of,
)
from onnxslim_tk.plan.plan import StagePlan
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal, matches
from onnxslim_tk.plan.recipe import Recipe, Stage
from onnxslim_tk.plan.targets import Target
from onnxslim_tk.plan.why import explained, given_up

# Processor time of a stage from which on its model is kept, and the bytes up to which it is. Time
# decides here on nothing but time.
_WORTH_KEEPING: Final = 0.2
_BIGGEST_KEPT: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Setting:
    """What stages work with beside the model.

    ``samples`` are those for calibration, None without; ``feed`` is one run's inputs for shapes,
    made up where there are no samples. ``cache`` keeps what is found for other runs, ``origin`` is
    the key there of the model and the samples. ``choose`` are samples that states of training are
    chosen by.
    """

    recipe: Recipe
    target: Target
    samples: Samples | None
    feed: Feed | None
    seed: int
    progress: Progress
    grids: WeightGrids = field(default_factory=WeightGrids)
    threads: Threads = field(default_factory=Threads)
    cache: Cache | None = None
    origin: str = ""
    choose: Samples | None = None


class Chooser(Protocol):
    """Picks rows from a stage's proposals."""

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: "Begun"
    ) -> list[Proposal]:
        """The rows to be carried out."""
        ...


class Begun:
    """A stage that has begun: the model as it is, and what is proposed for it.

    ``key`` tells what all of it follows from. What the cache holds is not worked out again.
    """

    def __init__(
        self, before: Model, stage: Stage, setting: Setting, reference: Model | None, key: str
    ) -> None:
        self.before, self.reference, self.key = before, reference, key
        self.cache = setting.cache
        self._stage, self._setting = stage, setting
        started = time.process_time()
        self.proposals, self.refusals = self._offers()
        self._seconds = time.process_time() - started
        self.rows: list[Proposal] | None = None
        self.after: Model | None = None

    @cached_property
    def context(self) -> Context:
        """What passes work with; the samples are run when it is first asked for."""
        return _context(self.before, self._stage, self._setting, self.reference)

    @property
    def after_key(self) -> str:
        """The key of what follows from the model after the stage."""
        return key_of("after", self.key, rows_of(self.rows or ()))

    def _offers(self) -> Offers:
        key = key_of("offers", self.key)
        found = None if self.cache is None else self.cache.load(key, offers_of)
        if found is not None:
            return found
        step = f"{self._stage.name}: propose"
        self._setting.progress(step, 0, 1)
        offers = _propose(self.before, self._stage, self.context)
        self._setting.progress(step, 1, 1)
        if self.cache is not None:
            self.cache.save(key, offers_arrays(offers))
        return offers

    def carry_out(self, rows: list[Proposal]) -> None:
        """Let ``after`` be the model with ``rows`` carried out."""
        self.rows = rows
        key = self.after_key
        self.after = None if self.cache is None else self.cache.load(key, model_of)
        if self.after is not None:
            return
        started = time.process_time()
        # A copy, since that is what comes out of the cache: the order of what is alike may differ.
        applied = _applied(self, rows, self._stage, self._setting)
        self.after = self._recovered(applied, rows).copy()
        self._seconds += time.process_time() - started
        small = self.before.source_bytes < _BIGGEST_KEPT
        if self.cache is not None and small and self._seconds > _WORTH_KEEPING:
            self.cache.save(key, model_arrays(self.after))

    def _recovered(self, model: Model, rows: Sequence[Proposal]) -> Model:
        """``model`` after training, where the stage asks for it and the rows lost something."""
        stage, setting = self._stage, self._setting
        if stage.recover is None or not any(row.error > 0 for row in rows):
            return model
        assert setting.samples is not None
        assert setting.choose is not None
        # It takes PyTorch, which only a recipe that asks for it needs.
        from onnxslim_tk.pipeline.recovery import distilled

        original = self.before if self.reference is None else self.reference
        return distilled(model, original, stage, setting.samples, setting.choose, setting)


class Memory:
    """The rounds of the last attempt; one that begins alike needs none of them again."""

    def __init__(self) -> None:
        self.rounds: list[Begun] = []


def carry_out(
    model: Model, setting: Setting, choose: Chooser, memory: Memory | None = None
) -> tuple[Model, tuple[StagePlan, ...]]:
    """Run all stages and give the model that comes of it and what was chosen in each.

    ``model`` is only read. ``memory`` is that of attempts on the same model with the same setting.
    """
    check_patterns(model, setting.recipe)
    with one_thread_each():
        return _carried_out(model, setting, choose, memory)


def _carried_out(
    model: Model, setting: Setting, choose: Chooser, memory: Memory | None
) -> tuple[Model, tuple[StagePlan, ...]]:
    rounds = [] if memory is None else memory.rounds
    reference: Model | None = None
    key = setting.origin
    done = []
    for k, stage in enumerate(setting.recipe.stages):
        if k < len(rounds):
            current = rounds[k]
        else:
            key = _stage_key(stage, setting, key)
            current = Begun(model, stage, setting, reference, key)
        rows = choose(stage, current.proposals, current.before, current)
        if current.after is None or rows != current.rows:
            del rounds[k:]
            current.carry_out(rows)
            if memory is not None:
                rounds.append(current)
        assert current.after is not None
        model, reference, key = current.after, current.reference, current.after_key
        if reference is None and setting.samples is not None and any(r.error > 0 for r in rows):
            reference = current.before
        told = explained(rows, current.proposals)
        refusals = (*current.refusals, *given_up(rows, current.proposals))
        done.append(StagePlan(stage.name, tuple(told), refusals))
    return model, tuple(done)


def _stage_key(stage: Stage, setting: Setting, before: str) -> str:
    """The key of a stage that begins with what ``before`` stands for."""
    names = [method.name for method in stage.passes]
    overrides = [
        (pattern, sorted((name, values[name]) for name in names if name in values))
        for pattern, values in setting.recipe.layers
    ]
    kept = [o for o in overrides if o[1]]
    if stage.recover is None:
        return key_of("stage", before, stage.passes, kept)
    chosen = None if setting.choose is None else digest(setting.choose.feeds)
    return key_of("stage", before, stage.passes, kept, stage.recover, chosen)


def _applied(current: Begun, rows: Sequence[Proposal], stage: Stage, setting: Setting) -> Model:
    """A copy of what the stage began with, with ``rows`` carried out."""
    model = current.before.copy()
    if not rows:
        return model
    context = current.context
    if context.reference is None and len({row.method for row in rows}) > 1:
        # What one method of the stage has lost is not what the next should keep.
        context = replace(context, reference=current.before)
    for method in stage.passes:
        chosen = [row for row in rows if row.method == method.name]
        if chosen:
            setting.progress(f"{stage.name}: {method.name}", 0, 1)
            method.apply(model, chosen, context)
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
        grids=setting.grids,
        threads=setting.threads,
        progress=lambda step, done, total: setting.progress(f"{stage.name}: {step}", done, total),
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
