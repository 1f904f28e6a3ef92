"""Blocks: a model cut where one tensor holds all that comes after, and taught part by part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from onnxslim_tk.graph.model import Model, from_proto, to_parts
from onnxslim_tk.graph.order import captured_names
from onnxslim_tk.graph.weights import tensors
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.recovery import Distill
from onnxslim_tk.train.fit import fit
from onnxslim_tk.train.holders import holders
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.objective import Objective
from onnxslim_tk.train.terms import Tensors, Term
from onnxslim_tk.train.write_back import trained_values

_MOST: Final = 12
_LAYERS: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN")
_AIM: Final = "onnxslim_tk.aim"
_ROOM: Final = 1 << 29
"""Bytes of one block's inputs and outputs that are held at once; samples beyond are left out."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a graph: all nodes between two tensors, of which none other leads across."""

    first: str
    last: str


def blocks_of(student: Model, teacher: Model) -> list[Block]:
    """Parts that a student and its teacher can be taught by, in the order of the data.

    They meet in tensors that both have, through which everything goes. One at most for a graph
    that can't be parted so.
    """
    mine, theirs = _narrows(to_parts(student)[0].graph), _narrows(to_parts(teacher)[0].graph)
    known = {name for name, _ in theirs}
    shared = [(name, layers) for name, layers in mine if name in known]
    if len(shared) < 2:
        return []
    # No block without layers, and not too many: each should have about as many.
    chosen, total, held = [shared[0]], shared[-1][1], shared[0][1]
    for name, layers in shared[1:]:
        if layers - held >= max(1, total / _MOST) or name == shared[-1][0]:
            if layers > held or name == shared[-1][0]:
                chosen.append((name, layers))
            held = layers
    names = [name for name, _ in chosen]
    return [Block(first, last) for first, last in pairwise(names)]


def _narrows(graph: onnx.GraphProto) -> list[tuple[str, int]]:
    """Tensors that all data go through, with the number of layers before each.

    The input is the first, if it is the only one, and the output the last.
    """
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    outputs = [value.name for value in graph.output]
    if len(inputs) != 1 or len(outputs) != 1:
        return []
    fixed = set(stored)
    last: dict[str, int] = {outputs[0]: len(graph.node)}
    for number, node in enumerate(graph.node):
        names = captured_names(node)
        if names <= fixed:
            fixed.update(node.output)
        last.update({name: max(last.get(name, 0), number) for name in names})
    alive, layers, found = {inputs[0]}, 0, [(inputs[0], 0)]
    for number, node in enumerate(graph.node):
        layers += node.op_type in _LAYERS
        alive.update(name for name in node.output if name and name not in fixed)
        alive = {name for name in alive if last.get(name, -1) > number}
        if len(alive) == 1:
            (name,) = alive
            if name != found[-1][0]:
                found.append((name, layers))
    return found


def part_of(model: Model, block: Block, rank: int) -> Model:
    """The nodes of one block as a model of its own, with the names that they have.

    ``rank`` is the number of axes of what goes in.
    """
    proto, weights = to_parts(model)
    graph = proto.graph
    makers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    wanted, waiting = set[int](), [block.last]
    while waiting:
        name = waiting.pop()
        place = makers.get(name)
        if name == block.first or place is None or place in wanted:
            continue
        wanted.add(place)
        waiting.extend(captured_names(graph.node[place]))
    nodes = [graph.node[k] for k in sorted(wanted)]
    read = {name for node in nodes for name in captured_names(node)}
    axes = [f"axis{k}" for k in range(rank)]
    part = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info(block.first, TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info(block.last, TensorProto.FLOAT, None)],
        [tensor for tensor in graph.initializer if tensor.name in read],
    )
    made = helper.make_model(part, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    for tensor in tensors(made):
        weights.fill(tensor)
    return from_proto(made, made.SerializeToString())


def teach_blocks(
    model: Model,
    original: Model,
    blocks: Sequence[Block],
    learn: Samples,
    choose: Samples,
    recover: Distill,
    seed: int,
) -> Model:
    """``model`` taught block by block, each from what those before it give by now.

    A block keeps its weights where it gets no better, and the model all of them where its outputs
    don't. No more than one block is in training at once, and no more samples count than there is
    room for what goes in and out of blocks.
    """
    taught = model.copy()
    names = [blocks[0].first, *(block.last for block in blocks)]
    shown = [_fitting(original, samples, names) for samples in (learn, choose)]
    wanted = [list(fetch(original, names, samples.feeds)) for samples in shown]
    given = [[row[names[0]] for row in rows] for rows in wanted]
    for block in blocks:
        module = GraphModule(part_of(taught, block, given[0][0].ndim), scales=True)
        inner, outer = (
            Samples([{block.first: x, _AIM: row[block.last]} for x, row in zip(*pair, strict=True)])
            for pair in zip(given, wanted, strict=True)
        )
        if any(parameter.requires_grad for parameter in module.parameters()):
            schedule = recover.schedule(seed, len(blocks))
            fit(Toward(module, block.last), inner, outer, schedule)
            _put_back(module, taught)
        with torch.no_grad():
            given = [
                [np.asarray(module({block.first: x})[block.last]) for x in inputs]
                for inputs in given
            ]
    probe = Probe(original, choose.feeds)
    return taught if probe.difference(taught) < probe.difference(model) else model


class Toward(Objective):
    """A block with what the teacher's gives, which comes with its inputs, as its aim."""

    def __init__(self, block: GraphModule, output: str) -> None:
        self._output = output
        super().__init__(block, [Term(output)], [block])

    def taught(self, feed: Mapping[str, Any]) -> list[Tensors]:
        """The aim that lies in ``feed``."""
        return [{self._output: torch.from_numpy(np.asarray(feed[_AIM]))}]


def _fitting(model: Model, samples: Samples, names: Sequence[str]) -> Samples:
    """As many samples as there is room for what they give at all ends of blocks."""
    (first,) = fetch(model, names, [samples.feeds[0]])
    room = _ROOM // max(1, sum(value.nbytes for value in first.values()))
    return samples.take(range(min(len(samples), max(1, room))))


def _put_back(module: GraphModule, model: Model) -> None:
    """The trained tensors of a block into the whole model."""
    values = trained_values(module)
    for key, holder in holders(model, values):
        holder.values = values[key]
