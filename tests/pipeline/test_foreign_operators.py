from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.metrics import Metric, load_metric
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.pipeline import Options, load, optimize, pack, validate
from tests.models import SLOW_FLOATS, mlp, normal


def with_magic(first: bool = False) -> onnx.ModelProto:
    """The small network with an operator that nobody else knows in its middle, or in front."""
    model = mlp()
    nodes = list(model.graph.node)
    place = 0 if first else len(nodes) - 1
    reader = model.graph.node[place]
    magic = helper.make_node("Magic", [reader.input[0]], ["magic"], domain="vendor", mode="x")
    reader.input[0] = "magic"
    model.graph.node.insert(place, magic)
    model.opset_import.append(helper.make_opsetid("vendor", 2))
    return model


def samples() -> Samples:
    mixed = normal(5, 40, 8) @ normal(6, 8, 32)
    return Samples([{"x": row[None].astype(np.float32)} for row in mixed])


def written(tmp_path: Path, first: bool = False) -> Path:
    onnx.save(with_magic(first), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


@pytest.mark.parametrize("first", [False, True])
def test_without_samples_it_is_compressed_and_said_that_it_could_not_be_run(
    tmp_path: Path, first: bool
) -> None:
    source = written(tmp_path, first)
    report = optimize(source, tmp_path / "out.onnx", "light")
    result = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(result)
    (magic,) = (node for node in result.graph.node if node.domain == "vendor")
    (before,) = (node for node in with_magic(first).graph.node if node.domain == "vendor")
    assert magic.attribute == before.attribute
    assert list(magic.output) == list(before.output)
    assert report.validation.result.file_bytes < 0.7 * report.validation.original.file_bytes
    assert "the runtime lacks vendor.Magic" in report.warnings[0]
    assert ("only the form of the result" in report.warnings[0]) == first
    weights = {layer.id: layer.weight for layer in layers(load(source))}
    for layer in layers(load(tmp_path / "out.onnx")):
        np.testing.assert_allclose(layer.weight, weights[layer.id], atol=0.02)


def test_samples_see_what_comes_before_it(tmp_path: Path) -> None:
    source = written(tmp_path)
    options = Options(calibration=samples(), target=SLOW_FLOATS)
    report = optimize(source, tmp_path / "out.onnx", "balanced", options)
    assert report.validation.integer_meant > 0
    assert report.validation.integer_formed > 0
    assert report.validation.latency is not None
    assert report.validation.faithfulness is not None
    assert [output.name for output in report.validation.faithfulness.outputs] == ["magic<0"]
    assert report.validation.faithfulness.outputs[0].sqnr_db > 20
    assert "judged by the tensors that go into these operators" in report.warnings[0]
    again = validate(source, tmp_path / "out.onnx", Options(calibration=samples()))
    assert again.validation.faithfulness is not None


def test_samples_that_nothing_could_be_run_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"before vendor\.Magic.*leave the samples out"):
        optimize(
            written(tmp_path, first=True),
            tmp_path / "out.onnx",
            options=Options(calibration=samples()),
        )
    assert not (tmp_path / "out.onnx").exists()


def test_a_metric_of_outputs_that_never_come_is_refused(tmp_path: Path) -> None:
    labelled = Samples(samples().feeds, np.zeros(40, np.int64))
    metric: Metric = load_metric("accuracy")
    with pytest.raises(CalibrationError, match=r"accuracy needs the model's outputs"):
        optimize(
            written(tmp_path),
            tmp_path / "out.onnx",
            options=Options(calibration=labelled, metric=metric),
        )


def test_packing_keeps_every_value(tmp_path: Path) -> None:
    model = with_magic()
    coarse = np.sign(numpy_helper.to_array(model.graph.initializer[0])).astype(np.float32)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(coarse, model.graph.initializer[0].name)
    )
    onnx.save(model, tmp_path / "in.onnx")
    assert pack(tmp_path / "in.onnx", tmp_path / "out.onnx")
    before = {layer.id: layer.weight for layer in layers(load(tmp_path / "in.onnx"))}
    for layer in layers(load(tmp_path / "out.onnx")):
        np.testing.assert_array_equal(layer.weight, before[layer.id])
