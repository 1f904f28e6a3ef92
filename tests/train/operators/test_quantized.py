import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import Array, floats, ints, same_as_the_runtime

SCALE = np.array([0.02, 0.05, 0.1], np.float32)


def codes(*shape: int, kind: type = np.int8, seed: int = 0) -> Array:
    limits = np.iinfo(kind)
    values = np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape)
    return values.astype(kind)


def weights(*shape: int, seed: int = 0) -> Array:
    """Codes whose sums of two products fit 16 bits: without VNNI the runtime saturates others."""
    return np.random.default_rng(seed).integers(-64, 65, shape).astype(np.int8)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [0, 1])
def test_quantizing_and_decoding_per_channel(kind: type, axis: int) -> None:
    zero: Array = np.array([3, 0, 1], kind)
    text = (
        f"q = QuantizeLinear<axis={axis}>(x, s, o) z = Identity(q) "
        f"y = DequantizeLinear<axis={axis}>(q, s, o)"
    )
    shape = (3, 4) if axis == 0 else (2, 3)
    same_as_the_runtime(text, {"x": 4 * floats(*shape)}, {"s": SCALE, "o": zero}, 13)


def test_halves_are_rounded_to_even() -> None:
    x = {"x": np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 300, -5], np.float32)}
    same_as_the_runtime("y = QuantizeLinear(x, s)", x, {"s": np.array(1, np.float32)}, 13)


def test_blocks_have_scales_of_their_own() -> None:
    constants = {"q": codes(4, 6), "s": np.abs(floats(2, 6)) + 0.1}
    text = "w = DequantizeLinear<axis=0, block_size=2>(q, s) y = MatMul(x, w)"
    same_as_the_runtime(text, {"x": floats(2, 4)}, constants, 21)


def test_the_gradient_passes_inside_the_range_and_not_beyond() -> None:
    module = same_as_the_runtime(
        "q = QuantizeLinear(x, s, o) y = DequantizeLinear(q, s, o)",
        {"x": floats(1)},
        {"s": np.array(0.1, np.float32), "o": np.array(0, np.int8)},
    )
    x = torch.tensor([0.3, -20.0, 5.0, 100.0], requires_grad=True)
    module({"x": x})["y"].sum().backward()
    assert x.grad.tolist() == pytest.approx([1, 0, 1, 0])


def test_products_of_integers() -> None:
    a, b = codes(3, 4, kind=np.uint8), weights(4, 5, seed=1)
    zeros: dict[str, Array] = {"o": np.array(7, np.uint8), "p": np.array([1, 2, 3, 4, 5], np.int8)}
    same_as_the_runtime("y = MatMulInteger(x, w, o, p)", {"x": a}, {"w": b, **zeros})
    same_as_the_runtime("y = MatMulInteger(x, w)", {"x": a}, {"w": b})


def test_a_product_quantized_as_it_runs() -> None:
    text = (
        "q, s, o = DynamicQuantizeLinear(x) p = MatMulInteger(q, w, o) "
        "c = Cast<to=1>(p) m = Mul(s, t) y = Mul(c, m)"
    )
    constants: dict[str, Array] = {"w": weights(4, 5), "t": np.array(0.02, np.float32)}
    module = same_as_the_runtime(text, {"x": floats(3, 4)}, constants)
    x = torch.from_numpy(floats(3, 4)).requires_grad_()
    module({"x": x})["y"].sum().backward()
    expected = constants["w"].sum(1) * np.float32(0.02)
    np.testing.assert_allclose(x.grad.numpy(), np.tile(expected, (3, 1)), rtol=1e-4)


def test_convolutions_of_integers() -> None:
    constants: dict[str, Array] = {"w": weights(2, 3, 2, 2), "o": np.array(5, np.uint8)}
    x = {"x": codes(1, 3, 4, 4, kind=np.uint8)}
    same_as_the_runtime("y = ConvInteger(x, w, o)", x, constants)


def test_operators_that_quantize_what_they_give() -> None:
    numbers: dict[str, Array] = {
        "s": np.array(0.02, np.float32),
        "o": np.array(3, np.uint8),
        "t": np.array(0.01, np.float32),
        "p": np.array(0, np.int8),
        "u": np.array(0.5, np.float32),
        "q": np.array(128, np.uint8),
    }
    x = {"x": codes(1, 3, 4, 4, kind=np.uint8)}
    constants = {"w": weights(2, 3, 2, 2), "b": np.array([100, -2000], np.int32), **numbers}
    same_as_the_runtime("y = QLinearConv(x, s, o, w, t, p, u, q, b)", x, constants)
    constants = {"w": weights(4, 2), **numbers}
    same_as_the_runtime("y = QLinearMatMul(x, s, o, w, t, p, u, q)", x, constants)


def test_codes_are_moved_as_they_are() -> None:
    text = (
        "q = QuantizeLinear(x, s, o) h = Reshape(q, n) i = Concat<axis=0>(h, h) "
        "y = DequantizeLinear(i, s, o) z = Identity(i)"
    )
    numbers: dict[str, Array] = {
        "s": np.array(0.1, np.float32),
        "o": np.array(3, np.uint8),
        "n": ints(4, -1),
    }
    same_as_the_runtime(text, {"x": floats(2, 6)}, numbers)
