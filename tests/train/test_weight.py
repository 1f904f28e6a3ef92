import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from onnx import helper

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.train.program import Constant
from onnxslim_tk.train.weight import Weight
from tests.models import Array, normal


def constant(values: Array) -> Constant:
    return Constant(values, helper.np_dtype_to_tensor_dtype(values.dtype))


floats = st.floats(-100, 100, width=16)


@settings(max_examples=60)
@given(
    values=st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda kind: st_numpy.arrays(kind, (8, 6), elements=floats)
    ),
    is_matrix=st.booleans(),
)
def test_floats_that_nobody_trained_come_back_to_the_bit(values: Array, is_matrix: bool) -> None:
    stored = Weight(constant(values), is_matrix).stored()
    assert stored.dtype == values.dtype
    np.testing.assert_array_equal(stored, values)


@settings(max_examples=60)
@given(
    values=st.sampled_from([np.int8, np.uint8, np.int32]).flatmap(
        lambda kind: st_numpy.arrays(kind, (8, 6))
    ),
    scale=st.floats(1e-6, 10),
    zero=st.integers(-3, 3),
    is_matrix=st.booleans(),
)
def test_integers_that_nobody_trained_come_back_to_the_bit(
    values: Array, scale: float, zero: int, is_matrix: bool
) -> None:
    weight = Weight(constant(values), is_matrix, np.full((8, 1), scale), np.full((1,), zero))
    np.testing.assert_array_equal(weight.stored(), values)


def test_few_values_are_a_codebook_whose_entries_are_trained() -> None:
    entries = np.array([-1, -0.5, 0.25, 2], np.float32)
    codes = np.random.default_rng(0).integers(0, 4, (16, 8))
    weight = Weight(constant(entries[codes]), True)
    assert weight.value.shape == (4, 1)
    weight.dense().sum().backward()
    counts = {entry: np.sum(entries[codes] == entry) for entry in entries}
    found = dict(zip(weight.value.detach().reshape(-1).tolist(), weight.value.grad, strict=True))
    assert {value: float(grad) for value, grad in found.items()} == counts
    with torch.no_grad():
        weight.value.add_(0.125)
    np.testing.assert_array_equal(weight.stored(), entries[codes] + np.float32(0.125))


def test_few_rows_are_a_codebook_too() -> None:
    rows = normal(0, 100, 4)
    values = rows[np.random.default_rng(0).integers(0, 100, (512, 2))].reshape(512, 8)
    weight = Weight(constant(values), True)
    assert weight.value.shape == (100, 4)
    np.testing.assert_array_equal(weight.stored(), values)


def test_pruned_weights_stay_zero() -> None:
    values = normal(0, 8, 6)
    values[np.abs(values) < 0.7] = 0
    weight = Weight(constant(values), True)
    with torch.no_grad():
        weight.value.add_(1.0)
    np.testing.assert_array_equal(weight.stored() == 0, values == 0)
    weight.dense().sum().backward()
    np.testing.assert_array_equal(weight.value.grad.numpy() == 0, values == 0)


def test_codes_of_seven_bits_stay_so() -> None:
    values = np.random.default_rng(0).integers(-63, 64, (64, 32)).astype(np.int8)
    weight = Weight(constant(values), True, np.full((64, 1), 0.1))
    with torch.no_grad():
        weight.value.add_(1.0)
    np.testing.assert_array_equal(weight.stored(), np.minimum(values + 10, 63))


def test_a_grid_whose_rare_values_are_missing_is_no_codebook() -> None:
    values = np.random.default_rng(0).integers(-63, 64, (64, 32)).astype(np.int8)
    values[np.abs(values) == 60] = 59
    assert Weight(constant(values), True, np.full((64, 1), 0.1)).codes is None


def test_a_bias_of_zeros_is_no_pruned_weight() -> None:
    assert Weight(constant(np.zeros(4, np.float32)), False).is_plain
    assert Weight(constant(np.zeros((4, 4), np.float32)), True).is_plain


def test_integers_move_when_their_value_has_moved_by_a_scale() -> None:
    values = np.random.default_rng(0).integers(-127, 128, (64, 32)).astype(np.int8)
    scale = np.linspace(0.01, 0.1, 64)[:, None]
    weight = Weight(constant(values), True, scale)
    np.testing.assert_allclose(weight.value.detach().numpy(), values * scale, rtol=1e-6)
    with torch.no_grad():
        weight.value.add_(torch.from_numpy(3 * scale))
    np.testing.assert_array_equal(weight.stored(), np.minimum(values + 3.0, 127).astype(np.int8))
    weight.dense().sum().backward()
    assert bool((weight.value.grad[:, 0] > 0).any())


def test_a_grid_of_four_bits_stays_within_them() -> None:
    values = np.random.default_rng(0).integers(-7, 8, (64, 32)).astype(np.int8)
    weight = Weight(constant(values), True, np.full(1, 0.1))
    assert weight.codes is None
    with torch.no_grad():
        weight.value.mul_(2)
    stored = weight.stored()
    assert stored.min() == -7
    assert stored.max() == 7


def test_integers_with_gaps_are_a_codebook() -> None:
    entries = np.array([-90, -20, 5, 70], np.int8)
    values = entries[np.random.default_rng(0).integers(0, 4, (64, 32))]
    weight = Weight(constant(values), True, np.linspace(0.01, 0.1, 64)[:, None])
    assert weight.value.numel() == 4
    np.testing.assert_array_equal(weight.stored(), values)


def test_sixteen_bits_are_trained_in_thirty_two() -> None:
    values = normal(0, 5, 7).astype(np.float16)
    weight = Weight(constant(values), True)
    assert weight.value.dtype == torch.float32
    with torch.no_grad():
        weight.value.add_(1e-6)
    dense = weight.dense().detach().numpy()
    np.testing.assert_array_equal(dense, dense.astype(np.float16))


def test_codes_follow_the_shadow_of_single_values() -> None:
    entries = np.array([-1.0, 0.5, 2.0], np.float32)
    stored = entries[np.random.default_rng(0).integers(0, 3, (8, 8))]
    weight = Weight(constant(stored), True)
    assert weight.reassign() == 0
    weight.loosen()
    np.testing.assert_array_equal(weight.stored(), stored)
    weight.dense().sum().backward()
    assert weight.shadow is not None
    assert weight.shadow.grad is not None
    with torch.no_grad():
        weight.shadow[0, 0] = 1.9
        weight.shadow[0, 1] = -0.8
    changed = int(stored[0, 0] != 2) + int(stored[0, 1] != -1)
    assert weight.reassign() == changed
    expected = stored.copy()
    expected[0, :2] = 2.0, -1.0
    np.testing.assert_array_equal(weight.stored(), expected)


def test_few_rows_of_integers_are_a_codebook_and_a_narrow_grid_is_none() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-127, 128, (32, 2)).astype(np.int8)
    values = rows[rng.integers(0, 32, (64, 16))].reshape(64, 32)
    weight = Weight(constant(values), True, np.full((64, 1), 0.01))
    assert weight.value.shape == (32, 2)
    np.testing.assert_array_equal(weight.stored(), values)
    with torch.no_grad():
        weight.value.mul_(0.7)
    assert len(np.unique(weight.stored().reshape(-1, 2), axis=0)) <= 32
    for most in (1, 3, 7):
        grid = rng.integers(-most, most + 1, (64, 32)).astype(np.int8)
        assert Weight(constant(grid), True, np.full(1, 0.1)).codes is None
