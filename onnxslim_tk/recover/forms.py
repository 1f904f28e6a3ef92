"""The forms in which a weight can be written with fewer numbers, by name."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import add_node, constant, rename_key, set_input, variable
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.kernels.least_squares import relative_error
from onnxslim_tk.plan.targets import Target, Work
from onnxslim_tk.plan.work import Shapes, layer_work
from onnxslim_tk.recover.chain import Parts, Step, step_macs, write_chain
from onnxslim_tk.recover.factors import CHANNEL, CP, SPATIAL, TUCKER, Form
from onnxslim_tk.recover.separable import SEPARABLE
from onnxslim_tk.recover.structures import BLOCKS, CIRCULANT, HANKEL, KRONECKER, TOEPLITZ

Floats = NDArray[np.float64]
Kind = Literal[
    "channel",
    "spatial",
    "tucker",
    "cp",
    "separable",
    "blocks",
    "kronecker",
    "toeplitz",
    "hankel",
    "circulant",
]

FORMS: Final[Mapping[str, Form]] = {
    "channel": CHANNEL,
    "spatial": SPATIAL,
    "tucker": TUCKER,
    "cp": CP,
    "separable": SEPARABLE,
    "blocks": BLOCKS,
    "kronecker": KRONECKER,
    "toeplitz": TOEPLITZ,
    "hankel": HANKEL,
    "circulant": CIRCULANT,
}
"""A new form is a line here."""


def form_error(layer: Layer, form: Form, parts: Parts, covariance: Floats | None) -> float:
    """Relative squared error of the layer's output with ``parts`` in place of its weight."""
    return relative_error(layer.matrix()[0], form.product(layer, parts), covariance)


def write_form(
    model: Model, layer: Layer, form: Form, rank: int, parts: Parts, stored: bool
) -> None:
    """Write ``parts`` in place of the layer's weight: as nodes that run, or expanded at load."""
    if layer.kind == "Gather":
        _write_table(model, layer, parts)
    elif stored:
        _write_stored(model, layer, form, parts)
    else:
        write_chain(model, layer, form.steps(layer, rank), parts)


def _write_stored(model: Model, layer: Layer, form: Form, parts: Parts) -> None:
    """The weight as operators on constants, which the runtime folds when it loads the model."""
    if form.expand is None:
        raise ValueError("write_form: this form cannot be expanded at load")
    matrix = form.expand(model, layer, parts)
    if layer.kind == "Conv":
        shape = constant(model, np.array(layer.shape))
        matrix = add_node(model, layer.graph, "Reshape", [matrix, shape])
    elif not layer.transposed:
        matrix = add_node(model, layer.graph, "Transpose", [matrix], attrs={"perm": [1, 0]})
    set_input(layer.node, layer.slot, matrix)


def _write_table(model: Model, layer: Layer, parts: Parts) -> None:
    """A lookup of few numbers, and the product that makes them a row of the table."""
    first, second = (part.astype(np.float32) for part in parts)
    node, graph, given = layer.node, layer.graph, layer.output
    inner = variable(model, given)
    set_input(node, layer.slot, constant(model, second))
    node.outputs[0] = inner
    rename_key(model, layer.path + given.name, layer.path + inner.name)
    names = (f"{layer.id}:b", *layer.names)
    add_node(
        model, graph, "MatMul", [inner, constant(model, first)], [given], {}, names, layer.path
    )


def work_of(layer: Layer, steps: Sequence[Step], shapes: Shapes) -> list[Work]:
    """What each step has to do in one run."""
    found = []
    for step, (places, macs) in zip(steps, step_macs(layer, steps, shapes), strict=True):
        rows, read, *kernel = step.shape
        groups = int(step.attrs.get("group", 1)) if layer.kind == "Conv" else 1
        taps = int(np.prod(kernel))
        patches = places * taps * read if taps > 1 else 0
        size = int(np.prod(step.shape))
        found.append(Work(layer.kind, places * rows, macs, patches, size, (read, rows), groups))
    return found


def gain_of(
    layer: Layer, steps: Sequence[Step], shapes: Shapes, target: Target
) -> tuple[float, int, float]:
    """Share of multiply-accumulates that ``steps`` take, those they save, and microseconds saved.

    Nothing is known to be saved where shapes are unknown.
    """
    works = work_of(layer, steps, shapes)
    whole = layer_work(layer, shapes)
    taken = sum(work.macs for work in works)
    if whole is None:
        return taken / layer.size, 0, 0.0
    saved = target.float_time(whole) - sum(target.float_time(work) for work in works)
    return taken / max(whole.macs, 1), whole.macs - taken, saved


def run_obstacle(layer: Layer) -> str:
    """Why no form may be put in place of the layer's weight; empty where one may."""
    if layer.kind == "ConvTranspose":
        return "a transposed convolution is not factored"
    if layer.is_half:
        return "a float16 weight is not factored"
    if layer.is_turned:
        return "a weight behind a Transpose is not factored"
    if layer.is_recurrent:
        return "a recurrent weight is not factored"
    if layer.node.attrs.get("auto_pad", "").startswith("SAME"):
        return "a convolution that pads by itself is not factored"
    if layer.groups > 1:
        return "a grouped convolution is not factored"
    return ""
