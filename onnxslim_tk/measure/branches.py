"""Tensors inside the branches of If nodes, brought out as outputs of the model."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from onnxslim_tk.graph.model import Graph, Model
from onnxslim_tk.graph.notes import first_name
from onnxslim_tk.graph.shadows import proto_bodies
from onnxslim_tk.measure.foreign import behind_foreign


@dataclass(frozen=True, slots=True)
class Inner:
    """A float32 tensor that the branch at ``path`` of the model reads or makes."""

    path: str
    name: str

    @property
    def key(self) -> str:
        """The name that its values go by outside."""
        return f"{self.path}{self.name}:inside"


def visible_branches(model: Model) -> set[str]:
    """Paths of the branches whose tensors can be brought out, those within branches too.

    Bodies of Loop and Scan run many times, and the runtime must know the operators around.
    """
    behind = behind_foreign(model)

    def below(graph: Graph, path: str) -> Iterator[str]:
        for node in graph.nodes:
            if node.op != "If" or any(tensor.name in behind for tensor in node.outputs):
                continue
            for name, body in node.attrs.items():
                if hasattr(body, "nodes"):
                    inner = f"{path}{first_name(tensor.name for tensor in node.outputs)}/{name}/"
                    yield inner
                    yield from below(body, inner)

    return set(below(model.graph, ""))


def bring_out(proto: onnx.ModelProto, wanted: Collection[Inner]) -> None:
    """Add the values of ``wanted`` to the outputs; where a branch did not run they are empty."""
    _bring_out(proto.graph, "", wanted)


def _bring_out(graph: onnx.GraphProto, path: str, wanted: Collection[Inner]) -> None:
    for inner in wanted:
        if inner.path == path:
            graph.node.append(helper.make_node("Identity", [inner.name], [inner.key]))
            _give(graph, inner.key)
    for node in list(graph.node):
        if node.op_type != "If":
            continue
        base = path + first_name(node.output)
        branches = dict(proto_bodies(node))
        for name, body in branches.items():
            own = f"{base}/{name}/"
            below = [inner for inner in wanted if inner.path.startswith(own)]
            _bring_out(body, own, below)
            for inner in below:
                for other in branches.values():
                    if other is not body:
                        _give_nothing(other, inner.key)
                node.output.append(inner.key)
                _give(graph, inner.key)


def _give(graph: onnx.GraphProto, name: str) -> None:
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _give_nothing(graph: onnx.GraphProto, name: str) -> None:
    # Tensors of one name in both branches would shadow nothing, but confuse readers.
    nothing = helper.make_tensor("", TensorProto.FLOAT, [0], [])
    graph.node.append(helper.make_node("Constant", [], [name], value=nothing))
    _give(graph, name)
