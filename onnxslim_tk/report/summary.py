"""What of a report goes into tables: figures put side by side and counted, nothing rendered."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Final, Literal

from onnxslim_tk.measure.fidelity import OutputFidelity
from onnxslim_tk.measure.metrics import Drop
from onnxslim_tk.measure.validate import LayerError, Validation
from onnxslim_tk.packing import PackedTensor
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.plan import Plan
from onnxslim_tk.report.floats import Floating
from onnxslim_tk.report.integers import Integers, by_kind
from onnxslim_tk.report.outcome import Counts, Learned, Report, Seen

Verdict = Literal["holds", "broken", "not judged"]

_WORST_LAYERS: Final = 5
_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of both files; ``ratio`` is result to original, None where there is none."""

    name: str
    original: float | None
    result: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Done:
    """What one method did in one stage; ``error`` is the largest of its rows."""

    stage: str
    method: str
    rows: int
    bytes_saved: int
    macs_saved: int
    error: float


@dataclass(frozen=True, slots=True)
class Packing:
    """What one encoding did: tensors, and their bytes in the file before and after.

    ``coded`` is what those take after it whose values are few enough to be told apart, ``entropy``
    what a perfect code of single values would leave of these; both are 0 where there are none.
    """

    encoding: str
    tensors: int
    bytes_before: int
    bytes_after: int
    coded: int
    entropy: int


@dataclass(frozen=True, slots=True)
class Refused:
    """How many layers a method refused for one reason, and the first few of them.

    ``instead`` names what was done to them all the same, by this method or another: the methods
    and their settings. Empty, they were left alone.
    """

    method: str
    reason: str
    layers: int
    examples: tuple[str, ...]
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """The tables' data. ``worst_layers`` come worst first."""

    verdict: Verdict
    figures: tuple[Figure, ...]
    samples: Counts | None
    outputs: tuple[OutputFidelity, ...]
    metric: str | None
    drop: Drop | None
    checks: tuple[Check, ...]
    worst_layers: tuple[LayerError, ...]
    done: tuple[Done, ...]
    packing: tuple[Packing, ...]
    refusals: tuple[Refused, ...]
    integers: tuple[Integers, ...]
    floats: tuple[Floating, ...]
    warnings: tuple[str, ...]
    training: Learned | None = None


def summarize(report: Report) -> Summary:
    """The summary of a report."""
    validation = report.validation
    found = validation.faithfulness
    return Summary(
        verdict="not judged" if not report.checks else "holds" if report.holds else "broken",
        figures=figures(validation),
        samples=report.samples,
        outputs=found.outputs if found else (),
        metric=found.metric if found else None,
        drop=found.drop if found else None,
        checks=report.checks,
        worst_layers=_worst(validation.layers),
        done=done(report.plan),
        packing=packing(report.packed),
        refusals=refusals(report.plan),
        integers=by_kind(report.integers, validation.kernels),
        floats=report.floats,
        warnings=report.warnings,
        training=report.training,
    )


def milestones(training: Learned) -> list[tuple[str, Seen]]:
    """The looks that tell the story: the first, the best, and the last."""
    best = next(look for look in training.looks if look.step == training.best)
    named = [("as it came", training.looks[0]), ("kept", best), ("last", training.looks[-1])]
    if best is training.looks[0]:
        named = [("as it came, kept", best), *named[2:]]
    return named if training.looks[-1] is not best else named[:-1]


def figures(validation: Validation) -> tuple[Figure, ...]:
    """The five numbers (file, gzip, parameters, MACs, latency) and the time to load."""
    before, after, latency = validation.original, validation.result, validation.latency
    return (
        _figure("file bytes", before.file_bytes, after.file_bytes),
        _figure("gzip bytes", before.gzip_bytes, after.gzip_bytes),
        _figure("parameters", before.parameters, after.parameters),
        _figure("MACs", before.macs, after.macs),
        Figure(
            "latency ms",
            latency.original_ms if latency else None,
            latency.result_ms if latency else None,
            latency.ratio if latency else None,
        ),
        Figure("load time", None, None, latency.load_ratio if latency else None),
    )


def _figure(name: str, original: int | None, result: int | None) -> Figure:
    known = original is not None and result is not None and original > 0
    return Figure(name, original, result, (result or 0) / (original or 1) if known else None)


def _worst(layers: Sequence[LayerError]) -> tuple[LayerError, ...]:
    order = sorted(layers, key=lambda layer: -1e9 if isnan(layer.sqnr_db) else layer.sqnr_db)
    return tuple(order[:_WORST_LAYERS])


def done(plan: Plan) -> tuple[Done, ...]:
    """The rows of a plan by stage and method, in the order in which they are carried out."""
    found = []
    for stage in plan.stages:
        for method in dict.fromkeys(row.method for row in stage.rows):
            rows = [row for row in stage.rows if row.method == method]
            found.append(
                Done(
                    stage.stage,
                    method,
                    len(rows),
                    sum(row.bytes_saved for row in rows),
                    sum(row.macs_saved for row in rows),
                    max(row.error for row in rows),
                )
            )
    return tuple(found)


def packing(packed: Iterable[PackedTensor]) -> tuple[Packing, ...]:
    """What was packed by encoding, the largest saving first."""
    groups: dict[str, list[PackedTensor]] = {}
    for tensor in packed:
        groups.setdefault(tensor.encoding, []).append(tensor)
    found = [
        Packing(
            name,
            len(some),
            sum(t.bytes_before for t in some),
            sum(t.bytes_after for t in some),
            sum(t.bytes_after for t in some if t.entropy is not None),
            round(sum(t.entropy for t in some if t.entropy is not None)),
        )
        for name, some in groups.items()
    ]
    return tuple(sorted(found, key=lambda p: (p.bytes_after - p.bytes_before, p.encoding)))


def refusals(plan: Plan) -> tuple[Refused, ...]:
    """What methods refused by reason and by what was done instead, the most frequent first."""
    done_to: dict[str, list[str]] = {}
    for stage in plan.stages:
        for row in stage.rows:
            # What changes no output is done beside anything else, not in its place.
            for target in row.targets if row.error > 0 else ():
                done_to.setdefault(target, []).append(f"{row.method} {row.setting}")
    groups: dict[tuple[str, str, str], list[str]] = {}
    for stage in plan.stages:
        for refusal in stage.refusals:
            instead = ", ".join(done_to.get(refusal.target, []))
            key = (refusal.method, refusal.reason, instead)
            groups.setdefault(key, []).append(refusal.target)
    found = [
        Refused(method, reason, len(targets), tuple(targets[:_EXAMPLES]), instead)
        for (method, reason, instead), targets in groups.items()
    ]
    return tuple(sorted(found, key=lambda r: (-r.layers, r.method, r.reason, r.instead)))
