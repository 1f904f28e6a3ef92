import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import floats, gradient_is_right, ints, same_as_the_runtime

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


@settings(max_examples=60)
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    coordinates=st.sampled_from(COORDINATES),
    rounding=st.sampled_from(ROUNDINGS),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_resizing_to_any_size(
    mode: str, coordinates: str, rounding: str, size: tuple[int, int]
) -> None:
    text = (
        f'y = Resize<mode="{mode}", nearest_mode="{rounding}", '
        f'coordinate_transformation_mode="{coordinates}">(x, "", "", s)'
    )
    same_as_the_runtime(text, {"x": floats(1, 2, 4, 5)}, {"s": ints(1, 2, *size)}, tolerance=1e-4)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_resizing_by_scales(mode: str, coordinates: str) -> None:
    text = f'y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinates}">(x, "", s)'
    for scales in ((2, 3), (0.6, 1.7)):
        constants = {"s": np.array([1, 1, *scales], np.float32)}
        same_as_the_runtime(text, {"x": floats(1, 2, 5, 4)}, constants, tolerance=1e-4)
    gradient_is_right(text, {"x": floats(1, 1, 3, 4)}, constants)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_resizing_before_its_change(mode: str, scale: float) -> None:
    scales = {"s": np.array([1, 1, scale, scale], np.float32)}
    x = {"x": floats(1, 2, 4, 6)}
    same_as_the_runtime(f'y = Resize<mode="{mode}">(x, s)', x, scales, 10)
    if scale > 1:
        same_as_the_runtime(f'y = Upsample<mode="{mode}">(x, s)', x, scales, 9)
        call = f'Upsample<mode="{mode}", scales=[1.0, 1.0, {scale}, {scale}]>'
        same_as_the_runtime(f"y = {call}(x)", x, opset=8)


@pytest.mark.parametrize(
    ("size", "scale", "settings"),
    [
        # Twenty-six and half-way in 32 bits, a little beside both in 64.
        (10, 2.6, 'coordinate_transformation_mode="asymmetric"'),
        (7, 2.3, 'coordinate_transformation_mode="half_pixel"'),
        # As large as before, so that it is copied.
        (4, 1.23, 'coordinate_transformation_mode="asymmetric", nearest_mode="floor"'),
    ],
)
def test_scales_are_numbers_of_32_bits(size: int, scale: float, settings: str) -> None:
    scales = np.array([1, 1, 1, scale], np.float32)
    text = f'y = Resize<mode="nearest", {settings}>(x, "", s)'
    same_as_the_runtime(text, {"x": floats(1, 1, 1, size)}, {"s": scales}, 19)


def test_resizing_of_named_axes() -> None:
    text = 'y = Resize<mode="linear", axes=[3, 2]>(x, "", "", s)'
    same_as_the_runtime(text, {"x": floats(1, 2, 4, 5)}, {"s": ints(7, 3)}, 18)


def test_what_no_rule_covers_runs_in_the_runtime() -> None:
    text = 'y = Resize<mode="linear", antialias=1>(x, "", "", s)'
    x, size = {"x": floats(1, 2, 8, 8)}, {"s": ints(1, 2, 4, 4)}
    same_as_the_runtime(text, x, size, 18, detached=True)
