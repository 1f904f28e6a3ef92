import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.kernels.bits import bit_table, pack_bits, unpack_bits


@given(st.sampled_from([1, 2, 4]), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_unpacks_what_it_packed(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count)
    packed = pack_bits(codes, bits)
    assert packed.dtype == np.uint8
    assert len(packed) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, count), codes)


def test_puts_the_first_code_in_the_lowest_bits() -> None:
    assert pack_bits(np.array([[1, 2], [3, 15]]), 4).tolist() == [0x21, 0xF3]
    assert pack_bits(np.array([1, 0, 0, 0, 0, 0, 0, 0, 1]), 1).tolist() == [1, 1]
    assert pack_bits(np.array([1, 2, 3, 0, 2]), 2).tolist() == [0b00111001, 2]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_table_lists_the_codes_of_every_byte(bits: int) -> None:
    table = bit_table(bits)
    assert table.shape == (256, 8 // bits)
    assert table.dtype == np.uint8
    np.testing.assert_array_equal(pack_bits(table, bits), np.arange(256))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="got 3"):
        pack_bits(np.array([0]), 3)
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        pack_bits(np.array([4]), 2)
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        pack_bits(np.array([-1]), 2)
    with pytest.raises(ValueError, match="count"):
        unpack_bits(np.zeros(1, np.uint8), 4, 3)
