"""Weights of bodies that hide a tensor of an outer graph, which the graph library confuses."""

from collections.abc import Iterator

import onnx


def proto_bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The bodies of a node, each with the name of its attribute."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g


def owned_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of what ``graph`` itself holds: inputs, weights, and what its nodes make."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in _weights(graph))
    for node in graph.node:
        yield from node.output


def names_in(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor name in ``graph`` and its bodies, repeated ones and the empty one included."""
    yield from owned_names(graph)
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for _, body in proto_bodies(node):
            yield from names_in(body)


def rename_shadowing(graph: onnx.GraphProto) -> None:
    """Give body weights that bear the name of an outer tensor a name of their own, in place."""
    taken = set(names_in(graph))

    def visit(graph: onnx.GraphProto, outer: set[str]) -> None:
        visible = outer.union(owned_names(graph))
        for node in graph.node:
            for _, body in proto_bodies(node):
                for tensor in _weights(body):
                    if tensor.name in visible:
                        _rename(body, tensor.name, _fresh(tensor.name, taken))
                visit(body, visible)

    visit(graph, set())


def _weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a weight of ``graph`` and whatever reads it there or further in."""
    named: list[onnx.TensorProto | onnx.ValueInfoProto] = [*_weights(graph)]
    named += [*graph.input, *graph.output]
    for value in named:
        if value.name == old:
            value.name = new
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for _, body in proto_bodies(node):
            if old not in owned_names(body):
                _rename(body, old, new)
