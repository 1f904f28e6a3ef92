import numpy as np
import onnx
import pytest
from onnx import helper

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.opset import raise_opset
from tests.models import (
    digest,
    model_of,
    normal,
    opened,
    operators,
    opset_of,
    outputs,
    outputs_of,
    to_proto,
    with_metadata,
)

IMAGE = {"x": normal(1, 2, 3, 4, 5)}
STATISTICS = {"s": np.array([1, 2, 3], np.float32), "v": np.array([1, 2, 0.5], np.float32)}

CASES = {
    "Squeeze and Unsqueeze": (11, "a = Unsqueeze<axes=[0]>(x) y = Squeeze<axes=[0]>(a)"),
    "Clip": (9, "y = Clip<min=-0.5, max=0.25>(x)"),
    "Clip with one end": (9, "y = Clip<min=-0.5>(x)"),
    "Dropout": (9, "a = Relu(x) b = Dropout<ratio=0.7>(a) y = Neg(b)"),
    "Dropout of 11": (11, "y = Dropout<ratio=0.7>(x)"),
    "BatchNormalization": (8, "y = BatchNormalization<spatial=1>(x, s, s, s, v)"),
    "Softmax over the rest": (12, "y = Softmax<axis=1>(x)"),
    "Softmax by default": (11, "a = Softmax(x) y = Relu(a)"),
    "LogSoftmax over the last": (11, "y = LogSoftmax<axis=-1>(x)"),
    "ReduceSum": (12, "y = ReduceSum<axes=[2], keepdims=0>(x)"),
    "Split": (11, "y, b, c = Split<axis=1, split=[1, 1, 1]>(x)"),
    "Slice": (9, "y = Slice<starts=[1], ends=[3], axes=[2]>(x)"),
    "TopK": (9, "y, i = TopK<k=2, axis=3>(x)"),
    "Pad": (10, "y = Pad<pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.5>(x)"),
    "Upsample by an attribute": (8, "y = Upsample<mode='linear', scales=[1.0, 1.0, 2.0, 2.0]>(x)"),
    "Upsample within": (9, "a = Relu(x) b = Upsample<mode='nearest'>(a, up) y = Neg(b)"),
    "linear Upsample": (9, "y = Upsample<mode='linear'>(x, up)"),
    "linear Resize": (10, "y = Resize<mode='linear'>(x, up)"),
    "nearest Resize": (10, "y = Resize<mode='nearest'>(x, odd)"),
    "shrinking nearest Resize": (10, "y = Resize<mode='nearest'>(x, down)"),
}
SCALES = {
    "up": np.array([1, 1, 2, 2], np.float32),
    "odd": np.array([1, 1, 2.5, 1.7], np.float32),
    "down": np.array([1, 1, 0.5, 0.6], np.float32),
}


def old_model(opset: int, body: str) -> onnx.ModelProto:
    dims = "A, B, C" if "keepdims=0" in body else "A, B, C, D"
    text = f"""<ir_version: 4, opset_import: ["": {opset}]>
    old (float[2, 3, 4, 5] x) => (float[{dims}] y) {{ {body} }}""".replace("'", '"')
    return model_of(text, {**STATISTICS, **SCALES})


@pytest.mark.parametrize("case", CASES)
def test_computes_the_same_as_before(case: str) -> None:
    proto = old_model(*CASES[case])
    before = outputs(proto, IMAGE)
    model = opened(proto)
    raise_opset(model)
    after = outputs_of(model, IMAGE)
    assert opset_of(model) == 13
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_keeps_the_name_of_every_tensor(case: str) -> None:
    proto = old_model(*CASES[case])
    names = {name for node in proto.graph.node for name in node.output}
    model = opened(proto)
    raise_opset(model)
    assert names <= {name for node in to_proto(model).graph.node for name in node.output}


@pytest.mark.parametrize("case", CASES)
def test_does_nothing_the_second_time(case: str) -> None:
    model = opened(old_model(*CASES[case]))
    raise_opset(model)
    first = digest(model)
    raise_opset(model)
    assert digest(model) == first


def test_leaves_a_newer_model_as_it_is() -> None:
    model = opened(old_model(13, "y = Relu(x)"))
    first = digest(model)
    raise_opset(model, 13)
    assert digest(model) == first


def test_keeps_metadata_and_notes_and_symbolic_dimensions() -> None:
    text = """<ir_version: 5, opset_import: ["": 11]>
    g (float[batch, 4] x) => (float[batch, classes] y) { a = Softmax(x) y = Relu(a) }"""
    model = opened(with_metadata(model_of(text)))
    raise_opset(model)
    proto = to_proto(model)
    assert (proto.producer_name, proto.doc_string) == ("a vendor", "a model")
    assert {p.key: p.value for p in proto.metadata_props} == {"stride": "32"}
    dims = [d.dim_param for d in proto.graph.output[0].type.tensor_type.shape.dim]
    assert dims == ["batch", "classes"]
    notes = {node.output[0]: node.doc_string for node in proto.graph.node}
    assert notes["a"] == "makes a"
    assert notes["y"] == "makes y"


