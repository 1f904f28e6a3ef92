import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import floats, gradient_is_right, ints, same_as_the_runtime

far = st.integers(-12, 12) | st.sampled_from([2**63 - 1, -(2**63) + 1])


@settings(max_examples=60)
@given(start=far, end=far, step=st.integers(-3, 3).filter(bool))
def test_slices_from_anywhere_to_anywhere(start: int, end: int, step: int) -> None:
    # The runtime takes the largest number for a beginning, going backwards.
    assume(step > 0 or max(start, end) < 2**62)
    constants = {"s": ints(start), "e": ints(end), "a": ints(1), "p": ints(step)}
    same_as_the_runtime("y = Slice(x, s, e, a, p)", {"x": floats(2, 7)}, constants)


def test_slices_of_old() -> None:
    text = "y = Slice<axes=[2, 0], starts=[-3, 0], ends=[9, 1]>(x)"
    same_as_the_runtime(text, {"x": floats(2, 3, 4)}, opset=9)
    gradient_is_right(text, {"x": floats(2, 3, 4)}, opset=9)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_padding_in_every_mode(mode: str) -> None:
    text = f'y = Pad<mode="{mode}">(x, p)'
    pads = {"p": ints(0, 1, 2, 0, 0, 1)}
    opset = 19 if mode == "wrap" else 17
    same_as_the_runtime(text, {"x": floats(2, 3, 4)}, pads, opset)
    gradient_is_right(text, {"x": floats(2, 3, 4)}, pads, opset)


def test_padding_of_every_age() -> None:
    x = {"x": floats(2, 3, 4)}
    same_as_the_runtime("y = Pad<pads=[0, 1, -1, 0, 0, 1], value=2.5>(x)", x, opset=10)
    value = {"p": ints(0, 1, 0, -1, 0, 1), "v": np.array(1.5, np.float32)}
    same_as_the_runtime("y = Pad(x, p, v)", x, value, 13)
    axes = {"p": ints(1, 2, 0, 1), "v": np.array(1.5, np.float32), "a": ints(-1, 0)}
    same_as_the_runtime("y = Pad(x, p, v, a)", x, axes, 18)


@pytest.mark.parametrize("shape", [(0, -1), (2, 0, 2, 2), (24,), (1, -1, 4)])
def test_reshapes(shape: tuple[int, ...]) -> None:
    same_as_the_runtime("y = Reshape(x, s)", {"x": floats(2, 3, 4)}, {"s": ints(*shape)})


def test_a_zero_may_mean_zero() -> None:
    x = {"x": np.zeros((0, 3), np.float32)}
    same_as_the_runtime("y = Reshape<allowzero=1>(x, s)", x, {"s": ints(3, 0)})


@pytest.mark.parametrize("axis", [0, 1, 2, -1, 3])
def test_flattening(axis: int) -> None:
    same_as_the_runtime(f"y = Flatten<axis={axis}>(x)", {"x": floats(2, 3, 4)})


def test_axes_as_attributes_and_as_inputs() -> None:
    same_as_the_runtime("y = Squeeze<axes=[0, -1]>(x)", {"x": floats(1, 3, 1)}, opset=11)
    same_as_the_runtime("y = Squeeze(x, a)", {"x": floats(1, 3, 1)}, {"a": ints(-1)})
    same_as_the_runtime("y = Squeeze(x)", {"x": floats(1, 3, 1)})
    same_as_the_runtime("y = Unsqueeze<axes=[0, 3]>(x)", {"x": floats(2, 3)}, opset=11)
    same_as_the_runtime("y = Unsqueeze(x, a)", {"x": floats(2, 3)}, {"a": ints(-1, 0)})


def test_splits_of_every_age() -> None:
    x = {"x": floats(2, 5)}
    same_as_the_runtime("y, z = Split<axis=1, split=[2, 3]>(x)", x, opset=11)
    same_as_the_runtime("y, z = Split<axis=1>(x, s)", x, {"s": ints(4, 1)}, 13)
    same_as_the_runtime("y, z = Split<axis=-1, num_outputs=2>(x)", x, opset=18)
    same_as_the_runtime("y, z = Split(x)", x, opset=13)


def test_joining_and_repeating_have_their_gradients() -> None:
    feeds = {"x": floats(2, 3), "w": floats(2, 2, seed=1)}
    for text, constants in (
        ("y = Concat<axis=-1>(x, w)", {}),
        ("h = Transpose<perm=[1, 0]>(x) y = MatMul(h, w)", {}),
        ("h = Tile(x, r) y = Concat<axis=1>(h, w)", {"r": ints(1, 2)}),
        ("h = Expand(x, r) i = ReduceSum(h) y = Add(i, w)", {"r": ints(4, 1, 3)}),
    ):
        same_as_the_runtime(text, feeds, constants)
        gradient_is_right(text, feeds, constants)


def test_shapes_and_what_is_made_of_them() -> None:
    x = {"x": floats(2, 3, 4)}
    same_as_the_runtime("y = Shape(x) z = Size(x)", x)
    same_as_the_runtime("y = Shape<start=1, end=-1>(x)", x)
    same_as_the_runtime("h = Shape(x) y = ConstantOfShape(h)", x)
    same_as_the_runtime("h = Shape(x) y = ConstantOfShape<value = float[1] {2.5}>(h)", x)
    same_as_the_runtime("y = Transpose(x)", x)


@pytest.mark.parametrize("upper", [0, 1])
def test_triangles(upper: int) -> None:
    text = f"y = Trilu<upper={upper}>(x, k)"
    same_as_the_runtime(text, {"x": floats(2, 4, 4)}, {"k": np.array(1)})
    same_as_the_runtime(f"y = Trilu<upper={upper}>(x)", {"x": floats(4, 4)})


def test_ranges_and_constants() -> None:
    x = {"x": np.array(1.5, np.float32)}
    numbers = {"a": np.array(5.0, np.float32), "d": np.array(0.5, np.float32)}
    same_as_the_runtime("y = Range(x, a, d)", x, numbers)
    same_as_the_runtime("c = Constant<value_float=2.5>() y = Add(x, c)", x)
    same_as_the_runtime("c = Constant<value_ints=[1, 2]>() z = Identity(c) y = Neg(x)", x)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_and_back(mode: str) -> None:
    text = f'y = DepthToSpace<blocksize=2, mode="{mode}">(x)'
    same_as_the_runtime(text, {"x": floats(1, 8, 2, 3)})
    gradient_is_right(text, {"x": floats(1, 8, 2, 3)})
    same_as_the_runtime("y = SpaceToDepth<blocksize=2>(x)", {"x": floats(1, 2, 4, 6)})


def test_sequences_are_reversed_as_far_as_they_go() -> None:
    for axes in ("time_axis=0, batch_axis=1", "time_axis=1, batch_axis=0"):
        text = f"y = ReverseSequence<{axes}>(x, n)"
        same_as_the_runtime(text, {"x": floats(4, 4, 2)}, {"n": ints(1, 4, 2, 3)})


def test_the_identity_matrix() -> None:
    same_as_the_runtime("y = EyeLike<k=1>(x)", {"x": floats(3, 4)})
