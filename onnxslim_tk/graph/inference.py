"""Element types and shapes of inner tensors, as far as they follow from the model alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import helper, shape_inference

from onnxslim_tk.graph.message import inner_graphs
from onnxslim_tk.graph.model import Model, to_parts

_SMALL = 1024


@dataclass(frozen=True, slots=True)
class TensorType:
    """An element type of ``onnx.TensorProto`` and a shape; None where a size isn't fixed."""

    element: int
    shape: tuple[int | None, ...] | None


Types = dict[str, TensorType]


def sizes_given(model: Model, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors, those in bodies too, that follow where ``inputs`` have those sizes.

    What is neither declared nor given of an input's shape counts as 1.
    """
    found = infer_types(model, inputs)
    shapes = {name: of.shape for name, of in found.items() if of.shape is not None}
    known: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        sizes = tuple(size for size in shape if size is not None)
        if len(sizes) == len(shape):
            known[name] = sizes
    return known


def infer_types(model: Model, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Types:
    """What is certain of each tensor, by name; names with two meanings are left out.

    Only element types and sizes that follow from the declared inputs count: what the file says of
    its inner tensors and outputs may be wrong. With ``inputs`` their free sizes are those, or 1.
    """
    light, _ = lighten(to_parts(model)[0])
    given = {tensor.name for tensor in model.graph.inputs}
    for value in light.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            # Vendors write -1 and 0 for a free size, and inference would calculate with them.
            if dim.HasField("dim_value") and dim.dim_value < 1:
                dim.Clear()
        if inputs is not None and value.name in given:
            sizes = inputs.get(value.name, ())
            for k, dim in enumerate(value.type.tensor_type.shape.dim):
                if not dim.HasField("dim_value"):
                    dim.dim_value = sizes[k] if k < len(sizes) else 1
    for graph in (light.graph, *inner_graphs(light.graph)):
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = shape_inference.infer_shapes(light, data_prop=inputs is not None)
    except (shape_inference.InferenceError, LookupError, RuntimeError, ValueError):
        return {}
    types: dict[str, TensorType | None] = {}
    for value in _values(inferred.graph):
        found = _type(value)
        if found is not None:
            types[value.name] = found if types.get(value.name, found) == found else None
    return {name: found for name, found in types.items() if found is not None}


def lighten(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy of the outermost graph's model with its big weights as inputs, and their names.

    Local functions are left out. What remains stays far below protobuf's 2 GB.
    """
    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    light.opset_import.extend(proto.opset_import)
    light.graph.name = proto.graph.name
    light.graph.node.extend(proto.graph.node)
    light.graph.input.extend(proto.graph.input)
    light.graph.output.extend(proto.graph.output)
    held: list[tuple[str, int, list[int]]] = []
    for tensor in proto.graph.initializer:
        if prod(tensor.dims) > _SMALL or tensor.data_location == onnx.TensorProto.EXTERNAL:
            held.append((tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            light.graph.initializer.add().CopyFrom(tensor)
    for sparse in proto.graph.sparse_initializer:
        held.append((sparse.values.name, sparse.values.data_type, list(sparse.dims)))
    declared = {value.name for value in proto.graph.input}
    for name, element, dims in held:
        if name not in declared:
            light.graph.input.append(helper.make_tensor_value_info(name, element, dims))
    return light, [name for name, _, _ in held if name not in declared]


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _values(attribute.g)


def _type(value: onnx.ValueInfoProto) -> TensorType | None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.elem_type:
        return None
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorType(tensor.elem_type, shape)
