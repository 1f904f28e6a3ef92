import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import apart, floats, gradient_is_right, positive, same_as_the_runtime

SMOOTH = {
    **{name: floats(2, 3) for name in ("Cos", "Erf", "Exp", "Mish", "Neg", "Sigmoid", "Sin")},
    **{name: floats(2, 3) for name in ("Softplus", "Softsign", "Tan", "Tanh", "Identity", "Sinh")},
    **{name: positive(2, 3) for name in ("Log", "Reciprocal", "Sqrt")},
    **{name: floats(2, 3) * 0.2 for name in ("Acos", "Asin", "Atan", "Asinh", "Atanh", "Cosh")},
    **{name: apart(2, 3) for name in ("Abs", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu")},
    **{name: apart(2, 3) for name in ("Relu", "Selu", "ThresholdedRelu", "Celu", "Shrink")},
    "Acosh": positive(2, 3) + 1,
}
STEPS = ("Ceil", "Floor", "Round", "Sign", "IsNaN", "IsInf")
ATTRIBUTES = (
    "Elu<alpha=0.3>",
    "HardSigmoid<alpha=0.1, beta=0.7>",
    "LeakyRelu<alpha=0.3>",
    "Selu<alpha=1.5, gamma=0.9>",
    "Celu<alpha=0.4>",
    "ThresholdedRelu<alpha=0.2>",
    "Shrink<bias=0.1, lambd=0.4>",
)


@pytest.mark.parametrize("name", SMOOTH)
def test_functions_of_one_tensor(name: str) -> None:
    opset = 18 if name == "Mish" else 17
    same_as_the_runtime(f"y = {name}(x)", {"x": SMOOTH[name]}, opset=opset)
    gradient_is_right(f"y = {name}(x)", {"x": SMOOTH[name]}, opset=opset)


@pytest.mark.parametrize("call", ATTRIBUTES)
def test_settings_of_activations(call: str) -> None:
    same_as_the_runtime(f"y = {call}(x)", {"x": apart(2, 5)})
    gradient_is_right(f"y = {call}(x)", {"x": apart(2, 5)})


@pytest.mark.parametrize("name", STEPS)
def test_functions_without_a_gradient(name: str) -> None:
    values = np.array([-2.5, -0.5, 0.0, 0.5, 1.5, 2.5, np.inf, -np.inf, np.nan], np.float32)
    same_as_the_runtime(f"y = {name}(x)", {"x": values if name[0] == "I" else values[:-3]})


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_both_ways_of_gelu(approximate: str) -> None:
    text = f'y = Gelu<approximate="{approximate}">(x)'
    same_as_the_runtime(text, {"x": floats(3, 4)}, opset=20)
    gradient_is_right(text, {"x": floats(3, 4)}, opset=20)


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"])
def test_arithmetic_broadcasts(name: str) -> None:
    feeds = {"x": positive(2, 1, 3), "w": positive(4, 1, seed=1)}
    same_as_the_runtime(f"y = {name}(x, w)", feeds)
    gradient_is_right(f"y = {name}(x, w)", feeds)


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0])
def test_powers_by_a_constant(exponent: float) -> None:
    constants = {"e": np.array(exponent, np.float32)}
    same_as_the_runtime("y = Pow(x, e)", {"x": positive(2, 3)}, constants)
    gradient_is_right("y = Pow(x, e)", {"x": positive(2, 3)}, constants)


def test_integers_by_a_power_that_is_none() -> None:
    x = np.array([2, 3, 4], np.int64)
    same_as_the_runtime("y = Pow(x, w)", {"x": x}, {"w": np.array(1.5, np.float32)}, 13)


def test_integers_are_divided_towards_zero() -> None:
    feeds = {"x": np.array([7, -7, 7, -7]), "w": np.array([2, 2, -2, -2])}
    same_as_the_runtime("y = Div(x, w)", feeds)
    same_as_the_runtime("y = Mod(x, w)", feeds)
    same_as_the_runtime("y = Mod<fmod=1>(x, w)", feeds)


