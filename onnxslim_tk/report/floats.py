"""What still runs in float in a result, why, and what it takes by the target's table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model, Node, Tensor, bodies
from onnxslim_tk.graph.notes import first_name
from onnxslim_tk.measure.validate import INTEGER_KERNELS
from onnxslim_tk.plan.targets import Target, Work
from onnxslim_tk.plan.work import Shapes, layer_work, node_work
from onnxslim_tk.report.integers import LayerRun

_CODES: Final = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_PRODUCTS: Final = ("Gemm", "MatMul")
# What only renames values, or hands on those that it was given.
_FREE: Final = frozenset(
    (
        "Cast",
        "Constant",
        "Dropout",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Split",
        "Squeeze",
        "Unsqueeze",
    )
)
# What the runtime computes together with the float convolution before it.
_FUSED: Final = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
_BRANCHES: Final = ("If", "Loop", "Scan")
# Fewer values are shapes and the like.
_SMALLEST: Final = 64
_ALONE: Final = "it stands between floats: integers would have to be made for it alone"
_NO_KERNEL: Final = "the runtime has no integer kernel for it"


@dataclass(frozen=True, slots=True)
class Floating:
    """Operators of one kind that run in float for one reason, and the microseconds of one run.

    ``microseconds`` is None where the target's table knows none of them.
    """

    kind: str
    reason: str
    operators: int
    microseconds: float | None


def in_float(
    result: Model, runs: Sequence[LayerRun], shapes: Shapes, target: Target
) -> tuple[Floating, ...]:
    """Everything of ``result`` that runs in float, dearest first.

    ``runs`` has the layers, with what keeps each in float; ``shapes`` were seen in a run.
    """
    times: dict[tuple[str, str], list[float | None]] = {}
    works = _layer_works(result, shapes)
    for run in runs:
        if not run.formed:
            work = works.get(run.layer)
            found = None if work is None else _time(work, target)
            times.setdefault((run.kind, run.why), []).append(found)
    layer_kinds = {run.kind for run in runs}
    for node in _others(result, layer_kinds, shapes):
        work = node_work(node, shapes)
        reason = _ALONE if node.op in target.integers else _NO_KERNEL
        found = None if work is None else _time(work, target)
        times.setdefault((node.op, reason), []).append(found)
    rows = [Floating(kind, reason, len(some), _sum(some)) for (kind, reason), some in times.items()]
    return tuple(sorted(rows, key=lambda row: (-(row.microseconds or 0.0), row.kind, row.reason)))


def _layer_works(result: Model, shapes: Shapes) -> Mapping[str, Work]:
    """What layers and products of activations have to do, by the names of their rows."""
    found: dict[str, Work] = {}
    for layer in layers(result):
        work = layer_work(layer, shapes)
        if work is not None:
            found |= dict.fromkeys(layer.names, work)
    for path, graph in bodies(result.graph):
        for node in graph.nodes:
            if node.op not in _PRODUCTS:
                continue
            place = path + first_name(tensor.name for tensor in node.outputs)
            given, read = (shapes.get(t.name) for t in (node.outputs[0], node.inputs[0]))
            if given is not None and read:
                work = Work(node.op, prod(given), prod(given) * read[-1])
                found.setdefault(result.origins.get(place, (place,))[0], work)
    return found


def _others(result: Model, layer_kinds: set[str], shapes: Shapes) -> Iterator[Node]:
    """Operators beside layers whose values come out of floats and go on as floats."""
    known = layer_kinds | _FREE | INTEGER_KERNELS | {*_CODES, *_PRODUCTS, *_BRANCHES}
    for _, graph in bodies(result.graph):
        for node in graph.nodes:
            if node.domain not in STANDARD_DOMAINS or node.op in known or not node.outputs:
                continue
            size = prod(shapes.get(node.outputs[0].name, ()))
            moving = [t for t in node.inputs if t.name and not is_constant(t)]
            fused = node.op in _FUSED and any(t.inputs and t.inputs[0].op == "Conv" for t in moving)
            if size >= _SMALLEST and moving and not fused and not _works_on_codes(node, moving):
                yield node


def _works_on_codes(node: Node, moving: Sequence[Tensor]) -> bool:
    """Whether an operator stands between codes, or works on them itself."""
    made = all(t.inputs and t.inputs[0].op in _CODES for t in moving)
    read = [reader.op for reader in node.outputs[0].outputs]
    return made and all(op in _CODES for op in read)


def _time(work: Work, target: Target) -> float | None:
    return target.float_time(work) if work.kind in target.floats else None


def _sum(times: Sequence[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return sum(known) if known else None
