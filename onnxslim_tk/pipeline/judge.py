"""The last word: an attempt measured on the samples that nothing was chosen by."""

import time

import onnx

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.formats import number_formats, told
from onnxslim_tk.graph.message import SEPARATE_WEIGHTS
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.measure.foreign import spelled
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.runtime import Feed, runtime_version
from onnxslim_tk.measure.validate import takes_too_much, validate_files
from onnxslim_tk.pipeline.attempt import Attempt, Workshop
from onnxslim_tk.pipeline.files import parse
from onnxslim_tk.report.floats import in_float
from onnxslim_tk.report.integers import layer_runs
from onnxslim_tk.report.outcome import Counts, Report
from onnxslim_tk.version import VERSION

_TIMING_FEEDS = 3


def judge(shop: Workshop, attempt: Attempt, started: float, everything: bool = False) -> Report:
    """The report on an attempt, from its bytes as they will be written.

    ``everything`` judges by all samples, for results that nothing here was chosen for.
    ``started`` is the process's CPU time when the run began.
    """
    opened = parse(attempt.data)
    parts = shop.parts
    judging = None
    if shop.samples is not None and parts is not None:
        judging = shop.samples if everything else parts.judge
    found = None if judging is None else shop.measure(attempt, judging, "judge")
    feeds: tuple[Feed, ...] = () if shop.feed is None else (shop.feed,)
    if judging is not None:
        feeds = tuple(judging.feeds[k] for k in range(min(_TIMING_FEEDS, len(judging))))
    shapes = tuple(_shapes(model, feeds) for model in (shop.model, opened))
    validation = validate_files(
        (shop.data, shop.model),
        (attempt.data, opened),
        feeds,
        found,
        (shapes[0], shapes[1]),
        shop.options.progress,
        (shop.runnable(shop.data), shop.runnable(attempt.data)),
    )
    if shop.foreign:
        check_form(shop.data, attempt.data)
    counts = None
    if parts is not None and judging is not None:
        sizes = (0, 0) if everything else (len(parts.calibrate), len(parts.choose))
        counts = Counts(*sizes, len(judging), parts.overlaps and not everything)
    runs = layer_runs(
        attempt.model, attempt.plan, shop.samples is not None, validation.integer_layers
    )
    return Report(
        version=VERSION,
        runtime=runtime_version(),
        source_sha256=shop.data.sha256,
        result_sha256=attempt.data.sha256,
        recipe=shop.recipe.name,
        seed=shop.options.seed,
        samples=counts,
        validation=validation,
        checks=shop.checks(found, attempt),
        plan=attempt.plan,
        packed=attempt.packed,
        integers=runs,
        floats=in_float(attempt.model, runs, shapes[1], shop.options.target),
        warnings=tuple(_warnings(shop, attempt, opened, counts)),
        steps_back=attempt.steps,
        only_tidied=attempt.only_tidied,
        seconds=time.process_time() - started,
    )


def _shapes(model: Model, feeds: tuple[Feed, ...]) -> dict[str, tuple[int, ...]]:
    return observed_shapes(model, feeds[0]) if feeds else {}


def check_form(original: Stored, result: Stored) -> None:
    """Raise ModelError where ONNX's own checker passes the original, but not the result."""
    messages = []
    for stored in (original, result):
        proto = stored.proto()
        try:
            if stored.is_single:
                onnx.checker.check_model(proto)
            messages.append("")
        except onnx.checker.ValidationError as error:
            messages.append(str(error).splitlines()[0])
    if messages[1] and not messages[0]:
        raise ModelError(f"model: the result is not valid ONNX: {messages[1]}")


def _foreign(shop: Workshop) -> str:
    names = ", ".join(map(spelled, shop.foreign[:4]))
    more = f" and {len(shop.foreign) - 4} more" * (len(shop.foreign) > 4)
    said = f"the runtime lacks {names}{more}: the model cannot be run to its end; "
    if shop.runnable(shop.data) is None:
        return said + "only the form of the result and its weights were checked"
    if shop.samples is None:
        return said + "what comes before runs, the rest was checked by its form alone"
    return said + "the result was judged by the tensors that go into these operators"


def _warnings(shop: Workshop, attempt: Attempt, opened: Model, counts: Counts | None) -> list[str]:
    found = [_foreign(shop)] if shop.foreign else []
    if shop.samples is None:
        made = "only methods that need none were used, and " if attempt.plan.stages else ""
        found.append(
            f"no samples: {made}nothing says what the result does to the model's accuracy; "
            "give --calibration PATH"
        )
    if shop.not_run:
        found.append(f"no made-up input runs, so nothing is timed: {shop.not_run}")
    if takes_too_much(shop.data, opened):
        found.append(
            "when the runtime loads the result, it decodes all weights at once and takes more than "
            "twice the memory of the original for a while: it was not timed"
        )
    if counts is not None and counts.overlaps:
        found.append(
            f"{counts.judge} samples are too few to split: the result was judged on samples that "
            "it was made with"
        )
    if any(row.method == "sparsify" for stage in attempt.plan.stages for row in stage.rows):
        found.append(
            "zeros save bytes, not time: onnxruntime multiplies by them as by any other number"
        )
    formats = number_formats(shop.model)
    if formats and shop.recipe.stages:
        found.append(
            f"in narrow numbers already ({told(formats)}): such operators stay as they are, unless "
            "their weights can be narrower still or run in integers"
        )
    proto = shop.data.proto()
    kept = {tensor.name for tensor in shop.model.graph.inputs}
    listed = sum(value.name not in kept for value in proto.graph.input)
    if listed and proto.ir_version >= SEPARATE_WEIGHTS and attempt.model is not shop.model:
        found.append(
            f"{listed} weights are listed as inputs in the original: they are constants in the "
            "result, and can't be fed"
        )
    if attempt.trouble:
        found.append(f"the runtime cannot run what the recipe makes of it: {attempt.trouble}")
    if attempt.model is shop.model:
        cause = "nothing made the file smaller"
        if attempt.trouble:
            cause = "tidying saved nothing"
        elif attempt.steps:
            cause = "no compressed model kept the budget, and tidying saved nothing"
        found.append(f"{cause}: the result is the original, unchanged")
    elif attempt.trouble:
        found.append("the result is the original, tidied and packed")
    elif attempt.only_tidied:
        found.append(
            "no compressed model kept the budget: the result is the original, tidied and packed"
        )
    elif attempt.steps:
        found.append(
            f"the recipe as it stands broke the budget: {attempt.steps} steps back were needed"
        )
    if attempt.plan.stages and len(attempt.data) > len(shop.data):
        found.append("the result is larger than the original")
    return found
