"""What is measured of one file: its module beside onnxruntime, and its gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxslim_tk.graph.model import from_proto, to_parts
from onnxslim_tk.graph.stored import joined
from onnxslim_tk.measure.runtime import Feed, Session
from onnxslim_tk.pipeline.files import load, save
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.write_back import write_back

Array = NDArray[Any]

NEAR: Final = 1e-5
_SHIFTS: Final = (1e-6, 1e-7, 1e-8, 1e-9)
"""Lengths of the steps of a difference; over a kink of a Relu only short ones are right."""
_SLOPE: Final = 1e-3
"""What differences may miss a gradient by, over kinks and where a Softmax is saturated."""
_MOVE: Final = 1e-6
_STILL: Final = 1e-10
"""What an output moves by when an element moves that it doesn't read: rounding of 64 bits."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found of a file.

    ``outputs`` is the relative distance (of Euclidean norms, the worst output and sample) of the
    module's outputs from those of onnxruntime without optimizations; ``rounding`` that of
    onnxruntime from the same graph in 64 bits; where a graph rounds, that of onnxruntime with its
    optimizations from without. ``written`` is the distance after all
    parameters have moved and gone back into the file. ``gradient`` is the relative distance of
    the derivative along a random direction of all parameters from differences, in 64 bits; None
    where the graph rounds. Of ``elements`` in ``tensors`` that are trained, ``not_run`` are in
    branches that the samples don't enter, ``silent`` get a gradient of exactly zero from all
    samples, and ``felt`` of these move an output when they move.
    """

    outputs: float
    rounding: float
    written: float
    gradient: float | None
    tensors: int
    elements: int
    not_run: int
    silent: int
    felt: int
    without_rule: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the module is the graph, as far as rounding lets one see."""
        near = max(NEAR, 3 * self.rounding)
        right = self.gradient is None or self.gradient < _SLOPE
        return max(self.outputs, self.written) < near and right and not self.felt


def prove(path: Path, feeds: Sequence[Feed]) -> Proof:
    """Compare the module of a file with onnxruntime on ``feeds``."""
    model = load(path)
    module = GraphModule(model)
    plain = Session(path, optimize=False)
    expected = [plain.run(feed) for feed in feeds]
    outputs = _farthest(module, feeds, expected)
    for feed in feeds:
        _sum(module(feed)).backward()
    found = dict(_parameters(module))
    run = {key: p.grad == 0 for key, p in found.items() if p.grad is not None}
    silent = {key: places for key, places in run.items() if bool(places.any())}
    if _rounds(module):
        session = Session(path)
        rounding = max(_distance(session.run(f), e) for f, e in zip(feeds, expected, strict=True))
        gradient: float | None = None
        felt, notes = 0, tuple[str, ...]()
    else:
        exact, gradient = _slopes(_doubled(path), feeds[0])
        rounding = _distance(expected[0], exact)
        felt, notes = _felt(path, feeds, silent)
    return Proof(
        outputs,
        rounding,
        _written(path, feeds),
        gradient,
        len(module.ties),
        sum(p.numel() for p in found.values()),
        sum(p.numel() for key, p in found.items() if key not in run),
        sum(int(places.sum()) for places in silent.values()),
        felt,
        (*sorted(module.without_rule), *module.detached),
        notes,
    )


def _written(path: Path, feeds: Sequence[Feed]) -> float:
    """The distance of the module from its file, after all parameters have moved a little."""
    model = load(path)
    module = GraphModule(model)
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    write_back(module, model)
    with TemporaryDirectory(prefix="onnxslim-") as folder:
        target = Path(folder, "moved.onnx")
        save(model, target)
        session = Session(target, optimize=False)
        return _farthest(module, feeds, [session.run(feed) for feed in feeds])


