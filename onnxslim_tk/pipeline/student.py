"""Students: a narrower or shallower copy of a model, to be taught by it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.blocks import Block, residual_blocks
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.runtime import Feed, Session
from onnxslim_tk.measure.samples import Samples, read_samples
from onnxslim_tk.measure.validate import Faithfulness
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.attempt import Attempt, Workshop
from onnxslim_tk.pipeline.files import packed, parse, provenance, read_model, write_file
from onnxslim_tk.pipeline.judge import judge
from onnxslim_tk.pipeline.options import Options, PathLike
from onnxslim_tk.pipeline.run import check_target
from onnxslim_tk.pipeline.stages import Setting, carry_out
from onnxslim_tk.pipeline.stepping import Asking
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.plan import Plan, StagePlan
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.recipe import Recipe, Stage
from onnxslim_tk.recover.branches import branch_means, drop_blocks
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.version import VERSION

Init = Literal["keep", "random"]

_PLAIN: Final = Options()
_TIDYING: Final = ("clean", "fuse")
_STEP: Final = 4
_PROBED: Final = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """How a student is cut.

    ``width`` is the share of channels that stay in each group of layers that share them, ``depth``
    that of the residual blocks. With ``init`` keep what stays keeps its weights, and samples let
    the rest make up for what went; with random weights are drawn anew. Raises RecipeError for
    settings out of range.
    """

    width: float = 0.5
    depth: float = 1.0
    init: Init = "keep"

    def __post_init__(self) -> None:
        if self.init not in ("keep", "random"):
            raise RecipeError(f"student: init must be keep or random, got {self.init!r}")
        for name in ("width", "depth"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(f"student: {name} must be in (0, 1], got {getattr(self, name)}")
        if self.width == self.depth == 1:
            raise RecipeError("student: width and depth are both 1, which cuts nothing")


def student(source: PathLike, result: PathLike, how: Cut, options: Options = _PLAIN) -> Report:
    """Cut a student out of the model at ``source`` and write it to ``result``.

    Raises RecipeError where nothing of the model can be cut.
    """
    started, path = time.process_time(), Path(source)
    data = read_model(path)
    check_target(path, data, Path(result), options.in_place)
    inputs = Session(data).inputs
    samples = options.calibration
    if samples is not None and not isinstance(samples, Samples):
        samples = read_samples(Path(samples), inputs, options.images, options.limit, options.seed)
    # A width that was asked for counts more than whole blocks of a kernel.
    step = min(_STEP, options.target.channel_step)
    options = replace(options, target=replace(options.target, channel_step=step))
    model = parse(data)
    recipe = Recipe("student", ())
    room = _Cutting(path, data, model, inputs, recipe, samples, options, Path(result).name)
    cut, stages = _cut(room, how)
    made = {"width": how.width, "depth": how.depth, "init": how.init}
    stored, changed = packed(
        cut, provenance(model, VERSION, options.seed, {"student": made}), room.name
    )
    plan = Plan(model.source_sha256, recipe, options.seed, stages)
    attempt = Attempt(stored, cut, plan, tuple(changed))
    report = judge(room, attempt, started)
    options.progress("write", 0, 1)
    write_file(attempt.data, Path(result))
    options.progress("write", 1, 1)
    return report


class _Cutting(Workshop):
    """A workshop whose results are to learn yet: only the user's limits count."""

    def checks(self, found: Faithfulness | None, attempt: Attempt) -> tuple[Check, ...]:
        return super().checks(found, attempt) if self.budget.has_limits else ()


def _cut(room: _Cutting, how: Cut) -> tuple[Model, tuple[StagePlan, ...]]:
    """The student and what was done to come to it."""
    # What keeps nothing needs no refit.
    fitted = room.parts is not None and how.init == "keep"
    setting = Setting(
        Recipe("student", tuple(Stage(name, (PASSES[name](),)) for name in _TIDYING)),
        room.options.target,
        room.parts.calibrate if room.parts is not None and fitted else None,
        room.feed,
        room.options.seed,
        room.options.progress,
    )
    model, stages = carry_out(room.model, setting, Asking())
    if how.depth < 1:
        feeds = setting.samples.feeds if setting.samples is not None else ()
        stages += (_shallower(model, how.depth, room.feed, feeds),)
    if how.width < 1:
        importance = "obs" if fitted else "l2"
        settings: dict[str, Any] = {"keep": how.width, "importance": importance}
        width = Stage("width", (PASSES["channels"](**settings),))
        narrower = replace(setting, recipe=Recipe("student", (width,)))
        model, done = carry_out(model, narrower, Asking())
        if not done[0].rows:
            reasons = [f": {refusal.reason}" for refusal in done[0].refusals[:1]]
            raise RecipeError(f"student: no channels of this model can be cut{''.join(reasons)}")
        stages += done
    if how.init == "random":
        # It takes PyTorch, as the training that follows does.
        from onnxslim_tk.train.initial import draw_anew

        draw_anew(model, room.options.seed)
    return model, stages


def _shallower(model: Model, depth: float, feed: Feed | None, feeds: Sequence[Feed]) -> StagePlan:
    """Take all but a share ``depth`` of the residual blocks out of ``model``, in place.

    Those go that the outputs miss least or, without samples, every so many of each kind (Sanh et
    al., 2019). Raises RecipeError where there are none.
    """
    shapes = {} if feed is None else observed_shapes(model, feed)
    found = residual_blocks(model, shapes)
    if not found:
        raise RecipeError("student: the model has no residual blocks that could be cut")
    count = round(len(found) * (1 - depth))
    kinds: dict[Any, list[Block]] = {}
    for block in found:
        kinds.setdefault(tuple((x.kind, x.shape) for x in block.layers), []).append(block)
    spread = {block.key for alike in kinds.values() for block in _every_so_many(alike, depth)}
    if not (count if feeds else spread):
        raise RecipeError(
            f"student: depth {depth:g} leaves all {len(found)} residual blocks of this model"
        )
    means = branch_means(model, found, feeds, shapes)
    if feeds:
        probe = Probe(model, feeds[:_PROBED])
        errors = {
            block.key: probe.error(
                lambda twin, key=block.key: drop_blocks(  # type: ignore[misc]
                    twin, {key: means[key]}, shapes
                )
            )
            for block in found
        }
        gone = set(sorted(errors, key=lambda key: (errors[key], key))[:count])
    else:
        gone = spread
    drop_blocks(model, {key: means[key] for key in gone}, shapes)
    rows = [Proposal(b.key, "blocks", "drop", error=1.0) for b in found if b.key in gone]
    return StagePlan("depth", tuple(rows))


def _every_so_many(blocks: Sequence[Block], depth: float) -> list[Block]:
    """All but a share ``depth`` of ``blocks``, from the middle of each stretch."""
    count = round(len(blocks) * (1 - depth))
    places = ((np.arange(count) + 0.5) * len(blocks) / max(count, 1)).astype(int)
    return [blocks[place] for place in places]
