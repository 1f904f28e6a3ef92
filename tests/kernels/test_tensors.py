from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import relative_error
from onnxslim_tk.kernels.tensors import cp, tucker2

Array = NDArray[Any]
SHAPE = (12, 8, 9)
seeds = st.integers(0, 2**32 - 1)


def covariance_of(seed: int) -> Array:
    size = SHAPE[1] * SHAPE[2]
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(300, size)) @ rng.normal(size=(size, size)) / np.sqrt(size)
    return np.asarray(inputs.T @ inputs / 300)


def of_tucker(last: Array, core: Array, first: Array) -> Array:
    return np.asarray(np.einsum("nr,rsk,sc->nck", last, core, first).reshape(len(last), -1))


def of_cp(last: Array, taps: Array, first: Array) -> Array:
    return np.asarray(np.einsum("nr,rk,rc->nck", last, taps, first).reshape(len(last), -1))


@given(seeds, st.integers(1, 12), st.integers(1, 8), st.booleans())
def test_a_weight_of_low_tucker_rank_is_met_exactly(
    seed: int, outer: int, inner: int, sampled: bool
) -> None:
    rng, outer = np.random.default_rng(seed), min(outer, 9 * inner)
    parts = (rng.normal(size=(12, outer)), rng.normal(size=(outer, inner, 9)))
    weight = np.einsum("nr,rsk,sc->nck", *parts, rng.normal(size=(inner, 8)))
    found = tucker2(weight, (outer, inner), covariance_of(seed) if sampled else None)
    assert [part.shape for part in found] == [(12, outer), (outer, inner, 9), (inner, 8)]
    assert relative_error(weight.reshape(12, -1), of_tucker(*found)) < 1e-9


@given(seeds, st.booleans())
def test_a_sum_of_outer_products_is_found(seed: int, sampled: bool) -> None:
    rng = np.random.default_rng(seed)
    parts = [np.linalg.qr(rng.normal(size=(n, 3)))[0] for n in SHAPE]
    weight = np.einsum("nr,cr,kr->nck", parts[0] * [4, 2, 1], *parts[1:])
    found = cp(weight, 3, covariance_of(seed) if sampled else None)
    assert [part.shape for part in found] == [(12, 3), (3, 9), (3, 8)]
    assert relative_error(weight.reshape(12, -1), of_cp(*found)) < 1e-3


@pytest.mark.parametrize("kind", ["tucker", "cp"])
def test_knowing_the_inputs_lowers_the_error_of_the_output(kind: str) -> None:
    weight = np.random.default_rng(5).normal(size=SHAPE)
    flat = weight.reshape(12, -1)
    covariance = covariance_of(7)
    errors = []
    for known in (covariance, None):
        if kind == "tucker":
            product = of_tucker(*tucker2(weight, (6, 4), known))
        else:
            product = of_cp(*cp(weight, 10, known))
        errors.append(relative_error(flat, product, covariance))
    assert errors[0] < 0.9 * errors[1]


def test_more_rank_errs_less() -> None:
    weight, covariance = np.random.default_rng(5).normal(size=SHAPE), covariance_of(7)
    flat = weight.reshape(12, -1)
    by_rank = [relative_error(flat, of_cp(*cp(weight, r, covariance)), covariance) for r in (3, 9)]
    by_ranks = [
        relative_error(flat, of_tucker(*tucker2(weight, (r, r), covariance)), covariance)
        for r in (2, 6)
    ]
    assert by_rank[1] < by_rank[0]
    assert by_ranks[1] < by_ranks[0]
