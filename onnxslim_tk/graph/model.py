"""A model as an editable graph that goes back to ONNX without losing what it doesn't know."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import onnx
import onnx_graphsurgeon as gs

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.notes import (
    Notes,
    first_name,
    graph_note,
    merged,
    put_back,
    put_back_graph,
    take_notes,
)
from onnxslim_tk.graph.order import sort_nodes
from onnxslim_tk.graph.shadows import names_in, proto_bodies, rename_shadowing

Graph = Any
"""An ``onnx_graphsurgeon.Graph``; the library carries no types."""
Node = Any
"""An ``onnx_graphsurgeon.Node``: compare with ``is``, equality goes by content."""
Tensor = Any
"""An ``onnx_graphsurgeon`` Constant or Variable: compare with ``is``, equality goes by name."""

_SEPARATE_WEIGHTS: Final = 4
_DIGITS: Final = "abcdefghijklmnopqrstuvwxyz"

# Its complaints about repeated node names and exotic types are about vendors' files, not about us.
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL + 1
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
    notes: Notes
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
    """Open ``proto``, which was parsed from ``source``, and take it over.

    Raises ModelError for a broken graph.
    """
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
    graph, notes = _opened(proto)
    header = onnx.ModelProto()
    for descriptor, value in proto.ListFields():
        if descriptor.name == "graph":
            continue
        if isinstance(value, int | str):
            setattr(header, descriptor.name, value)
        else:
            getattr(header, descriptor.name).extend(value)
    header.graph.CopyFrom(graph_note(proto.graph))
    return Model(
        graph=graph,
        header=header,
        notes=notes,
        origins={},
        source_sha256=sha256,
        source_bytes=size,
        outer=_weight_names(proto.graph),
        taken=set(names_in(proto.graph)),
    )


def _opened(proto: onnx.ModelProto) -> tuple[Graph, Notes]:
    """The graph of ``proto`` in the graph library's form, and what that doesn't hold."""
    # A body that comes before what it reads would get tensors of its own for that.
    sort_nodes(proto.graph)
    rename_shadowing(proto.graph)
    notes = take_notes(proto.graph)
    try:
        graph = gs.import_onnx(proto)
    except (gs.util.exception.OnnxGraphSurgeonException, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model: the graph cannot be read: {error}") from error
    # Local functions stay in the header as they are: the library would lose half of them.
    graph.functions = []
    for _, body in bodies(graph):
        for tensor in body.tensors().values():
            # Its exporter knows no maps and optionals; the notes bring the types back.
            if isinstance(tensor, gs.Variable) and tensor.type not in (None, "tensor_type"):
                tensor.dtype = tensor.shape = None
    return graph, notes


def replace_graph(model: Model, proto: onnx.ModelProto) -> None:
    """Put the graph of ``proto``, which was made of ``model``'s, in its place.

    Names of nodes' outputs tell what the notes and origins belong to.
    """
    model.graph, notes = _opened(proto)
    model.notes = merged(model.notes, notes)
    model.outer = _weight_names(proto.graph)
    model.taken.update(names_in(proto.graph))


def _weight_names(graph: onnx.GraphProto) -> frozenset[str]:
    sparse = (tensor.values.name for tensor in graph.sparse_initializer)
    return frozenset((*(tensor.name for tensor in graph.initializer), *sparse))


def bodies(graph: Graph, path: str = "") -> Iterator[tuple[str, Graph]]:
    """``graph`` itself and every If, Loop and Scan body below it, each with its path."""
    yield path, graph
    for node in graph.nodes:
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                key = path + first_name(tensor.name for tensor in node.outputs)
                yield from bodies(value, f"{key}/{name}/")


def to_proto(model: Model) -> onnx.ModelProto:
    """The model as ONNX: header and notes restored, constants in raw data, nodes in order."""
    proto: onnx.ModelProto = gs.export_onnx(model.graph, do_type_check=False)
    _own_once(proto.graph, model.outer)
    opset = model.graph.opset
    for descriptor, value in model.header.ListFields():
        if descriptor.name == "graph":
            continue
        if isinstance(value, int | str):
            setattr(proto, descriptor.name, value)
        else:
            del getattr(proto, descriptor.name)[:]
            getattr(proto, descriptor.name).extend(value)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    if proto.graph.initializer:
        # Before version 4, initializers had to be inputs as well, and so were no constants.
        proto.ir_version = max(proto.ir_version, _SEPARATE_WEIGHTS)
    put_back_graph(proto.graph, model.header.graph)
    put_back(proto.graph, "", model.notes)
    _drop_inner_types(proto.graph)
    sort_nodes(proto.graph)
    return proto


def _own_once(outermost: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Give back to outer graphs the weights that the library copies into bodies."""
    top = set(_weight_names(outermost))

    def visit(graph: onnx.GraphProto, owned: frozenset[str]) -> None:
        for node in graph.node:
            for _, body in proto_bodies(node):
                back = (_weight_names(body) & outer) - top
                _split(body.initializer, back, outermost.initializer, owned | top)
                _split(body.sparse_initializer, back, outermost.sparse_initializer, owned | top)
                top.update(back)
                visit(body, owned | _weight_names(body))

    visit(outermost, frozenset())


def _split(weights: Any, back: frozenset[str], outer: Any, owned: frozenset[str]) -> None:
    """Move those of ``weights`` named in ``back`` to ``outer``; drop those ``owned`` already."""
    kept = []
    for weight in weights:
        name = weight.values.name if isinstance(weight, onnx.SparseTensorProto) else weight.name
        if name in back:
            outer.append(weight)
        elif name not in owned:
            kept.append(type(weight).FromString(weight.SerializeToString()))
    if len(kept) < len(weights):
        del weights[:]
        weights.extend(kept)


def _drop_inner_types(graph: onnx.GraphProto) -> None:
    # Shapes of inner tensors would be stale after a cut, and a reader can infer them.
    del graph.value_info[:]
    for node in graph.node:
        for _, body in proto_bodies(node):
            _drop_inner_types(body)
