from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxslim_tk.packing.inspect import bits, inspect


@given(
    st.sampled_from([np.float32, np.float16, np.int8, np.int64]).flatmap(
        lambda dtype: arrays(dtype, st.integers(1, 96))
    )
)
def test_every_codebook_gives_the_values_back(array: NDArray[Any]) -> None:
    facts = inspect(array)
    assert 1 in facts.codebooks
    for width, book in facts.codebooks.items():
        assert book.entries.shape[1] == width
        assert book.entries[book.codes].tobytes() == array.tobytes()


def test_tells_values_apart_by_their_bits() -> None:
    facts = inspect(np.array([0.0, -0.0, 0.0, np.nan, -np.nan], np.float32))
    assert len(facts.codebooks[1].entries) == 4
    assert bits(facts.background)[0] == 0
    assert facts.kept.tolist() == [False, True, False, True, True]


def test_takes_the_most_frequent_value_as_background() -> None:
    facts = inspect(np.array([128, 128, 3, 128], np.uint8))
    assert facts.background[0] == 128
    assert facts.kept.tolist() == [False, False, True, False]


@pytest.mark.parametrize("width", [2, 4, 8])
def test_finds_groups_where_single_values_are_too_many(width: int) -> None:
    generator = np.random.default_rng(width)
    book = generator.standard_normal((256, width)).astype(np.float32)
    facts = inspect(book[generator.integers(0, 256, 4096)])
    assert width in facts.codebooks
    assert 1 not in facts.codebooks


def test_gives_up_on_many_distinct_values() -> None:
    facts = inspect(np.arange(4096, dtype=np.float32))
    assert facts.codebooks == {}
    assert facts.kept.sum() == 4095


@given(
    st.sampled_from([np.float32, np.uint8, np.int32]).flatmap(
        lambda dtype: arrays(dtype, st.integers(1, 200), elements=st.integers(0, 120))
    ),
    st.integers(1, 60),
)
def test_block_by_block_finds_the_same(array: NDArray[Any], block: int) -> None:
    whole = inspect(array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxslim_tk.packing.inspect._BLOCK", block)
        parts = inspect(array)
    assert parts.codebooks.keys() == whole.codebooks.keys()
    for width, book in whole.codebooks.items():
        np.testing.assert_array_equal(parts.codebooks[width].entries, book.entries)
        np.testing.assert_array_equal(parts.codebooks[width].codes, book.codes)
    assert parts.background == whole.background
