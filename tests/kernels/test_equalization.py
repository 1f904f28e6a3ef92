import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.kernels.equalization import balancing_factors, best_factors, grid_noise


@given(st.integers(0, 1000), st.integers(1, 12))
def test_the_best_factors_never_expect_more_noise(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    peaks = np.exp(2 * rng.normal(size=count))
    weights = [rng.normal(size=(5, count))]
    squares = (peaks / 3) ** 2
    factors, left = best_factors(peaks, squares, weights, apart=False)
    assert left <= 1
    assert (factors > 0).all()
    assert np.isfinite(factors).all()


def test_alpha_one_makes_peaks_alike_and_a_half_shares_their_spread() -> None:
    peaks, weights = np.array([1.0, 4.0, 16.0]), [np.ones((2, 3))]
    assert np.ptp(peaks * balancing_factors(peaks, weights, 1.0)) < 1e-9
    half = balancing_factors(peaks, weights, 0.5)
    np.testing.assert_allclose(peaks * half * half, 4.0)


def test_dead_channels_keep_their_scale() -> None:
    factors = balancing_factors(np.array([0.0, 1.0, 8.0]), [np.array([[1.0, 2.0, 1.0]])], 1.0)
    assert factors[0] == 1
    assert best_factors(np.zeros(3), np.zeros(3), [np.ones((2, 3))], apart=False)[1] == 1


def test_expected_noise_is_that_of_rounding() -> None:
    rng = np.random.default_rng(3)
    values = rng.uniform(-1, 1, (20000, 4)) * [1, 10, 2, 5]
    weight = rng.normal(size=(6, 4))
    peaks, squares = np.abs(values).max(axis=0), (values**2).mean(axis=0)
    step = peaks.max() / 255
    rows = np.abs(weight).max(axis=1, keepdims=True) / 63
    found = (np.rint(values / step) * step) @ (np.rint(weight / rows) * rows).T
    real = ((found - values @ weight.T) ** 2).mean(axis=0).sum() / (weight**2 @ squares).sum()
    expected = grid_noise(peaks, squares, [weight], np.ones(4), apart=False)
    assert 0.5 < real / expected < 2
