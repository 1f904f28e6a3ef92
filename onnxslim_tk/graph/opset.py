"""Raising a model to a newer operator set without losing names, metadata or meaning."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference, version_converter

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.inference import lighten
from onnxslim_tk.graph.model import Model, bodies, replace_graph, to_parts
from onnxslim_tk.graph.notes import first_name
from onnxslim_tk.graph.weights import Weights

_OLDEST: Final = 7
_SET_ASIDE: Final = "onnxslim_tk.set_aside"
# The converter infers shapes on its way; its own errors and those have no common root.
_FAILURES: Final = (
    *(version_converter.ConvertError, shape_inference.InferenceError),
    *(LookupError, OverflowError, RuntimeError, ValueError),
)


def raise_opset(model: Model, minimum: int = 13) -> None:
    """Raise the standard operator set of ``model`` to ``minimum`` where it is older, in place.

    Tensors, inputs and outputs keep their names, the model its metadata, and the IR version rises
    only as far as the operator set needs. Raises ModelError for operator sets below 7, and where
    an operator has no equivalent in the newer set.
    """
    versions = [entry for entry in model.header.opset_import if entry.domain in STANDARD_DOMAINS]
    version = model.graph.opset
    if not versions or version >= minimum:
        return
    before, weights = to_parts(model)
    _refuse(before, version, minimum)
    light, held = lighten(before)
    _set_resizes_aside(light)
    try:
        after = version_converter.convert_version(light, minimum)
    except _FAILURES as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "unknown reason"
        raise _impossible(version, minimum, reason) from error
    _bring_resizes_back(after.graph)
    _restore(before, after, set(held))
    if not _names_stay(before.graph, after.graph):
        raise _impossible(version, minimum, "the converter renames a tensor")
    _raise_functions(before, after, minimum)
    _take_in(model, after, weights, minimum)


def _impossible(version: int, minimum: int, reason: str) -> ModelError:
    return ModelError(f"opset: the model can't be raised from {version} to {minimum}: {reason}")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _refuse(proto: onnx.ModelProto, version: int, minimum: int) -> None:
    """Raise for what the converter would change the meaning of without a word."""
    if version < _OLDEST:
        raise _impossible(version, minimum, f"operator sets below {_OLDEST} are not supported")
    for graph in _graphs(proto.graph):
        for node in graph.node:
            spatial = [a.i for a in node.attribute if a.name == "spatial"]
            if node.op_type == "BatchNormalization" and spatial == [0]:
                reason = f"the BatchNormalization {node.output[0]!r} is not per channel"
                raise _impossible(version, minimum, reason)
    for function in proto.functions:
        for entry in function.opset_import:
            if entry.domain not in STANDARD_DOMAINS or entry.version >= minimum:
                continue
            for node in function.node:
                if node.domain in STANDARD_DOMAINS and _changed(
                    node.op_type, entry.version, minimum
                ):
                    reason = f"the local function {function.name!r} uses an older {node.op_type}"
                    raise _impossible(version, minimum, reason)


def _changed(op: str, version: int, minimum: int) -> bool:
    """Whether an operator takes other inputs or attributes; most new versions only add types."""
    try:
        old, new = (_signature(defs.get_schema(op, v, "")) for v in (version, minimum))
    except defs.SchemaError:
        return True
    return old != new


def _signature(schema: Any) -> tuple[Any, ...]:
    attributes = {
        name: (attribute.required, attribute.default_value.SerializeToString())
        for name, attribute in schema.attributes.items()
    }
    counts = schema.min_input, schema.max_input, schema.min_output, schema.max_output
    return attributes, counts


def _set_resizes_aside(proto: onnx.ModelProto) -> None:
    """Hide old resizing from the converter, which samples it at other points and renames it."""
    found = False
    for graph in _graphs(proto.graph):
        for node in graph.node:
            old = node.op_type == "Upsample" or (node.op_type == "Resize" and len(node.input) == 2)
            if old and node.domain in STANDARD_DOMAINS:
                node.domain = _SET_ASIDE
                found = True
    if found:
        proto.opset_import.append(helper.make_opsetid(_SET_ASIDE, 1))


def _bring_resizes_back(outer: onnx.GraphProto) -> None:
    """Write Upsample and Resize of operator sets 7 to 10 as the Resize of 11 and later.

    They sample asymmetrically, and the nearest point is the one below; where onnxruntime shrinks,
    the one above.
    """
    for graph in _graphs(outer):
        known = {t.name: t for g in (outer, graph) for t in g.initializer}
        for node in graph.node:
            if node.domain != _SET_ASIDE:
                continue
            mode, scales = b"nearest", None
            for attribute in node.attribute:
                if attribute.name == "mode":
                    mode = b"linear" if attribute.s == b"bilinear" else attribute.s
                if attribute.name == "scales":
                    scales = np.array(attribute.floats, np.float32)
            name = node.output[0]
            if scales is not None:
                graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))
                node.input.append(f"{name}_scales")
            elif node.input[1] in known:
                scales = numpy_helper.to_array(known[node.input[1]])
            shrinks = scales is not None and bool((scales < 1).any()) and bool((scales <= 1).all())
            graph.initializer.append(
                numpy_helper.from_array(np.zeros(0, np.float32), f"{name}_roi")
            )
            node.input.insert(1, f"{name}_roi")
            node.op_type, node.domain = "Resize", ""
            del node.attribute[:]
            settings = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
            if mode == b"nearest":
                settings["nearest_mode"] = "ceil" if shrinks else "floor"
            node.attribute.extend(helper.make_attribute(k, v) for k, v in settings.items())


def _restore(before: onnx.ModelProto, after: onnx.ModelProto, held: set[str]) -> None:
    """Give ``after`` back its weights and interfaces, and its new constants as initializers."""
    _restore_graph(before.graph, after.graph)
    after.graph.initializer.extend(t for t in before.graph.initializer if t.name in held)
    del after.graph.sparse_initializer[:]
    after.graph.sparse_initializer.extend(before.graph.sparse_initializer)
    kept = [entry for entry in after.opset_import if entry.domain != _SET_ASIDE]
    copies = [helper.make_opsetid(entry.domain, entry.version) for entry in kept]
    del after.opset_import[:]
    after.opset_import.extend(copies)


def _restore_graph(before: onnx.GraphProto, after: onnx.GraphProto) -> None:
    for name in ("input", "output"):
        del getattr(after, name)[:]
        getattr(after, name).extend(getattr(before, name))
    # The converter infers shapes, and repeats in value_info what an edit makes stale.
    del after.value_info[:]
    old = {node.output[0]: node for node in before.node if node.output}
    for index in reversed(range(len(after.node))):
        node = after.node[index]
        if node.op_type == "Constant" and node.output[0] not in old:
            after.initializer.add().CopyFrom(node.attribute[0].t)
            after.initializer[-1].name = node.output[0]
            del after.node[index]
    for node in after.node:
        twin = old.get(node.output[0]) if node.output else None
        if twin is None:
            continue
        inner = {a.name: a.g for a in twin.attribute if a.type == onnx.AttributeProto.GRAPH}
        for attribute in node.attribute:
            if attribute.name in inner:
                _restore_graph(inner[attribute.name], attribute.g)


def _names_stay(before: onnx.GraphProto, after: onnx.GraphProto) -> bool:
    """Whether every tensor is still made, each just once, in graphs that follow each other."""
    olds, news = list(_graphs(before)), list(_graphs(after))
    if len(olds) != len(news):
        return False
    for old, new in zip(olds, news, strict=True):
        made = [name for node in new.node for name in node.output if name]
        made += [tensor.name for tensor in new.initializer]
        # An output that nothing reads may go with the operator that gave it.
        kept = {node.output[0] for node in old.node if node.output and node.output[0]}
        if len(made) != len(set(made)) or not kept <= set(made):
            return False
    return True


def _raise_functions(before: onnx.ModelProto, after: onnx.ModelProto, minimum: int) -> None:
    del after.functions[:]
    after.functions.extend(before.functions)
    for function in after.functions:
        for entry in function.opset_import:
            if entry.domain in STANDARD_DOMAINS:
                entry.version = max(entry.version, minimum)


def _take_in(model: Model, proto: onnx.ModelProto, weights: Weights, minimum: int) -> None:
    """Put the graph of ``proto`` in the model's place; nodes made answer to those they serve."""
    replace_graph(model, proto, weights)
    del model.header.functions[:]
    model.header.functions.extend(proto.functions)
    for entry in model.header.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            entry.version = minimum
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", minimum)])
    model.header.ir_version = max(model.header.ir_version, needed)
    for path, graph in bodies(model.graph):
        names: tuple[str, ...] | None = None
        # The converter puts what it makes before the node that it serves.
        for node in reversed(graph.nodes):
            key = path + first_name(t.name for t in node.outputs)
            if key in model.origins:
                names = model.origins[key]
            elif names is not None:
                model.origins[key] = names


def obstacle_to(model: Model, version: int) -> str:
    """Why ``model`` can't be raised to the operator set ``version``; empty where it can be."""
    if model.graph.opset >= version:
        return ""
    try:
        raise_opset(model.copy(), version)
    except ModelError as error:
        return str(error)
    return ""
