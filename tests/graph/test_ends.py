import numpy as np
import onnx

from onnxslim_tk.graph.ends import end_nodes
from onnxslim_tk.graph.layers import layers
from tests.models import model_of, normal, opened

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def ends(proto: onnx.ModelProto) -> set[str]:
    model = opened(proto)
    found = list(layers(model))
    met = end_nodes(model, found)
    return {layer.id for layer in found if id(layer.node) in met}


def weights(*names: str) -> dict[str, np.ndarray]:
    return {name: normal(k, 8, 8) for k, name in enumerate(names)}


def test_what_lies_between_weights_is_no_end() -> None:
    text = f"""{HEAD} g (float[N, 8] x) => (float[N, 8] y) {{
        s = Sigmoid(x)
        a = MatMul(s, u)
        b = MatMul(a, v)
        c = MatMul(b, w)
        y = Relu(c)
    }}"""
    assert ends(model_of(text, weights("u", "v", "w"))) == {"a", "c"}


def test_every_branch_has_its_own_ends() -> None:
    text = f"""{HEAD} g (float[N, 8] x) => (float[N, 8] y, float[N, 8] z) {{
        a = MatMul(x, u)
        b = MatMul(x, v)
        m = Add(a, b)
        c = MatMul(m, w)
        y = MatMul(c, p)
        z = MatMul(c, q)
    }}"""
    assert ends(model_of(text, weights("u", "v", "w", "p", "q"))) == {"a", "b", "y", "z"}


def test_a_way_around_all_weights_makes_their_first_and_last_ends_too() -> None:
    text = f"""{HEAD} g (float[N, 8] x) => (float[N, 8] y) {{
        a = MatMul(x, u)
        b = MatMul(a, v)
        c = MatMul(b, w)
        y = Add(x, c)
    }}"""
    assert ends(model_of(text, weights("u", "v", "w"))) == {"a", "c"}


def test_a_model_of_one_layer_is_all_end() -> None:
    text = f"{HEAD} g (float[N, 8] x) => (float[N, 8] y) {{ y = MatMul(x, u) }}"
    assert ends(model_of(text, weights("u"))) == {"y"}


def test_weights_in_bodies_are_none() -> None:
    text = f"""{HEAD} g (bool c, float[N, 8] x) => (float[N, 8] y) {{
        y = If(c)<
            then_branch = yes () => (float[N, 8] p) {{ p = MatMul(x, u) }},
            else_branch = no () => (float[N, 8] q) {{ q = MatMul(x, v) }}
        >
    }}"""
    assert ends(model_of(text, weights("u", "v"))) == set()
