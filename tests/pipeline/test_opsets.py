"""One net in the words of every operator set from 7 on."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, defs, helper, numpy_helper

from onnxslim_tk.errors import SessionError
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.pipeline import Options, optimize
from onnxslim_tk.report.outcome import Report
from tests.models import SLOW_FLOATS, normal

INFO = helper.make_tensor_value_info


def net(opset: int) -> onnx.ModelProto:
    """``x (N, 3, 8, 8)`` through what operator sets have changed most to ``y (N, 1, 24)``."""
    weights: dict[str, Any] = {"w": normal(0, 16, 3, 3, 3) / 4, "b": normal(1, 16)}
    weights |= {"s": 1 + abs(normal(2, 16)), "m": normal(3, 16), "v": 1 + abs(normal(4, 16))}
    weights |= {"g": normal(5, 24, 16) / 4, "c": normal(6, 24)}

    def either(
        first: int, old: dict[str, Any], new: dict[str, Any], op: str, *ends: str
    ) -> NodeProto:
        """The node with settings as attributes, or from operator set ``first`` on as inputs."""
        if opset < first:
            return helper.make_node(op, [ends[0]], [ends[1]], **old)
        weights.update((f"{ends[1]}_{key}", np.asarray(value)) for key, value in new.items())
        return helper.make_node(op, [ends[0], *(f"{ends[1]}_{key}" for key in new)], [ends[1]])

    ones, pads = np.array([1, 1, 2, 2], np.float32), [0, 0, 1, 1, 0, 0, 1, 1]
    if opset < 10:
        grown = either(9, {"scales": ones}, {"scales": ones}, "Upsample", "f", "u")
    else:
        weights["u_s"] = ones
        weights["u_roi"] = np.zeros(0, np.float32)
        inputs = ["f", "u_s"] if opset < 11 else ["f", "u_roi", "u_s"]
        grown = helper.make_node("Resize", inputs, ["u"], mode="nearest")
    two, low = np.array([2, 3]), np.float32(0)
    nodes = [
        either(11, {"pads": pads}, {"pads": np.array(pads)}, "Pad", "x", "p"),
        helper.make_node("Conv", ["p", "w", "b"], ["d"]),
        helper.make_node("BatchNormalization", ["d", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        either(11, {"min": 0.0, "max": 6.0}, {"l": low, "h": np.float32(6)}, "Clip", "r", "f"),
        grown,
        helper.make_node("GlobalAveragePool", ["u"], ["a"]),
        either(13, {"axes": [2, 3]}, {"axes": two}, "Squeeze", "a", "q"),
        helper.make_node("Dropout", ["q"], ["o"]),
        helper.make_node("Gemm", ["o", "g", "c"], ["e"], transB=1),
        helper.make_node("Softmax", ["e"], ["t"], axis=1),
        either(13, {"axes": [1]}, {"axes": np.array([1])}, "Unsqueeze", "t", "y"),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "net",
        [INFO("x", 1, ["N", 3, 8, 8])],
        [INFO("y", 1, ["N", 1, 24])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items() if k in used],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=max(4, helper.find_min_ir_version_for(imports))
    )


def compressed(opset: int, folder: Path, options: Options) -> Report:
    proto = net(opset)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, folder / "in.onnx")
    try:
        Session(folder / "in.onnx")
    except SessionError as error:
        if "needs operator set" in str(error) or "Unsupported model IR" in str(error):
            pytest.skip(f"the runtime is older than operator set {opset}")
        raise
    report = optimize(folder / "in.onnx", folder / "out.onnx", options=options)
    assert report.validation.result.file_bytes <= report.validation.original.file_bytes
    result = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(result, full_check=True)
    assert result.graph.input == proto.graph.input
    assert result.graph.output == proto.graph.output
    feed = {"x": normal(9, 2, 3, 8, 8)}
    before = Session(folder / "in.onnx").run(feed)["y"]
    np.testing.assert_allclose(Session(folder / "out.onnx").run(feed)["y"], before, atol=0.03)
    return report


@pytest.mark.parametrize("opset", range(7, defs.onnx_opset_version() + 1))
def test_every_operator_set_is_compressed_without_samples(opset: int, tmp_path: Path) -> None:
    compressed(opset, tmp_path, Options())


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13, 18, 21, defs.onnx_opset_version()])
def test_operator_sets_are_compressed_with_samples(opset: int, tmp_path: Path) -> None:
    samples = Samples([{"x": normal(k, 1, 3, 8, 8)} for k in range(20)])
    report = compressed(opset, tmp_path, Options(calibration=samples, target=SLOW_FLOATS))
    lacks = any("QuantizeLinear" in warning for warning in report.warnings)
    # Of the newest set, the runtime may lack kernels that others have.
    assert lacks or report.validation.integer_formed == 2
    assert not lacks or (opset > 25 and report.only_tidied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"opset": 99}, "the model needs operator set 99, the runtime knows up to "),
        ({"version": 99}, "Unsupported model IR version: 99"),
    ],
)
def test_a_model_newer_than_the_runtime_is_refused_in_one_sentence(
    change: dict[str, int], words: str, tmp_path: Path
) -> None:
    proto = net(17)
    proto.opset_import[0].version = change.get("opset", 17)
    proto.ir_version = change.get("version", 8)
    onnx.save(proto, tmp_path / "in.onnx")
    with pytest.raises(SessionError) as caught:
        optimize(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
