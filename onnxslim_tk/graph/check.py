"""Whether a file's parts fit together, before anything is computed from them.

Refused is only what every reader must trip over: tensors whose data don't fit their dimensions,
names that nothing makes or that two things make, operators that get what no version of them takes,
functions without end. Unknown operators and domains are nobody's business but the runtime's.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, Literal, cast

import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import AttributeProto, TensorProto, defs

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.check_tensor import check_sparse, check_tensor, quoted
from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.shadows import proto_bodies

_MOST_CALLS: Final = 1 << 20
_TYPED_ATTRIBUTES: Final = 2

_DECLARED: Final = frozenset(TensorProto.DataType.values())
_HOLDERS: Final[dict[int, Literal["t", "g", "sparse_tensor"]]] = {
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
}


def check(proto: onnx.ModelProto) -> None:
    """Raise ModelError, in one sentence, for a model whose parts don't fit together."""
    _check_messages(proto)
    if not proto.opset_import:
        raise ModelError("model: it must name the operator sets that it uses, it names none")
    for entry in proto.opset_import:
        if entry.domain in STANDARD_DOMAINS and entry.version < 1:
            raise ModelError(
                f"model: the standard operator set must have a version from 1 up, "
                f"got {entry.version}"
            )
    _check_functions(proto)
    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        typed = value.name in weights or value.type.WhichOneof("value") is not None
        if not (value.name and typed):
            raise ModelError(
                f"model: its inputs must have names and types, {quoted(value.name)} has not"
            )
    versions = [entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS]
    if not versions and any(domain in STANDARD_DOMAINS for domain, _ in _calls(proto.graph.node)):
        raise ModelError("model: it must name the version of the standard operators, it names none")
    _check_graph(proto.graph, (), max(versions, default=0))


def type_attributes(proto: onnx.ModelProto) -> None:
    """Give attributes of a file that is too old to tell their types those of their operators.

    In place. What such a file says of them counts for nothing, to the runtime too.
    """
    versions = [entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS]
    graphs = [proto.graph] if proto.ir_version < _TYPED_ATTRIBUTES else []
    while graphs:
        for node in graphs.pop().node:
            known = node.domain in STANDARD_DOMAINS
            found = _schema(node.op_type, max(versions, default=0)) if known else None
            for attribute in node.attribute:
                if found is not None and attribute.name in found[2]:
                    attribute.type = found[2][attribute.name]
            graphs.extend(body for _, body in proto_bodies(node))


def drop_repeated_weights(proto: onnx.ModelProto) -> None:
    """Keep, of weights of one name in one graph, the last one, as the runtime does; in place."""
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        names = Counter(tensor.name for tensor in graph.initializer)
        if len(names) < len(graph.initializer):
            last = {tensor.name: k for k, tensor in enumerate(graph.initializer)}
            for k in reversed(range(len(graph.initializer))):
                if last[graph.initializer[k].name] != k:
                    del graph.initializer[k]
        graphs.extend(body for node in graph.node for _, body in proto_bodies(node))


def _check_messages(root: Any) -> None:
    """Go through every message: all text must be UTF-8, and tensors whole."""
    waiting = [root]
    while waiting:
        message = waiting.pop()
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            check_tensor(message)
        elif kind == "SparseTensorProto":
            check_sparse(message)
        elif kind in ("Tensor", "SparseTensor") and message.elem_type not in _DECLARED:
            raise ModelError(
                f"model: a tensor is declared of the element type {message.elem_type}, which ONNX "
                "doesn't know"
            )
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                waiting.extend(value if field.is_repeated else (value,))
            elif field.type == FieldDescriptor.TYPE_STRING:
                # What isn't UTF-8 comes out of protobuf as bytes.
                for text in value if field.is_repeated else (value,):
                    if not isinstance(text, str):
                        raise ModelError(
                            f"model: all text must be UTF-8, a {field.name} of a {kind} is "
                            f"{quoted(text.decode(errors='replace'))}"
                        )


