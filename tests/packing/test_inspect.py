from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxslim_tk.packing.inspect import bits, entropy, inspect


def always(count: int, size: int) -> bool:
    return True


@given(
    st.sampled_from([np.float32, np.float16, np.int8, np.int64]).flatmap(
        lambda dtype: arrays(dtype, st.integers(1, 96))
    ),
    st.integers(1, 9),
)
def test_every_alphabet_gives_the_values_back(array: NDArray[Any], width: int) -> None:
    facts = inspect(array)
    found = facts.alphabet if width == 1 else facts.rows(width, always)
    if found is None:
        assert width > 1
        assert array.size % width or array.size < 2 * width
        return
    assert found.entries.shape[1] == width
    assert found.size == array.size // width
    assert found.entries[found.codes()].tobytes() == array.tobytes()
    np.testing.assert_array_equal(
        found.counts, np.bincount(found.codes(), minlength=len(found.entries))
    )


def test_tells_values_apart_by_their_bits() -> None:
    facts = inspect(np.array([0.0, -0.0, 0.0, np.nan, -np.nan], np.float32))
    assert facts.alphabet is not None
    assert len(facts.alphabet.entries) == 4
    assert bits(facts.background)[0] == 0
    assert facts.kept.tolist() == [False, True, False, True, True]
    assert facts.positions.tolist() == [1, 3, 4]


def test_takes_the_most_frequent_value_as_background() -> None:
    facts = inspect(np.array([128, 128, 3, 128], np.uint8))
    assert facts.background[0] == 128
    assert facts.kept.tolist() == [False, False, True, False]
    assert facts.kept_count == 1


@pytest.mark.parametrize("width", [2, 4, 8])
def test_finds_rows_where_single_values_are_too_many(width: int) -> None:
    generator = np.random.default_rng(width)
    book = generator.standard_normal((4000, width)).astype(np.float32)
    facts = inspect(book[generator.integers(0, 4000, 40_000)])
    assert facts.alphabet is None
    found = facts.rows(width, always)
    assert found is not None
    assert len(found.entries) == 4000


def test_looks_for_no_more_rows_than_are_wanted() -> None:
    facts = inspect(np.arange(4096, dtype=np.int32) % 512)
    assert facts.rows(2, lambda count, size: count <= 256) is not None
    assert facts.rows(2, lambda count, size: count < 256) is None


def test_finds_a_value_that_comes_late() -> None:
    array = np.zeros(100_000, np.float32)
    array[-1] = 1
    facts = inspect(array)
    assert facts.alphabet is not None
    assert facts.alphabet.entries[:, 0].tolist() == [0, 1]
    assert facts.alphabet.counts.tolist() == [99_999, 1]


def test_gives_up_on_many_distinct_values() -> None:
    facts = inspect(np.arange(5000, dtype=np.float32))
    assert facts.alphabet is None
    assert facts.kept_count == 4999


def test_entropy_is_what_a_perfect_code_takes() -> None:
    assert entropy(np.arange(4096, dtype=np.float32) % 16) == pytest.approx(4)
    assert entropy(np.array([0, 0, 0, 0, 1, 1, 2, 3], np.int8)) == pytest.approx(1.75)
    assert entropy(np.zeros(5, np.float32)) == 0
    assert entropy(np.arange(50, dtype=np.float32)) is None
    assert entropy(np.arange(5000, dtype=np.float32)) is None
    assert entropy(np.zeros(0, np.float32)) is None


@given(
    st.sampled_from([np.float32, np.uint8, np.int32]).flatmap(
        lambda dtype: arrays(dtype, st.integers(1, 200), elements=st.integers(0, 120))
    ),
    st.integers(1, 60),
)
def test_block_by_block_finds_the_same(array: NDArray[Any], block: int) -> None:
    whole = inspect(array).alphabet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxslim_tk.packing.inspect._BLOCK", block)
        patch.setattr("onnxslim_tk.packing.inspect._SAMPLE", 1)
        parts = inspect(array).alphabet
    assert whole is not None
    assert parts is not None
    np.testing.assert_array_equal(parts.entries, whole.entries)
    np.testing.assert_array_equal(parts.counts, whole.counts)
    np.testing.assert_array_equal(parts.codes(), whole.codes())
