import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.train.holders import holders
from onnxslim_tk.train.initial import draw_anew
from tests.models import Array, model_of, normal, opened


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ("y = MatMul(x, w)", (32, 24)),
        ("v = Transpose<perm=[1, 0]>(w) y = MatMul(x, v)", (24, 32)),
        ("v = Transpose(w) u = Cast<to=1>(v) y = MatMul(x, u)", (24, 32)),
        ("y = com.microsoft.FusedMatMul<transB=1>(x, w)", (24, 32)),
    ],
)
def test_a_matrix_is_drawn_by_its_inputs_whatever_it_passes(
    nodes: str, shape: tuple[int, int]
) -> None:
    opsets = '["": 17, "com.microsoft": 1]'
    text = f"<ir_version: 8, opset_import: {opsets}> g (float[n, 32] x) => (y) {{{nodes}}}"
    old: Array = normal(0, *shape)
    model = opened(model_of(text.replace("(y)", "(float[n, 24] y)"), {"w": old}))
    draw_anew(model, 0)
    ((_, holder),) = holders(model, ["w"])
    drawn = np.asarray(holder.values)
    assert drawn.shape == shape
    assert (drawn != old).all()
    assert drawn.std() == pytest.approx((2 / 32) ** 0.5, rel=0.1)
