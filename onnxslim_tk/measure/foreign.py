"""Operators that the runtime lacks, and the part of a model before them, which can be run."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

import onnx

from onnxslim_tk.graph.model import Model, bodies
from onnxslim_tk.graph.notes import RUNTIME_DOMAINS
from onnxslim_tk.graph.order import captured_names, ordered, sort_nodes
from onnxslim_tk.graph.shadows import proto_bodies
from onnxslim_tk.graph.stored import Stored

Operator = tuple[str, str]
"""An operator's domain and type."""

_NAMED: Final = 60


def foreign_operators(model: Model) -> list[Operator]:
    """Operators that neither the runtime nor the file itself defines, in order, each once."""
    known = _defined(model.header.functions)
    found = [(n.domain or "", n.op) for _, graph in bodies(model.graph) for n in graph.nodes]
    return list(dict.fromkeys(operator for operator in found if _is_foreign(operator, known)))


def spelled(operator: Operator) -> str:
    """An operator as a message names it: a vendor's words, no longer than a line bears."""
    text = repr(".".join(operator))[1:-1]
    return text if len(text) <= _NAMED else f"{text[: _NAMED - 3]}..."


def runnable_part(stored: Stored, foreign: Collection[Operator]) -> Stored | None:
    """What of a model the runtime can run: all, or what comes before ``foreign`` operators.

    The outputs of such a part are those of the model that don't depend on these operators, and
    the tensors that the first of them read, by the name of the reader's output and the position.
    None where there is nothing before them.
    """
    if not foreign:
        return stored
    lacking = set(foreign)
    proto = stored.proto()
    sort_nodes(proto.graph)
    behind: set[str] = set()
    outputs, before, made = [], [], {n for node in proto.graph.node for n in node.output}
    for node in proto.graph.node:
        if not (captured_names(node) & behind or lacking & set(_operators([node]))):
            before.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        for position, name in enumerate(node.input):
            if name in made - behind and any(node.output):
                output = f"{next(filter(None, node.output))}<{position}"
                before.append(onnx.NodeProto(op_type="Identity", input=[name], output=[output]))
                outputs.append(onnx.ValueInfoProto(name=output))
        behind.update(filter(None, node.output))
    outputs += [
        onnx.ValueInfoProto(name=v.name) for v in proto.graph.output if v.name not in behind
    ]
    if not outputs:
        return None
    for field, values in (("node", before), ("output", outputs)):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(values)
    proto.graph.ClearField("value_info")
    return Stored(prune(proto).SerializeToString(), stored.weights)


def prune(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` without what its outputs don't need, so that a prefix costs no more than that."""
    graph = proto.graph
    needed = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= captured_names(node)
    if len(kept) == len(graph.node):
        return proto
    unused = {tensor.name for tensor in graph.initializer} - needed
    light = onnx.ModelProto.FromString(proto.SerializeToString())
    for field in ("node", "initializer", "input"):
        light.graph.ClearField(field)
    light.graph.node.extend(reversed(kept))
    light.graph.initializer.extend(t for t in graph.initializer if t.name not in unused)
    # An input without its default would have to be fed.
    light.graph.input.extend(value for value in graph.input if value.name not in unused)
    return light


def behind_foreign(model: Model) -> set[str]:
    """Names of the outermost graph's tensors that depend on operators that the runtime lacks."""
    known = _defined(model.header.functions)
    behind: set[str] = set()
    for node in ordered(model.graph):
        inner = [n for body in node.subgraphs(recursive=True) for n in body.nodes]
        read = {tensor.name for n in (node, *inner) for tensor in n.inputs}
        own = [(n.domain or "", n.op) for n in (node, *inner)]
        if read & behind or any(_is_foreign(op, known) for op in own):
            behind.update(tensor.name for tensor in node.outputs if tensor.name)
    return behind


def _is_foreign(operator: Operator, known: Collection[Operator]) -> bool:
    return operator[0] not in RUNTIME_DOMAINS and operator not in known


def _operators(nodes: Iterable[Any]) -> Iterator[Operator]:
    for node in nodes:
        yield node.domain, node.op_type
        for _, body in proto_bodies(node):
            yield from _operators(body.node)


def _defined(functions: Iterable[onnx.FunctionProto]) -> set[Operator]:
    """Local functions, but for those that use what nobody defines, directly or further down."""
    used = {(f.domain, f.name): set(_operators(f.node)) for f in functions}
    defined = set(used)
    while True:
        fine = {f for f in defined if not any(_is_foreign(op, defined) for op in used[f])}
        if fine == defined:
            return defined
        defined = fine
