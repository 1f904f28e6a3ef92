from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxslim_tk.kernels.ranges import (
    BINS,
    METHODS,
    Histogram,
    Method,
    activation_range,
    affine_parameters,
    entropy_range,
    expected_error,
    mse_range,
    percentile_range,
)

Array = NDArray[Any]

finite = st.floats(-(2.0**100), 2.0**100, width=32)
batches = st.lists(hnp.arrays(np.float32, st.integers(0, 20), elements=finite), max_size=6)


def counted(*parts: Array) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def samples(kind: str) -> Array:
    rng = np.random.default_rng(5)
    values = {
        "normal": rng.normal(size=40000),
        "relu": np.maximum(rng.normal(size=40000), 0),
        "heavy": rng.standard_t(2, 40000),
        "uniform": rng.uniform(-1, 3, 40000),
        "negative": -rng.exponential(size=40000),
        "far": rng.normal(50, 1, 40000),
        "pixels": rng.integers(0, 256, 40000).astype(np.float64),
    }
    return values[kind]


KINDS = ["normal", "relu", "heavy", "uniform", "negative", "far", "pixels"]


def real_error(values: Array, low: float, high: float) -> float:
    scale, zero_point = affine_parameters(low, high)
    codes = np.clip(np.rint(values / float(scale)) + zero_point, 0, 255)
    return float((((codes - zero_point) * float(scale) - values) ** 2).mean())


@given(batches)
def test_a_stream_gives_the_histogram_of_one_batch_in_any_order(parts: list[Array]) -> None:
    together = np.concatenate([np.zeros(0), *parts])
    for stream in (parts, parts[::-1]):
        streamed, batch = counted(*stream), counted(together)
        assert (streamed.low, streamed.high) == (batch.low, batch.high)
        assert (streamed.total, streamed.zeros) == (batch.total, batch.zeros)
        np.testing.assert_array_equal(streamed.counts, batch.counts)
        np.testing.assert_array_equal(streamed.edges, batch.edges)


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=finite))
def test_counts_every_value_in_its_bin(values: Array) -> None:
    histogram = counted(values)
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    assert histogram.total == histogram.counts.sum() == values.size
    assert histogram.zeros == (values == 0).sum()
    assert len(histogram.counts) <= BINS
    edges = histogram.edges
    expected = np.searchsorted(edges, values.astype(np.float64), side="right") - 1
    np.testing.assert_array_equal(
        np.bincount(expected, minlength=len(histogram.counts)), histogram.counts
    )


def test_uses_at_least_half_of_its_bins() -> None:
    values = samples("relu")
    assert len(counted(values[:99], values, 3 * values).counts) > BINS // 2 - 1


@given(st.floats(0, 100), st.sampled_from(KINDS))
def test_percentiles_are_right_to_one_bin(percent: float, kind: str) -> None:
    values = samples(kind)[:2000]
    histogram = counted(values[:100], values[100:])
    value = histogram.percentile(percent)
    slack = 1.001 * histogram.width
    assert (values <= value + slack).mean() * 100 >= percent - 1e-9
    assert (values < value - slack).mean() * 100 <= percent + 1e-9
    assert histogram.low <= value <= histogram.high


def test_percentiles_need_values_and_a_percent() -> None:
    with pytest.raises(ValueError, match="needs values"):
        Histogram().percentile(50)
    with pytest.raises(ValueError, match="got 101"):
        counted(np.ones(1)).percentile(101)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Histogram().add(np.array([1.0, bad]))


@given(finite, finite)
def test_a_grid_stands_for_zero_exactly_and_covers_the_range(first: float, second: float) -> None:
    low, high = min(first, second), max(first, second)
    scale, zero_point = affine_parameters(low, high)
    assert isinstance(scale, np.float32)
    assert isinstance(zero_point, int)
    assert 0 <= zero_point <= 255
    assert 0 < scale < np.inf
    grid = (np.arange(256) - zero_point) * float(scale)
    assert (grid == 0).any()
    if scale != 1 or high - low > 1e-30:
        assert grid[0] - 0.501 * scale <= min(low, 0)
        assert grid[-1] + 0.501 * scale >= max(high, 0)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [(0, 255, 1, 0), (-128, 127, 1, 128), (-255, -255, 1, 255), (10, 51, 0.2, 0), (0, 0, 1, 0)],
)
def test_grids_of_simple_ranges(low: float, high: float, scale: float, zero_point: int) -> None:
    found, point = affine_parameters(low, high)
    assert float(found) == float(np.float32(scale))
    assert point == zero_point


def test_refuses_impossible_ranges() -> None:
    for low, high in [(1, 0), (0, np.inf), (np.nan, 1)]:
        with pytest.raises(ValueError, match="no grid"):
            affine_parameters(low, high)


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_never_loses_to_the_full_range(kind: str) -> None:
    values = samples(kind)
    histogram = counted(values)
    low, high = mse_range(histogram)
    full = expected_error(histogram, histogram.low, histogram.high)
    assert expected_error(histogram, low, high) <= full
    assert real_error(values, low, high) <= real_error(values, values.min(), values.max())


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "uniform", "negative"])
def test_the_expected_error_is_close_to_the_real_one(kind: str) -> None:
    values = samples(kind)
    histogram = counted(values)
    for share in (1.0, 0.5, 0.25):
        low, high = share * histogram.low, share * histogram.high
        real = real_error(values, low, high)
        assert expected_error(histogram, low, high) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_comes_close_to_the_best_range(kind: str) -> None:
    values = samples(kind)
    shares = np.linspace(0.1, 1, 19)
    best = min(
        real_error(values, low, high)
        for low in {share * min(values.min(), 0.0) for share in shares}
        for high in {share * max(values.max(), 0.0) for share in shares}
    )
    assert real_error(values, *mse_range(counted(values))) <= 1.05 * best


