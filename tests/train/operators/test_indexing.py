import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import floats, gradient_is_right, ints, same_as_the_runtime


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(2,), (2, 2), ()])
def test_gather_along_any_axis(axis: int, shape: tuple[int, ...]) -> None:
    places = {"i": np.resize(ints(1, -1, 0, 1), shape)}
    for rank in (2, 3):
        text = f"y = Gather<axis={axis}>(x, i)"
        same_as_the_runtime(text, {"x": floats(*[3] * rank)}, places)
        gradient_is_right(text, {"x": floats(*[3] * rank)}, places)


def test_gather_of_elements_and_points() -> None:
    x = {"x": floats(3, 4)}
    elements = {"i": np.array([[0, -1], [2, 1]])}
    same_as_the_runtime("y = GatherElements<axis=1>(x, i)", x, elements)
    gradient_is_right("y = GatherElements<axis=1>(x, i)", x, elements)
    points = {"i": np.array([[0, 1], [-1, 3]])}
    same_as_the_runtime("y = GatherND(x, i)", x, points)
    gradient_is_right("y = GatherND(x, i)", x, points)
    rows = {"i": np.array([[1], [0], [3]])}
    same_as_the_runtime("y = GatherND<batch_dims=1>(x, i)", x, rows)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_of_elements(reduction: str) -> None:
    feeds = {"x": floats(3, 4), "u": floats(2, 2, seed=1)}
    text = f'y = ScatterElements<axis=1, reduction="{reduction}">(x, i, u)'
    places = {"i": np.array([[0, -1], [2, 1]])}
    same_as_the_runtime(text, feeds, places, 18)
    gradient_is_right(text, feeds, places, 18)


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_of_points(reduction: str) -> None:
    feeds = {"x": floats(3, 4), "u": floats(2, 4, seed=1)}
    text = f'y = ScatterND<reduction="{reduction}">(x, i, u)'
    same_as_the_runtime(text, feeds, {"i": np.array([[2], [0]])})
    gradient_is_right(text, feeds, {"i": np.array([[2], [0]])})


def test_one_hot_leaves_out_what_is_out_of_range() -> None:
    constants = {"d": np.array(4), "v": np.array([-1.0, 2.0], np.float32)}
    for axis in (-1, 0):
        text = f"y = OneHot<axis={axis}>(i, d, v)"
        same_as_the_runtime(text, {"i": np.array([[0, -1], [7, 3]])}, constants)


def test_choosing_by_condition() -> None:
    x = {"x": np.array([[1, 0, 2], [0, 0, 3]], np.float32)}
    same_as_the_runtime("y = NonZero(x)", x)
    condition = {"c": np.array([True, False, True])}
    same_as_the_runtime("y = Compress<axis=1>(x, c)", x, condition)
    same_as_the_runtime("y = Compress(x, c)", x, condition)
    gradient_is_right("y = Compress<axis=1>(x, c)", x, condition)


def test_features_are_extracted_from_arrays() -> None:
    text = "y = ai.onnx.ml.ArrayFeatureExtractor(x, i)"
    for shape in ((2, 4), (4,)):
        same_as_the_runtime(
            text, {"x": floats(*shape)}, {"i": ints(2, 0)}, domains=', "ai.onnx.ml" : 1'
        )


def test_tensors_travel_in_sequences() -> None:
    feeds = {"x": floats(2, 3), "w": floats(2, 3, seed=1)}
    for text in (
        "s = SequenceConstruct(x, w) y = ConcatFromSequence<axis=1>(s)",
        "s = SequenceConstruct(x, w) y = ConcatFromSequence<axis=0, new_axis=1>(s)",
        "s = SequenceConstruct(x, w) y = SequenceAt(s, i)",
        "s = SplitToSequence<axis=1>(x) h = SequenceAt(s, i) y = Add(h, w)",
        "s = SplitToSequence<axis=1, keepdims=0>(x) h = SequenceAt(s, i) "
        "k = Unsqueeze(h, i) y = Add(k, w)",
        "s = SequenceEmpty() t = SequenceInsert(s, x) u = SequenceInsert(t, w, j) "
        "y = ConcatFromSequence<axis=1>(u) z = SequenceLength(u)",
    ):
        numbers = {name: np.array(k) for name, k in (("i", 1), ("j", 0)) if f" {name})" in text}
        if "Unsqueeze" in text:
            numbers["i"] = np.array(1)
            text = text.replace("(h, i)", "(h, a)")
            numbers["a"] = ints(1)
        same_as_the_runtime(text, feeds, numbers)
        gradient_is_right(text, feeds, numbers)
