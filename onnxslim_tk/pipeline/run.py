"""The verbs: optimize, plan, apply and validate, each the way of the data on one screen."""

import importlib
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from onnxslim_tk.errors import CalibrationError, ModelError, RecipeError, SessionError
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.graph.weights import entry
from onnxslim_tk.measure.foreign import Operator, foreign_operators, runnable_part, spelled
from onnxslim_tk.measure.runtime import Session, is_big
from onnxslim_tk.measure.samples import Samples, read_samples
from onnxslim_tk.packing import PackedTensor
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.attempt import Attempt, Workshop
from onnxslim_tk.pipeline.files import (
    packed,
    parse,
    read_model,
    stored_provenance,
    unchanged,
    write_file,
)
from onnxslim_tk.pipeline.following import following
from onnxslim_tk.pipeline.judge import judge
from onnxslim_tk.pipeline.options import Options, PathLike
from onnxslim_tk.pipeline.within_budget import WithinBudget
from onnxslim_tk.plan.limiting import limited
from onnxslim_tk.plan.plan import Plan, StagePlan, read_plan
from onnxslim_tk.plan.recipe import Recipe, Stage, read_recipe
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.writing import check_place

_PLAIN = Options()


def optimize(
    source: PathLike,
    result: PathLike,
    recipe: str | Recipe = "balanced",
    options: Options = _PLAIN,
) -> Report:
    """Compress the model at ``source`` and write it to ``result`` if it keeps the budget.

    Steps back to milder settings until the budget holds on the samples for choosing; where none
    does, writes the tidied model, or the original where tidying saves nothing, and the report
    says so. Raises an OnnxSlimError, with nothing written, for a model, recipe or samples that
    can't be used.
    """
    started = time.process_time()
    shop = open_workshop(Path(source), recipe, options, Path(result))
    attempt, report = _settled(shop, started)
    options.progress("write", 0, 1)
    write_file(attempt.data, Path(result))
    options.progress("write", 1, 1)
    return report


def _settled(shop: Workshop, started: float) -> tuple[Attempt, Report]:
    """The best attempt and the report on it, or a safer one where the judging samples disagree."""
    search = WithinBudget(shop)
    attempt = shop.never_larger(search.best())
    fallbacks = search.safer(attempt)
    while True:
        trouble = attempt.trouble
        try:
            report = judge(shop, attempt, started)
        except SessionError as error:
            shop.check_original()
            trouble = str(error)
        else:
            # What is too large, or has too much to do, only grows by what is safer.
            if all(check.holds or check.subject in ("file", "layers") for check in report.checks):
                return attempt, report
        safer = next(fallbacks, None)
        if safer is None:
            return attempt, judge(shop, attempt, started)
        attempt = shop.never_larger(replace(safer, trouble=trouble))


def plan(source: PathLike, recipe: str | Recipe = "balanced", options: Options = _PLAIN) -> Plan:
    """What :func:`optimize` does, as rows to read and edit; writes nothing.

    The samples for judging have their say as there: what they refuse gives way to something safer.
    Where nothing is better than the original, no stage has rows.
    """
    shop = open_workshop(Path(source), recipe, options, None)
    attempt, _ = _settled(shop, time.process_time())
    stages = attempt.plan.stages or tuple(StagePlan(s.name, ()) for s in shop.recipe.stages)
    return replace(attempt.plan, stages=stages)


def apply(
    source: PathLike,
    result: PathLike,
    steps: Plan | PathLike,
    options: Options = _PLAIN,
    force: bool = False,
) -> Report:
    """Carry a plan out on the model it was made for and write the result.

    The plan's seed and recipe count, whatever ``options`` say. A result that doesn't keep the
    budget is written only with ``force``; the report tells in either case. Raises RecipeError
    for a plan that belongs to another model.
    """
    started = time.process_time()
    given = steps if isinstance(steps, Plan) else read_plan(Path(steps), PASSES)
    shop = open_workshop(
        Path(source), given.recipe, replace(options, seed=given.seed), Path(result)
    )
    if given.source_sha256 != shop.model.source_sha256:
        raise RecipeError(
            f"plan: it was made for a model with SHA-256 {given.source_sha256[:12]}..., "
            f"this one has {shop.model.source_sha256[:12]}..."
        )
    attempt = shop.attempt(following(given), 0)
    report = judge(shop, attempt, started)
    if report.holds or force:
        write_file(attempt.data, Path(result))
    return report