def _parameters(module: GraphModule) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Each parameter once, by the first key that it has."""
    seen: set[int] = set()
    for key in module.ties:
        parameter = module.parameter(key)
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield key, parameter


def _rounds(module: GraphModule) -> bool:
    """Whether the graph rounds: then a gradient is not that of what it computes."""
    kinds = {step.node.kind.rpartition(":")[2] for step in module.program.makers.values()}
    coded = any(weight.ends is not None or weight.narrow for weight in module.weights)
    return coded or bool(kinds & {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv"})


def _plain(found: Mapping[str, Any]) -> dict[str, Array]:
    return {n: v.detach().numpy() if torch.is_tensor(v) else v for n, v in found.items()}


def _distance(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    worst = 0.0
    for name, value in wanted.items():
        if value.dtype.kind != "f":
            worst = max(worst, float((found[name] != value).any()))
            continue
        wide = value.astype(np.float64)
        gap = float(np.linalg.norm(found[name].astype(np.float64) - wide))
        worst = max(worst, gap / max(float(np.linalg.norm(wide)), 1e-30))
    return worst


def _farthest(
    module: GraphModule, feeds: Sequence[Feed], expected: Sequence[Mapping[str, Array]]
) -> float:
    with torch.no_grad():
        found = [_plain(module(feed)) for feed in feeds]
    return max(_distance(f, e) for f, e in zip(found, expected, strict=True))


def _sum(found: Mapping[str, Any]) -> torch.Tensor:
    """A random sum of all outputs, the same for outputs of the same shapes."""
    rng = np.random.default_rng(0)
    total = torch.zeros((), dtype=torch.float64)
    for value in found.values():
        if torch.is_tensor(value) and value.is_floating_point():
            shares = torch.from_numpy(rng.standard_normal(tuple(value.shape)))
            total = total + (value.double() * shares).sum()
    return total


def _felt(
    path: Path, feeds: Sequence[Feed], silent: Mapping[str, torch.Tensor]
) -> tuple[int, tuple[str, ...]]:
    """How many elements without a gradient the outputs feel after all, in 64 bits."""
    module = _doubled(path)
    wide = [_wide(feed) for feed in feeds]
    with torch.no_grad():
        expected = [_plain(module(feed)) for feed in wide]

    def moved(keys: Iterable[str]) -> float:
        before = {key: module.parameter(key).detach().clone() for key in keys}
        with torch.no_grad():
            for key, values in before.items():
                size = values.abs().mean().clamp(min=1e-6)
                module.parameter(key).add_(silent[key] * _MOVE * size)
            found = _farthest(module, wide, expected)
            for key, values in before.items():
                module.parameter(key).copy_(values)
        return found

    if moved(silent) < _STILL:
        return 0, ()
    felt = {key: gap for key in silent if (gap := moved([key])) >= _STILL}
    count = sum(int(silent[key].sum()) for key in felt)
    return count, tuple(f"  felt: {key}, {gap:.1e}" for key, gap in felt.items())


def _doubled(path: Path) -> GraphModule:
    """The module of a file's graph in 64 bits."""
    proto = joined(*to_parts(load(path)))
    _double_graph(proto.graph)
    return GraphModule(from_proto(proto, proto.SerializeToString()))


def _wide(feed: Feed) -> dict[str, Array]:
    arrays = {name: np.asarray(value) for name, value in feed.items()}
    return {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in arrays.items()}


def _slopes(module: GraphModule, feed: Feed) -> tuple[dict[str, Array], float]:
    """The outputs of a module in 64 bits, and how far its gradient is from differences."""
    wide = _wide(feed)
    found = module(wide)
    _sum(found).backward()
    torch.manual_seed(0)
    moved = [parameter for parameter in module.parameters() if parameter.grad is not None]
    steps = [torch.randn_like(p) * p.detach().abs().mean().clamp(min=1e-6) for p in moved]
    slope = sum(float((p.grad * s).sum()) for p, s in zip(moved, steps, strict=True))

    def at(shift: float) -> float:
        with torch.no_grad():
            for parameter, step in zip(moved, steps, strict=True):
                parameter.add_(step, alpha=shift)
            total = float(_sum(module(wide)))
            for parameter, step in zip(moved, steps, strict=True):
                parameter.sub_(step, alpha=shift)
        return total

    slopes = [(at(shift) - at(-shift)) / (2 * shift) for shift in _SHIFTS]
    gaps = [abs(found - slope) / max(abs(slope), 1e-30) for found in slopes]
    return _plain(found), min(gaps)


def _double_graph(graph: onnx.GraphProto) -> None:
    """Make every 32-bit float of a graph one of 64 bits, in place."""
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _double_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            if attribute.type == onnx.AttributeProto.TENSOR:
                _double_tensor(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _double_graph(attribute.g)
            elif attribute.name in ("value_float", "value_floats"):
                values = np.asarray(helper.get_attribute_value(attribute), np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(values)))


def _double_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
