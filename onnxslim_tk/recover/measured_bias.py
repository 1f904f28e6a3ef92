"""Measured bias correction: means of the running quantized model, layer after layer."""

from collections.abc import Sequence
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import constant, input_at, is_constant, producer, values_of
from onnxslim_tk.graph.model import Model, Node, Tensor
from onnxslim_tk.graph.order import ordered
from onnxslim_tk.measure.observe import fetch, inner_tensors
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.runtime import Feed

Floats = NDArray[np.float64]
_MOST_FEEDS: Final = 16
_FEWEST_FEEDS: Final = 4
# Big inputs bring many positions each, so few of them tell a mean.
_ENOUGH_VALUES: Final = 6_000_000
_CHECKED: Final = 8
_LARGEST: Final = 2**30


def channel_means(model: Model, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, Floats]:
    """Mean of each channel (axis 1) of the named tensors over the first of ``feeds``."""
    sums: dict[str, Floats] = {}
    count = 0
    size = sum(np.asarray(value).size for value in feeds[0].values())
    most = min(_MOST_FEEDS, max(_FEWEST_FEEDS, _ENOUGH_VALUES // max(size, 1)))
    for values in fetch(model, names, islice(feeds, most)):
        count += 1
        for name, value in values.items():
            axes = tuple(k for k in range(value.ndim) if k != 1)
            mean = value.mean(axis=axes, dtype=np.float64)
            sums[name] = sums[name] + mean if name in sums else mean
    return {name: total / count for name, total in sums.items()}


class FloatMeans:
    """Means of convolutions' outputs in the float model, to be restored in the quantized one.

    They are those of ``reference``, where ``model`` itself has lost something already and still has
    the layer in that form. Raises
    SessionError where that doesn't run.
    """

    def __init__(
        self,
        model: Model,
        nodes: Sequence[Node],
        feeds: Sequence[Feed],
        reference: Model | None = None,
    ) -> None:
        # The order of the data: later layers must see what earlier ones have become.
        wanted = {id(node) for node in nodes}
        self._nodes = [node for node in ordered(model.graph) if id(node) in wanted]
        names = [node.outputs[0].name for node in self._nodes]
        found = channel_means(model, names, feeds)
        if reference is not None:
            # A layer that was split or narrowed since has no such means there.
            there = set(inner_tensors(reference))
            meant = channel_means(reference, [name for name in names if name in there], feeds)
            found |= {n: mean for n, mean in meant.items() if mean.shape == found[n].shape}
        self._means = {id(node): found[node.outputs[0].name] for node in self._nodes}
        # Other feeds than those for the means, as far as there are so many.
        self._probe = Probe(
            reference or model, [feeds[-1 - k] for k in range(min(_CHECKED, len(feeds)))]
        )

    def correct(
        self, model: Model, nodes: Sequence[tuple[Node, float | Floats]], feeds: Sequence[Feed]
    ) -> bool:
        """Move the int32 biases of the quantized ``nodes`` until their mean outputs are restored.

        With each node comes what was added to its bias on purpose, which stays.
        One after the other, each seen behind the corrected ones before it: shifts of several at
        once would add up on their way. Taken back, and False, where that does not bring the
        model's outputs closer (Nagel et al., 2019).
        """
        written = {id(node): moved for node, moved in nodes}
        able = [n for n in self._nodes if id(n) in written and _codes(n) is not None]
        before = {id(node): _codes(node) for node in able}
        error = self._probe.difference(model)
        for node in able:
            name = node.outputs[0].name
            meant = self._means[id(node)] + written[id(node)]
            found = channel_means(model, [name], feeds)[name]
            _shift(model, node, meant - found[: len(meant)])
        if self._probe.difference(model) < error:
            return True
        for node in able:
            node.inputs[2].inputs[0].inputs[0] = before[id(node)]
        return False


def _codes(node: Node) -> Tensor | None:
    """The int32 bias of a quantized convolution, if it has one."""
    bias = input_at(node, 2)
    maker = None if bias is None else producer(bias)
    if maker is None or maker.op != "DequantizeLinear" or not is_constant(maker.inputs[0]):
        return None
    return maker.inputs[0]


def _shift(model: Model, node: Node, shift: Floats) -> None:
    maker = producer(node.inputs[2])
    if maker is None or not np.isfinite(shift).all():
        return
    codes, scales = (values_of(t).astype(np.float64) for t in maker.inputs[:2])
    # Channels of zeros that were filled in have no mean to keep.
    shift = np.pad(shift, (0, codes.size - shift.size))
    moved = np.clip(np.rint(codes + shift / scales), -_LARGEST, _LARGEST)
    maker.inputs[0] = constant(model, moved.astype(np.int32))
