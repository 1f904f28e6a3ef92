"""Convolutions along one axis that are written as ones along two, with a Squeeze behind."""

import numpy as np

from onnxslim_tk.graph.affine import arithmetic
from onnxslim_tk.graph.edit import (
    constant,
    input_at,
    is_constant,
    rename_key,
    values_of,
    variable,
)
from onnxslim_tk.graph.evaluate import bytes_of
from onnxslim_tk.graph.model import Model, Node
from onnxslim_tk.graph.site import Site


def bring_before_squeeze(model: Model, site: Site, outputs: set[str]) -> bool:
    """Let arithmetic per channel behind a Squeeze come before it, beside the convolution.

    ``outputs`` names what graphs give out. False where there is none, or it can't.
    """
    if site.weight is None or site.node.op not in ("Conv", "ConvTranspose"):
        return False
    squeeze = site.reader(site.node, outputs)
    axes = None if squeeze is None or squeeze.op != "Squeeze" else _axes(squeeze)
    reader = None if squeeze is None else site.reader(squeeze, outputs)
    rank = len(site.weight.shape)
    if squeeze is None or reader is None or axes is None:
        return False
    dropped = sorted({axis % rank for axis in axes})
    left, channel = rank - len(dropped), 1 - dropped.count(0)
    source = squeeze.outputs[0]
    if 1 in dropped or arithmetic(reader, source, site.channels, channel, left) is None:
        return False
    slot = next(k for k, tensor in enumerate(reader.inputs) if is_constant(tensor))
    before, values = bytes_of([squeeze, reader]), values_of(reader.inputs[slot])
    if values.size > 1:
        wide = values.reshape((1,) * (left - values.ndim) + values.shape)
        reader.inputs[slot] = constant(model, np.expand_dims(wide, dropped))
    reader.inputs[1 - slot] = squeeze.inputs[0]
    result, between = reader.outputs[0], variable(model, source)
    rename_key(model, site.path + result.name, site.path + between.name)
    reader.outputs, squeeze.outputs = [between], [result]
    squeeze.inputs[0] = between
    site.saved += before - bytes_of([squeeze, reader])
    return True


def _axes(squeeze: Node) -> list[int] | None:
    """The axes that a Squeeze names; None where it names none, or they follow from the run."""
    given = input_at(squeeze, 1)
    if given is None:
        listed = squeeze.attrs.get("axes")
        return None if listed is None else [int(axis) for axis in listed]
    if not is_constant(given):
        return None
    return [int(axis) for axis in values_of(given).reshape(-1)]
