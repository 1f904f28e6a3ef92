from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from onnxslim_tk.kernels.cluster import kmeans_1d, kmeans_vectors, nearest

Array = NDArray[Any]


def inertia(values: Array, centroids: Array) -> float:
    return float(((values - centroids[nearest(values, centroids)]) ** 2).sum())


def samples(kind: str, size: int) -> Array:
    rng = np.random.default_rng(7)
    if kind == "modes":
        return np.concatenate(
            [rng.normal(c, 0.1, n) for c, n in [(0, size), (1, 30), (9, 99), (12, 3 * size)]]
        )
    if kind == "pruned":
        return rng.normal(size=size) * (rng.random(size) < 0.3)
    return np.asarray(getattr(rng, kind)(size=size))


@pytest.mark.parametrize("clusters", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["normal", "laplace", "random", "modes", "pruned", "lognormal"])
def test_is_within_a_percent_of_scikit_learn(kind: str, clusters: int) -> None:
    values = samples(kind, 3000)
    reference = KMeans(clusters, n_init=3, random_state=0).fit(values[:, None])
    assert inertia(values, kmeans_1d(values, clusters)) <= 1.01 * reference.inertia_


def test_a_histogram_costs_hardly_any_precision() -> None:
    values = samples("normal", 30000)
    exact = inertia(values, kmeans_1d(values, 16))
    assert inertia(values, kmeans_1d(values, 16, bins=8192)) <= 1.001 * exact


def test_is_far_better_than_a_linear_start_with_256_clusters() -> None:
    values = samples("normal", 100_000)
    line = np.linspace(values.min(), values.max(), 256)[:, None]
    reference = KMeans(256, init=line, n_init=1, max_iter=20).fit(values[:, None])
    assert inertia(values, kmeans_1d(values, 256)) < 0.6 * reference.inertia_


def test_an_outlier_does_not_blind_the_histogram() -> None:
    values = np.append(samples("normal", 70_000), 1e9)
    error = inertia(values, kmeans_1d(values, 9))
    assert error <= 1.01 * inertia(values[:-1], kmeans_1d(values[:-1], 8))


def least_inertia(values: Array, clusters: int) -> float:
    """The exact optimum, by dynamic programming over the sorted values."""
    ordered = np.sort(values)
    count, first, second = (np.append(0, np.cumsum(ordered**p)) for p in range(3))
    sizes = np.maximum(count[None, :] - count[:, None], 1)
    cost = second[None, :] - second[:, None] - (first[None, :] - first[:, None]) ** 2 / sizes
    cost[np.tril_indices(len(cost), -1)] = np.inf
    least = cost[0]
    for _ in range(clusters - 1):
        least = (least[:, None] + cost).min(0)
    return float(least[-1])


@pytest.mark.parametrize("clusters", [2, 5, 16])
@pytest.mark.parametrize("seed", range(6))
def test_is_close_to_the_exact_optimum(seed: int, clusters: int) -> None:
    values = np.random.default_rng(seed).standard_t(4, 200)
    assert inertia(values, kmeans_1d(values, clusters)) <= 1.05 * least_inertia(values, clusters)


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e4, 1e4, width=16)),
    st.integers(1, 20),
)
def test_centroids_are_ascending_used_and_inside_the_values(values: Array, clusters: int) -> None:
    centroids = kmeans_1d(values, clusters)
    assert 1 <= len(centroids) <= clusters
    assert (np.diff(centroids) > 0).all()
    slack = 1e-12 * np.abs(values).max()
    assert values.min() - slack <= centroids[0] <= centroids[-1] <= values.max() + slack
    assert len(np.unique(nearest(values, centroids))) == len(centroids)
    if len(np.unique(values)) <= clusters:
        np.testing.assert_array_equal(centroids, np.unique(values))


@given(st.integers(0, 2**32 - 1))
def test_weights_count_like_repetitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, repeats = rng.normal(size=40), rng.integers(0, 4, 40)
    repeats[0] = 1
    weighted = kmeans_1d(values, 5, weights=repeats)
    np.testing.assert_allclose(weighted, kmeans_1d(np.repeat(values, repeats), 5), atol=1e-9)


@pytest.mark.parametrize(
    ("values", "weights", "clusters"),
    [
        ([], None, 2),
        ([1.0, np.nan], None, 2),
        ([1.0, np.inf], None, 2),
        ([1.0, 2.0], None, 0),
        ([1.0, 2.0], [1.0, -1.0], 2),
        ([1.0, 2.0], [0.0, 0.0], 2),
        ([1.0, 2.0], [1.0], 2),
    ],
)
def test_refuses_what_has_no_centroids(
    values: list[float], weights: list[float] | None, clusters: int
) -> None:
    masses = None if weights is None else np.array(weights)
    with pytest.raises(ValueError, match="kmeans_1d"):
        kmeans_1d(np.array(values), clusters, masses)


@given(
    hnp.arrays(np.float64, (3, 5), elements=st.floats(-10, 10)),
    hnp.arrays(np.float64, st.integers(1, 6), elements=st.floats(-10, 10), unique=True),
)
def test_nearest_is_nearest(values: Array, centroids: Array) -> None:
    centroids = np.sort(centroids)
    codes = nearest(values, centroids)
    assert codes.dtype == np.int64
    distances = np.abs(values[..., None] - centroids)
    chosen = np.take_along_axis(distances, codes[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, distances.min(-1), atol=1e-12)
    with pytest.raises(ValueError, match="centroid"):
        nearest(values, np.zeros(0))


def test_vectors_go_to_their_groups_the_same_way_every_time() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 5, 400)
    vectors = 10 * np.eye(5)[groups] + rng.normal(0, 0.1, (400, 5))
    centroids, codes = kmeans_vectors(vectors, 5, seed=3)
    again, _ = kmeans_vectors(vectors, 5, seed=3)
    assert centroids.tobytes() == again.tobytes()
    assert codes.dtype == np.int64
    assert ((vectors - centroids[codes]) ** 2).sum() < 1.1 * 400 * 5 * 0.01


def test_a_heavy_vector_draws_its_centroid() -> None:
    vectors = np.array([[0.0, 0.0], [0.0, 1.0], [50.0, 0.0], [50.0, 1.0]])
    centroids, codes = kmeans_vectors(vectors, 2, 0, weights=np.array([1.0, 3.0, 1.0, 1.0]))
    np.testing.assert_allclose(centroids[codes[0]], [0, 0.75])
    np.testing.assert_allclose(centroids[codes[2]], [50, 0.5])


def test_few_distinct_vectors_are_their_own_centroids() -> None:
    vectors = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0]])
    centroids, codes = kmeans_vectors(vectors, 8, seed=0)
    assert len(centroids) == 2
    np.testing.assert_array_equal(centroids[codes], vectors)
    with pytest.raises(ValueError, match="kmeans_vectors"):
        kmeans_vectors(vectors, 0, seed=0)
    with pytest.raises(ValueError, match="kmeans_vectors"):
        kmeans_vectors(np.full((2, 2), np.nan), 1, seed=0)
