"""Students: a narrower or shallower copy of a model, to be taught by it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.measure.samples import Samples, read_samples
from onnxslim_tk.measure.validate import Faithfulness
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.attempt import Attempt, Workshop
from onnxslim_tk.pipeline.files import packed, parse, provenance, read_model, write_file
from onnxslim_tk.pipeline.judge import judge
from onnxslim_tk.pipeline.options import Options, PathLike
from onnxslim_tk.pipeline.run import check_target
from onnxslim_tk.pipeline.stepping import Asking
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.recipe import Recipe, Stage, recipe_data
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.version import VERSION

Init = Literal["keep", "random"]

_PLAIN: Final = Options()
_STEP: Final = 4
_TIDYING: Final = ("clean", "fuse")


def student(
    source: PathLike,
    result: PathLike,
    width: float = 0.5,
    depth: float = 1.0,
    init: Init = "keep",
    options: Options = _PLAIN,
) -> Report:
    """Cut a student out of the model at ``source`` and write it to ``result``.

    ``width`` is the share of channels that stay in each group of layers that share them, ``depth``
    that of the blocks whose removal leaves all shapes alone. With ``keep`` what stays keeps its
    weights, and samples let the rest make up for what went; with ``random`` they are drawn anew.
    Raises RecipeError where nothing of the model can be cut.
    """
    started, path = time.process_time(), Path(source)
    if init not in ("keep", "random"):
        raise RecipeError(f"student: init must be keep or random, got {init!r}")
    for name, share in (("width", width), ("depth", depth)):
        if not 0 < share <= 1:
            raise RecipeError(f"student: {name} must be in (0, 1], got {share}")
    if width == depth == 1:
        raise RecipeError("student: width and depth are both 1, which leaves the model as it is")
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
    recipe = _recipe(width, depth, init, samples is not None)
    room = _Cutting(path, data, model, inputs, recipe, samples, options, Path(result).name)
    attempt = room.attempt(Asking(), 0)
    _check_cut(attempt)
    if init == "random":
        attempt = _drawn(attempt, room)
    report = judge(room, attempt, started)
    options.progress("write", 0, 1)
    write_file(attempt.data, Path(result))
    options.progress("write", 1, 1)
    return report


class _Cutting(Workshop):
    """A workshop whose results are to learn yet: only the user's limits count."""

    def checks(self, found: Faithfulness | None, attempt: Attempt) -> tuple[Check, ...]:
        return super().checks(found, attempt) if self.budget.has_limits else ()


def _recipe(width: float, depth: float, init: Init, sampled: bool) -> Recipe:
    stages = [Stage(name, (PASSES[name](),)) for name in _TIDYING]
    if depth < 1:
        stages.append(Stage("depth", (PASSES["blocks"](keep=depth),)))
    if width < 1:
        importance = "obs" if sampled and init == "keep" else "l2"
        settings = {"keep": width, "importance": importance, "sequential": init == "keep"}
        stages.append(Stage("width", (PASSES["channels"](**settings),)))
    return Recipe("student", tuple(stages))


def _check_cut(attempt: Attempt) -> None:
    """Raise RecipeError, with the first reason, where a stage that cuts had nothing to cut."""
    for stage in attempt.plan.stages:
        if stage.stage in _TIDYING or stage.rows:
            continue
        what = "channels" if stage.stage == "width" else "blocks"
        reasons = [f": {refusal.reason}" for refusal in stage.refusals[:1]]
        raise RecipeError(f"student: no {what} of this model can be cut{''.join(reasons)}")


def _drawn(attempt: Attempt, room: Workshop) -> Attempt:
    """The attempt with its weights drawn anew."""
    from onnxslim_tk.train.initial import draw_anew

    model, seed = attempt.model, room.options.seed
    draw_anew(model, seed)
    made = {**recipe_data(room.recipe), "init": "random"}
    data, changed = packed(model, provenance(room.model, VERSION, seed, made), room.name)
    return replace(attempt, data=data, packed=tuple(changed))
