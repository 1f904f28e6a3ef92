from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.packing.planes import Planes, choices, frontier, smallest


@given(st.integers(1, 65_536))
def test_planes_have_a_code_for_every_entry(entries: int) -> None:
    found = choices(entries)
    assert all(planes.entries >= entries for planes in found)
    several = [planes for planes in found if len(planes.bases) > 1]
    widths = [min(planes.width for planes in found if len(planes.bases) == 1)]
    widths += [planes.width for planes in several]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("entries", range(2, 257))
def test_the_narrowest_planes_are_near_what_the_entries_ask_for(entries: int) -> None:
    width = min(planes.width for planes in choices(entries))
    assert log2(entries) <= width < log2(entries) + 0.51
    assert width <= 8


def test_the_frontier_has_ever_more_codes_in_ever_more_bits() -> None:
    found = frontier()
    assert [planes.width for planes in found] == sorted({planes.width for planes in found})
    assert [planes.entries for planes in found] == sorted({planes.entries for planes in found})
    assert found[-1] == Planes((256,))


@given(st.sampled_from(frontier()), st.integers(1, 5000))
def test_the_planes_of_padded_codes_are_whole_bytes(planes: Planes, size: int) -> None:
    padded = planes.padded(size)
    assert size <= padded < size + planes.step
    assert planes.data_size(size) == pytest.approx(padded * planes.width / 8)


def test_looks_codes_up_in_groups_where_there_are_enough() -> None:
    assert Planes((4, 2)).group(100) == 0
    assert Planes((4, 2)).group(1 << 20) == 4
    assert Planes((3, 3)).group(1 << 20) == 5
    assert Planes((4, 3)).group(1 << 30) == 0
    assert Planes((16,)).group(1) == 2
    assert Planes((256,)).group(1 << 20) == 0


def test_values_stay_as_they_are_where_codes_take_more() -> None:
    assert smallest(200, 100_000, itemsize=1) is None
    assert smallest(16, 40, itemsize=1) is None
    assert smallest(12, 100_000, itemsize=1) == Planes((4, 3))
    assert smallest(200, 100_000, itemsize=4) == Planes((256,))
