"""One float model in which every grid of activations can be switched on and moved."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxslim_tk.errors import SessionError
from onnxslim_tk.graph.grids import Affine
from onnxslim_tk.graph.model import Model, to_parts
from onnxslim_tk.graph.regions import Grid, Regions
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.measure.probe import centred, output_errors, scores_behind
from onnxslim_tk.measure.runtime import Feed, Session

Floats = NDArray[np.float64]
_FLOAT: Final = onnx.TensorProto.FLOAT
_OFF: Final = Affine(np.float32(1), 0)


class GridProbe:
    """Measures at the model's outputs what rounding to grids of activations does.

    Weights stay float; scales, zero points and switches are inputs, so that one session tries
    any grids. Outputs are held against those of ``reference``, by default of the model itself;
    probabilities of a Softmax count half, its scores the other half, as :class:`Probe` has it.
    Raises SessionError where a model doesn't run.
    """

    def __init__(
        self,
        model: Model,
        regions: Regions,
        feeds: Sequence[Feed],
        reference: Model | None = None,
    ) -> None:
        heads = {g.like: regions.grids.get(g.like, g) for g in regions.grids.values()}
        self._places = {like: k for k, like in enumerate(heads)}
        members = {node.outputs[0].name for node in regions.nodes}
        proto, weights = to_parts(model)
        taken = {name for node in proto.graph.node for name in (*node.input, *node.output)}
        self._prefix = "_"
        while any(name.startswith(self._prefix) for name in taken):
            self._prefix += "_"
        _insert(proto.graph, list(heads.values()), members, self._prefix)
        self._scores = _add_scores(proto.graph, model)
        self._session = Session(Stored(proto.SerializeToString(), weights))
        given = {tensor.name for tensor in model.graph.outputs}
        floats = [o.name for o in self._session.outputs if o.dtype and o.dtype.kind == "f"]
        self._names = [name for name in floats if name in given]
        self._feeds = feeds
        if reference is None:
            self._reference = [self._run({}, feed) for feed in feeds]
        else:
            parts, weights = to_parts(reference)
            # Scores that the reference calls otherwise are compared with none.
            known = _add_scores(parts.graph, reference)
            self._scores = {k: v for k, v in self._scores.items() if known.get(k) == v}
            plain = Session(Stored(parts.SerializeToString(), weights))
            self._reference = [self._seen(plain, feed) for feed in feeds]

    def errors(self, grids: Mapping[str, Affine], feeds: int | None = None) -> Floats:
        """Relative squared errors ``(feeds,)`` of the outputs with ``grids``, by head, on.

        On the first ``feeds`` only, where that is given; infinite where a run fails.
        """
        count = len(self._feeds[:feeds])
        try:
            values = [self._run(grids, feed) for feed in self._feeds[:feeds]]
        except SessionError:
            return np.full(count, np.inf)
        reference = self._reference[:count]
        errors = np.zeros((max(len(self._names), 1), count))
        for row, name in zip(errors, self._names, strict=False):
            row[:] = output_errors([name], reference, values)
            if name in self._scores:
                score = output_errors([self._scores[name][0]], reference, values)
                row[:] = np.sqrt(row * score)
        return np.asarray(errors.mean(axis=0), np.float64)

    def _run(self, grids: Mapping[str, Affine], feed: Feed) -> dict[str, np.ndarray]:
        whole = dict(feed)
        for like, k in self._places.items():
            grid = grids.get(like, _OFF)
            whole[f"{self._prefix}s{k}"] = np.asarray(grid.scale, np.float32)
            whole[f"{self._prefix}z{k}"] = np.asarray(grid.zero_point, np.uint8)
            whole[f"{self._prefix}o{k}"] = np.asarray(like in grids)
        return self._seen(self._session, whole)

    def _seen(self, session: Session, feed: Feed) -> dict[str, np.ndarray]:
        scores = dict(self._scores.values())
        found = session.run(feed, [*self._names, *scores])
        return found | {name: centred(found[name], axis) for name, axis in scores.items()}


def _add_scores(graph: onnx.GraphProto, model: Model) -> dict[str, tuple[str, int]]:
    """Give out what makes probabilities too; names and axes of the scores, by output."""
    given = {tensor.name for tensor in model.graph.outputs}
    found = {tensor.name: scores_behind(tensor) for tensor in model.graph.outputs}
    scores = {name: pair for name, pair in found.items() if pair and pair[0] not in given}
    for name in {name for name, _ in scores.values()}:
        graph.output.append(onnx.ValueInfoProto(name=name))
    return scores


def _insert(graph: onnx.GraphProto, heads: Sequence[Grid], members: set[str], prefix: str) -> None:
    """Put a switched pair of Q and DQ behind the tensor of each head.

    What integer operators make is rounded for all readers, other tensors for ``members`` alone.
    """
    makers = {name: node for node in graph.node for name in node.output if name}
    behind: dict[str, onnx.NodeProto] = {}
    for k, grid in enumerate(heads):
        source, target = grid.tensor.name, f"{prefix}t{k}"
        if grid.made_in_integers:
            maker = makers[source]
            maker.output[list(maker.output).index(source)] = target
            source, target = target, source
        else:
            for node in graph.node:
                if node.output[0] in members:
                    for slot, name in enumerate(node.input):
                        if name == source:
                            node.input[slot] = target
        behind[source] = _switched(source, target, prefix, k)
        for letter, kind in (
            ("s", _FLOAT),
            ("z", onnx.TensorProto.UINT8),
            ("o", onnx.TensorProto.BOOL),
        ):
            graph.input.append(helper.make_tensor_value_info(f"{prefix}{letter}{k}", kind, []))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in _ordered(graph, behind)]
    del graph.node[:]
    graph.node.extend(nodes)


def _ordered(
    graph: onnx.GraphProto, behind: Mapping[str, onnx.NodeProto]
) -> Iterator[onnx.NodeProto]:
    for value in graph.input:
        if value.name in behind:
            yield behind[value.name]
    for node in graph.node:
        yield node
        for name in node.output:
            if name in behind:
                yield behind[name]


def _switched(source: str, target: str, prefix: str, k: int) -> onnx.NodeProto:
    scale, zero, switch = (f"{prefix}{letter}{k}" for letter in "szo")
    codes, rounded, same = (f"{prefix}{letter}{k}" for letter in "qri")
    pair = [
        helper.make_node("QuantizeLinear", [source, scale, zero], [codes]),
        helper.make_node("DequantizeLinear", [codes, scale, zero], [rounded]),
    ]
    return helper.make_node(
        "If",
        [switch],
        [target],
        then_branch=_branch(pair, rounded),
        else_branch=_branch([helper.make_node("Identity", [source], [same])], same),
    )


def _branch(nodes: Sequence[onnx.NodeProto], output: str) -> onnx.GraphProto:
    kind = helper.make_tensor_type_proto(_FLOAT, None)
    return helper.make_graph(nodes, output, [], [helper.make_value_info(output, kind)])
