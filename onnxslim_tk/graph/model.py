"""A model as an editable graph that goes back to ONNX without losing what it doesn't know."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import onnx
import onnx_graphsurgeon as gs

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.order import sort_nodes

Graph = Any
"""An ``onnx_graphsurgeon.Graph``; the library carries no types."""
Node = Any
"""An ``onnx_graphsurgeon.Node``: compare with ``is``, equality goes by content."""
Tensor = Any
"""An ``onnx_graphsurgeon`` Constant or Variable: compare with ``is``, equality goes by name."""

_HEADER_FIELDS: Final = frozenset({"graph", "functions"})
_DIGITS: Final = "abcdefghijklmnopqrstuvwxyz"

# Its complaints about repeated node names and exotic types are about vendors' files, not about us.
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL
logging.getLogger("onnx_graphsurgeon").setLevel(logging.CRITICAL)


@dataclass(slots=True)
class Model:
    """An ONNX model opened for rewriting.

    ``outer`` names the weights that the outermost graph owned when it was loaded, ``taken`` every
    tensor name in use. ``origins`` maps a node's key (the path of its body and the name of its
    first output) to the names it had in the file as loaded: first the id, then every name a user
    might know it by.
    """

    graph: Graph
    header: onnx.ModelProto
    notes: dict[str, onnx.NodeProto]
    origins: dict[str, tuple[str, ...]]
    source_sha256: str
    source_bytes: int
    outer: frozenset[str]
    taken: set[str] = field(default_factory=set)
    counter: int = 0

    def fresh_name(self) -> str:
        """A short tensor name that nothing in the model bears."""
        while True:
            number, name = self.counter, ""
            while True:
                name = _DIGITS[number % 26] + name
                number = number // 26 - 1
                if number < 0:
                    break
            self.counter += 1
            name = f"_{name}"
            if name not in self.taken:
                self.taken.add(name)
                return name

    def copy(self) -> "Model":
        """An independent copy; edits of one never show in the other."""
        proto = to_proto(self)
        twin = _wrap(proto, self.source_sha256, self.source_bytes)
        twin.origins = dict(self.origins)
        twin.taken = set(self.taken)
        twin.counter = self.counter
        return twin


def from_proto(proto: onnx.ModelProto, source: bytes) -> Model:
    """Open ``proto``, which was parsed from ``source``; raises ModelError for a broken graph."""
    if not proto.graph.output:
        raise ModelError("model: a graph needs at least one output, this one has none")
    model = _wrap(proto, hashlib.sha256(source).hexdigest(), len(source))
    for path, graph in bodies(model.graph):
        for node in graph.nodes:
            names = [path + t.name for t in node.outputs if t.name]
            if names:
                model.origins[names[0]] = tuple(dict.fromkeys([*names, node.name or names[0]]))
    return model


def _wrap(proto: onnx.ModelProto, sha256: str, size: int) -> Model:
    try:
        graph = gs.import_onnx(proto)
    except (gs.util.exception.OnnxGraphSurgeonException, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model: the graph cannot be read: {error}") from error
    header = onnx.ModelProto()
    for descriptor, value in proto.ListFields():
        if descriptor.name in _HEADER_FIELDS:
            continue
        if descriptor.is_repeated:
            getattr(header, descriptor.name).extend(value)
        else:
            setattr(header, descriptor.name, value)
    header.graph.metadata_props.extend(proto.graph.metadata_props)
    header.graph.quantization_annotation.extend(proto.graph.quantization_annotation)
    return Model(
        graph=graph,
        header=header,
        notes=dict(_notes(proto.graph, "")),
        origins={},
        source_sha256=sha256,
        source_bytes=size,
        outer=frozenset(initializer.name for initializer in proto.graph.initializer),
        taken=set(_names(proto.graph)),
    )


def _notes(graph: onnx.GraphProto, path: str) -> Iterator[tuple[str, onnx.NodeProto]]:
    for node in graph.node:
        if (node.doc_string or node.metadata_props) and node.output:
            note = onnx.NodeProto(doc_string=node.doc_string)
            note.metadata_props.extend(node.metadata_props)
            yield path + node.output[0], note
        for name, body in _proto_bodies(node):
            yield from _notes(body, f"{path}{node.output[0]}/{name}/")


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from node.input
        yield from node.output
        for _, body in _proto_bodies(node):
            yield from _names(body)


def _proto_bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g


def bodies(graph: Graph, path: str = "") -> Iterator[tuple[str, Graph]]:
    """``graph`` itself and every If, Loop and Scan body below it, each with its path."""
    yield path, graph
    for node in graph.nodes:
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                yield from bodies(value, f"{path}{node.outputs[0].name}/{name}/")


def to_proto(model: Model) -> onnx.ModelProto:
    """The model as ONNX: header and notes restored, constants in raw data, nodes in order."""
    proto: onnx.ModelProto = gs.export_onnx(model.graph, do_type_check=False)
    _own_once(proto.graph, model.outer)
    opset = model.graph.opset
    for descriptor, value in model.header.ListFields():
        if descriptor.name == "graph":
            continue
        if descriptor.is_repeated:
            del getattr(proto, descriptor.name)[:]
            getattr(proto, descriptor.name).extend(value)
        else:
            setattr(proto, descriptor.name, value)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    proto.graph.metadata_props.extend(model.header.graph.metadata_props)
    proto.graph.quantization_annotation.extend(model.header.graph.quantization_annotation)
    _finish(proto.graph, "", model.notes)
    return proto


def _own_once(graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Give back to the outermost graph the weights that the library copies into bodies."""
    owned = {initializer.name for initializer in graph.initializer}

    def visit(inner: onnx.GraphProto) -> None:
        for node in inner.node:
            for _, body in _proto_bodies(node):
                kept = []
                for initializer in body.initializer:
                    if initializer.name not in owned and initializer.name not in outer:
                        kept.append(initializer)
                    elif initializer.name not in owned:
                        owned.add(initializer.name)
                        graph.initializer.append(initializer)
                if len(kept) < len(body.initializer):
                    copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
                    del body.initializer[:]
                    body.initializer.extend(copies)
                visit(body)

    visit(graph)


def _finish(graph: onnx.GraphProto, path: str, notes: dict[str, onnx.NodeProto]) -> None:
    # Shapes of inner tensors would be stale after a cut, and a reader can infer them.
    del graph.value_info[:]
    sort_nodes(graph)
    for node in graph.node:
        note = notes.get(path + node.output[0]) if node.output else None
        if note is not None:
            node.doc_string = note.doc_string
            node.metadata_props.extend(note.metadata_props)
        for name, body in _proto_bodies(node):
            _finish(body, f"{path}{node.output[0]}/{name}/", notes)
