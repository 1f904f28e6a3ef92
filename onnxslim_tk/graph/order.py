"""The order of nodes: producers before consumers, otherwise as they were."""

import heapq
from collections.abc import Iterator
from typing import Any

import onnx

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.shadows import owned_names, proto_bodies


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Names of tensors that ``node`` reads: its inputs and what its bodies take from outside."""
    names = {name for name in node.input if name}
    for _, inner in proto_bodies(node):
        own = set(owned_names(inner))
        for child in inner.node:
            names |= captured_names(child) - own
        names |= {output.name for output in inner.output} - own
    return names


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort the nodes of ``graph`` and of its bodies topologically and stably.

    Raises ModelError where there is a cycle.
    """
    for node in graph.node:
        for _, body in proto_bodies(node):
            sort_nodes(body)
    nodes = list(graph.node)
    producer = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    waits: list[set[int]] = []
    followers: list[list[int]] = [[] for _ in nodes]
    for k, node in enumerate(nodes):
        needs = {producer[name] for name in captured_names(node) if name in producer}
        waits.append(needs)
        for need in needs:
            followers[need].append(k)
    ready = [k for k, needs in enumerate(waits) if not needs]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        k = heapq.heappop(ready)
        order.append(k)
        for follower in followers[k]:
            waits[follower].discard(k)
            if not waits[follower]:
                heapq.heappush(ready, follower)
    if len(order) < len(nodes):
        stuck = next(k for k, needs in enumerate(waits) if needs and k not in set(order))
        raise ModelError(f"model: the graph has a cycle through {nodes[stuck].output[0]!r}")
    if order != sorted(order):
        sorted_nodes = [nodes[k] for k in order]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in sorted_nodes]
        del graph.node[:]
        graph.node.extend(copies)


def ordered(graph: Any) -> list[Any]:
    """Nodes of an onnx_graphsurgeon graph, producers before consumers, otherwise as they stand."""
    nodes = list(graph.nodes)
    known = {id(node) for node in nodes}
    placed: set[int] = set()
    result: list[Any] = []
    for start in nodes:
        stack = [start]
        while stack:
            node = stack[-1]
            if id(node) in placed:
                stack.pop()
                continue
            makers = [m for t in _read(node) for m in t.inputs if id(m) in known]
            waiting = [m for m in makers if id(m) not in placed and m is not node]
            if waiting:
                stack.extend(reversed(waiting))
            else:
                placed.add(id(node))
                result.append(node)
                stack.pop()
    return result


def _read(node: Any) -> Iterator[Any]:
    """Tensors that a node reads, those that its bodies take from outside included."""
    yield from node.inputs
    for body in node.subgraphs(recursive=True):
        for inner in body.nodes:
            yield from inner.inputs
        yield from body.outputs
