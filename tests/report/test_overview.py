import onnx
from onnx import parser

from onnxslim_tk import demo
from onnxslim_tk.graph.model import from_proto
from onnxslim_tk.pipeline import load
from onnxslim_tk.report.overview import Overview, overview

BODIES = """<ir_version: 8, opset_import: ["": 17]>
branches (bool c, float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {1, 2, 3, 4}>
{
    y = If(c) <
        then_branch = g1 () => (float[N, 2] a) { a = MatMul(x, w) },
        else_branch = g2 () => (float[N, 2] b) { b = Identity(x) }
    >
}"""


def looked_over(proto: onnx.ModelProto) -> Overview:
    return overview(from_proto(proto, proto.SerializeToString()), {}, {})


def test_counts_what_the_demo_model_holds() -> None:
    found = overview(load(demo.MODEL), {}, {"seed": "1"})
    assert found.file_bytes == demo.MODEL.stat().st_size
    assert found.opset == found.domains["ai.onnx"]
    assert [layer.kind for layer in found.layers] == ["Conv"] * 6 + ["Gemm"] * 2
    assert found.inputs[0].shape == ("batch", 1, 8, 8)
    assert found.provenance == {"seed": "1"}


def test_knows_no_multiplications_without_shapes() -> None:
    found = overview(load(demo.MODEL), {}, {})
    assert found.macs is None
    assert {layer.macs for layer in found.layers} == {None}


def test_tells_layers_inside_bodies() -> None:
    found = looked_over(parser.parse_model(BODIES))
    assert (found.layers_in_bodies, found.weights_in_bodies) == (1, 4)
    assert found.layers[0].in_body