def test_the_search_clips_a_lone_outlier() -> None:
    values = np.append(np.tile(samples("normal"), 25), 20)
    low, high = mse_range(counted(values))
    assert high < 10
    assert real_error(values, low, high) < 0.5 * real_error(values, values.min(), values.max())


@given(hnp.arrays(np.float32, st.integers(0, 30), elements=finite))
def test_the_range_is_that_of_a_grid(values: Array) -> None:
    low, high = mse_range(counted(values))
    assert low <= 0 <= high
    scale, zero_point = affine_parameters(low, high)
    if high - low > 1e-30:
        assert -zero_point * float(scale) == pytest.approx(low, rel=1e-5)
        assert (255 - zero_point) * float(scale) == pytest.approx(high, rel=1e-5)


def test_a_fixed_low_end_is_kept_and_costs_nothing_below() -> None:
    values = samples("normal")
    histogram = counted(values)
    low, high = mse_range(histogram, low_fixed=-0.375)
    assert low == pytest.approx(-0.375, rel=1e-12)
    scale, zero_point = affine_parameters(low, high)
    assert -zero_point * float(scale) == pytest.approx(-0.375, rel=1e-6)
    cut = counted(np.maximum(values, 0))
    assert mse_range(histogram, low_fixed=0) == pytest.approx(mse_range(cut), rel=0.2)
    assert mse_range(histogram, low_fixed=-1e-9)[0] == 0
    with pytest.raises(ValueError, match="positive"):
        mse_range(histogram, low_fixed=0.5)


def test_ranges_of_degenerate_streams() -> None:
    assert mse_range(Histogram()) == (0, 0)
    assert mse_range(counted(np.zeros(9))) == (0, 0)
    assert mse_range(counted(np.full(9, 5.0))) == pytest.approx((0, 5))
    assert mse_range(counted(np.full(9, -5.0))) == pytest.approx((-5, 0))
    assert mse_range(counted(np.full(9, -5.0)), low_fixed=0) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_gives_a_range_within_the_extremes_that_holds_zero(
    method: Method, kind: str
) -> None:
    values = samples(kind)
    low, high = activation_range(counted(*np.split(values, 8)), method)
    step = (max(values.max(), 0) - min(values.min(), 0)) / 255
    assert min(values.min(), 0) - step <= low <= 0 <= high <= max(values.max(), 0) + step
    inside = (values >= low - step) & (values <= high + step)
    assert inside.mean() > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_every_method_obeys_ends_that_are_fixed(method: Method) -> None:
    low, high = activation_range(counted(samples("normal")), method, floor=0.0, ceiling=2.5)
    assert low == 0
    assert 1.5 < high <= 2.5 * (1 + 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_histogram_has_an_empty_range_by_every_method(method: Method) -> None:
    assert activation_range(Histogram(), method) == (0.0, 0.0)
    assert activation_range(counted(np.zeros(9)), method) == (0.0, 0.0)


def test_an_unknown_method_and_percent_are_refused() -> None:
    with pytest.raises(ValueError, match="activation_range: method must be one of"):
        activation_range(Histogram(), "widest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"percentile_range: percent must be in \[50, 100\]"):
        percentile_range(Histogram(), 30)


@given(batches)
def test_mean_extremes_are_the_average_of_the_batches(parts: list[Array]) -> None:
    full = [part.astype(np.float64) for part in parts if part.size]
    expected = np.mean([(p.min(), p.max()) for p in full], axis=0) if full else (0.0, 0.0)
    np.testing.assert_allclose(counted(*parts).mean_extremes, expected, rtol=1e-9, atol=1e-300)


def test_one_batch_of_outliers_moves_the_average_less_than_the_extremes() -> None:
    parts = [np.array([-1.0, 1.0])] * 9 + [np.array([-1.0, 101.0])]
    assert activation_range(counted(*parts), "minmax") == (-1, 101)
    assert activation_range(counted(*parts), "moving-average") == (-1, 11)


def test_the_percentile_cuts_a_hundredth_of_a_percent_at_either_end() -> None:
    values = np.linspace(-1, 3, 100_001)
    low, high = percentile_range(counted(values))
    assert low == pytest.approx(-1 + 4e-4, abs=5e-5)
    assert high == pytest.approx(3 - 4e-4, abs=5e-5)


def test_entropy_gives_up_a_long_thin_tail_but_not_what_a_mode_holds() -> None:
    bulk = np.random.default_rng(4).normal(size=200_000)
    low, high = entropy_range(counted(bulk, np.array([60.0])))
    assert high < 30
    # A bright background far from zero is no tail.
    low, high = entropy_range(counted(np.repeat([-0.4, 2.8], 5000), np.linspace(-0.4, 2.8, 256)))
    assert (low, high) == pytest.approx((-0.4, 2.8))


@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_is_the_same_in_a_mirror_and_at_any_scale(sign: int) -> None:
    values = samples("relu")
    _, high = entropy_range(counted(values))
    ends = entropy_range(counted(values * sign * 64))
    assert max(ends, key=abs) == pytest.approx(sign * 64 * high, rel=0.05)
