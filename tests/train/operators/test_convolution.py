import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import apart, floats, gradient_is_right, same_as_the_runtime

MODES = ("", ', auto_pad="SAME_UPPER"', ', auto_pad="SAME_LOWER"', ', auto_pad="VALID"')


@settings(max_examples=40)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    group=st.sampled_from([1, 2, 4]),
    size=st.integers(6, 9),
)
def test_convolutions_of_any_geometry(
    kernel: int, stride: int, dilation: int, pads: tuple[int, ...], group: int, size: int
) -> None:
    assume((kernel - 1) * dilation + 1 <= size)
    text = (
        f"y = Conv<strides=[{stride}, 1], dilations=[{dilation}, 1], group={group}, "
        f"pads={list(pads)}>(x, w, b)"
    )
    w, b = floats(8, 4 // group, kernel, 3, seed=1), floats(8, seed=2)
    same_as_the_runtime(text, {"x": floats(2, 4, size, size)}, {"w": w, "b": b})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2])
def test_automatic_padding(mode: str, stride: int) -> None:
    feeds = {"x": floats(1, 2, 7, 6), "w": floats(2, 2, 3, 4, seed=1)}
    text = f"y = Conv<strides=[{stride}, {stride}]{mode}>(x, w)"
    same_as_the_runtime(text, feeds)
    gradient_is_right(text, feeds)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_any_rank(rank: int) -> None:
    feeds = {"x": floats(1, 4, *[5] * rank), "w": floats(4, 2, *[3] * rank, seed=1)}
    feeds["b"] = floats(4, seed=2)
    same_as_the_runtime("y = Conv<group=2>(x, w, b)", feeds)
    if rank < 3:
        gradient_is_right("y = Conv<group=2>(x, w, b)", feeds)


def test_depthwise_convolution_has_its_gradient() -> None:
    feeds = {"x": floats(1, 3, 5, 5), "w": floats(3, 1, 3, 3, seed=1)}
    gradient_is_right("y = Conv<group=3, pads=[0, 1, 1, 0]>(x, w)", feeds)


TRANSPOSES = (
    "<strides=[2, 2]>",
    "<strides=[2, 2], pads=[1, 1, 1, 1]>",
    "<strides=[2, 2], pads=[0, 1, 1, 0], output_padding=[1, 1]>",
    "<strides=[3, 2], dilations=[2, 1]>",
    "<strides=[2, 2], output_shape=[9, 9]>",
    '<strides=[2, 2], auto_pad="SAME_UPPER">',
    '<strides=[2, 2], auto_pad="SAME_LOWER">',
    '<strides=[2, 2], auto_pad="VALID">',
)


@pytest.mark.parametrize("call", TRANSPOSES)
def test_transposed_convolutions(call: str) -> None:
    feeds = {"x": floats(1, 4, 4, 4), "w": floats(4, 3, 3, 3, seed=1), "b": floats(3, seed=2)}
    same_as_the_runtime(f"y = ConvTranspose{call}(x, w, b)", feeds)
    gradient_is_right(f"y = ConvTranspose{call}(x, w, b)", feeds)


def test_transposed_convolution_in_groups() -> None:
    feeds = {"x": floats(1, 4, 4), "w": floats(4, 2, 3, seed=1)}
    same_as_the_runtime("y = ConvTranspose<group=2, strides=[2]>(x, w)", feeds)
    gradient_is_right("y = ConvTranspose<group=2, strides=[2]>(x, w)", feeds)


@settings(max_examples=40)
@given(
    name=st.sampled_from(["MaxPool", "AveragePool", "AveragePool<count_include_pad=1>"]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    size=st.integers(5, 9),
)
def test_pooling_of_any_geometry(
    name: str, kernel: int, stride: int, pads: tuple[int, ...], size: int
) -> None:
    assume(max(pads) < kernel)
    call = name if "<" in name else f"{name}<>"
    own = f"kernel_shape=[{kernel}, {kernel}], strides=[{stride}, {stride}], pads={list(pads)}"
    joined = call.replace("<>", f"<{own}>").replace("pad=1>", f"pad=1, {own}>")
    same_as_the_runtime(f"y = {joined}(x)", {"x": floats(2, 2, size, size)})


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("mode", MODES)
def test_automatic_padding_of_pools(name: str, mode: str) -> None:
    text = f"y = {name}<kernel_shape=[3, 2], strides=[2, 2]{mode}>(x)"
    same_as_the_runtime(text, {"x": apart(1, 2, 5, 6)})
    gradient_is_right(text, {"x": apart(1, 2, 5, 6)})


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool"])
def test_a_last_window_that_is_not_full(name: str) -> None:
    text = f"y = {name}<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)"
    same_as_the_runtime(text, {"x": floats(1, 2, 6, 7)})


def test_dilated_max_pool_and_its_indices() -> None:
    x = {"x": apart(2, 3, 6, 6)}
    same_as_the_runtime("y = MaxPool<kernel_shape=[2, 2], dilations=[2, 2]>(x)", x)
    same_as_the_runtime("y, z = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x)", x)


@pytest.mark.parametrize("name", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(name: str) -> None:
    same_as_the_runtime(f"y = {name}(x)", {"x": apart(2, 3, 4, 5)})
    gradient_is_right(f"y = {name}(x)", {"x": apart(2, 3, 4, 5)})


def test_a_setting_without_a_rule_runs_without_a_gradient() -> None:
    text = "y = AveragePool<kernel_shape=[2, 2], dilations=[2, 2]>(x)"
    module = same_as_the_runtime(text, {"x": floats(1, 1, 5, 5)}, opset=19, detached=True)
    assert module.detached == ("y: AveragePool: no rule is known for AveragePool with dilations",)
