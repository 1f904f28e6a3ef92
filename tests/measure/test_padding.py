import numpy as np

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.padding import real_rows, real_steps, without_padding
from tests.models import model_of, normal, opened

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
REAL = np.array([[True, True, False], [True, False, False]])


def test_one_mask_of_zeros_and_ones_says_which_steps_are_real() -> None:
    mask = REAL.astype(np.int64)
    found = real_steps({"ids": mask, "attention_mask": mask})
    assert found is not None
    np.testing.assert_array_equal(found, REAL)
    for feed in (
        {"ids": mask},
        {"mask": mask + 1},
        {"mask": mask.astype(np.float32)},
        {"mask": mask[0]},
        {"mask": mask, "other_mask": mask},
    ):
        assert real_steps(feed) is None


def test_rows_of_padding_go_where_the_form_tells_them() -> None:
    values = normal(1, 2, 3, 4)
    wanted = np.stack([values[0, 0], values[0, 1], values[1, 0]])
    np.testing.assert_array_equal(without_padding(values, REAL), wanted)
    np.testing.assert_array_equal(without_padding(values.reshape(6, 4), REAL), wanted)
    for whole in (normal(2, 3, 2, 4), normal(3, 5, 4), normal(4, 2, 3, 4, 5)):
        assert without_padding(whole, REAL) is whole
    assert without_padding(values, None) is values
    assert without_padding(values, np.ones((2, 3), bool)) is values


def test_padding_counts_in_no_statistics() -> None:
    text = f"""{HEAD} g (float[N, S, 4] x, int64[N, S] mask) => (float[N, S, 5] y, int64[N, S] m) {{
        y = MatMul(x, w)
        m = Identity(mask)
    }}"""
    model = opened(model_of(text, {"w": normal(1, 4, 5)}))
    values, mask = normal(2, 2, 3, 4), REAL.astype(np.int64)
    values[~REAL] *= 1000
    kinds = frozenset({"mean", "covariance", "range", "channels"})
    found = observe(model, [{"x": values, "mask": mask}], kinds, 0)
    rows = values[REAL].astype(np.float64)
    moments = found.moments["y"]
    assert moments.count == 3
    assert moments.second is not None
    np.testing.assert_allclose(moments.mean[0], rows.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.second[0], rows.T @ rows / 3, rtol=1e-4, atol=1e-5)
    assert found.ranges["x"].high == values[REAL].max()
    np.testing.assert_allclose(found.channels["x"].peak, np.abs(rows).max(0))


def test_convolutions_keep_the_form_of_what_they_read() -> None:
    text = f"{HEAD} g (float[N, 3, 8] x) => (float[N, 2, 8] y) {{ y = Conv(x, w) }}"
    (layer,) = layers(opened(model_of(text, {"w": normal(1, 2, 3, 1)})))
    values = normal(2, 2, 3, 8)
    assert real_rows(layer, values, REAL) is values
