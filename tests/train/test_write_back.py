from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.packing import pack
from onnxslim_tk.pipeline.files import load, parse, save
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.write_back import write_back
from tests.models import (
    chain_cnn,
    digest,
    mlp,
    model_of,
    normal,
    opened,
    outputs_of,
    residual_cnn,
    to_proto,
)
from tests.train.test_module import branches


def shake(module: GraphModule) -> None:
    """Move every parameter by about a tenth."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))


def without_values(model: Model) -> bytes:
    proto = to_proto(model)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
    return proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("build", [chain_cnn, residual_cnn, mlp])
def test_only_values_change_and_the_runtime_agrees(build: Callable[[], onnx.ModelProto]) -> None:
    proto = build()
    proto.metadata_props.add(key="author", value="somebody")
    model = opened(proto)
    before = without_values(model)
    module = GraphModule(model)
    shake(module)
    assert write_back(module, model) == len(module.ties)
    assert without_values(model) == before
    feed = {"x": normal(9, 2, 32) if build is mlp else normal(9, 2, 3, 16, 16)}
    found = module(feed)["y"].detach().numpy()
    np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [chain_cnn, residual_cnn, mlp])
def test_what_nobody_trained_is_written_to_the_bit(build: Callable[[], onnx.ModelProto]) -> None:
    model = opened(build())
    before = digest(model)
    write_back(GraphModule(model), model)
    assert digest(model) == before


def test_weights_of_branches_go_back_to_their_branch() -> None:
    model = branches()
    module = GraphModule(model)
    shake(module)
    write_back(module, model)
    for condition in (True, False):
        feed = {"x": normal(3, 2, 3), "c": np.array(condition)}
        found = module(feed)["y"].detach().numpy()
        np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5)


def test_an_outer_weight_that_two_branches_read_is_one() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 3] x, bool c) => (float[2, 4] y) {
        y = If(c) <
            then_branch = a () => (float[2, 4] p) { p = MatMul(x, w) },
            else_branch = b () => (float[2, 4] q) { m = MatMul(x, w) q = Relu(m) }
        >
    }"""
    model = opened(model_of(text, {"w": normal(0, 3, 4)}))
    module = GraphModule(model)
    assert set(module.ties) == {"w"}
    shake(module)
    write_back(module, model)
    for condition in (True, False):
        feed = {"x": normal(3, 2, 3), "c": np.array(condition)}
        found = module(feed)["y"].detach().numpy()
        np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5)


@pytest.mark.parametrize("own", ["p = Identity(r)", "k = MatMul(x, w) p = Add(r, k)"])
def test_a_weight_of_a_branch_that_inner_branches_read_is_one(own: str) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 3] x, bool c, bool d) => (float[2, 4] y) {
        y = If(c) <
            then_branch = a () => (float[2, 4] p) {
                r = If(d) <
                    then_branch = e () => (float[2, 4] s) { s = MatMul(x, w) },
                    else_branch = f () => (float[2, 4] t) { m = MatMul(x, w) t = Neg(m) }
                >
                OWN
            },
            else_branch = b () => (float[2, 4] q) { q = MatMul(x, v) }
        >
    }"""
    proto = model_of(text.replace("OWN", own), {"v": normal(1, 3, 4)})
    body = proto.graph.node[0].attribute[0].g
    body.initializer.append(numpy_helper.from_array(normal(0, 3, 4), "w"))
    model = opened(proto)
    module = GraphModule(model)
    shake(module)
    write_back(module, model)
    for inner in (True, False):
        feed = {"x": normal(3, 2, 3), "c": np.array(True), "d": np.array(inner)}
        found = module(feed)["y"].detach().numpy()
        np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5)


def test_constant_nodes_hold_weights_too() -> None:
    values = ", ".join(str(k / 8) for k in range(-6, 6))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 3] x) => (float[2, 4] y) {{
        w = Constant<value = float[3, 4] {{{values}}}>()
        y = MatMul(x, w)
    }}"""
    proto = parser.parse_model(text)
    for model in (opened(proto), parse(proto.SerializeToString())):
        module = GraphModule(model)
        assert set(module.ties) == {"w"}
        shake(module)
        write_back(module, model)
        feed = {"x": normal(3, 2, 3)}
        found = module(feed)["y"].detach().numpy()
        np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["few", "sparse", "codes"])
