import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.kernels.digits import digit_table, digits_in_byte, pack_digits


@given(st.integers(2, 256), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_the_table_reads_what_was_packed(base: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, base, count)
    packed = pack_digits(codes, base)
    assert packed.dtype == np.uint8
    assert len(packed) == -(-count // digits_in_byte(base))
    np.testing.assert_array_equal(digit_table(base)[packed].reshape(-1)[:count], codes)


def test_puts_as_many_digits_into_a_byte_as_fit() -> None:
    fitting = {base: digits_in_byte(base) for base in (2, 3, 4, 5, 6, 7, 16, 17, 256)}
    assert fitting == {2: 8, 3: 5, 4: 4, 5: 3, 6: 3, 7: 2, 16: 2, 17: 1, 256: 1}


def test_puts_the_first_digit_lowest() -> None:
    assert pack_digits(np.array([[1, 2], [3, 15]]), 16).tolist() == [0x21, 0xF3]
    assert pack_digits(np.array([1, 0, 0, 0, 0, 0, 0, 0, 1]), 2).tolist() == [1, 1]
    assert pack_digits(np.array([1, 2, 3, 0, 2]), 4).tolist() == [0b00111001, 2]
    assert pack_digits(np.array([2, 1, 0, 0, 2, 1]), 3).tolist() == [2 + 3 + 2 * 81, 1]


@pytest.mark.parametrize("base", [2, 3, 4, 6, 16, 256])
def test_the_table_lists_the_digits_of_every_byte(base: int) -> None:
    table = digit_table(base)
    used = base ** digits_in_byte(base)
    assert table.shape == (256, digits_in_byte(base))
    assert table.dtype == np.uint8
    np.testing.assert_array_equal(pack_digits(table[:used], base), np.arange(used))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="got 1"):
        pack_digits(np.array([0]), 1)
    with pytest.raises(ValueError, match="got 257"):
        digit_table(257)
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        pack_digits(np.array([3]), 3)
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        pack_digits(np.array([-1]), 4)
