from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.train.parameters import Role, trained
from onnxslim_tk.train.program import compiled
from tests.models import Array, model_of, normal, opened, statistics


def roles(nodes: str, shape: str = "2, 3, 8, 8", **constants: Array) -> dict[str, Role]:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[{shape}] x) => (float y) {{{nodes}}}'
    return trained(compiled(opened(model_of(text, constants))))


def test_weights_and_biases_are_trained_down_to_one_element() -> None:
    found = roles("y = Conv(x, w, b)", w=normal(0, 1, 3, 1, 1), b=normal(1, 1))
    assert {name: role.is_matrix for name, role in found.items()} == {"w": True, "b": False}


def test_statistics_bounds_and_scales_are_not() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    stored: dict[str, Any] = {k[1:]: values for k, values in statistics(0, 3, "_").items()}
    found = roles(
        "n = BatchNormalization(x, s, b, m, v) c = Clip(n, l, h) y = Resize(c, '', r)".replace(
            "'", '"'
        ),
        **stored,
        l=np.array(-1, np.float32),
        h=np.array(1, np.float32),
        r=scales,
    )
    assert set(found) == {"s", "b"}


def test_a_tensor_that_is_also_a_statistic_stays() -> None:
    zeros = np.zeros(3, np.float32)
    found = roles("n = BatchNormalization(x, s, z, z, s) y = Relu(n)", s=zeros + 1, z=zeros)
    assert not found


def test_arithmetic_trains_vectors_but_no_single_numbers_and_no_masks() -> None:
    found = roles(
        "a = Mul(x, g) b = Add(a, e) c = Add(b, m) y = Div(c, d)",
        g=normal(0, 3, 1, 1),
        e=np.array([1e-5], np.float32),
        m=np.full((8, 8), -1e9, np.float32),
        d=np.array(8, np.float32),
    )
    assert set(found) == {"g"}


def test_weights_are_found_through_what_only_moves_them() -> None:
    found = roles(
        "t = Transpose(w) c = Cast<to=1>(t) y = MatMul(x, c)",
        "2, 3",
        w=normal(0, 4, 3).astype(np.float16),
    )
    assert found["w"].is_matrix


def test_integers_are_weights_where_a_scale_says_so() -> None:
    codes = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    scale = np.array([1, 2, 3, 4], np.float32)
    found = roles("w = DequantizeLinear<axis=1>(q, s) y = MatMul(x, w)", "2, 3", q=codes, s=scale)
    assert set(found) == {"q"}
    assert found["q"].is_matrix
    np.testing.assert_array_equal(found["q"].unit, scale[None])


def test_a_table_of_integers_has_the_scale_that_is_looked_up_with_it() -> None:
    codes, scale = np.ones((5, 4), np.int8), np.arange(1, 6, dtype=np.float32)[:, None]
    found = roles(
        "r = Gather(q, i) c = Cast<to=1>(r) f = Gather(s, i) g = Mul(c, f) y = Add(x, g)",
        "2, 4",
        q=codes,
        s=scale,
        i=np.array([0, 3]),
    )
    np.testing.assert_array_equal(found["q"].unit, scale)


def test_indices_and_shapes_are_no_weights() -> None:
    found = roles(
        "r = Reshape(x, s) g = Gather<axis=1>(r, i) y = Relu(g)",
        s=np.array([2, -1]),
        i=np.array([0, 1]),
    )
    assert not found


def test_factors_of_codes_learn_as_scales() -> None:
    found = roles(
        "c = Cast<to=1>(q) w = Mul(c, s) y = Conv(x, w)",
        q=np.ones((4, 3, 1, 1), np.int8),
        s=np.full((4, 1, 1, 1), 0.01, np.float32),
    )
    assert found["s"].is_scale
    assert not found["q"].is_scale


QDQ = (
    "a = QuantizeLinear(x, p, z) b = DequantizeLinear(a, p, z) "
    "w = DequantizeLinear(q, s) c = DequantizeLinear(i, t) y = Conv(b, w, c)"
)


def test_the_scale_of_a_bias_is_the_product_of_two() -> None:
    constants: dict[str, Any] = {
        "p": np.float32(0.1),
        "z": np.uint8(128),
        "q": np.ones((4, 3, 1, 1), np.int8),
        "s": np.float32(0.02),
        "i": np.ones(4, np.int32),
    }
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[2, 3, 8, 8] x) => (float y) {{{QDQ}}}'
    stored = model_of(text, {**constants, "t": np.float32(0.002)})
    found = trained(compiled(opened(stored)), scales=True)
    assert {key: role.factors for key, role in found.items() if role.is_scale} == {
        "p": (),
        "s": (),
        "t": ("p", "s"),
    }
    made = model_of(text.replace("c = Deq", "t = Mul(p, s) c = Deq"), constants)
    assert set(trained(compiled(opened(made)), scales=True)) == {"q", "i", "p", "s"}