def _check_functions(proto: onnx.ModelProto) -> None:
    """Local functions must not call themselves, nor double and double again."""
    calls = {(f.domain, f.name): Counter(_calls(f.node)) for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    for start in calls:
        stack = [start]
        while stack:
            key = stack[-1]
            inner = [other for other in calls[key] if other in calls]
            if any(other in stack for other in inner):
                raise ModelError(f"model: the local function {quoted(key[1])} calls itself")
            missing = [other for other in inner if other not in sizes]
            if missing and key not in sizes:
                stack.append(missing[0])
                continue
            sizes[key] = sum(n * sizes.get(other, 1) for other, n in calls[key].items())
            stack.pop()
    total = sum(sizes.get(call, 0) for call in _calls(proto.graph.node))
    if total > _MOST_CALLS:
        raise ModelError(
            f"model: its local functions must come to {_MOST_CALLS} nodes at most, it is {total}"
        )


def _calls(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        yield node.domain, node.op_type
        for _, body in proto_bodies(node):
            yield from _calls(body.node)


def _check_graph(graph: onnx.GraphProto, outer: tuple[set[str], ...], version: int) -> None:
    """Every name made once and before all, in this graph or in one around it."""
    made: set[str] = set()
    for value in graph.input:
        if value.name in made:
            raise ModelError(f"model: two inputs of a graph bear the name {quoted(value.name)}")
        made.add(value.name)
    made.update(tensor.name for tensor in graph.initializer)
    made.update(sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        for name in node.output:
            if name and name in made:
                raise ModelError(f"model: {quoted(name)} is made twice")
            made.add(name)
        _check_node(node, version)
    visible = (*outer, made)
    for node in graph.node:
        for name in node.input:
            if name and not any(name in names for names in visible):
                raise ModelError(f"model: {_who(node)} reads {quoted(name)}, which nothing makes")
        for _, body in proto_bodies(node):
            _check_graph(body, visible, version)
    for value in graph.output:
        if not value.name or not any(value.name in names for names in visible):
            raise ModelError(f"model: nothing makes the output {quoted(value.name)}")


def _who(node: onnx.NodeProto) -> str:
    name = next((name for name in node.output if name), node.name)
    return f"the {quoted(node.op_type)[1:-1] or 'node'} that makes {quoted(name)}"


def _check_node(node: onnx.NodeProto, version: int) -> None:
    """The inputs, outputs and attributes of an operator that ONNX defines."""
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names):
        raise ModelError(f"model: {_who(node)} has an attribute twice")
    if any(attribute.ref_attr_name for attribute in node.attribute):
        raise ModelError(f"model: {_who(node)} refers to an attribute of a function, it is in none")
    for attribute in node.attribute:
        field = _HOLDERS.get(attribute.type)
        if field is not None and not attribute.HasField(field):
            raise ModelError(f"model: {_who(node)} has no value for {quoted(attribute.name)}")
    found = _schema(node.op_type, version) if node.domain in STANDARD_DOMAINS else None
    if found is None:
        return
    inputs, outputs, types, required = found
    for what, got, (least, most) in (
        ("inputs", len(node.input), inputs),
        ("outputs", len(node.output), outputs),
    ):
        if not least <= got <= most:
            raise ModelError(f"model: {_who(node)} has {got} {what}, it takes {least} to {most}")
    for attribute in node.attribute:
        wanted = types.get(attribute.name)
        if wanted is not None and attribute.type != wanted:
            spelled = AttributeProto.AttributeType.Name(wanted)
            raise ModelError(
                f"model: {_who(node)} needs the attribute {attribute.name} as {spelled}"
            )
    if not required <= set(names):
        missing = min(required - set(names))
        raise ModelError(f"model: {_who(node)} lacks the attribute {missing}")


def _kind(kind: Any) -> AttributeProto.AttributeType:
    """The type of a schema's attribute as a file spells it; the binding is an enum untold."""
    return cast(AttributeProto.AttributeType, int(kind.value))


_Types = dict[str, AttributeProto.AttributeType]
_Schema = tuple[tuple[int, int], tuple[int, int], _Types, frozenset[str]]


@lru_cache(maxsize=1024)
def _schema(op: str, version: int) -> _Schema | None:
    """What an operator takes and gives (least, most), its attributes, and those it needs."""
    if not defs.has(op) or version < 1:
        return None
    try:
        schema = defs.get_schema(op, min(version, defs.onnx_opset_version()), "")
    except defs.SchemaError:
        return None
    types = {name: _kind(attribute.type) for name, attribute in schema.attributes.items()}
    required = frozenset(name for name, a in schema.attributes.items() if a.required)
    inputs, outputs = (schema.min_input, schema.max_input), (schema.min_output, schema.max_output)
    return inputs, outputs, types, required
