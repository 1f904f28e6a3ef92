"""Which operators are written for integer kernels, which kernels formed, and why others did not."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.layer import Layer
from onnxslim_tk.graph.layers import layers_of
from onnxslim_tk.graph.model import Graph, Model, Node, bodies
from onnxslim_tk.graph.notes import first_name
from onnxslim_tk.measure.validate import INTEGER_KERNELS, runs_in_integers
from onnxslim_tk.plan.plan import Plan
from onnxslim_tk.plan.proposal import Context, Proposal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU

CONVOLUTIONS: Final = "Conv"
PRODUCTS: Final = "MatMul, Gemm"

_CONVOLUTION_KERNELS: Final = frozenset({"ConvInteger", "QLinearConv"})
_PRODUCTS: Final = ("Gemm", "MatMul")
_FLOAT_ONLY: Final = ("ConvTranspose", "GRU", "LSTM", "RNN")
_WIDE: Final = ("Add", "Cast", "Mul")
_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class LayerRun:
    """An operator that multiplies weights or activations, and the numbers that it is written for.

    ``formed`` says whether the runtime really runs it in an integer kernel, ``why`` what keeps it
    in float; it is empty where the kernel formed.
    """

    layer: str
    kind: str
    meant: Literal["int8", "float"]
    why: str = ""
    formed: bool = False


@dataclass(frozen=True, slots=True)
class Because:
    """How many operators stay in float for one reason, and the first few of them."""

    reason: str
    layers: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Integers:
    """Operators of one kind: all, those written for int8, the kernels that the runtime formed.

    MatMul and Gemm are one kind, since the runtime makes the same kernels of both.
    """

    kind: str
    layers: int
    meant: int
    formed: int
    reasons: tuple[Because, ...]


def layer_runs(
    result: Model, plan: Plan, sampled: bool, formed: Collection[str] = ()
) -> tuple[LayerRun, ...]:
    """One row for each convolution, matrix product and recurrent operator, bodies included.

    ``plan`` is what ``result`` was made by; ``sampled`` says whether there were samples. Embeddings
    only gather, and are left aside. ``formed`` has the outputs of operators whose integer kernels
    formed, each after the path of its body.
    """
    reasons = _Reasons(plan, sampled, frozenset(formed))
    found = []
    for path, graph in bodies(result.graph):
        for node in graph.nodes:
            if node.op in INTEGER_KERNELS:
                kind = "Conv" if node.op in _CONVOLUTION_KERNELS else "MatMul"
                place = path + _settled(node, path, reasons.dynamic)
                name = result.origins.get(place, (place,))[0]
                found.append(_in_int8(name, kind, node, path, reasons))
            elif node.domain in STANDARD_DOMAINS:
                found.extend(_float_or_int8(result, node, graph, path, reasons))
    return tuple(found)


def by_kind(runs: Sequence[LayerRun], kernels: Mapping[str, int]) -> tuple[Integers, ...]:
    """Rows added up by kind; ``kernels`` are those that the runtime really runs, by name."""
    convolutions = sum(kernels.get(name, 0) for name in _CONVOLUTION_KERNELS)
    formed = {CONVOLUTIONS: convolutions, PRODUCTS: sum(kernels.values()) - convolutions}
    groups: dict[str, list[LayerRun]] = {}
    for run in runs:
        groups.setdefault(PRODUCTS if run.kind in _PRODUCTS else run.kind, []).append(run)
    return tuple(
        Integers(
            kind,
            len(some),
            sum(run.meant == "int8" for run in some),
            formed.get(kind, 0),
            _because(run for run in some if not run.formed),
        )
        for kind, some in groups.items()
    )


def _because(runs: Iterable[LayerRun]) -> tuple[Because, ...]:
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(run.why, []).append(run.layer)
    found = [Because(why, len(some), tuple(some[:_EXAMPLES])) for why, some in groups.items()]
    return tuple(sorted(found, key=lambda because: (-because.layers, because.reason)))


def _float_or_int8(
    model: Model, node: Node, graph: Graph, path: str, reasons: "_Reasons"
) -> list[LayerRun]:
    if node.op not in ("Conv", *_PRODUCTS, *_FLOAT_ONLY):
        return []
    place = path + first_name(tensor.name for tensor in node.outputs)
    names = model.origins.get(place, (place,))
    if node.op in _FLOAT_ONLY:
        return [LayerRun(names[0], node.op, "float", "the runtime has no integer kernel for it")]
    layer = next(iter(layers_of(model, node, graph, path)), None)
    decoded = all(t.inputs and t.inputs[0].op == "DequantizeLinear" for t in node.inputs[:2])
    if decoded if layer is None else runs_in_integers(layer):
        return [_in_int8(names[0], node.op, node, path, reasons)]
    why = _no_weight(node) if layer is None else reasons.of(layer)
    return [LayerRun(names[0], node.op, "float", why)]


def _in_int8(name: str, kind: str, node: Node, path: str, reasons: "_Reasons") -> LayerRun:
    """An operator that is written for int8: whether its kernel formed, and if not, why."""
    output = node.outputs[0]
    if path + output.name in reasons.formed:
        return LayerRun(name, kind, "int8", formed=True)
    behind = [reader.op for reader in output.outputs]
    why = "the runtime forms no integer kernel of it"
    if behind and "QuantizeLinear" not in behind:
        why = f"the runtime forms no integer kernel with {behind[0]} behind it"
    elif len(behind) > 1:
        why = "the runtime forms no integer kernel of what several operators read"
    return LayerRun(name, kind, "int8", why)


def _no_weight(node: Node) -> str:
    if any(is_constant(tensor) for tensor in node.inputs[:2]):
        return "its weight or its attributes are of a form that no method rewrites"
    return "the product of two activations"


def _settled(node: Node, path: str, targets: Mapping[str, str]) -> str:
    """Name of the tensor that a layer gave before an integer product took its place."""
    tensor = node.outputs[0]
    while path + tensor.name not in targets:
        readers = tensor.outputs
        if len(readers) != 1 or readers[0].op not in _WIDE:
            return str(node.outputs[0].name)
        tensor = readers[0].outputs[0]
    return str(tensor.name)


class _Reasons:
    """What a plan knows about each layer, by its names."""

    def __init__(self, plan: Plan, sampled: bool, formed: frozenset[str]) -> None:
        rows = [row for stage in plan.stages for row in stage.rows]
        refused = [refusal for stage in plan.stages for refusal in stage.refusals]
        self.dynamic = {t: r.method for r in rows if r.setting == "dynamic" for t in r.targets}
        self._rows: dict[str, Proposal] = {
            target: row for row in rows if row.method == "quantize" for target in row.targets
        }
        self._refused = {r.target: r.reason for r in refused if r.method == "quantize"}
        self._refused_dynamic = {r.target: r.reason for r in refused if r.method == "dynamic_int8"}
        self.formed = formed
        self._made = bool(plan.stages)
        self._sampled = sampled
        self._context = Context(
            ONNXRUNTIME_CPU, overrides=plan.recipe.layers, exclude=plan.recipe.exclude
        )
        methods: list[Any] = [m for stage in plan.recipe.stages for m in stage.passes]
        self._method = next((method for method in methods if method.name == "quantize"), None)

    def of(self, layer: Layer) -> str:
        """Why a layer that has an integer kernel is not written for it."""
        if not self._made:
            return "not written for integers"
        if self._method is None:
            return "the recipe has no method that writes it in integers"
        tuned = self._context.tuned(self._method, layer.names)
        if tuned is None:
            return "left out by the recipe"
        refused = _first(self._refused, layer)
        if refused is not None:
            return str(refused)
        if layer.path:
            return "it stands in the body of an If, Loop or Scan"
        if layer.is_half:
            return "it computes in float16"
        if not tuned.activations:
            return "the recipe keeps activations in float"
        if not self._sampled:
            dynamic = _first(self._refused_dynamic, layer) if layer.kind in _PRODUCTS else None
            return f"no samples, and {dynamic}" if dynamic else "no samples show its ranges"
        row = _first(self._rows, layer)
        if row is None:
            return "given up to hold the budget"
        if row.measured:
            return "kept in float: its error in integers was out of proportion"
        return "the samples show no range of what it reads or gives, or its bias is no constant"


def _first(table: Mapping[str, Any], layer: Layer) -> Any:
    return next((table[name] for name in layer.names if name in table), None)
