import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.measure.rows import input_rows
from tests.models import chain_cnn, model_of, normal, opened, outputs

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def only(proto: onnx.ModelProto) -> Layer:
    (layer,) = layers(opened(proto))
    return layer


@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    steps=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    dilations=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    pads=st.lists(st.integers(0, 2), min_size=6, max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_rows_reproduce_any_convolution(
    groups: int, kernel: list[int], steps: list[int], dilations: list[int], pads: list[int]
) -> None:
    dims = len(kernel)
    sides = ", ".join(["7"] * dims)
    free = ", ".join("CDE"[:dims])
    attributes = (
        f"group={groups}, strides={steps[:dims]}, dilations={dilations[:dims]}, "
        f"pads={pads[: 2 * dims]}"
    )
    text = f"""{HEAD} g (float[2, 4, {sides}] x) => (float[A, B, {free}] y) {{
        y = Conv<{attributes}>(x, w)
    }}"""
    proto = model_of(text, {"w": normal(1, 8, 4 // groups, *kernel)})
    layer, x = only(proto), normal(0, 2, 4, *[7] * dims)
    rows = input_rows(layer, x, 10**9, np.random.default_rng(0))
    found = np.einsum("gni,goi->ngo", rows.astype(np.float64), layer.matrix())
    expected = np.moveaxis(outputs(proto, {"x": x})["y"], 1, -1)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)


def test_some_rows_are_rows_of_all_and_none_comes_twice() -> None:
    layer = next(layers(opened(chain_cnn())))
    x = normal(0, 2, 3, 16, 16)
    every = {r.tobytes() for r in input_rows(layer, x, 10**9, np.random.default_rng(0))[0]}
    some = input_rows(layer, x, 100, np.random.default_rng(3))
    assert some.shape == (1, 100, 27)
    drawn = {row.tobytes() for row in some[0]}
    assert len(drawn) == 100
    assert drawn <= every
