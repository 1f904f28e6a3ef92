"""What a look at one model tells, before anything is done to it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import values_of
from onnxslim_tk.graph.formats import number_formats
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model, bodies
from onnxslim_tk.measure.size import parameters
from onnxslim_tk.packing import entropy


@dataclass(frozen=True, slots=True)
class LayerView:
    """A layer; ``macs`` is None where shapes are unknown.

    ``stored`` is the type that the weight is stored in, ``scaled`` whether behind a scale, and
    ``entropy`` the bits a value that a perfect code would take, None where values aren't few.
    """

    id: str
    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    weights: int
    macs: int | None
    stored: str
    entropy: float | None
    scaled: bool
    in_body: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output; a dimension is a number, a symbol or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Overview:
    """A model at a glance.

    ``macs`` counts one run of one made-up sample. ``quantized_layers`` have their weight behind a
    scale; ``formats`` counts weighted operators by the quantized or narrow format that they have
    already; ``custom_operators`` belong to other domains than ONNX's own; ``provenance`` is what a
    result of this package says of its making, empty for any other file.
    """

    sha256: str
    file_bytes: int
    ir_version: int
    opset: int
    domains: Mapping[str, int]
    producer: str
    nodes: int
    parameters: int
    macs: int | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[LayerView, ...]
    layers_in_bodies: int
    weights_in_bodies: int
    quantized_layers: int
    quantize_operators: int
    formats: Mapping[str, int]
    custom_operators: Mapping[str, int]
    provenance: Mapping[str, str]


def overview(
    model: Model, shapes: Mapping[str, tuple[int, ...]], provenance: Mapping[str, str]
) -> Overview:
    """Look a model over; ``shapes`` are those seen in a run, none where it can't be run."""
    views = tuple(_view(layer, shapes) for layer in layers(model))
    counted = [view.macs for view in views if not view.in_body]
    known = [macs for macs in counted if macs is not None]
    operators: Counter[str] = Counter()
    custom: Counter[str] = Counter()
    for _, graph in bodies(model.graph):
        for node in graph.nodes:
            operators[node.op] += 1
            if node.domain not in STANDARD_DOMAINS:
                custom[f"{node.domain}.{node.op}"] += 1
    header = model.header
    inner = [view for view in views if view.in_body]
    return Overview(
        sha256=model.source_sha256,
        file_bytes=model.source_bytes,
        ir_version=header.ir_version,
        opset=int(model.graph.opset),
        domains={entry.domain or "ai.onnx": entry.version for entry in header.opset_import},
        producer=" ".join(text for text in (header.producer_name, header.producer_version) if text),
        nodes=operators.total(),
        parameters=parameters(model),
        macs=sum(known) if shapes and len(known) == len(counted) else None,
        inputs=_ports(model.graph.inputs),
        outputs=_ports(model.graph.outputs),
        layers=views,
        layers_in_bodies=len(inner),
        weights_in_bodies=sum(view.weights for view in inner),
        quantized_layers=sum(view.scaled for view in views),
        quantize_operators=operators["QuantizeLinear"] + operators["DynamicQuantizeLinear"],
        formats=number_formats(model),
        custom_operators=dict(custom),
        provenance=dict(provenance),
    )


def _view(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> LayerView:
    return LayerView(
        id=layer.id,
        names=layer.names,
        kind=layer.kind,
        shape=layer.shape,
        weights=layer.size,
        macs=layer.macs(shapes) if shapes else None,
        stored=str(layer.stored.dtype),
        entropy=entropy(values_of(layer.stored)),
        scaled=not layer.is_dense,
        in_body=bool(layer.path),
        shared=layer.is_shared,
    )


def _ports(tensors: Sequence[Any]) -> tuple[Port, ...]:
    return tuple(
        Port(
            tensor.name,
            "unknown" if tensor.dtype is None else str(tensor.dtype),
            None
            if tensor.shape is None
            else tuple(d if isinstance(d, int) else (str(d) if d else None) for d in tensor.shape),
        )
        for tensor in tensors
    )
