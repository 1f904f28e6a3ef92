"""Operators that read and write by index, and sequences of tensors."""

import torch
import torch.nn.functional as F  # noqa: N812

from onnxslim_tk.train.rules import Node, Rules, Tensor, axis_of, integers

INDEXING = Rules()
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_front(places: Tensor, size: int) -> Tensor:
    wide = places.to(torch.int64)
    return torch.where(wide < 0, wide + size, wide)


@INDEXING.operator("Gather")
def _gather(node: Node, x: Tensor, places: Tensor) -> Tensor:
    axis = axis_of(node.get("axis", 0), x.dim())
    found = _from_front(places, x.shape[axis])
    if axis == 0 and x.dim() == 2:
        return F.embedding(found, x)
    taken = x.index_select(axis, found.reshape(-1))
    return taken.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


@INDEXING.operator("GatherElements")
def _gather_elements(node: Node, x: Tensor, places: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _from_front(places, x.shape[axis]))


def _coordinates(x: Tensor, places: Tensor) -> tuple[Tensor, ...]:
    return tuple(_from_front(c, x.shape[k]) for k, c in enumerate(places.unbind(-1)))


@INDEXING.operator("GatherND")
def _gather_nd(node: Node, x: Tensor, places: Tensor) -> Tensor:
    batch = int(node.get("batch_dims", 0))
    if not batch:
        return x[_coordinates(x, places)]
    shape = x.shape[:batch]
    flat, found = x.flatten(0, batch - 1), places.flatten(0, batch - 1)
    rows = [x_row[_coordinates(x_row, p_row)] for x_row, p_row in zip(flat, found, strict=True)]
    stacked = torch.stack(rows)
    return stacked.reshape((*shape, *stacked.shape[1:]))


@INDEXING.operator("ScatterND")
def _scatter_nd(node: Node, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    reduction = node.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise node.refuse(f"reduction {reduction}")
    return x.index_put(_coordinates(x, places), updates, accumulate=reduction == "add")


@INDEXING.operator("ScatterElements", "Scatter")
def _scatter_elements(node: Node, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    found = _from_front(places, x.shape[axis])
    reduction = node.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, found, updates)
    return x.scatter_reduce(axis, found, updates, _REDUCTIONS[reduction])


@INDEXING.operator("OneHot")
def _one_hot(node: Node, places: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size = integers(depth)[0]
    found = _from_front(places, size)
    inside = ((found >= 0) & (found < size))[..., None]
    hot = (found[..., None] == torch.arange(size)) & inside
    return torch.where(hot, values[1], values[0]).movedim(-1, node.get("axis", -1))


@INDEXING.operator("NonZero")
def _non_zero(node: Node, x: Tensor) -> Tensor:
    return torch.nonzero(x).t() if x.dim() else torch.nonzero(x.reshape(1)).t()


@INDEXING.operator("Compress")
def _compress(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    axis = node.get("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@INDEXING.operator("ai.onnx.ml:ArrayFeatureExtractor")
def _array_feature_extractor(node: Node, x: Tensor, places: Tensor) -> Tensor:
    if not torch.is_tensor(x):
        raise node.refuse("strings")
    taken = x.index_select(-1, places.reshape(-1).to(torch.int64))
    return taken if x.dim() > 1 else taken.reshape(1, -1)


@INDEXING.operator("SequenceConstruct")
def _sequence_construct(node: Node, *items: Tensor) -> list[Tensor]:
    return list(items)


@INDEXING.operator("SequenceEmpty")
def _sequence_empty(node: Node) -> list[Tensor]:
    return []


@INDEXING.operator("SequenceAt")
def _sequence_at(node: Node, items: list[Tensor], place: Tensor) -> Tensor:
    return items[int(place)]


@INDEXING.operator("SequenceLength")
def _sequence_length(node: Node, items: list[Tensor]) -> Tensor:
    return torch.tensor(len(items), dtype=torch.int64)


@INDEXING.operator("SequenceInsert")
def _sequence_insert(
    node: Node, items: list[Tensor], item: Tensor, place: Tensor | None = None
) -> list[Tensor]:
    at = len(items) if place is None else axis_of(int(place), len(items))
    return [*items[:at], item, *items[at:]]


@INDEXING.operator("ConcatFromSequence")
def _concat_from_sequence(node: Node, items: list[Tensor]) -> Tensor:
    join = torch.stack if node.get("new_axis", 0) else torch.cat
    return join(items, node.get("axis"))


@INDEXING.operator("SplitToSequence")
def _split_to_sequence(node: Node, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis = axis_of(node.get("axis", 0), x.dim())
    if sizes is None:
        parts = torch.split(x, 1, axis)
        return list(parts) if node.get("keepdims", 1) else [p.squeeze(axis) for p in parts]
    found = integers(sizes)
    return list(torch.split(x, found if sizes.dim() else found[0], axis))