def validate(original: PathLike, result: PathLike, options: Options = _PLAIN) -> Report:
    """Hold a result beside its original, on all the samples given; changes nothing."""
    started = time.process_time()
    shop = open_workshop(Path(original), Recipe("none", ()), options, None)
    data = read_model(Path(result))
    attempt = shop.existing(data, parse(data))
    return judge(shop, attempt, started, everything=True)


def pack(source: PathLike, result: PathLike, in_place: bool = False) -> tuple[PackedTensor, ...]:
    """Write the model at ``source`` to ``result`` with the same values in fewer bytes.

    Gives what was changed: nothing, and the model as it was, where that saves no byte. The runtime
    must be able to load both files. ``in_place`` lets the result take the place of the source.
    """
    data = read_model(Path(source))
    check_target(Path(source), data, Path(result), in_place)
    # First our own look: a model of endless functions would hang the runtime.
    model = parse(data)
    foreign = foreign_operators(model)
    _check_runs(data, foreign)
    smaller, changed = packed(model, stored_provenance(model), Path(result).name)
    _check_runs(smaller, foreign)
    if len(smaller) >= len(data):
        write_file(unchanged(data, Path(result).name), Path(result))
        return ()
    write_file(smaller, Path(result))
    return tuple(changed)


def _check_runs(stored: Stored, foreign: Collection[Operator]) -> None:
    """Raise SessionError where the runtime can't load what it should of a model."""
    part = runnable_part(stored, foreign)
    if part is not None:
        Session(part, lean=is_big(part))


def open_workshop(
    source: Path, recipe: str | Recipe, options: Options, result: Path | None
) -> Workshop:
    """Read model, recipe and samples, and check that they go together; raises OnnxSlimError."""
    options.progress("read the model", 0, 1)
    data = read_model(source)
    if result is not None:
        check_target(source, data, result, options.in_place)
    chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, PASSES)
    model = parse(data)
    foreign = foreign_operators(model)
    part = runnable_part(data, foreign)
    inputs = () if part is None else Session(part, lean=is_big(part)).inputs
    options.progress("read the model", 1, 1)
    options.progress("read the samples", 0, 1)
    samples = options.calibration
    if part is None and samples is not None:
        raise CalibrationError(
            f"samples: none of the model can be run before {spelled(foreign[0])}, which the "
            "runtime lacks; leave the samples out"
        )
    if foreign and options.metric is not None:
        raise CalibrationError(
            f"metric: {options.metric.name} needs the model's outputs, but the runtime lacks "
            f"{spelled(foreign[0])}"
        )
    if samples is not None and not isinstance(samples, Samples):
        samples = read_samples(Path(samples), inputs, options.images, options.limit, options.seed)
    options.progress("read the samples", 1, 1)
    budget = chosen.budget if options.budget is None else options.budget
    if budget.has_limits and samples is None:
        raise CalibrationError("budget: its limits need samples to be checked with, none are given")
    if budget.max_drop is not None and options.metric is None:
        raise RecipeError("budget: max drop needs a metric to be measured by, none is given")
    if options.metric is not None and (samples is None or samples.labels is None):
        raise CalibrationError(f"metric: {options.metric.name} needs samples with labels")
    for stage in chosen.stages:
        if stage.recover is not None:
            _check_recovery(stage, samples)
    chosen = limited(chosen, budget.shares(), PASSES)
    name = source.name if result is None else result.name
    return Workshop(source, data, model, inputs, chosen, samples, options, name)


def _check_recovery(stage: Stage, samples: Samples | None) -> None:
    """Raise what a recovery would raise, before the work that comes ahead of it."""
    if samples is None:
        raise CalibrationError(
            f"recipe: to recover stage {stage.name!r}, distill needs samples, none are given"
        )
    importlib.import_module("onnxslim_tk.train")


def check_target(source: Path, data: Stored, result: Path, in_place: bool) -> None:
    """Raise ModelError where a result can't be written, or would take a source's place."""
    if not result.parent.is_dir():
        raise ModelError(f"model: the folder {result.parent} does not exist")
    if result.is_dir():
        raise ModelError(f"model: {result} is a folder; a file name is needed")
    if result.exists():
        if result.samefile(source) and not in_place:
            raise ModelError(
                f"model: {result} is the source itself; give the result another name, "
                "or say --in-place"
            )
        beside = {entry(tensor, "location") for tensor in data.apart()}
        if any(result.samefile(source.parent / location) for location in beside):
            raise ModelError(
                f"model: {result} holds data of the source; give the result another name"
            )
    try:
        check_place(result)
    except OSError as error:
        raise ModelError(f"model: {result} cannot be written: {error.strerror}") from error
