from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.rules import Tensor
from tests import models
from tests.models import chain_cnn, mlp, model_of, normal, opened, outputs, residual_cnn


def module_of(text: str, **constants: object) -> GraphModule:
    return GraphModule(opened(model_of(text, constants)))


@pytest.mark.parametrize(
    ("build", "shape"),
    [(chain_cnn, (2, 3, 16, 16)), (residual_cnn, (2, 3, 16, 16)), (mlp, (4, 32))],
)
def test_networks_compute_what_the_runtime_does(
    build: Callable[[], onnx.ModelProto], shape: tuple[int, ...]
) -> None:
    feed = {"x": normal(5, *shape)}
    module = GraphModule(opened(build()))
    expected = outputs(build(), feed)["y"]
    np.testing.assert_allclose(module(feed)["y"].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [chain_cnn, residual_cnn, mlp])
def test_the_gradient_of_every_parameter_is_right(build: Callable[[], onnx.ModelProto]) -> None:
    module = GraphModule(opened(build())).double()
    shape = (2, 32) if build is mlp else (2, 3, 16, 16)
    feed = {"x": normal(5, *shape).astype(np.float64)}

    def loss() -> Tensor:
        return (module(feed)["y"] ** 2).sum()

    loss().backward()
    assert list(module.parameters())
    for parameter in module.parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
            above = loss().item()
            parameter.sub_(direction, alpha=2e-6)
            below = loss().item()
            parameter.add_(direction, alpha=1e-6)
        expected = (above - below) / 2e-6
        found = (parameter.grad * direction).sum().item()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_parameter_is_the_tensor_of_its_name() -> None:
    proto = chain_cnn()
    module = GraphModule(opened(proto))
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert {"w1", "w2", "b2", "w3", "b3", "as", "ab", "bs", "bb"} == set(module.ties)
    for name in module.ties:
        np.testing.assert_array_equal(module.parameter(name).detach().numpy(), stored[name])


def test_inner_tensors_come_by_name() -> None:
    feed = {"x": normal(5, 2, 3, 16, 16)}
    found = GraphModule(opened(residual_cnn()))(feed, ["r1", "y", "s4"])
    assert list(found) == ["r1", "y", "s4"]
    assert found["r1"].shape == (2, 16, 16, 16)
    assert found["r1"].requires_grad


def test_what_isn_t_there_is_named() -> None:
    module = GraphModule(opened(mlp()))
    with pytest.raises(TrainingError, match="needs the input 'x'"):
        module({})
    with pytest.raises(TrainingError, match="no tensor 'nothing' came by"):
        module({"x": normal(0, 1, 32)}, ["nothing"])
    with pytest.raises(TrainingError, match="'m1'"):
        module({"x": normal(0, 1, 31)})
    with pytest.raises(TrainingError, match="'x' isn't one that is trained"):
        module.parameter("x")


def branches() -> Model:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 3] x, bool c) => (float[2, 4] y) {
        y = If(c) <
            then_branch = a () => (float[2, 4] p) <float[3, 4] w, float[4] b> {
                m = MatMul(x, w) p = Add(m, b)
            },
            else_branch = b () => (float[2, 4] q) { q = MatMul(x, v) }
        >
    }"""
    proto = parser.parse_model(text.replace("<float[3, 4] w, float[4] b>", ""))
    body = proto.graph.node[0].attribute[0].g
    body.initializer.append(numpy_helper.from_array(normal(0, 3, 4), "w"))
    body.initializer.append(numpy_helper.from_array(normal(1, 4), "b"))
    proto.graph.initializer.append(numpy_helper.from_array(normal(2, 3, 4), "v"))
    return opened(proto)


def test_only_the_branch_that_runs_gets_a_gradient() -> None:
    module = GraphModule(branches())
    assert set(module.ties) == {"y/then_branch/w", "y/then_branch/b", "v"}
    module({"x": normal(3, 2, 3), "c": np.array(True)})["y"].sum().backward()
    assert module.parameter("y/then_branch/w").grad is not None
    assert module.parameter("v").grad is None
    module({"x": normal(3, 2, 3), "c": np.array(False)})["y"].sum().backward()
    assert module.parameter("v").grad is not None


def test_inner_tensors_of_a_branch_come_by_path_and_name() -> None:
    module = GraphModule(branches())
    feed = {"x": normal(3, 2, 3), "c": np.array(True)}
    assert module(feed, ["y/then_branch/m"])["y/then_branch/m"].shape == (2, 4)
    with pytest.raises(TrainingError, match="came by"):
        module({**feed, "c": np.array(False)}, ["y/then_branch/m"])


LOOP = """<ir_version: 8, opset_import: ["": 17]>
g (float[2, 3] x, int64 n) => (y, z) {
    t = Constant<value = bool {1}>()
    y, z = Loop(n, t, x) <
        body = b (int64 i, bool go, float[2, 3] s) => (bool on, float[2, 3] next, float[2, 3] row) {
            on = Identity(go) next = MatMul(s, w) row = Relu(next)
        }
    >
}"""
SCAN = """<ir_version: 8, opset_import: ["": 17]>
g (float[2, 3] x, float[4, 2, 3] n) => (y, z) {
    y, z = Scan(x, n) <
        num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1],
        body = b (float[2, 3] s, float[2, 3] r) => (float[2, 3] next, float[2, 3] row) {
            m = MatMul(s, w) next = Add(m, r) row = Relu(next)
        }
    >
}"""


@pytest.mark.parametrize("text", [LOOP, SCAN])
def test_loops_carry_their_states_and_stack_their_rows(text: str) -> None:
    text = text.replace("(y, z) {", "(float[a, b] y, float[c, d, e] z) {")
    proto = model_of(text, {"w": normal(1, 3, 3, scale=0.5)})
    steps = np.array(3) if text is LOOP or "Loop" in text else normal(2, 4, 2, 3)
    feed = {"x": normal(0, 2, 3), "n": steps}
    module = GraphModule(opened(proto))
    found, expected = module(feed), outputs(proto, feed)
    for name in ("y", "z"):
        np.testing.assert_allclose(found[name].detach().numpy(), expected[name], rtol=1e-4)
    (found["y"].sum() + found["z"].sum()).backward()
    assert bool((module.parameter("w").grad != 0).any())


def test_a_node_without_a_rule_is_named_and_runs() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) {
        h = Mul(x, w)
        y = LpPool<kernel_shape=[2, 2], strides=[2, 2]>(h)
    }"""
    module = module_of(text, w=normal(1, 4, 4))
    assert module.without_rule == {"LpPool"}
    feed = {"x": normal(0, 1, 1, 4, 4)}
    expected = outputs(model_of(text, {"w": normal(1, 4, 4)}), feed)["y"]
    np.testing.assert_allclose(module(feed)["y"].detach().numpy(), expected, rtol=1e-5)
    assert module.detached == ("y: LpPool: no rule is known for it",)


