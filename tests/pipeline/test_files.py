from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.pipeline import load, optimize, save
from tests.models import chain_cnn, mlp, normal, to_proto

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
