import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.recover.bias import moments_of, shift_bytes, shift_means
from tests.models import Array, model_of, normal, opened, outputs_of

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
GRAPHS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "conv with bias": ("Conv<pads=[1, 1, 1, 1]>(x, w, b)", (64, 4, 6, 6), (8, 4, 3, 3)),
    "conv without bias": ("Conv(x, w)", (64, 4, 6, 6), (8, 4, 3, 3)),
    "grouped conv": ("Conv<group=4>(x, w)", (64, 4, 6, 6), (8, 1, 3, 3)),
    "transposed conv": ("ConvTranspose<strides=[2, 2]>(x, w)", (64, 4, 6, 6), (4, 8, 2, 2)),
    "gemm": ("Gemm<transB=1>(x, w, b)", (256, 12), (8, 12)),
    "matmul": ("MatMul(x, w)", (256, 12), (12, 8)),
}


def graph_of(call: str, shape: tuple[int, ...], weight: Array) -> onnx.ModelProto:
    dims = ", ".join(["N", *map(str, shape[1:])])
    given = "N, 8, H, W" if len(shape) == 4 else "N, 8"
    text = f"{HEAD} g (float[{dims}] x) => (float[{given}] y) {{ y = {call} }}"
    return model_of(text, {"w": weight, "b": normal(5, 8)})


@pytest.mark.parametrize("name", GRAPHS)
def test_the_mean_output_stays(name: str) -> None:
    call, shape, weight_shape = GRAPHS[name]
    feed = {"x": normal(1, *shape) + 1}
    model = opened(graph_of(call, shape, normal(2, *weight_shape)))
    axis = 1 if len(shape) == 4 else -1
    others = tuple(k for k in range(len(shape)) if k != axis % len(shape))
    expected = outputs_of(model, feed)["y"].mean(others)
    statistics = observe(model, [feed], frozenset({"mean"}), 0)
    layer = next(layers(model))
    before = layer.matrix()
    after = np.rint(2 * before) / 2
    layer.set_dense(model, layer.from_matrix(after))
    rough = outputs_of(model, feed)["y"].mean(others)
    assert shift_means(model, layer, before, after, statistics, {"y"})
    kept = outputs_of(model, feed)["y"].mean(others)
    # Rows are drawn where there are more than enough, so the mean is that of a sample.
    assert np.abs(kept - expected).max() < 0.1 * np.abs(rough - expected).max()


def test_nothing_is_shifted_without_samples_or_change() -> None:
    model = opened(graph_of(*GRAPHS["matmul"][:2], normal(2, 12, 8)))
    layer = next(layers(model))
    matrix: NDArray[np.float64] = layer.matrix()
    assert not shift_means(model, layer, matrix, matrix + 1, None, {"y"})
    statistics = observe(model, [{"x": normal(1, 32, 12)}], frozenset({"mean"}), 0)
    assert not shift_means(model, layer, matrix, matrix, statistics, {"y"})
    assert [node.op for node in model.graph.nodes] == ["MatMul"]
    assert shift_bytes(layer, None, {"y"}) == 0
    assert shift_bytes(layer, statistics, {"y"}) > 4 * 8


def test_a_bias_that_is_computed_has_no_place_for_a_shift() -> None:
    text = f"{HEAD} g (float[N, 12] x, float[8] b) => (float[N, 8] y) {{ y = Gemm(x, w, b) }}"
    model = opened(model_of(text, {"w": normal(2, 12, 8)}))
    feed = {"x": normal(1, 256, 12) + 3, "b": normal(3, 8)}
    statistics = observe(model, [feed], frozenset({"mean"}), 0)
    layer = next(layers(model))
    assert moments_of(layer, statistics) is not None
    assert not shift_means(model, layer, layer.matrix(), layer.matrix() + 1, statistics, {"y"})
