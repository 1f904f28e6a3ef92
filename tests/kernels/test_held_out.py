import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxslim_tk.kernels.held_out import fit_rows


def held_quarter(rows: int) -> NDArray[np.bool_]:
    return np.asarray(np.arange(rows) % 4 == 3)


@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5))
def test_enough_exact_rows_give_back_the_weights(
    seed: int, groups: int, width: int, made: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(groups, 400, width)) + 3).astype(np.float32)
    weight = rng.normal(size=(groups, made, width))
    y = (x @ weight.transpose(0, 2, 1) + 5).astype(np.float32)
    got = fit_rows(x, y, np.zeros_like(weight), [held_quarter(400)])
    np.testing.assert_allclose(got, weight, rtol=0.02, atol=0.02)


def test_rows_that_repeat_a_few_samples_leave_good_weights_nearly_alone() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1, 4, 60))
    samples = rng.normal(size=(16, 60))
    # Rows of one sample are nearly alike: 640 rows show little more than 16 do.
    x = (samples.repeat(40, 0) + 0.01 * rng.normal(size=(640, 60))).astype(np.float32)[None]
    noise = rng.normal(size=(16, 4)).repeat(40, 0)
    y = (x @ weight[0].T + noise).astype(np.float32)
    held = (np.arange(16) % 4 == 3).repeat(40)
    got = fit_rows(x, y, weight, [held])
    plain = np.linalg.lstsq(x[0] - x[0].mean(0), y[0] - y[0].mean(0), rcond=None)[0].T
    assert np.linalg.norm(got - weight) < 0.2 * np.linalg.norm(plain - weight)


def test_fewer_rows_than_inputs_give_the_same_as_more() -> None:
    rng = np.random.default_rng(1)
    few, weight = rng.normal(size=(1, 40, 60)).astype(np.float32), rng.normal(size=(1, 4, 60))
    y = (few @ weight[0].T + 0.1 * rng.normal(size=(40, 4))).astype(np.float32)
    folds = [np.arange(40) < 10, np.arange(40) >= 30]
    # The same rows twice are more than inputs, and say the same.
    twice = fit_rows(
        np.tile(few, (1, 2, 1)), np.tile(y, (1, 2, 1)), 0.5 * weight, [np.tile(f, 2) for f in folds]
    )
    np.testing.assert_allclose(fit_rows(few, y, 0.5 * weight, folds), twice, atol=1e-3)


@pytest.mark.parametrize("held", [[], [np.zeros(8, bool)], [np.ones(8, bool)]])
def test_some_rows_but_not_all_are_held_out(held: list[NDArray[np.bool_]]) -> None:
    x = np.ones((1, 8, 2), np.float32)
    with pytest.raises(ValueError, match="not all or none"):
        fit_rows(x, x, np.zeros((1, 2, 2)), held)
