"""True metrics on labels, and what a result loses of them."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import CalibrationError, RecipeError
from onnxslim_tk.measure import scoring

Outputs = Sequence[NDArray[Any]]
Labels = NDArray[Any]

_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure for a model's primary outputs against labels.

    ``prepare(outputs, labels)`` makes one row a sample, once; ``reduce(rows)`` makes the figure
    of any rows, fast enough to do so for a thousand resamplings. A figure that isn't finite
    means that these labels, or these outputs, allow none.
    """

    name: str
    prepare: Callable[[Outputs, Labels], NDArray[Any]]
    reduce: Callable[[NDArray[Any]], float]
    higher_is_better: bool = True

    def __call__(self, outputs: Outputs, labels: Labels) -> float:
        """The figure over all samples; raises CalibrationError if labels don't fit outputs."""
        return float(self.reduce(self.prepare(outputs, labels)))


@dataclass(frozen=True, slots=True)
class Drop:
    """A metric before and after, and what was lost, with its 95 % interval.

    ``drop`` is above 0 when the result is worse, whichever way the metric counts, and infinite
    when the result has no figure at all. ``samples`` is the number of rows behind it: a drop
    below one part in so many can't be seen.
    """

    original: float
    result: float
    drop: float
    low: float
    high: float
    samples: int


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("accuracy", scoring.predictions, scoring.accuracy),
            Metric("top5", scoring.top5_hits, scoring.accuracy),
            Metric("f1", scoring.predictions, scoring.macro_f1),
            Metric("auc", scoring.ranks, scoring.area_under_curve),
            Metric("pearson", scoring.last_values, scoring.pearson),
            Metric("cer", scoring.edits, scoring.error_rate, higher_is_better=False),
        )
    }
)
"""The metrics by name: share of right classes, share with the right class among the best five,
F1 averaged over classes, area under the ROC curve, Pearson's correlation of the last value, and
the character error rate of a CTC output (blank 0, labels padded with -1)."""


def load_metric(spec: str) -> Metric:
    """The metric named ``spec``, or the function that ``spec`` names as ``module:function``.

    Such a function takes (outputs, labels), the outputs as a list with one array a sample, and
    returns a number; a false attribute ``higher_is_better`` turns its sense. This imports the
    module, that is, runs its code. Raises RecipeError when there is no such metric.
    """
    if spec in METRICS:
        return METRICS[spec]
    module, colon, attribute = spec.partition(":")
    if not (module and colon and attribute):
        raise RecipeError(
            f"metric: must be one of {', '.join(METRICS)} or module:function, got {spec!r}"
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise RecipeError(f"metric: {spec!r} cannot be imported: {error}") from error
    if not callable(function):
        raise RecipeError(f"metric: {spec!r} must be a function, got {type(function).__name__}")
    return from_function(spec, function, bool(getattr(function, "higher_is_better", True)))


def from_function(
    name: str,
    function: Callable[[list[NDArray[Any]], Labels], float],
    higher_is_better: bool = True,
) -> Metric:
    """A metric out of a plain function of outputs, one array a sample, and labels."""

    def reduce(rows: NDArray[Any]) -> float:
        figure = function([output for output, _ in rows], np.stack([label for _, label in rows]))
        try:
            return float(figure)
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"metric: {name} must return a number, got {type(figure).__name__}"
            ) from error

    return Metric(name, scoring.pairs, reduce, higher_is_better)


def paired_drop(
    metric: Metric,
    original: Outputs,
    result: Outputs,
    labels: Labels,
    seed: int,
    rounds: int = 1000,
) -> Drop:
    """What ``metric`` loses from ``original`` to ``result`` on the same samples.

    The interval comes from drawing samples with replacement, the same for both models, so that
    what makes a sample hard for either cancels out. Raises CalibrationError when there are no
    samples, labels don't fit, or the original's outputs allow no figure.
    Source: the paired percentile bootstrap (Efron and Tibshirani, 1993).
    """
    if rounds < 1:
        raise RecipeError(f"metric: rounds must be at least 1, got {rounds}")
    before, after = metric.prepare(original, labels), metric.prepare(result, labels)
    count = len(before)
    if count == 0 or len(after) != count:
        raise CalibrationError(
            f"metric: {metric.name} needs outputs of the same samples, got {count} and {len(after)}"
        )
    reference, figure = float(metric.reduce(before)), float(metric.reduce(after))
    if not np.isfinite(reference):
        raise CalibrationError(
            f"metric: {metric.name} must be defined on the original's outputs, got {reference}: "
            "do the labels hold more than one class or value?"
        )
    if not np.isfinite(figure):
        return Drop(reference, figure, np.inf, np.inf, np.inf, count)
    sign = 1.0 if metric.higher_is_better else -1.0
    rng = np.random.default_rng(seed)
    drops = np.empty(rounds)
    for place in range(rounds):
        rows = rng.integers(0, count, count)
        drops[place] = sign * (metric.reduce(before[rows]) - metric.reduce(after[rows]))
    # A draw may lack a class and so have no figure.
    drops = drops[np.isfinite(drops)]
    drop = sign * (reference - figure)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(drops, [tail, 1 - tail]) if drops.size else (-np.inf, np.inf)
    return Drop(reference, figure, drop, float(low), float(high), count)
