import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import to_proto
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.pipeline import load, optimize, save
from onnxslim_tk.pipeline.files import write_file
from tests.models import chain_cnn, mlp, normal

from .conftest import Write


def test_what_is_saved_loads_as_it_was(write: Write, tmp_path: Path) -> None:
    model = load(write(chain_cnn()))
    for layer in list(layers(model)):
        layer.set_dense(model, np.sign(layer.weight) * 0.1)
    save(model, tmp_path / "small.onnx")
    again = load(tmp_path / "small.onnx")
    found = {layer.id: layer.weight for layer in layers(again)}
    assert (tmp_path / "small.onnx").stat().st_size < model.source_bytes / 4
    for layer in layers(model):
        np.testing.assert_array_equal(found[layer.id], layer.weight)
    x = {"x": normal(0, 1, 3, 16, 16)}
    expected = Session(to_proto(model).SerializeToString()).run(x)["y"]
    np.testing.assert_array_equal(Session(tmp_path / "small.onnx").run(x)["y"], expected)


def test_external_data_are_taken_in(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    proto = mlp()
    external_data_helper.convert_model_to_external_data(
        proto, location="weights.bin", size_threshold=0
    )
    onnx.save(proto, folder / "model.onnx")
    assert (folder / "weights.bin").exists()
    report = optimize(folder / "model.onnx", tmp_path / "out.onnx", "light")
    assert report.validation.result.file_bytes < report.validation.original.file_bytes
    x = {"x": normal(0, 2, 32)}
    before = Session(folder / "model.onnx").run(x)["y"]
    np.testing.assert_allclose(Session(tmp_path / "out.onnx").run(x)["y"], before, atol=0.3)
    (folder / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"the external data of model\.onnx cannot be read"):
        load(folder / "model.onnx")


def test_a_file_is_written_whole_with_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    write_file(b"new", path)
    assert path.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["out.bin"]


def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelError, match=r"model: .*out\.bin cannot be written: No space left"):
        write_file(b"new", path)
    assert os.listdir(tmp_path) == ["out.bin"]
    assert path.read_bytes() == b"old"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_file(b"new", path)
    assert os.listdir(tmp_path) == ["out.bin"]


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        write_file(b"new", tmp_path / "no" / "out.bin")
