"""Cuts between stretches of training: a model goes through channels and sparsify, refitted."""

from collections.abc import Mapping
from typing import Any, Final

from onnxslim_tk.graph.groups import Group, channel_groups
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.pipeline.stages import Setting, carry_out
from onnxslim_tk.pipeline.stepping import Asking
from onnxslim_tk.plan.plan import StagePlan
from onnxslim_tk.plan.recipe import Recipe, Stage

_ORDER: Final = ("channels", "sparsify")
_ALL: Final = 1.0


def group_counts(model: Model, feed: Feed) -> dict[str, int]:
    """How many channels each layer shares with its group, by its id."""
    found = channel_groups(model, observed_shapes(model, feed))
    groups = [group for group in found if isinstance(group, Group)]
    return {layer.id: group.count for group in groups for layer in group.producers}


def cut(
    model: Model,
    targets: Mapping[str, float],
    counts: Mapping[str, int],
    samples: Samples,
    options: Options,
    name: str,
) -> tuple[Model, tuple[StagePlan, ...]]:
    """``model`` cut to ``targets`` of what the original had, and what was done.

    ``counts`` are the original's of :func:`group_counts`, ``samples`` what layers are refitted to.
    """
    stages, layers = [], list[tuple[str, Mapping[str, Any]]]()
    for method in _ORDER:
        if method not in targets:
            continue
        share = targets[method]
        setting = {"sparsity": share} if method == "sparsify" else {"keep": share}
        stages.append(Stage(f"{name}: {method}", (PASSES[method](**setting),)))
        if method == "channels":
            layers = _shares(model, share, counts, samples.feeds[0])
    setting_of_run = Setting(
        Recipe(name, tuple(stages), tuple(layers)),
        options.target,
        samples,
        samples.feeds[0],
        options.seed,
        options.progress,
    )
    return carry_out(model, setting_of_run, Asking())


def _shares(
    model: Model, share: float, counts: Mapping[str, int], feed: Feed
) -> list[tuple[str, Mapping[str, Any]]]:
    """What each group keeps of what it has, to come to ``share`` of what it had."""
    return [
        (layer, {"channels": {"keep": min(_ALL, share * counts[layer] / count)}})
        for layer, count in group_counts(model, feed).items()
        if layer in counts and share * counts[layer] > 0
    ]
