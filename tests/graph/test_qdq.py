"""What is written around integers is what the runtime forms integer kernels of."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim_tk.measure.runtime import Session, running_operators
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline import Options, optimize
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.recipe import parse_recipe
from tests.models import SLOW_FLOATS, model_of, normal

# Without a bias, which a correction would add.
PLAIN = "stages: {numbers: [{quantize: {bias_correction: none}}]}"
SUMS = {
    "two products": ("m = MatMul(x, w) n = MatMul(x, v) y = Add(m, n)", 2),
    "a product and its input": ("m = MatMul(x, s) y = Add(m, x)", 1),
    "a product and what is behind it": ("m = MatMul(x, s) t = Tanh(x) y = Add(t, m)", 1),
}


@pytest.mark.parametrize("name", SUMS)
def test_products_that_meet_in_a_sum_all_run_in_integers(name: str, tmp_path: Path) -> None:
    body, products = SUMS[name]
    weights = {"w": normal(0, 32, 48), "v": normal(1, 32, 48), "s": normal(2, 32, 32)}
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 32] x) => (float[N, K] y) {{ {body} }}"""
    used = {k: value / 6 for k, value in weights.items() if f", {k})" in body}
    source, result = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model_of(text, used), source)
    feeds = [{"x": normal(3 + k, 8, 32)} for k in range(12)]
    options = Options(target=SLOW_FLOATS, calibration=Samples(feeds), budget=Budget(min_sqnr_db=25))
    optimize(source, result, parse_recipe(PLAIN, "plain", PASSES), options)
    found = running_operators(result)
    assert found["QGemm"] == products
    assert not {"MatMul", "Gemm", "DequantizeLinear"} & set(found)
    expected, values = (Session(path).run(feeds[0])["y"] for path in (source, result))
    assert np.square(values - expected).sum() < 1e-3 * np.square(expected).sum()