def test_a_node_without_inputs_may_have_no_rule() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2] x) => (float[2] y) { r = RandomNormal<shape=[2], seed=1.0>() y = Add(x, r) }"""
    module = GraphModule(opened(parser.parse_model(text)))
    assert module.without_rule == {"RandomNormal"}
    assert module({"x": normal(0, 2)})["y"].shape == (2,)


def test_a_body_that_no_rule_runs_is_an_error() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2] x, float[2] w) => (float[2, 2] y) {
        s = SequenceConstruct(x, w)
        t = SequenceMap(s) <body = b (float[2] i) => (float[2] o) { o = Neg(i) }>
        y = ConcatFromSequence<axis=0, new_axis=1>(t)
    }"""
    module = GraphModule(opened(parser.parse_model(text)))
    with pytest.raises(TrainingError, match="SequenceMap 't' has no rule"):
        module({"x": normal(0, 2), "w": normal(1, 2)})


def test_a_node_that_nobody_knows_is_an_error() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.Thing(x) }"""
    with pytest.raises(TrainingError, match="own:Thing 'y' has no rule, and the runtime"):
        GraphModule(opened(parser.parse_model(text)))({"x": normal(0, 2)})


def test_local_functions_are_put_in_place() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own" : 1]>
    g (float[2, 3] x) => (float[2, 4] y) { h = own.Twice(x) y = MatMul(h, w) }
    <domain: "own", opset_import: ["": 17]>
    Twice (a) => (b) { t = Constant<value = float {2.0}>() b = Mul(a, t) }"""
    module = module_of(text, w=normal(0, 3, 4))
    x = normal(1, 2, 3)
    np.testing.assert_allclose(
        module({"x": x})["y"].detach().numpy(), 2 * x @ normal(0, 3, 4), rtol=1e-4
    )


def test_half_precision_is_trained_in_single() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float16[2, 3] x) => (float16[2, 4] y) { y = MatMul(x, w) }"""
    weight = normal(0, 3, 4).astype(np.float16)
    module = module_of(text, w=weight)
    assert module.parameter("w").dtype == torch.float32
    x = normal(1, 2, 3).astype(np.float16)
    found = module({"x": x})["y"]
    np.testing.assert_allclose(found.detach().numpy(), x @ weight, rtol=2e-3, atol=2e-3)
    (found * 1e-9).sum().backward()
    assert bool((module.parameter("w").grad != 0).all())


def test_an_input_with_a_default_may_be_left_out() -> None:
    proto = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, float[2] d) => (float[2] y) { y = Add(x, d) }""",
        {"d": np.array([1, 2], np.float32)},
    )
    module = GraphModule(opened(proto))
    x = np.zeros(2, np.float32)
    assert module({"x": x})["y"].tolist() == [1, 2]
    assert module({"x": x, "d": np.ones(2, np.float32)})["y"].tolist() == [1, 1]
    assert not list(module.parameters())


def test_integers_leave_the_graph_as_integers() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[3] x) => (uint8[3] y) { y = QuantizeLinear(x, s) }"""
    module = module_of(text, s=np.array(0.5, np.float32))
    assert module({"x": np.array([0, 1, 1000], np.float32)})["y"].dtype == torch.uint8


def test_strings_pass_by() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (string[2] x, float[2] f) => (string[2] y, float[2] z) { y = Identity(x) z = Neg(f) }"""
    module = GraphModule(opened(parser.parse_model(text)))
    found = module({"x": np.array(["a", "b"]), "f": np.ones(2, np.float32)})
    assert list(found["y"]) == ["a", "b"]


def test_a_run_of_a_copy_leaves_the_model_alone() -> None:
    model = opened(mlp())
    before = models.digest(model)
    module = GraphModule(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    assert models.digest(model) == before