@pytest.mark.parametrize("name", ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"])
def test_comparisons(name: str) -> None:
    feeds = {"x": np.array([1.0, 2, 3], np.float32), "w": np.array([2.0], np.float32)}
    same_as_the_runtime(f"y = {name}(x, w)", feeds)


@pytest.mark.parametrize("name", ["And", "Or", "Xor"])
def test_logic(name: str) -> None:
    feeds = {"x": np.array([True, True, False, False]), "w": np.array([True, False, True, False])}
    same_as_the_runtime(f"y = {name}(x, w)", feeds)
    same_as_the_runtime("y = Not(x)", {"x": feeds["x"]})


def test_where_gives_each_side_its_gradient() -> None:
    feeds = {"c": np.array([[True], [False]]), "x": floats(2, 3), "w": floats(3, seed=1)}
    same_as_the_runtime("y = Where(c, x, w)", feeds)
    gradient_is_right("y = Where(c, x, w)", feeds)


@pytest.mark.parametrize("opset", [6, 11, 17])
def test_clip_with_bounds_of_every_age(opset: int) -> None:
    x = {"x": apart(3, 4)}
    if opset < 11:
        same_as_the_runtime("y = Clip<min=-0.5, max=1.0>(x)", x, opset=opset)
        same_as_the_runtime("y = Clip<max=1.0>(x)", x, opset=opset)
        return
    bounds = {"a": np.array(-0.5, np.float32), "b": np.array(1.0, np.float32)}
    same_as_the_runtime("y = Clip(x, a, b)", x, bounds, opset)
    same_as_the_runtime('y = Clip(x, "", b)', x, bounds, opset)
    gradient_is_right("y = Clip(x, a, b)", x, bounds, opset)


def test_prelu_trains_its_slopes() -> None:
    feeds = {"x": apart(2, 3, 4), "w": floats(3, 1)}
    same_as_the_runtime("y = PRelu(x, w)", feeds)
    gradient_is_right("y = PRelu(x, w)", feeds)


@pytest.mark.parametrize("to", [1, 6, 7, 9, 10, 11])
def test_casts(to: int) -> None:
    x = {"x": np.array([-1.7, 0.0, 2.6, 1000.123], np.float32)}
    same_as_the_runtime(f"h = Cast<to={to}>(x) y = Cast<to=1>(h)", x)


def test_a_gradient_passes_a_cast_to_16_bits_undamaged() -> None:
    module = same_as_the_runtime(
        "h = Mul(x, w) i = Cast<to=10>(h) y = Cast<to=1>(i)",
        {"x": floats(2, 3)},
        {"w": floats(3, seed=1)},
    )
    (module({"x": floats(2, 3)})["y"] * 1e-9).sum().backward()
    # Sixteen bits would have made zero of it.
    assert bool((module.parameter("w").grad != 0).all())


@pytest.mark.parametrize("opset", [7, 10, 13])
def test_nothing_is_dropped(opset: int) -> None:
    same_as_the_runtime("y = Dropout(x)", {"x": floats(3, 4)}, opset=opset)


def test_bits_are_shifted_and_combined() -> None:
    feeds = {"x": np.array([1, 5, 200], np.uint8), "w": np.array([1, 2, 3], np.uint8)}
    same_as_the_runtime('y = BitShift<direction="LEFT">(x, w)', feeds)
    same_as_the_runtime('y = BitShift<direction="RIGHT">(x, w)', feeds)
    for name in ("And", "Or", "Xor"):
        same_as_the_runtime(f"y = Bitwise{name}(x, w)", feeds, opset=18)


@pytest.mark.parametrize("call", ["Gelu(x)", "BiasGelu(x, w)", "FastGelu(x, w)", "QuickGelu(x)"])
def test_activations_of_the_runtime_itself(call: str) -> None:
    feeds = {"x": floats(2, 4)}
    constants = {"w": floats(4, seed=1)} if "w" in call else {}
    same_as_the_runtime(
        f"y = com.microsoft.{call}", feeds, constants, domains=', "com.microsoft" : 1'
    )


@pytest.mark.parametrize("text", ["y = Sqrt(x)", "y = Pow(x, e)"])
def test_the_slope_of_a_root_at_zero_is_no_infinity(text: str) -> None:
    constants = {"e": np.array(0.5, np.float32)} if "e" in text.split("(")[1] else {}
    values = np.array([0.0, 4.0], np.float32)
    module = same_as_the_runtime(text, {"x": values}, constants)
    x = torch.from_numpy(values).requires_grad_()
    module({"x": x})["y"].sum().backward()
    assert x.grad.tolist() == [0.0, 0.25]
