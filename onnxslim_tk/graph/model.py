"""A model as an editable graph that goes back to ONNX without losing what it doesn't know."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.message import (
    SEPARATE_WEIGHTS,
    drop_inner_types,
    inner_graphs,
    own_once,
    take_defaults,
    weight_names,
)
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
from onnxslim_tk.graph.shadows import names_in, rename_shadowing
from onnxslim_tk.graph.stored import Stored, joined_size
from onnxslim_tk.graph.weights import Weights, is_apart, is_plain

Graph = Any
"""An ``onnx_graphsurgeon.Graph``; the library carries no types."""
Node = Any
"""An ``onnx_graphsurgeon.Node``: compare with ``is``, equality goes by content."""
Tensor = Any
"""An ``onnx_graphsurgeon`` Constant or Variable: compare with ``is``, equality goes by name."""

_PLAIN_KINDS: Final = "iufb"
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
        """An independent copy; edits of one never show in the other, big weights are shared."""
        twin = wrapped(*to_parts(self), self.source_sha256, self.source_bytes)
        twin.origins = dict(self.origins)
        twin.taken = set(self.taken)
        twin.counter = self.counter
        return twin

    def become(self, twin: "Model") -> None:
        """Take on what was made of a copy, which must not be used any more."""
        for name in ("graph", "notes", "origins", "taken", "counter"):
            setattr(self, name, getattr(twin, name))


def from_proto(
    proto: onnx.ModelProto, source: bytes | Stored, weights: Weights | None = None
) -> Model:
    """Open ``proto``, which was parsed from ``source`` and stays as it is.

    ``weights`` holds the values of initializers that lie outside the message. Raises ModelError
    for a broken graph.
    """
    if not proto.graph.output:
        raise ModelError("model: a graph needs at least one output, this one has none")
    stored = source if isinstance(source, Stored) else Stored(source)
    weights = Weights() if weights is None else weights
    # What is parsed anew holds no memory of what was lifted out before.
    light = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in light.graph.initializer:
        weights.lift(tensor)
    model = wrapped(light, weights, stored.sha256, len(stored))
    for path, graph in bodies(model.graph):
        for node in graph.nodes:
            names = [path + t.name for t in node.outputs if t.name]
            if names:
                model.origins[names[0]] = tuple(dict.fromkeys([*names, node.name or names[0]]))
    return model


def wrapped(proto: onnx.ModelProto, weights: Weights, sha256: str, size: int) -> Model:
    """The model of :func:`to_parts`, without the memory of names and origins."""
    header = onnx.ModelProto()
    for descriptor, value in proto.ListFields():
        if descriptor.name == "graph":
            continue
        if isinstance(value, int | str):
            setattr(header, descriptor.name, value)
        else:
            getattr(header, descriptor.name).extend(value)
    header.graph.CopyFrom(graph_note(proto.graph))
    header.graph.initializer.extend(take_defaults(proto, weights))
    outer, taken = weight_names(proto.graph), set(names_in(proto.graph))
    graph, notes = _opened(proto, weights)
    return Model(
        graph=graph,
        header=header,
        notes=notes,
        origins={},
        source_sha256=sha256,
        source_bytes=size,
        outer=outer,
        taken=taken,
    )


def _opened(proto: onnx.ModelProto, weights: Weights) -> tuple[Graph, Notes]:
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
            # Its exporter knows no maps and optionals, and no sizes of what has no type; the notes
            # bring the types back.
            if isinstance(tensor, gs.Variable) and tensor.type != "tensor_type":
                tensor.dtype = tensor.shape = None
            if isinstance(tensor, gs.Constant):
                _share(tensor, weights)
    return graph, notes


class _Apart(gs.ir.tensor.LazyValues):  # type: ignore[misc]
    """Values of an element type that numpy lacks, outside the message until they are asked for."""

    def __init__(self, tensor: onnx.TensorProto, weights: Weights) -> None:
        super().__init__(tensor)
        self.weights = weights

    def load(self) -> Any:
        """A copy of the values as an array."""
        return self.weights.values(self.tensor)


def _share(constant: Tensor, weights: Weights) -> None:
    """Let ``constant`` read its values where they lie."""
    values = constant._values
    if type(values) is gs.ir.tensor.LazyValues and is_apart(values.tensor):
        plain = is_plain(values.tensor)
        constant._values = (
            weights.values(values.tensor) if plain else _Apart(values.tensor, weights)
        )
        constant.data_location = None


def replace_graph(model: Model, proto: onnx.ModelProto, weights: Weights) -> None:
    """Put the graph of ``proto``, which was made of ``model``'s parts, in its place.

    Names of nodes' outputs tell what the notes and origins belong to.
    """
    take_defaults(proto, weights)
    model.outer = weight_names(proto.graph)
    model.taken.update(names_in(proto.graph))
    model.graph, notes = _opened(proto, weights)
    model.notes = merged(model.notes, notes)


def bodies(graph: Graph, path: str = "") -> Iterator[tuple[str, Graph]]:
    """``graph`` itself and every If, Loop and Scan body below it, each with its path."""
    yield path, graph
    for node in graph.nodes:
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                key = path + first_name(tensor.name for tensor in node.outputs)
                yield from bodies(value, f"{key}/{name}/")


def to_stored(model: Model) -> Stored:
    """The model as it would lie in files, big weights apart."""
    proto, weights = to_parts(model)
    return Stored(proto.SerializeToString(), weights)


def file_bytes(model: Model) -> int:
    """Bytes of the model in one file, not packed."""
    return joined_size(*to_parts(model))


def to_parts(model: Model) -> tuple[onnx.ModelProto, Weights]:
    """The model as ONNX: header and notes restored, nodes in order, and its big weights.

    Initializers of the outermost graph point at their values, which are shared, not copied.
    """
    proto, weights = _exported(model)
    own_once(proto.graph, model.outer)
    for body in inner_graphs(proto.graph):
        for tensor in body.initializer:
            weights.fill(tensor)
    opset = model.graph.opset
    for descriptor, value in model.header.ListFields():
        if descriptor.name == "graph":
            continue
        if isinstance(value, int | str):
            setattr(proto, descriptor.name, value)
        else:
            del getattr(proto, descriptor.name)[:]
            getattr(proto, descriptor.name).extend(value)
    for name in ("producer_name", "producer_version"):
        # The library writes these even where they are empty.
        if not model.header.HasField(name):
            proto.ClearField(name)
    for entry in proto.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            entry.version = opset
    if proto.graph.initializer:
        # Before version 4, initializers had to be inputs as well, and so were no constants.
        proto.ir_version = max(proto.ir_version, SEPARATE_WEIGHTS)
    drop_inner_types(proto.graph)
    put_back_graph(proto.graph, model.header.graph)
    put_back(proto.graph, "", model.notes)
    proto.graph.initializer.extend(t for t in model.header.graph.initializer if t.data_type)
    sort_nodes(proto.graph)
    return proto, weights


def _exported(model: Model) -> tuple[onnx.ModelProto, Weights]:
    """The library's own export, with stubs in place of big weights, and the weights."""
    weights = Weights()
    held: dict[int, tuple[Tensor, Any]] = {}
    for _, graph in bodies(model.graph):
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant) and id(tensor) not in held:
                stub = _stub(tensor, weights)
                if stub is not None:
                    held[id(tensor)] = tensor, tensor._values
                    tensor._values = gs.ir.tensor.LazyValues(stub)
    try:
        return gs.export_onnx(model.graph, do_type_check=False), weights
    finally:
        for tensor, values in held.values():
            tensor._values = values


def _stub(constant: Tensor, weights: Weights) -> onnx.TensorProto | None:
    """What stands for a constant whose values are big; None for others."""
    values = constant._values
    if isinstance(values, _Apart):
        stub = onnx.TensorProto(data_type=values.tensor.data_type, dims=values.tensor.dims)
        weights.put(stub, values.weights.raw(values.tensor))
        return stub
    if not isinstance(values, np.ndarray) or values.nbytes < weights.smallest:
        return None
    if values.dtype.kind not in _PLAIN_KINDS or constant.export_dtype != values.dtype:
        return None
    element = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    stub = onnx.TensorProto(data_type=element, dims=values.shape)
    weights.put(stub, values)
    return stub