def test_layers_keep_the_names_that_users_know() -> None:
    text = """<ir_version: 5, opset_import: ["": 11]>
    g (float[2, N, 4] x) => (float[2, N, M] y) { m = MatMul(x, w) y = Softmax<axis=1>(m) }"""
    model = opened(with_metadata(model_of(text, {"w": normal(0, 4, 3)})))
    known = dict(model.origins)
    raise_opset(model)
    assert {key: model.origins[key] for key in known} == known
    made = [node for node in model.graph.nodes if node.outputs[0].name not in known]
    assert made
    assert all(model.origins[node.outputs[0].name] == known["y"] for node in made)


def test_raises_the_ir_version_only_as_far_as_it_must() -> None:
    for before, after in ((3, 7), (7, 7), (9, 9)):
        proto = old_model(9, "y = Relu(x)")
        proto.ir_version = before
        model = opened(proto)
        raise_opset(model)
        assert to_proto(model).ir_version == after


def test_raises_bodies_too() -> None:
    text = """<ir_version: 7, opset_import: ["": 11]>
    g (bool c, float[1, 4] x) => (float[4] y) {
        s = Add(x, w)
        y = If(c)<
            then_branch = yes () => (float[4] a) { a = Squeeze<axes=[0]>(s) },
            else_branch = no () => (float[4] b) { q = Softmax(s) b = Squeeze<axes=[0]>(q) }
        >
    }"""
    proto = model_of(text, {"w": normal(0, 1, 4)})
    model = opened(proto)
    raise_opset(model)
    for c in (True, False):
        feed = {"c": np.array(c), "x": normal(2, 1, 4)}
        np.testing.assert_allclose(outputs_of(model, feed)["y"], outputs(proto, feed)["y"], 1e-6)


def test_keeps_big_weights_to_the_bit() -> None:
    weight = normal(0, 64, 64)
    text = """<ir_version: 4, opset_import: ["": 9]>
    g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) y = Clip<min=0.0>(a) }"""
    model = opened(model_of(text, {"w": weight}))
    raise_opset(model)
    (kept,) = [t for t in to_proto(model).graph.initializer if t.name == "w"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept), weight)
    assert [value.name for value in to_proto(model).graph.input] == ["x"]


def test_keeps_operators_of_other_domains_and_local_functions() -> None:
    text = """<ir_version: 8, opset_import: ["": 12, "vendor": 3, "local": 1]>
    g (float[1, 4] x) => (float[1, 4] y) {
        a = vendor.Magic<k = 1>(x)
        b = Unsqueeze<axes=[0]>(a)
        c = Squeeze<axes=[0]>(b)
        y = local.Twice(c)
    }
    <domain: "local", opset_import: ["": 12]> Twice (p) => (q) { q = Sum(p, p) }"""
    model = opened(model_of(text))
    raise_opset(model)
    proto = to_proto(model)
    assert operators(model) == ["Magic", "Unsqueeze", "Squeeze", "Twice"]
    assert {o.domain: o.version for o in proto.opset_import} == {"": 13, "vendor": 3, "local": 1}
    assert [f.name for f in proto.functions] == ["Twice"]


def test_refuses_a_function_whose_operators_changed() -> None:
    text = """<ir_version: 8, opset_import: ["": 12, "local": 1]>
    g (float[1, 4] x) => (float[4] y) { y = local.Flat(x) }
    <domain: "local", opset_import: ["": 12]> Flat (p) => (q) { q = Squeeze<axes=[0]>(p) }"""
    with pytest.raises(ModelError, match=r"local function 'Flat' uses an older Squeeze"):
        raise_opset(opened(model_of(text)))


def test_refuses_what_it_would_change_the_meaning_of() -> None:
    with pytest.raises(ModelError, match="below 7 are not supported"):
        raise_opset(opened(old_model(6, "y = Relu(x)")))
    with pytest.raises(ModelError, match="'y' is not per channel"):
        raise_opset(opened(old_model(8, "y = BatchNormalization<spatial=0>(x, s, s, s, v)")))


def test_says_why_a_model_cannot_be_raised() -> None:
    model = opened(old_model(12, "y = Relu(x)"))
    with pytest.raises(ModelError, match=r"^opset: the model can't be raised from 12 to 999: "):
        raise_opset(model, 999)
    assert opset_of(model) == 12


def test_leaves_a_model_without_standard_operators_as_it_is() -> None:
    text = '<ir_version: 8, opset_import: ["vendor": 1]> g (float[1] x) => (float[1] y) {}'
    proto = model_of(text)
    proto.graph.node.append(helper.make_node("Magic", ["x"], ["y"], domain="vendor"))
    model = opened(proto)
    raise_opset(model)
    assert [(o.domain, o.version) for o in to_proto(model).opset_import] == [("vendor", 1)]


def test_says_so_where_declared_shapes_contradict_each_other() -> None:
    proto = model_of(
        """<ir_version: 8, opset_import: ["": 9]>
        contrary (float[4] x) => (float[4] y, float[1] w) { y = Relu(x) }""",
        {"w": np.ones(4, np.float32)},
    )
    with pytest.raises(ModelError, match=r"^opset: the model can't be raised from 9 to 13: "):
        raise_opset(opened(proto))