def test_packed_files_stay_packed(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = normal(0, 128, 128)
    text = "y = MatMul(x, w)"
    constants = {"w": weight}
    if kind == "few":
        constants["w"] = normal(1, 8)[rng.integers(0, 8, (128, 128))]
    elif kind == "sparse":
        weight[rng.random((128, 128)) < 0.9] = 0
    else:
        entries = np.array([-90, -40, -11, 3, 20, 77, 100, 127], np.int8)
        text = "v = DequantizeLinear<axis=1>(w, s) y = MatMul(x, v)"
        constants = {"w": entries[rng.integers(0, 8, (128, 128))], "s": np.full(128, 0.01, "f")}
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[2, 128] x) => (float[2, 128] y)'
    proto = model_of(f"{head} {{{text}}}", constants)
    pack(proto)
    path = tmp_path / "packed.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load(path)
    module = GraphModule(model)
    shake(module)
    write_back(module, model)
    save(model, tmp_path / "trained.onnx")
    size, before = (tmp_path / "trained.onnx").stat().st_size, path.stat().st_size
    assert size <= 1.05 * before
    feed = {"x": normal(3, 2, 128)}
    found = module(feed)["y"].detach().numpy()
    expected = Session(tmp_path / "trained.onnx", optimize=False).run(feed)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_tied_weight_stays_tied() -> None:
    table = normal(0, 12, 5)
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (int64[4] i) => (float[4, 12] y) { e = Gather(w, i) y = MatMul(e, h) }"""
    model = opened(model_of(text, {"w": table, "h": np.ascontiguousarray(table.T)}))
    module = GraphModule(model)
    assert len(list(module.parameters())) == 1
    shake(module)
    write_back(module, model)
    stored = {t.name: numpy_helper.to_array(t) for t in to_proto(model).graph.initializer}
    np.testing.assert_array_equal(stored["w"].T, stored["h"])
    assert not np.array_equal(stored["w"], table)
    feed = {"i": np.array([0, 3, 7, 11])}
    found = module(feed)["y"].detach().numpy()
    np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5)


def test_half_precision_goes_back_as_such() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 8] x) => (float[2, 8] y) { c = Cast<to=1>(w) y = MatMul(x, c) }"""
    model = opened(model_of(text, {"w": normal(0, 8, 8).astype(np.float16)}))
    module = GraphModule(model)
    shake(module)
    write_back(module, model)
    feed = {"x": normal(3, 2, 8)}
    found = module(feed)["y"].detach().numpy()
    np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5, atol=1e-6)


def test_another_model_is_refused_and_stays_as_it_was() -> None:
    other = opened(residual_cnn())
    before = digest(other)
    with pytest.raises(TrainingError, match="no tensor 'ab' to write back"):
        write_back(GraphModule(opened(chain_cnn())), other)
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2, 3] x) => (float y) {y = Mul(x, w0)}'
    with pytest.raises(TrainingError, match="'w0' has the shape"):
        write_back(GraphModule(opened(model_of(text, {"w0": normal(0, 3)}))), other)
    assert digest(other) == before


LOOP = """<ir_version: 8, opset_import: ["": 17]>
g (float[2, 3] x, int64 n) => (float[2, 3] y) {
    t = Constant<value = bool {1}>()
    y = Loop(n, t, x) <
        body = b (int64 i, bool go, float[2, 3] s) => (bool on, float[2, 3] next) {
            on = Identity(go) m = MatMul(s, w) next = Tanh(m)
        }
    >
}"""
SCAN = """<ir_version: 8, opset_import: ["": 17]>
g (float[2, 3] x, float[4, 2, 3] n) => (float[2, 3] y) {
    y = Scan(x, n) <
        num_scan_inputs = 1,
        body = b (float[2, 3] s, float[2, 3] r) => (float[2, 3] next) {
            m = MatMul(s, w) next = Add(m, r)
        }
    >
}"""


@pytest.mark.parametrize("text", [LOOP, SCAN])
@pytest.mark.parametrize("inside", [True, False])
def test_weights_of_loops_go_back_to_them(text: str, inside: bool) -> None:
    weight = numpy_helper.from_array(normal(0, 3, 3, scale=0.5), "w")
    proto = parser.parse_model(text)
    loop = next(node for node in proto.graph.node if node.op_type in ("Loop", "Scan"))
    body = next(a.g for a in loop.attribute if a.name == "body")
    (body if inside else proto.graph).initializer.append(weight)
    model = opened(proto)
    module = GraphModule(model)
    assert set(module.ties) == {"y/body/w" if inside else "w"}
    shake(module)
    write_back(module, model)
    steps = np.array(3) if text is LOOP else normal(2, 4, 2, 3)
    feed = {"x": normal(1, 2, 3), "n": steps}
    found = module(feed)["y"].detach().numpy()
    np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5, atol=1e-6)
    assert not np.allclose(outputs_of(opened(proto), feed)["y"], found, rtol=1e-3)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_scales_of_codes_go_back_as_they_ran(kind: type) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 8] x) => (float[2, 6] y) {
        c = Cast<to=1>(q) f = Cast<to=1>(s) w = Mul(c, f) y = MatMul(x, w)
    }"""
    codes = np.random.default_rng(0).integers(-100, 100, (8, 6)).astype(np.int8)
    model = opened(model_of(text, {"q": codes, "s": np.linspace(0.01, 0.05, 6).astype(kind)}))
    module = GraphModule(model)
    with torch.no_grad():
        module.parameter("s").add_(0.1)
    write_back(module, model)
    feed = {"x": normal(3, 2, 8)}
    found = module(feed)["y"].detach().numpy()
    np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5, atol=1e-6)


def test_constants_of_a_local_function_stay_as_they_are() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
    g (float[n, 4] x) => (float[n, 3] y) { y = own.shifted(x, w) }
    <domain: "own", opset_import: ["": 17]>
    shifted (a, b) => (c) {
        k = Constant<value = float[3] {1.0, 2.0, 3.0}>()
        d = MatMul(a, b)
        c = Add(d, k)
    }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(normal(0, 4, 3), "w"))
    model = opened(proto)
    module = GraphModule(model)
    assert set(module.ties) == {"w"}
    shake(module)
    write_back(module, model)
    feed = {"x": normal(9, 2, 4)}
    found = module(feed)["y"].detach().numpy()
    np.testing.assert_allclose(found, outputs_of(model, feed)["y"], rtol=1e-5)
