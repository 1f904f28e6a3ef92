"""Layer after layer: each makes up for what those before it have lost."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.order import ordered
from onnxslim_tk.kernels.least_squares import compensated
from onnxslim_tk.measure.moments import Moments
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.paired import PairedMoments, observe_pairs
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.plan.proposal import Context
from onnxslim_tk.recover.bias import moments_of
from onnxslim_tk.recover.damping import damping_for

Array = NDArray[Any]
Floats = NDArray[np.float64]
# Bytes of activations of the reference that are kept for several layers.
_HELD: Final = 1 << 29
# Rows of one sample resemble each other, and what was lost is hardly more than noise to them: with
# 3, as for rounding, efficientnet-lite0 came 1 dB less near on other samples.
_ALIKE = 10.0


def can_follow(layer: Layer, context: Context) -> bool:
    """Whether :func:`in_turn` can show a layer: samples do, and it reads an outermost tensor."""
    if layer.path or not layer.meets_input or not context.feeds:
        return False
    moments = moments_of(layer, context.statistics)
    return moments is not None and moments.second is not None


def in_turn(
    model: Model, reference: Model, wanted: Sequence[Layer], feeds: Sequence[Feed], seed: int
) -> Iterator[tuple[Layer, PairedMoments]]:
    """The layers ``wanted`` of the outermost graph, in the order of the data.

    Each comes with moments of what it reads in ``model`` as it is by then, beside what the same
    layer read in ``reference``. Layers that read the same tensor are observed together; one that
    samples don't show is passed over.
    """
    place = {id(node): k for k, node in enumerate(ordered(model.graph))}
    readers: dict[str, list[Layer]] = {}
    for layer in sorted(wanted, key=lambda layer: place[id(layer.node)]):
        readers.setdefault(layer.input.name, []).append(layer)
    for groups, seen in _seen(reference, list(readers.values()), feeds):
        for group in groups:
            found = observe_pairs(model, seen, group, feeds, seed)
            yield from ((layer, found[layer.id]) for layer in group if layer.id in found)


def _seen(
    reference: Model, groups: Sequence[list[Layer]], feeds: Sequence[Feed]
) -> Iterator[tuple[list[list[Layer]], Iterable[Mapping[str, Array]]]]:
    """Some groups of layers at a time, and what they read in the reference for each feed.

    As many as can be held, for one run of the reference; a group that is larger is seen feed by
    feed.
    """
    if not groups:
        return
    names = [group[0].input.name for group in groups]
    (sizes,) = (
        [values[name].nbytes * len(feeds) for name in names]
        for values in fetch(reference, names, feeds[:1])
    )
    waiting = list(zip(groups, sizes, strict=True))
    while waiting:
        group, size = waiting.pop(0)
        some, room = [group], _HELD - size
        while waiting and waiting[0][1] <= room:
            group, size = waiting.pop(0)
            some.append(group)
            room -= size
        found = fetch(reference, [group[0].input.name for group in some], feeds)
        yield some, list(found) if len(some) > 1 else found


def compensating(matrix: Floats, pair: PairedMoments, centred: bool) -> Floats:
    """The weight ``(groups, rows, inputs)`` whose outputs are nearest to the reference's.

    It is pulled towards ``matrix``, the more the fewer rows were seen. With ``centred`` outputs
    count about their means, which a bias keeps.
    """
    second, lost = pair.second, pair.lost
    if centred:
        second = second - np.einsum("gi,gj->gij", pair.mean, pair.mean)
        lost = lost - np.einsum("gi,gj->gij", pair.reference - pair.mean, pair.mean)
    parts = zip(matrix, second, lost, strict=True)
    return np.stack(
        [compensated(w, g, c, damping_for(g[None], pair.count, _ALIKE)) for w, g, c in parts]
    )


def lost_means(before: Floats, after: Floats, pair: PairedMoments) -> Floats:
    """What the mean outputs ``(groups, rows)`` have lost: of ``before`` in the reference."""
    meant = np.einsum("gri,gi->gr", before, pair.reference)
    return np.asarray(meant - np.einsum("gri,gi->gr", after, pair.mean), np.float64)


def moments_in(pair: PairedMoments) -> Moments:
    """Moments of what the layer reads now."""
    return Moments(pair.count, pair.mean, pair.second)
