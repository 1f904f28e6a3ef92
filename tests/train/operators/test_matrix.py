import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import apart, floats, gradient_is_right, ints, positive, same_as_the_runtime


@pytest.mark.parametrize("shapes", [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (2, 3, 4))])
def test_products_of_any_rank(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    feeds = {"x": floats(*shapes[0]), "w": floats(*shapes[1], seed=1)}
    same_as_the_runtime("y = MatMul(x, w)", feeds)
    gradient_is_right("y = MatMul(x, w)", feeds)


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1])
def test_gemm_with_all_its_settings(a: int, b: int) -> None:
    feeds = {
        "x": floats(3, 2) if a else floats(2, 3),
        "w": floats(4, 3, seed=1) if b else floats(3, 4, seed=1),
        "c": floats(4, seed=2),
    }
    text = f"y = Gemm<transA={a}, transB={b}, alpha=0.5, beta=2.0>(x, w, c)"
    same_as_the_runtime(text, feeds)
    gradient_is_right(text, feeds)
    feeds.pop("c")
    same_as_the_runtime(text.replace(", c)", ")"), feeds)


def test_einsum() -> None:
    feeds = {"x": floats(2, 3, 4), "w": floats(2, 4, 5, seed=1)}
    same_as_the_runtime('y = Einsum<equation="bij,bjk->bik">(x, w)', feeds)
    gradient_is_right('y = Einsum<equation="bij,bjk->bik">(x, w)', feeds)


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_over_no_axis_still_square_and_such(name: str) -> None:
    text = f"y = Reduce{name}<noop_with_empty_axes=1>(x)"
    same_as_the_runtime(text, {"x": positive(2, 3) * (-1 if name == "L1" else 1)}, {}, 18)


def test_the_runtime_reduces_integers_that_no_rule_does() -> None:
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    same_as_the_runtime("y = ReduceMean<axes=[1]>(x)", {"x": x}, detached=True)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    x = {"x": positive(2, 3, 4) + apart(2, 3, 4) ** 2}
    for call in ("<axes=[1]>", "<axes=[-1, 0], keepdims=0>", ""):
        if name == "Sum":
            continue
        same_as_the_runtime(f"y = Reduce{name}{call}(x)", x, opset=11)
    same_as_the_runtime(f"y = Reduce{name}<keepdims=0>(x, a)", x, {"a": ints(1, -1)}, 18)
    same_as_the_runtime(f"y = Reduce{name}<noop_with_empty_axes=1>(x, a)", x, {"a": ints(-2)}, 18)
    gradient_is_right(f"y = Reduce{name}<keepdims=0>(x, a)", x, {"a": ints(1)}, 18)


def test_a_reduction_over_no_axes_may_be_none() -> None:
    same_as_the_runtime("y = ReduceSum<noop_with_empty_axes=1>(x)", {"x": floats(2, 3)})


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_before_and_after_its_change(opset: int, name: str) -> None:
    x = {"x": floats(2, 3, 4)}
    for call in ("", "<axis=1>", "<axis=0>", "<axis=-1>"):
        same_as_the_runtime(f"y = {name}{call}(x)", x, opset=opset)
    if name != "Hardmax":
        gradient_is_right(f"y = {name}<axis=1>(x)", x, opset=opset)


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
def test_of_equal_extremes_the_first_or_the_last(name: str) -> None:
    x = {"x": np.array([[1, 3, 3, 0, 0], [2, 2, 2, 2, 2]], np.float32)}
    for call in ("<axis=1>", "<axis=0, keepdims=0>", "<axis=1, select_last_index=1>"):
        same_as_the_runtime(f"y = {name}{call}(x)", x, opset=13)


@pytest.mark.parametrize("largest", [0, 1])
def test_the_top_k(largest: int) -> None:
    text = f"y, z = TopK<axis=1, largest={largest}>(x, k)"
    same_as_the_runtime(text, {"x": apart(3, 5)}, {"k": ints(2)})
    gradient_is_right(text, {"x": apart(3, 5)}, {"k": ints(2)})


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
def test_cumulative_sums(reverse: int, exclusive: int) -> None:
    text = f"y = CumSum<reverse={reverse}, exclusive={exclusive}>(x, a)"
    same_as_the_runtime(text, {"x": floats(2, 4)}, {"a": np.array(1)})
    gradient_is_right(text, {"x": floats(2, 4)}, {"a": np.array(1)})
