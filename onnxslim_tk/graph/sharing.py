"""Weights that several layers read."""

from collections.abc import Iterable, Iterator, Sequence

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.mapped import release_pages


def by_weight(found: Iterable[Layer]) -> Iterator[tuple[Layer, ...]]:
    """Layers grouped by the stored weight that they read, in order; most groups have one.

    What was read of a file for one group leaves memory before the next.
    """
    groups: dict[int, list[Layer]] = {}
    for layer in found:
        groups.setdefault(id(layer.stored), []).append(layer)
    for group in groups.values():
        yield tuple(group)
        release_pages()


def others_read(sharers: Sequence[Layer]) -> bool:
    """Whether anything but ``sharers`` reads the weight that they share."""
    known = {(id(layer.node), layer.slot) for layer in sharers}
    waiting = [sharers[0].stored]
    while waiting:
        tensor = waiting.pop()
        for node in {id(node): node for node in tensor.outputs}.values():
            slots = [k for k, value in enumerate(node.inputs) if value is tensor]
            if all((id(node), k) in known for k in slots):
                continue
            if node.op not in ("Cast", "Mul", "DequantizeLinear", "Transpose"):
                return True
            waiting.extend(node.outputs)
    return False


def read_alike(sharers: Sequence[Layer]) -> bool:
    """Whether nothing but ``sharers`` reads their weight, and one scale per channel suits all.

    An embedding's rows and the channels of a Gemm with ``transB`` are the same of one table.
    """
    return not others_read(sharers) and len({layer.scale_shape for layer in sharers}) == 1
