import pytest

pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import floats, gradient_is_right, positive, same_as_the_runtime


@pytest.mark.parametrize("opset", [8, 9, 14, 15])
def test_batch_normalization_with_the_statistics_of_the_file(opset: int) -> None:
    feeds = {"x": floats(2, 3, 4), "s": floats(3, seed=1), "b": floats(3, seed=2)}
    constants = {"m": floats(3, seed=3), "v": positive(3, seed=4)}
    text = "y = BatchNormalization<epsilon=0.01>(x, s, b, m, v)"
    same_as_the_runtime(text, feeds, constants, opset)
    gradient_is_right(text, feeds, constants, opset)


def test_batch_normalization_of_rows() -> None:
    feeds = {"x": floats(5, 3), "s": floats(3, seed=1), "b": floats(3, seed=2)}
    constants = {"m": floats(3, seed=3), "v": positive(3, seed=4)}
    same_as_the_runtime("y = BatchNormalization(x, s, b, m, v)", feeds, constants)


def test_a_single_element_is_normalized_too() -> None:
    feeds = {"x": floats(2, 4, 1, 1), "s": floats(4, seed=1), "b": floats(4, seed=2)}
    same_as_the_runtime("y = InstanceNormalization(x, s, b)", feeds)


def test_instance_normalization() -> None:
    feeds = {"x": floats(2, 3, 4, 5), "s": floats(3, seed=1), "b": floats(3, seed=2)}
    same_as_the_runtime("y = InstanceNormalization(x, s, b)", feeds)
    gradient_is_right("y = InstanceNormalization(x, s, b)", feeds)


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_normalization(axis: int) -> None:
    shape = (4,) if axis == -1 else (3, 4)
    feeds = {"x": floats(2, 3, 4), "s": floats(*shape, seed=1), "b": floats(*shape, seed=2)}
    text = f"y = LayerNormalization<axis={axis}>(x, s, b)"
    same_as_the_runtime(text, feeds)
    gradient_is_right(text, feeds)
    feeds.pop("b")
    same_as_the_runtime(text.replace(", b)", ")"), feeds)


def test_layer_normalization_gives_its_statistics_too() -> None:
    feeds = {"x": floats(2, 3, 4), "s": floats(4, seed=1), "b": floats(4, seed=2)}
    same_as_the_runtime("y, z = LayerNormalization(x, s, b)", feeds)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_before_and_after_its_change(opset: int) -> None:
    count = 2 if opset == 18 else 4
    feeds = {"x": floats(2, 4, 3), "s": floats(count, seed=1), "b": floats(count, seed=2)}
    text = "y = GroupNormalization<num_groups=2>(x, s, b)"
    same_as_the_runtime(text, feeds, opset=opset)
    gradient_is_right(text, feeds, opset=opset)


@pytest.mark.parametrize("call", ["<p=1>", "<p=2, axis=1>", ""])
def test_lp_normalization(call: str) -> None:
    same_as_the_runtime(f"y = LpNormalization{call}(x)", {"x": floats(2, 3, 4)})
    gradient_is_right(f"y = LpNormalization{call}(x)", {"x": floats(2, 3, 4)})


def test_normalization_without_weights() -> None:
    x = {"x": floats(2, 3, 4, 5)}
    for text in (
        "y = MeanVarianceNormalization(x)",
        "y = LRN<size=3, alpha=0.1, beta=0.6, bias=2.0>(x)",
    ):
        same_as_the_runtime(text, x)
        gradient_is_right(text, x)


def test_skip_layer_normalization_of_the_runtime() -> None:
    feeds = {"x": floats(2, 3, 4), "k": floats(2, 3, 4, seed=1)}
    constants = {"s": floats(4, seed=2), "b": floats(4, seed=3), "c": floats(4, seed=4)}
    text = "y = com.microsoft.SkipLayerNormalization<epsilon=1e-5>(x, k, s, b, c)"
    same_as_the_runtime(text, feeds, constants, domains=', "com.microsoft" : 1')
