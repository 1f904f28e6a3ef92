import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.kernels.elimination import Reader, eliminate, loss


def reader(seed: int, channels: int = 6, block: int = 2, outputs: int = 4) -> Reader:
    rng = np.random.default_rng(seed)
    width = channels * block
    rows = rng.standard_normal((300, width)) @ rng.standard_normal((width, width))
    covariance = rows.T @ rows / len(rows)
    matrix = rng.standard_normal((outputs, width))
    power = float(np.vdot(matrix @ covariance, matrix))
    return Reader(matrix, covariance, np.arange(width).reshape(channels, block), power)


@given(st.integers(0, 200))
def test_errors_are_those_of_a_least_squares_refit_of_what_is_left(seed: int) -> None:
    one = reader(seed)
    found = eliminate([one], [2], np.zeros(6, np.int64))
    for k, error in enumerate(found.errors):
        assert loss(one, found.order[: k + 1]) == pytest.approx(error, rel=1e-4, abs=1e-9)
    assert (np.diff(found.errors) >= -1e-12).all()


@given(st.integers(0, 200))
def test_the_first_to_go_costs_least_of_all(seed: int) -> None:
    one = reader(seed)
    first = eliminate([one], [5], np.zeros(6, np.int64)).order[0]
    costs = [loss(one, np.array([k])) for k in range(6)]
    assert costs[first] == pytest.approx(min(costs), rel=1e-6)


def test_of_every_part_so_many_stay() -> None:
    parts = np.array([0, 0, 0, 0, 1, 1])
    found = eliminate([reader(1), reader(2)], [3, 1], parts)
    assert sorted(parts[found.order].tolist()) == [0, 1]


def test_a_channel_that_repeats_another_goes_for_nothing() -> None:
    whole = reader(3, block=1)
    mix = np.eye(6)
    mix[5] = mix[4]
    assert whole.covariance is not None
    twin = Reader(whole.matrix, mix @ whole.covariance @ mix.T, whole.blocks, whole.power)
    found = eliminate([twin], [5], np.zeros(6, np.int64))
    assert found.order[0] in (4, 5)
    assert found.errors[0] < 2e-3


def test_without_a_covariance_the_least_weights_go() -> None:
    matrix = np.array([[3.0, -1.0, 2.0]])
    found = eliminate([Reader(matrix, None, np.arange(3)[:, None], 14.0)], [1], np.zeros(3, int))
    assert found.order.tolist() == [1, 2]
    np.testing.assert_allclose(found.errors, [1 / 14, 5 / 14])


def test_channels_that_are_always_zero_go_for_nothing() -> None:
    whole = reader(4)
    silent = Reader(whole.matrix, np.zeros((12, 12)), whole.blocks, 0.0)
    found = eliminate([whole, silent], [1], np.zeros(6, np.int64))
    alone = eliminate([whole], [1], np.zeros(6, np.int64))
    np.testing.assert_allclose(found.errors, alone.errors, atol=1e-3)
