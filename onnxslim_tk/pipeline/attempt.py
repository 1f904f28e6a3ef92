"""Attempts: compressed models, each checked on the samples for choosing, and the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, log10
from pathlib import Path
from typing import Final

from onnxslim_tk.errors import CalibrationError, SessionError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.graph.weight_grid import WeightGrids
from onnxslim_tk.measure.foreign import Operator, foreign_operators, runnable_part
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.runtime import Feed, Session, TensorInfo, is_big
from onnxslim_tk.measure.samples import Samples, Split, random_feed, split
from onnxslim_tk.measure.threads import Threads
from onnxslim_tk.measure.validate import Faithfulness, faithfulness
from onnxslim_tk.packing import PackedTensor
from onnxslim_tk.pipeline.cache import digest, key_of, surroundings
from onnxslim_tk.pipeline.files import packed, provenance, unchanged
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.pipeline.stages import Chooser, Memory, Setting, carry_out
from onnxslim_tk.plan.allocation import Figures
from onnxslim_tk.plan.budget import Budget, Check, share_check, size_check, verdict
from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.plan import Plan
from onnxslim_tk.plan.recipe import Recipe, recipe_data
from onnxslim_tk.plan.sizing import is_graded
from onnxslim_tk.version import VERSION

_SILENT: Final = 1e-20


@dataclass(frozen=True, slots=True)
class Attempt:
    """A result as it will lie in files, the model that opens as, how it came about.

    ``steps`` counts the steps back before it; ``only_tidied`` says that no lossy row is in it.
    ``trouble`` is what the runtime said of the recipe's own result, where it can't run that.
    """

    data: Stored
    model: Model
    plan: Plan
    packed: tuple[PackedTensor, ...]
    steps: int = 0
    only_tidied: bool = False
    trouble: str = ""


class Workshop:
    """An original opened for compression, with its samples split."""

    def __init__(
        self,
        source: Path,
        data: Stored,
        model: Model,
        inputs: Sequence[TensorInfo],
        recipe: Recipe,
        samples: Samples | None,
        options: Options,
        name: str = "model.onnx",
    ) -> None:
        self.source, self.data, self.model, self.inputs = source, data, model, inputs
        self.recipe, self.samples, self.options = recipe, samples, options
        self.name = name
        self._memory = Memory()
        self._grids = WeightGrids()

    @cached_property
    def foreign(self) -> list[Operator]:
        """Operators of the original that the runtime lacks."""
        return foreign_operators(self.model)

    def runnable(self, stored: Stored) -> Stored | None:
        """What the runtime can run of the original or of a result."""
        return runnable_part(stored, self.foreign)

    @cached_property
    def parts(self) -> Split | None:
        """The samples split three ways, None without."""
        return None if self.samples is None else split(self.samples, self.options.seed)

    @cached_property
    def budget(self) -> Budget:
        """The user's budget, or else the recipe's."""
        return self.recipe.budget if self.options.budget is None else self.options.budget

    @property
    def feed(self) -> Feed | None:
        """One run's inputs: the first sample, or made up; None where nothing made up runs."""
        return self._first_feed[0]

    @property
    def not_run(self) -> str:
        """Why the model was never run, empty where it was."""
        return self._first_feed[1]

    @cached_property
    def _first_feed(self) -> tuple[Feed | None, str]:
        if self.parts is not None:
            return self.parts.calibrate.feeds[0], ""
        try:
            feed = random_feed(self.inputs, self.options.seed)
            part = self.runnable(self.data)
            if part is None:
                return None, ""
            Session(part, lean=is_big(part)).run(feed)
        except (CalibrationError, SessionError) as error:
            return None, str(error)
        return feed, ""

    @cached_property
    def _origin(self) -> str:
        """What all attempts follow from, as a key of the cache; empty without one."""
        if self.options.cache is None:
            return ""
        samples = None if self.parts is None else digest(self.parts.calibrate.feeds)
        return key_of(
            surroundings(),
            self.data.sha256,
            self.recipe.exclude,
            self.options.target,
            self.options.seed,
            samples,
        )

    def attempt(self, choose: Chooser, steps: int) -> Attempt:
        """One pass through all stages with the rows that ``choose`` picks, packed."""
        setting = Setting(
            self.recipe,
            self.options.target,
            self.parts.calibrate if self.parts else None,
            self.feed,
            self.options.seed,
            self.options.progress,
            self._grids,
            Threads(self.options.jobs),
            self.options.cache,
            self._origin,
            self.parts.choose if self.parts else None,
        )
        model, stages = carry_out(self.model, setting, choose, self._memory)
        origin = provenance(self.model, VERSION, self.options.seed, recipe_data(self.recipe))
        self.options.progress("pack", 0, 1)
        data, changed = packed(model, origin, self.name)
        self.options.progress("pack", 1, 1)
        made = Plan(self.model.source_sha256, self.recipe, self.options.seed, stages)
        lossy = any(row.error > 0 for stage in stages for row in stage.rows)
        return Attempt(data, model, made, tuple(changed), steps, steps > 0 and not lossy)

    def existing(self, data: Stored, model: Model) -> Attempt:
        """A result that lies there already."""
        none = Plan(self.model.source_sha256, self.recipe, self.options.seed, ())
        return Attempt(data, model, none, ())

    def never_larger(self, attempt: Attempt) -> Attempt:
        """The attempt, or the original as it is where the attempt saves no byte."""
        if len(attempt.data) < len(self.data):
            return attempt
        return replace(self.untouched(attempt.steps), trouble=attempt.trouble)

    def untouched(self, steps: int) -> Attempt:
        """The original itself."""
        attempt = self.existing(unchanged(self.data, self.name), self.model)
        return replace(attempt, steps=steps, only_tidied=True)

    @property
    def is_graded(self) -> bool:
        """Whether the last attempt had settings to choose from that trade bytes for error."""
        return any(
            is_graded(group)
            for found in self._memory.rounds
            for group in alternatives(found.proposals)
        )

    @property
    def has_limits(self) -> bool:
        """Whether the recipe or the user said how near a result must be."""
        return self.budget.has_limits

    def quality(self, attempt: Attempt) -> tuple[tuple[Check, ...], float]:
        """The budget's checks of an attempt, and its outputs' signal-to-noise ratio in dB.

        Both on the samples for choosing. Raises SessionError where the original doesn't run on
        them.
        """
        if self.parts is None:
            return self.checks(None, attempt), inf
        try:
            found = self.measure(attempt, self.parts.choose, "check")
        except SessionError:
            self.check_original()
            return (Check("model", "runs that fail", 1.0, 0.0, False),), -inf
        return self.checks(found, attempt), self._nearness(attempt, found)

    def _nearness(self, attempt: Attempt, found: Faithfulness) -> float:
        if self._probe is not None:
            return -10 * log10(max(self._probe.difference(attempt.model), _SILENT))
        return min((output.sqnr_db for output in found.outputs), default=inf)

    @cached_property
    def _probe(self) -> Probe | None:
        """What tells how near the outputs of an attempt are, on the samples for choosing."""
        if self.parts is None or self.foreign:
            return None
        probe = Probe(self.model, self.parts.choose.feeds)
        return probe if probe.measures else None

    def check_original(self) -> None:
        """Raise SessionError for samples that the original cannot run: no attempt's fault."""
        part = self.runnable(self.data)
        if part is not None and self.samples is not None:
            original = Session(part)
            for feed in self.samples.feeds:
                original.run(feed)

    def measure(self, attempt: Attempt, samples: Samples, step: str) -> Faithfulness:
        """Run original and attempt, or what can be run of them, side by side on ``samples``."""
        progress = self.options.progress
        before, after = self.runnable(self.data), self.runnable(attempt.data)
        if before is None or after is None:
            raise CalibrationError(
                "samples: there is nothing in the model that they could be run on"
            )
        return faithfulness(
            before,
            after,
            samples,
            self.options.metric,
            self.options.kinds,
            self.options.seed,
            lambda done, total: progress(step, done, total),
        )

    def checks(self, found: Faithfulness | None, attempt: Attempt) -> tuple[Check, ...]:
        """The budget held against what was found on samples, and against the attempt itself."""
        checks: list[Check] = []
        if found is not None:
            checks += verdict(found.outputs, found.drop, self.budget, found.samples)
        for figure, limit in self.budget.shares().items():
            before, after = self.total(self.model, figure), self.total(attempt.model, figure)
            checks.append(share_check(figure, after / before if before else 0.0, limit))
        most = self.budget.most_bytes(len(self.data))
        if most is not None:
            checks.append(size_check(len(attempt.data), most))
        return tuple(checks)

    def total(self, model: Model, figure: str) -> float:
        """A figure of all layers of the original or of a result."""
        shapes = observed_shapes(model, self.feed) if self.feed is not None else {}
        found = list(layers(model))
        figures = Figures(found, shapes, self.options.target)
        return float(sum(getattr(figures, figure)(layer.id, {}) for layer in found))
