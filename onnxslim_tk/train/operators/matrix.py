"""Products of matrices, sums along axes, and what chooses along an axis."""

from collections.abc import Callable

import torch

from onnxslim_tk.train.rules import Node, Rule, Rules, Tensor, axis_of, integers

MATRIX = Rules()
MATRIX.same(MatMul=torch.matmul, Det=torch.det)


@MATRIX.operator("Gemm")
def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if node.get("transA", 0) else a
    b = b.t() if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if c is not None and c.dim() <= 2 and a.is_floating_point():
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + beta * c


@MATRIX.operator("com.microsoft:FusedMatMul")
def _fused_matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    if node.get("transBatchA", 0) or node.get("transBatchB", 0):
        raise node.refuse("transposed batches")
    a = a.transpose(-1, -2) if node.get("transA", 0) else a
    b = b.transpose(-1, -2) if node.get("transB", 0) else b
    return node.get("alpha", 1.0) * torch.matmul(a, b)


@MATRIX.operator("Einsum")
def _einsum(node: Node, *inputs: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *inputs)


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor], floats: bool = False) -> Rule:
    """The rule of a reduction; ``floats`` where PyTorch reduces nothing else."""

    def rule(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        if floats and not x.is_floating_point():
            raise node.refuse("integers")
        found = node.ints("axes", axes)
        if not found:
            if node.get("noop_with_empty_axes", 0):
                # No axis goes, but an element is squared, say, all the same.
                return function(x[..., None], [-1], False)
            found = list(range(x.dim()))
        if not x.dim():
            return function(x.reshape(1), [0], False)
        return function(x, found, bool(node.get("keepdims", 1)))

    return rule


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis_of(axis, x.dim()) for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.linalg.vector_norm(x, dim=axes, keepdim=keep)


MATRIX.update(
    ReduceL1=_reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    ReduceL2=_reduction(_l2, floats=True),
    ReduceLogSum=_reduction(lambda x, axes, keep: x.sum(axes, keep).log(), floats=True),
    ReduceLogSumExp=_reduction(torch.logsumexp, floats=True),
    ReduceMax=_reduction(torch.amax),
    ReduceMean=_reduction(torch.mean, floats=True),
    ReduceMin=_reduction(torch.amin),
    ReduceProd=_reduction(_product),
    ReduceSum=_reduction(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype)),
    ReduceSumSquare=_reduction(lambda x, axes, keep: (x * x).sum(axes, keep)),
)


@MATRIX.operator("ArgMax", "ArgMin")
def _arg_extreme(node: Node, x: Tensor) -> Tensor:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    flip = node.get("select_last_index", 0)
    x = x.flip(axis) if flip else x
    extreme = x.amax(axis, keepdim=True) if node.kind == "ArgMax" else x.amin(axis, keepdim=True)
    # Of equal values, PyTorch's own argmax may take any.
    first = (x == extreme).to(torch.uint8).cumsum(axis).eq(0).sum(axis, keepdim=keep)
    return x.shape[axis] - 1 - first if flip else first


@MATRIX.operator("TopK")
def _top_k(node: Node, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    k = int(node.get("k") if count is None else integers(count)[0])
    axis, largest = node.get("axis", -1), bool(node.get("largest", 1))
    # A stable sort: of equal values the first is taken, as the runtime does.
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)


@MATRIX.operator("CumSum")
def _cum_sum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    k = integers(axis)[0]
    x = x.flip(k) if node.get("reverse", 0) else x
    total = torch.cumsum(x, k, dtype=x.dtype)
    if node.get("exclusive", 0):
        total = total - x
    return total.flip(k) if node.get("reverse", 0) else total


def _normalized(function: Callable[..., Tensor]) -> Rule:
    def rule(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.get("axis", -1))
        # Before, all axes from this one on were one.
        axis = axis_of(node.get("axis", 1), x.dim())
        return function(x.flatten(axis) if axis < x.dim() else x[..., None], -1).reshape(x.shape)

    return rule


MATRIX.update(Softmax=_normalized(torch.softmax), LogSoftmax=_normalized(torch.log_softmax))


@MATRIX.operator("Hardmax")
def _hardmax(node: Node, x: Tensor) -> Tensor:
    def chosen(flat: Tensor, axis: int) -> Tensor:
        place = flat.argmax(axis, keepdim=True)
        return torch.zeros_like(flat).scatter(axis, place, 1)

    return _normalized(chosen)(node, x)
