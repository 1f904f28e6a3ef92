"""Cutting channels: constants get shorter, and the numbers that count their entries change."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.channel_flow import Labels
from onnxslim_tk.graph.edit import constant, set_input, values_of
from onnxslim_tk.graph.groups import Group, View
from onnxslim_tk.graph.model import Model, Node, Tensor

Mask = NDArray[np.bool_]
Place = tuple[int, str, int, int]


def cut_channels(model: Model, kept: Sequence[tuple[Group, NDArray[np.int64]]]) -> None:
    """Leave only the given channels of each group; all must be of one :func:`channel_groups`."""
    removal = _Removal(kept)
    new: dict[tuple[int, bytes], Tensor] = {}
    held: list[Tensor] = []
    for (node, slot), masks in removal.cuts():
        tensor = node.inputs[slot]
        marks = b"|".join(bytes([axis]) + mask.tobytes() for axis, mask in sorted(masks.items()))
        key = id(tensor), marks
        if key not in new:
            values = values_of(tensor)
            for axis, stays in masks.items():
                values = values.compress(stays, axis)
            new[key] = constant(model, values)
            # Held, so that no other tensor gets its id.
            held.append(tensor)
        set_input(node, slot, new[key])
    for count in removal.counts():
        _restate(model, *count)
    for node, parts in removal.sizes():
        _resize(model, node, [int(mask.sum()) for mask in parts])
    for node, stays in removal.picks():
        index = values_of(node.inputs[1])
        left = index[stays[index]]
        places = np.cumsum(stays) - 1
        set_input(node, 1, constant(model, places[left].astype(index.dtype)))


class _Removal:
    """What is to go, over all the views that groups were found in."""

    def __init__(self, kept: Sequence[tuple[Group, NDArray[np.int64]]]) -> None:
        self._stays: dict[int, tuple[View, Mask]] = {}
        for group, channels in kept:
            size = int(group.view.roots.max()) + 1
            _, stays = self._stays.setdefault(id(group.view), (group.view, np.ones(size, bool)))
            stays[group.roots] = False
            stays[group.roots[channels]] = True

    def _mask(self, view: View, labels: Labels) -> Mask:
        stays: Mask = self._stays[id(view)][1][view.roots[labels]]
        return stays

    def cuts(self) -> list[tuple[tuple[Node, int], dict[int, Mask]]]:
        found: dict[tuple[int, int], tuple[tuple[Node, int], dict[int, Mask]]] = {}
        for view, _ in self._stays.values():
            for cut in view.flow.cuts:
                mask = self._mask(view, cut.labels)
                if mask.all():
                    continue
                place = (cut.node, cut.slot)
                _, masks = found.setdefault((id(cut.node), cut.slot), (place, {}))
                masks[cut.axis] = masks.get(cut.axis, np.ones_like(mask)) & mask
        return list(found.values())

    def counts(self) -> list[tuple[Node, str, int, int, Mask]]:
        found: dict[Place, tuple[Node, str, int, int, Mask]] = {}
        for view, _ in self._stays.values():
            for key, count in view.flow.counts.items():
                mask = self._mask(view, count.labels)
                if not mask.all():
                    mask = mask & found[key][4] if key in found else mask
                    found[key] = (count.node, count.attribute, count.slot, count.index, mask)
        return list(found.values())

    def sizes(self) -> list[tuple[Node, list[Mask]]]:
        found: dict[int, tuple[Node, list[Mask]]] = {}
        for view, _ in self._stays.values():
            for size in view.flow.sizes:
                masks = [self._mask(view, labels) for labels in size.parts]
                if all(mask.all() for mask in masks):
                    continue
                known = found.get(id(size.node), (size.node, masks))[1]
                found[id(size.node)] = size.node, [a & b for a, b in zip(masks, known, strict=True)]
        return list(found.values())

    def picks(self) -> list[tuple[Node, Mask]]:
        found: dict[int, tuple[Node, Mask]] = {}
        for view, _ in self._stays.values():
            for pick in view.flow.picks:
                mask = self._mask(view, pick.labels)
                if not mask.all():
                    known = found.get(id(pick.node), (pick.node, mask))[1]
                    found[id(pick.node)] = pick.node, mask & known
        return list(found.values())


def _restate(model: Model, node: Node, attribute: str, slot: int, index: int, stays: Mask) -> None:
    if attribute:
        node.attrs[attribute] = int(stays.sum())
        return
    values: NDArray[Any] = values_of(node.inputs[slot]).copy()
    values.reshape(-1)[index] = stays.sum()
    set_input(node, slot, constant(model, values))


def _resize(model: Model, node: Node, sizes: Sequence[int]) -> None:
    if model.graph.opset < 13:
        node.attrs["split"] = list(sizes)
        return
    node.attrs.pop("num_outputs", None)
    set_input(node, 1, constant(model, np.array(sizes, np.int64)))
