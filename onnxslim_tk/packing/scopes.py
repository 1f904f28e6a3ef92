"""The nested graphs of a model, which names they define, and short names for what we add."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx

from onnxslim_tk.graph.domains import STANDARD_DOMAINS

_FIRST = string.ascii_letters
_LATER = string.ascii_letters + string.digits + "_"


@dataclass(frozen=True, eq=False)
class Scope:
    """One graph of a model: the outermost one (``parent`` is None) or the body of a node."""

    graph: onnx.GraphProto
    parent: Scope | None = None
    defined: frozenset[str] = field(default_factory=frozenset)

    def owner(self, name: str) -> Scope | None:
        """Return the innermost scope, from here outwards, that defines ``name``."""
        scope: Scope | None = self
        while scope is not None and name not in scope.defined:
            scope = scope.parent
        return scope

    def interface(self) -> frozenset[str]:
        """Return the names of the graph's inputs and outputs, which nobody may take away."""
        return frozenset(v.name for v in (*self.graph.input, *self.graph.output))


Key = tuple[Scope, str]
"""A value of a model: the scope that defines it and its name there."""


def scopes(model: onnx.ModelProto) -> list[Scope]:
    """Return every graph of ``model``, each one before the bodies of its own nodes."""
    found: list[Scope] = []
    waiting = [_scope(model.graph, None)]
    while waiting:
        scope = waiting.pop()
        found.append(scope)
        inner = [_scope(body, scope) for node in scope.graph.node for body in bodies(node)]
        waiting.extend(reversed(inner))
    return found


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that ``node`` carries as attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def opset_version(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set, or 0 where the model imports none."""
    versions = [o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS]
    return max(versions, default=0)


def taken_names(model: onnx.ModelProto) -> set[str]:
    """Return every name that the model uses for a value or a node, in all graphs and functions."""
    taken: set[str] = set()
    for scope in scopes(model):
        graph = scope.graph
        taken |= scope.defined
        taken.update(v.name for v in graph.output)
        taken.update(v.name for v in graph.value_info)
        taken.update(a.tensor_name for a in graph.quantization_annotation)
        taken.update(_node_names(graph.node))
    for function in model.functions:
        taken.update(function.input, function.output, _node_names(function.node))
    return taken


class Names:
    """Gives out the shortest names that nobody has taken yet, in a fixed order."""

    def __init__(self, taken: set[str], length: int = 1) -> None:
        self._taken = taken
        self._candidates = _words(length)

    def new(self) -> str:
        """Return a fresh name."""
        return next(name for name in self._candidates if name not in self._taken)


def _words(length: int) -> Iterator[str]:
    while True:
        for index in range(len(_FIRST) * len(_LATER) ** (length - 1)):
            index, first = divmod(index, len(_FIRST))
            word = _FIRST[first]
            for _ in range(length - 1):
                index, later = divmod(index, len(_LATER))
                word += _LATER[later]
            yield word
        length += 1


def _node_names(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.name
        yield from node.input
        yield from node.output


def _scope(graph: onnx.GraphProto, parent: Scope | None) -> Scope:
    defined = {v.name for v in graph.input}
    defined.update(t.name for t in graph.initializer)
    defined.update(t.values.name for t in graph.sparse_initializer)
    for node in graph.node:
        defined.update(name for name in node.output if name)
    return Scope(graph, parent, frozenset(defined))
