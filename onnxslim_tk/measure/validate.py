"""A result held beside its original: size, speed, outputs, layers, and a task metric."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model, Node, bodies, to_stored
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.measure.fidelity import OutputFidelity, Runner, compare
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.latency import Latency, measure_latency
from onnxslim_tk.measure.metrics import Drop, Metric, paired_drop
from onnxslim_tk.measure.observe import fetch, inner_tensors
from onnxslim_tk.measure.runtime import (
    Feed,
    Running,
    Session,
    fit_together,
    is_big,
    running_nodes,
)
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.size import Size, size_of
from onnxslim_tk.measure.slices import decibels

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, what is done of it, and how much there is."""


def silent(step: str, done: int, total: int) -> None:
    """Report no progress."""


INTEGER_KERNELS: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
_FORMED: Final = ("Conv", "Gemm", "MatMul")
_INTEGER: Final = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
_LAYER_SAMPLES: Final = 4
_MOST_MEMORY: Final = 1.4
"""Times the original's size that loading a big result may take for it to be timed."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer's output in the result is from that in the original, in dB of SQNR."""

    layer: str
    kind: str
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What samples say: outputs beside each other, and a task metric where labels allow one."""

    outputs: tuple[OutputFidelity, ...]
    metric: str | None
    drop: Drop | None
    samples: int


@dataclass(frozen=True, slots=True)
class Validation:
    """All figures of a result beside its original.

    ``latency`` is None where no run could be timed; ``integer_meant`` counts the layers written
    for integer kernels, ``integer_formed`` the kernels in the graph that the runtime really runs,
    ``kernels`` has these by name, and ``integer_layers`` the outputs of the operators of the result
    that run in them, after the path of their body.
    """

    original: Size
    result: Size
    latency: Latency | None
    faithfulness: Faithfulness | None
    layers: tuple[LayerError, ...]
    integer_meant: int
    integer_formed: int
    kernels: Mapping[str, int]
    integer_layers: tuple[str, ...] = ()


def faithfulness(
    original: bytes | Stored,
    result: bytes | Stored,
    samples: Samples,
    metric: Metric | None,
    kinds: Mapping[str, OutputKind],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Faithfulness:
    """Run both files on ``samples`` and compare; the metric needs labels.

    Raises SessionError where a file doesn't run, CalibrationError where labels don't fit.
    """
    wanted = metric is not None and samples.labels is not None
    if fit_together(original, result):
        reference: Runner = Session(original).run
    else:
        reference = _recorded(Session(original).run, samples)
    found = compare(reference, Session(result).run, samples, kinds, progress, keep_primary=wanted)
    drop = None
    if metric is not None and samples.labels is not None:
        drop = paired_drop(
            metric, found.original_primary, found.result_primary, samples.labels, seed
        )
    return Faithfulness(found.outputs, metric.name if drop and metric else None, drop, len(samples))


def _recorded(run: Runner, samples: Samples) -> Runner:
    """What ``run`` gives for each of ``samples`` in turn, kept so that its model may go."""
    values = iter([run(feed) for feed in samples.feeds])
    return lambda _: next(values)


def validate_files(
    original: tuple[bytes | Stored, Model],
    result: tuple[bytes | Stored, Model],
    feeds: tuple[Feed, ...],
    faithful: Faithfulness | None,
    shapes: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]],
    progress: Progress,
    running: tuple[bytes | Stored | None, bytes | Stored | None] | None = None,
) -> Validation:
    """All figures; ``feeds`` are for timing and for the layers' errors, and may be none.

    ``running`` is what of both the runtime can run, where that isn't all.
    """
    before, after = (original[0], result[0]) if running is None else running
    progress("time both models", 0, 1)
    latency = None
    fits = not takes_too_much(original[0], result[1])
    if feeds and before is not None and after is not None and fits:
        latency = measure_latency(before, after, feeds)
    progress("time both models", 1, 1)
    meant = sum(runs_in_integers(layer) for layer in layers(result[1]))
    meant += sum(node.op in _INTEGER for _, body in bodies(result[1].graph) for node in body.nodes)
    nodes: list[Running] = []
    # The runtime writes its graph with all weights to tell: not where there is nothing to count.
    if after is not None and _holds_integers(result[1]):
        nodes = running_nodes(after)
    kernels = [node for node in nodes if node.op in INTEGER_KERNELS]
    operators = Counter(node.op for node in kernels)
    return Validation(
        original=size_of(original[0], original[1], shapes[0]),
        result=size_of(result[0], result[1], shapes[1]),
        latency=latency,
        faithfulness=faithful,
        layers=layer_errors(original[1], result[1], feeds[:_LAYER_SAMPLES]),
        integer_meant=meant,
        integer_formed=len(kernels),
        kernels={name: operators[name] for name in sorted(operators)},
        integer_layers=tuple(_in_kernels(result[1], kernels)),
    )


def takes_too_much(original: bytes | Stored, result: Model) -> bool:
    """Whether the runtime, loading a big result, would take far more memory than the original does.

    It decodes all weights that are integers times a scale, and keeps both steps for a while.
    """
    decoded = sum(
        2 * np.dtype(np.float32).itemsize * layer.size
        for layer in layers(result)
        if not layer.is_dense and layer.is_multiplied
    )
    return is_big(original) and decoded > _MOST_MEMORY * len(original)


def _holds_integers(model: Model) -> bool:
    """Whether there is an operator of which the runtime could form an integer kernel."""
    marks = ("Quant", "Integer", "QLinear", "QGemm", "NBits")
    return any(
        any(mark in node.op for mark in marks)
        for _, graph in bodies(model.graph)
        for node in graph.nodes
    )


def runs_in_integers(layer: Layer) -> bool:
    """Whether a layer is written for an integer kernel: activation and weight behind DQ."""
    makers = [tensor.inputs[0].op for tensor in layer.node.inputs[:2] if tensor.inputs]
    return makers == ["DequantizeLinear", "DequantizeLinear"] and layer.kind != "ConvTranspose"


def is_written(node: Node) -> bool:
    """Whether an operator is one of an integer kernel, or reads what such a kernel is formed of."""
    if node.op in INTEGER_KERNELS:
        return True
    makers = [tensor.inputs[0].op for tensor in node.inputs[:2] if tensor.inputs]
    return node.op in _FORMED and makers == ["DequantizeLinear", "DequantizeLinear"]


def _in_kernels(model: Model, kernels: Sequence[Running]) -> Iterator[str]:
    """Outputs of the operators that run in ``kernels``, each after the path of its body."""
    read = [set(kernel.inputs) for kernel in kernels]
    made = {name for kernel in kernels for name in kernel.outputs}
    for path, graph in bodies(model.graph):
        for node in graph.nodes:
            if not is_written(node):
                continue
            output = node.outputs[0]
            formed = node.op in INTEGER_KERNELS
            if not formed:
                # Kernels keep the codes of the weight by name, or else what they put out.
                left, right = (tensor.inputs[0].inputs[0] for tensor in node.inputs[:2])
                codes = {t.name for t in (left, right) if is_constant(t)} or {left.name, right.name}
                behind = {t.name for reader in output.outputs for t in reader.outputs}
                formed = any(codes <= some for some in read) or bool(made & {output.name, *behind})
            if formed:
                yield path + output.name


def layer_errors(original: Model, result: Model, feeds: tuple[Feed, ...]) -> tuple[LayerError, ...]:
    """Errors of the layers whose outputs both models have under one name, in graph order.

    A quantized output is read behind its grid, where the activation that it absorbed has worked.
    """
    known = set(inner_tensors(original))
    before = {layer.output.name: layer for layer in layers(original) if layer.meets_input}
    pairs = [
        (layer, layer.output.name, _settled(layer))
        for layer in layers(result)
        if not layer.path and layer.output.name in known and layer.meets_input
    ]
    if not pairs or not feeds:
        return ()
    energy: dict[str, float] = {}
    error: dict[str, float] = {}
    references: Iterable[dict[str, Any]] = fetch(original, [name for _, name, _ in pairs], feeds)
    if not fit_together(to_stored(original), to_stored(result)):
        references = list(references)
    values = fetch(result, [settled for _, _, settled in pairs], feeds)
    for reference, value in zip(references, values, strict=True):
        for _, name, settled in pairs:
            wide = reference[name].astype(np.float64)
            if wide.shape == value[settled].shape:
                with np.errstate(invalid="ignore"):
                    noise = wide - value[settled]
                energy[name] = energy.get(name, 0.0) + float(np.square(wide).sum())
                error[name] = error.get(name, 0.0) + float(np.square(noise).sum())
    return tuple(
        LayerError(
            _id(before, name, original), layer.kind, float(decibels(energy[name], error[name]))
        )
        for layer, name, _ in pairs
        if name in energy
    )


def _settled(layer: Layer) -> str:
    """Name of the tensor that a layer's readers get: behind Q and DQ where they follow."""
    readers = layer.output.outputs
    if len(readers) == 1 and readers[0].op == "QuantizeLinear":
        codes = readers[0].outputs[0]
        back = [node for node in codes.outputs if node.op == "DequantizeLinear"]
        if back:
            return str(back[0].outputs[0].name)
    return str(layer.output.name)


def _id(before: Mapping[str, Layer], name: str, original: Model) -> str:
    """The id of the original's layer that gives ``name``, directly or through what was absorbed."""
    makers = {t.name: node for node in original.graph.nodes for t in node.outputs}
    tensor = name
    while tensor not in before and tensor in makers and makers[tensor].inputs:
        tensor = makers[tensor].inputs[0].name
    return before[tensor].id if tensor in before else name
