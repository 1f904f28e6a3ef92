"""What the graph library would lose of a model, noted beside it and put back on the way out."""

from collections.abc import Iterable, Iterator
from typing import Final

import onnx

from onnxslim_tk.graph.shadows import proto_bodies

Notes = dict[str, onnx.NodeProto]
"""By the key of a node: what of it, and of its bodies, the library doesn't hold."""

_HELD: Final = frozenset(
    getattr(onnx.AttributeProto, name)
    for name in ("FLOAT", "INT", "STRING", "TENSOR", "GRAPH", "FLOATS", "INTS", "STRINGS")
)
_LISTS: Final = {
    onnx.AttributeProto.FLOATS: "floats",
    onnx.AttributeProto.INTS: "ints",
    onnx.AttributeProto.STRINGS: "strings",
}
RUNTIME_DOMAINS: Final = frozenset(
    (
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.preview.training",
        "com.microsoft",
        "com.microsoft.experimental",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
        "org.pytorch.aten",
    )
)
"""Domains of which onnxruntime brings operators."""
_GRAPH_FIELDS: Final = ("metadata_props", "quantization_annotation", "input", "output")


def first_name(names: Iterable[str]) -> str:
    """The name that a node goes by: that of its first output that isn't left out."""
    return next((name for name in names if name), "")


def take_notes(graph: onnx.GraphProto, path: str = "") -> Notes:
    """Notes on all nodes below ``graph``; attributes that the library can't hold are moved there.

    Take them back with :func:`put_back`.
    """
    notes: Notes = {}
    for node in graph.node:
        key = path + first_name(node.output)
        note = onnx.NodeProto(doc_string=node.doc_string, overload=node.overload)
        note.metadata_props.extend(node.metadata_props)
        for index in reversed(range(len(node.attribute))):
            attribute = node.attribute[index]
            if not _is_held(attribute):
                note.attribute.append(attribute)
                del node.attribute[index]
            elif attribute.doc_string:
                note.attribute.add(name=attribute.name, doc_string=attribute.doc_string)
        for name, body in proto_bodies(node):
            attribute = note.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
            attribute.g.CopyFrom(graph_note(body))
            notes |= take_notes(body, f"{key}/{name}/")
        if note.ByteSize():
            notes[key] = note
    return notes


def graph_note(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The parts of ``graph`` that the library loses or changes, its nodes left aside."""
    note = onnx.GraphProto()
    for name in _GRAPH_FIELDS:
        getattr(note, name).extend(getattr(graph, name))
    for tensor in graph.initializer:
        if tensor.doc_string or tensor.metadata_props:
            # No element type: a note on a tensor, no tensor.
            about = note.initializer.add(name=tensor.name, doc_string=tensor.doc_string)
            about.metadata_props.extend(tensor.metadata_props)
    note.value_info.extend(_lasting(graph))
    return note


def _lasting(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """What ``graph`` says of its inner tensors that holds whatever becomes of it.

    Nobody could infer the type of what a vendor's own operator gives, and nothing here
    changes it. Of others, what is said in words stays, not the shape.
    """
    foreign = {n for node in graph.node if node.domain not in RUNTIME_DOMAINS for n in node.output}
    for value in graph.value_info:
        if value.name in foreign:
            yield value
        elif value.doc_string or value.metadata_props or value.type.denotation:
            words = onnx.ValueInfoProto()
            words.CopyFrom(value)
            if words.type.HasField("tensor_type"):
                words.type.tensor_type.ClearField("shape")
            yield words


def _is_held(attribute: onnx.AttributeProto) -> bool:
    if attribute.type not in _HELD:
        return False
    if attribute.type == onnx.AttributeProto.STRING:
        texts: Iterable[bytes] = (attribute.s,)
    else:
        texts = attribute.strings
    # Its exporter can't tell the type of an empty list.
    empty = attribute.type in _LISTS and not getattr(attribute, _LISTS[attribute.type])
    return not empty and all(map(_is_text, texts))


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def put_back(graph: onnx.GraphProto, path: str, notes: Notes) -> None:
    """Complete all nodes of ``graph`` from ``notes``, bodies included."""
    for node in graph.node:
        key = path + first_name(node.output)
        note = notes.get(key, onnx.NodeProto())
        if note.doc_string:
            node.doc_string = note.doc_string
        if note.overload:
            node.overload = note.overload
        node.metadata_props.extend(note.metadata_props)
        present = {attribute.name: attribute for attribute in node.attribute}
        for attribute in note.attribute:
            if attribute.name not in present and attribute.type:
                node.attribute.append(attribute)
            elif attribute.name in present and attribute.doc_string:
                present[attribute.name].doc_string = attribute.doc_string
        skeletons = dict(proto_bodies(note))
        for name, body in proto_bodies(node):
            put_back_graph(body, skeletons.get(name, onnx.GraphProto()))
            put_back(body, f"{key}/{name}/", notes)


def put_back_graph(graph: onnx.GraphProto, note: onnx.GraphProto) -> None:
    """Complete ``graph`` from its own note; inputs and outputs are known by their names."""
    graph.metadata_props.extend(note.metadata_props)
    graph.quantization_annotation.extend(note.quantization_annotation)
    for values, noted in ((graph.input, note.input), (graph.output, note.output)):
        known: dict[str, onnx.ValueInfoProto] = {value.name: value for value in noted}
        for value in values:
            if value.name in known:
                value.CopyFrom(known[value.name])
    about = {tensor.name: tensor for tensor in note.initializer if not tensor.data_type}
    for tensor in graph.initializer:
        if tensor.name in about:
            tensor.doc_string = about[tensor.name].doc_string
            del tensor.metadata_props[:]
            tensor.metadata_props.extend(about[tensor.name].metadata_props)
    made = {name for node in graph.node for name in node.output}
    made -= {output.name for output in graph.output}
    graph.value_info.extend(value for value in note.value_info if value.name in made)


def merged(notes: Notes, newer: Notes) -> Notes:
    """``notes`` with the attributes of ``newer``, taken after the nodes were rewritten."""
    result = {}
    for key in {**notes, **newer}:
        note = onnx.NodeProto()
        note.CopyFrom(notes.get(key, newer.get(key, note)))
        bodies = [a for a in note.attribute if a.type == onnx.AttributeProto.GRAPH]
        attributes = [a for a in newer.get(key, onnx.NodeProto()).attribute if _is_no_body(a)]
        kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in bodies]
        del note.attribute[:]
        note.attribute.extend([*kept, *attributes])
        result[key] = note
    return result


def _is_no_body(attribute: onnx.AttributeProto) -> bool:
    return bool(attribute.type != onnx.AttributeProto.GRAPH)
