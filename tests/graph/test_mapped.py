from pathlib import Path

import numpy as np

from onnxslim_tk.graph.mapped import mapped, place_in_file, release_pages


def test_what_was_read_can_go_and_be_read_again(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, 1 << 16, np.uint8)
    (tmp_path / "w").write_bytes(values.tobytes())
    array = mapped(tmp_path / "w")
    before = array.copy()
    release_pages()
    np.testing.assert_array_equal(array, before)
    assert not array.flags.writeable


def test_an_array_knows_its_place_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(8192))
    (tmp_path / "b").write_bytes(bytes(100))
    first, second = mapped(tmp_path / "a"), mapped(tmp_path / "b")
    assert place_in_file(first[4096:]) == (tmp_path / "a", 4096)
    assert place_in_file(second[:100].view(np.int32)[3:].view(np.uint8)) == (tmp_path / "b", 12)
    assert place_in_file(first.copy()) is None
