"""What workers do with a model: scout, measure rows, carry genomes out, judge the chosen."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any, Final

from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.size import parameters
from onnxslim_tk.pipeline.attempt import Attempt, Workshop
from onnxslim_tk.pipeline.judge import judge
from onnxslim_tk.pipeline.stages import Begun
from onnxslim_tk.pipeline.stepping import Measured, lossless
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.plan import Plan
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.recipe import Stage
from onnxslim_tk.plan.table_time import table_time
from onnxslim_tk.report.as_json import report_data
from onnxslim_tk.search.goal import Figures, Goal, better
from onnxslim_tk.search.space import Decoder, Genome, Scout, Space

_MOST: Final = 1e6
_LEAST_LIMIT: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What running a genome came to; ``trouble`` says why there are no figures."""

    genome: Genome
    figures: Figures | None
    sha256: str = ""
    seconds: float = 0.0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """An evaluation, and the model and plan themselves where they beat what was known."""

    evaluation: Evaluation
    data: Stored | None = None
    plan: Plan | None = None


def scout(shop: Workshop) -> tuple[Space, Figures]:
    """The space of a model, and the figures of the original."""
    scouting = Scout()
    shop.attempt(scouting, 0)
    original = shop.existing(shop.data, shop.model)
    figures = _figures(shop, original, (), inf)
    return scouting.space(), replace(figures, error=0.0, drop=None, shortfall=0.0)


def measure(shop: Workshop, space: Space, part: Sequence[int]) -> dict[tuple[int, int], float]:
    """What the strongest and the mildest option of the genes ``part`` alone do to the outputs."""
    assert shop.parts is not None
    gauge = _Gauge(space, part, Measured(shop.parts.calibrate.feeds))
    shop.attempt(gauge, 0)
    return gauge.errors


class _Gauge:
    """A chooser that loses nothing and measures rows of some genes."""

    def __init__(self, space: Space, part: Sequence[int], measured: Measured) -> None:
        self._space, self._part, self._measured = space, part, measured
        self.errors: dict[tuple[int, int], float] = {}

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        """The lossless rows of the stage."""
        known = {(p.method, p.targets, p.setting): p for p in proposals}
        wanted: dict[tuple[int, int], Proposal] = {}
        for k in self._part:
            gene = self._space.genes[k]
            if gene.stage == stage.name:
                for level in {1, len(gene.options)}:
                    option = gene.options[level - 1]
                    wanted[k, level] = known[option.method, option.targets, option.setting]
        if wanted:
            self._measured.rows(stage, proposals, list(wanted.values()), model, begun)
            self.errors |= {place: self._measured[row] for place, row in wanted.items()}
        return lossless(stage, proposals, model, begun)


def evaluate(
    shop: Workshop,
    space: Space,
    genome: Genome,
    goal: Goal,
    original: Figures,
    best: Sequence[tuple[tuple[float, ...], float]],
) -> Found:
    """Carry a genome out and measure it on the samples for choosing.

    ``best`` has points and violations that are known: the model comes along only where none of
    them beats it.
    """
    started = time.process_time()
    try:
        attempt = shop.attempt(Decoder(space, genome), 0)
        checks, quality = shop.quality(attempt)
        figures = _figures(shop, attempt, checks, quality)
    except OnnxSlimError as error:
        spent = time.process_time() - started
        return Found(Evaluation(genome, None, "", spent, str(error)))
    spent = time.process_time() - started
    evaluation = Evaluation(genome, figures, attempt.data.sha256, spent)
    score = goal.point(figures, original), goal.violation(figures, original)
    if any(better(other, score) for other in best):
        return Found(evaluation)
    return Found(evaluation, attempt.data, attempt.plan)


def finish(shop: Workshop, space: Space, genome: Genome) -> tuple[dict[str, Any], Stored, Plan]:
    """The report on a chosen genome by the clock and samples for judging; its model and plan."""
    started = time.process_time()
    attempt = shop.attempt(Decoder(space, genome), 0)
    return report_data(judge(shop, attempt, started)), attempt.data, attempt.plan


def _figures(shop: Workshop, attempt: Attempt, checks: Sequence[Check], quality: float) -> Figures:
    assert shop.feed is not None
    shapes = observed_shapes(attempt.model, shop.feed)
    macs, latency = _work(shop, attempt.model, shapes)
    drop = next((c.value for c in checks if c.subject == "metric"), None)
    return Figures(
        bytes=len(attempt.data),
        macs=macs,
        latency=latency,
        parameters=float(parameters(attempt.model)),
        error=min(10 ** (-quality / 10), _MOST),
        drop=drop,
        shortfall=sum(map(_shortfall, checks)),
    )


def _work(shop: Workshop, model: Model, shapes: dict[str, tuple[int, ...]]) -> tuple[float, float]:
    macs = sum(layer.macs(shapes) or 0 for layer in layers(model))
    return float(macs), table_time(model, shapes, shop.options.target)


def _shortfall(check: Check) -> float:
    """What is missing to a limit with its margin, as a share of it; 0 where it clearly holds.

    A search tries so many plans that one which holds by luck is always among them.
    """
    if check.is_clear:
        return 0.0
    missing = abs(check.value - check.limit) / max(abs(check.limit), _LEAST_LIMIT)
    missing = missing if isfinite(missing) else _MOST
    # Within the margin of decibels the value itself is on the right side.
    return min(missing if not check.holds else max(missing, _LEAST_LIMIT), _MOST)
