"""Every rule of the table by one case: what it gives, and its gradient by differences."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.train import weight
from onnxslim_tk.train.operators import OPERATORS, quantized
from tests.train.cases import (
    Array,
    apart,
    floats,
    gradient_is_right,
    ints,
    positive,
    same_as_the_runtime,
)


@dataclass(frozen=True)
class Case:
    """A call of one operator, with what is fed, the other inputs, and the operator set."""

    text: str
    feeds: dict[str, Array]
    constants: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    domains: str = ""


def of_one(name: str, x: Array, settings: str = "", opset: int = 17) -> Case:
    return Case(f"y = {name}{settings}(x)", {"x": x}, opset=opset)


def of_two(name: str, x: Array, w: Array, opset: int = 17, settings: str = "") -> Case:
    return Case(f"y = {name}{settings}(x, w)", {"x": x, "w": w}, opset=opset)


def of_domain(domain: str, call: str, **feeds: Array) -> Case:
    return Case(f"y = {domain}.{call}", feeds, domains=f', "{domain}" : 1')


MICROSOFT = "com.microsoft"
X, W = floats(2, 3), floats(2, 3, seed=1)
PLANE = apart(1, 2, 4, 4)
BITS = {"x": np.array([1, 5, 200], np.uint8), "w": np.array([1, 2, 3], np.uint8)}
TRUTHS = {"x": np.array([True, True, False]), "w": np.array([True, False, False])}
SCALES = {
    "s": np.array(0.05, np.float32),
    "o": np.array(7, np.uint8),
    "t": np.array(0.02, np.float32),
    "p": np.array(0, np.int8),
    "u": np.array(0.5, np.float32),
    "q": np.array(128, np.uint8),
}


def one(value: float) -> Array:
    return np.array(value, np.float32)


def codes(*shape: int) -> Array:
    return np.random.default_rng(3).integers(-90, 90, shape).astype(np.int8)


def recurrent(gates: int) -> dict[str, Array]:
    shapes = ((1, 3 * gates, 2), (1, 3 * gates, 3), (1, 6 * gates))
    return {name: floats(*s, seed=k) for k, (name, s) in enumerate(zip("wrb", shapes, strict=True))}


SMOOTH = (
    "Atan Asinh Cos Cosh Erf Exp HardSwish Identity Mish Neg Sigmoid Sin Sinh Softplus "
    "Softsign Tan Tanh Elu Celu Selu Dropout Flatten Transpose Softmax LogSoftmax ReduceL2 "
    "ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare LpNormalization"
)
KINKS = (
    "Abs Relu LeakyRelu HardSigmoid ThresholdedRelu Shrink Clip Hardmax "
    "ReduceL1 ReduceMax ReduceMin"
)
CASES = {
    **{name: of_one(name, X, opset=18 if name == "Mish" else 17) for name in SMOOTH.split()},
    **{name: of_one(name, apart(2, 3)) for name in KINKS.split()},
    **{name: of_one(name, X) for name in ("Ceil", "Floor", "Round", "Sign")},
    **{name: of_one(name, positive(2, 3)) for name in ("Log", "Reciprocal", "Sqrt")},
    **{name: of_one(name, X * 0.2) for name in ("Acos", "Asin", "Atanh")},
    **{name: of_one(name, X) for name in ("Shape", "Size", "IsNaN", "IsInf", "NonZero")},
    **{name: of_one(name, X, "<axis=1>") for name in ("ArgMax", "ArgMin")},
    **{name: of_one(name, PLANE) for name in ("GlobalAveragePool", "GlobalMaxPool")},
    **{name: of_two(name, X, W) for name in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")},
    **{name: of_two(name, X, W) for name in ("Equal", "Greater", "Less")},
    **{name: of_two(name, X, W) for name in ("GreaterOrEqual", "LessOrEqual", "PRelu")},
    **{name: of_two(name, positive(2, 3), positive(2, 3, seed=1)) for name in ("Div", "Pow")},
    **{name: Case(f"y = {name}(x, w)", TRUTHS) for name in ("And", "Or", "Xor")},
    **{f"Bitwise{n}": Case(f"y = Bitwise{n}(x, w)", BITS, {}, 18) for n in ("And", "Or", "Xor")},
    "Not": Case("y = Not(x)", {"x": TRUTHS["x"]}),
    "BitwiseNot": Case("y = BitwiseNot(x)", {"x": BITS["x"]}, {}, 18),
    "BitShift": Case('y = BitShift<direction="LEFT">(x, w)', BITS),
    "Acosh": of_one("Acosh", positive(2, 3) + 1),
    "ReduceLogSum": of_one("ReduceLogSum", positive(2, 3)),
    "Gelu": of_one("Gelu", X, opset=20),
    "Swish": of_one("Swish", X, "<alpha=0.7>", 24),
    "Mod": of_two("Mod", positive(2, 3), np.full((2, 3), 0.7, np.float32), settings="<fmod=1>"),
    "Cast": of_one("Cast", X, "<to=11>"),
    "CastLike": Case("y = CastLike(x, w)", {"x": X}, {"w": np.zeros(1)}),
    "Where": Case("y = Where(c, x, w)", {"x": X, "w": W, "c": np.array([[True], [False]])}),
    "MatMul": of_two("MatMul", X, floats(3, 4)),
    "Gemm": of_two("Gemm", X, floats(3, 4)),
    "Einsum": of_two("Einsum", X, floats(3, 4), settings='<equation="ij,jk->ki">'),
    "Det": of_one("Det", floats(2, 3, 3)),
    "TopK": Case("y, z = TopK<axis=1>(x, k)", {"x": apart(3, 5)}, {"k": ints(2)}),
    "CumSum": Case("y = CumSum(x, a)", {"x": X}, {"a": np.array(1)}),
    "Conv": of_two("Conv", PLANE, floats(3, 2, 2, 2)),
    "ConvTranspose": of_two("ConvTranspose", PLANE, floats(2, 3, 2, 2)),
    "MaxPool": of_one("MaxPool", PLANE, "<kernel_shape=[2, 2]>"),
    "AveragePool": of_one("AveragePool", PLANE, "<kernel_shape=[2, 2]>"),
    "BatchNormalization": Case(
        "y = BatchNormalization(x, s, b, m, v)",
        {"x": X, "s": floats(3, seed=1), "b": floats(3, seed=2)},
        {"m": floats(3, seed=3), "v": positive(3, seed=4)},
    ),
    "InstanceNormalization": Case(
        "y = InstanceNormalization(x, s, b)",
        {"x": PLANE, "s": floats(2, seed=1), "b": floats(2, seed=2)},
    ),
    "GroupNormalization": Case(
        "y = GroupNormalization<num_groups=2>(x, s, b)",
        {"x": floats(2, 4, 3), "s": floats(4, seed=1), "b": floats(4, seed=2)},
        opset=21,
    ),
    "LayerNormalization": of_two("LayerNormalization", X, floats(3)),
    "RMSNormalization": of_two("RMSNormalization", X, floats(3), 23),
    "SimplifiedLayerNormalization": of_two("SimplifiedLayerNormalization", X, floats(3), 17),
    "MeanVarianceNormalization": of_one("MeanVarianceNormalization", floats(2, 3, 4, 5)),
    "LRN": of_one("LRN", floats(1, 3, 2, 4), "<size=3>"),
    "Reshape": Case("y = Reshape(x, n)", {"x": X}, {"n": ints(3, -1)}),
    "Squeeze": Case("y = Squeeze(x, a)", {"x": floats(1, 3)}, {"a": ints(0)}),
    "Unsqueeze": Case("y = Unsqueeze(x, a)", {"x": X}, {"a": ints(1)}),
    "Concat": of_two("Concat", X, W, settings="<axis=1>"),
    "Split": Case("y, z = Split<axis=1>(x, n)", {"x": X}, {"n": ints(1, 2)}),
    "Slice": Case("y = Slice(x, a, b, c)", {"x": X}, {"a": ints(1), "b": ints(3), "c": ints(1)}),
    "Expand": Case("y = Expand(x, n)", {"x": X}, {"n": ints(4, 1, 3)}),
    "Tile": Case("y = Tile(x, n)", {"x": X}, {"n": ints(2, 2)}),
    "ConstantOfShape": Case("h = Shape(x) y = ConstantOfShape(h)", {"x": X}),
    "Constant": Case("c = Constant<value_float=2.5>() y = Mul(x, c)", {"x": X}),
    "Range": Case("y = Range(x, a, w)", {"x": one(1.2), "w": one(0.4)}, {"a": one(3.1)}),
    "EyeLike": of_one("EyeLike", X),
    "Trilu": of_one("Trilu", floats(3, 3)),
    "Pad": Case("y = Pad(x, n)", {"x": X}, {"n": ints(0, 1, 1, 0)}),
    "DepthToSpace": of_one("DepthToSpace", floats(1, 4, 2, 2), "<blocksize=2>"),
    "SpaceToDepth": of_one("SpaceToDepth", PLANE, "<blocksize=2>"),
    "ReverseSequence": Case("y = ReverseSequence(x, n)", {"x": floats(4, 2)}, {"n": ints(2, 4)}),
    "Resize": Case(
        'y = Resize<mode="linear">(x, "", "", n)', {"x": PLANE}, {"n": ints(1, 2, 3, 7)}
    ),
    "Upsample": Case(
        "y = Upsample(x, s)", {"x": PLANE}, {"s": np.array([1, 1, 2, 3], np.float32)}, 9
    ),
    "Gather": Case("y = Gather(x, i)", {"x": X}, {"i": ints(1, 0, 1)}),
    "GatherElements": Case("y = GatherElements(x, i)", {"x": X}, {"i": np.array([[1, 0, 1]])}),
    "GatherND": Case("y = GatherND(x, i)", {"x": X}, {"i": np.array([[1, 0], [0, 2]])}),
    "ScatterND": Case("y = ScatterND(x, i, w)", {"x": X, "w": W}, {"i": np.array([[1], [0]])}),
    "ScatterElements": Case(
        "y = ScatterElements<axis=1>(x, i, w)",
        {"x": X, "w": floats(2, 1, seed=1)},
        {"i": np.array([[2], [0]])},
    ),
    "Scatter": Case(
        "y = Scatter<axis=1>(x, i, w)",
        {"x": X, "w": floats(2, 1, seed=1)},
        {"i": np.array([[2], [0]])},
        10,
    ),
    "OneHot": Case("y = OneHot(i, d, x)", {"x": floats(2)}, {"i": ints(0, 3), "d": np.array(4)}),
    "Compress": Case("y = Compress<axis=1>(x, c)", {"x": X}, {"c": np.array([True, False, True])}),
    "SequenceConstruct": Case(
        "s = SequenceConstruct(x, w) y = ConcatFromSequence<axis=1>(s)", {"x": X, "w": W}
    ),
    "SequenceEmpty": Case(
        "s = SequenceEmpty() t = SequenceInsert(s, x) y = SequenceAt(t, i)",
        {"x": X},
        {"i": np.array(0)},
    ),
    "SplitToSequence": Case(
        "s = SplitToSequence<axis=1>(x) h = SequenceAt(s, i) z = SequenceLength(s) y = Neg(h)",
        {"x": X},
        {"i": np.array(1)},
    ),
    "LSTM": Case("y, z = LSTM<hidden_size=3>(x, w, r, b)", {"x": floats(3, 2, 2), **recurrent(4)}),
    "GRU": Case("y, z = GRU<hidden_size=3>(x, w, r, b)", {"x": floats(3, 2, 2), **recurrent(3)}),
    "RNN": Case("y, z = RNN<hidden_size=3>(x, w, r, b)", {"x": floats(3, 2, 2), **recurrent(1)}),
    "ai.onnx.ml:Scaler": of_domain(
        "ai.onnx.ml", "Scaler<offset=[0.5, 1.0, 2.0], scale=[2.0, 0.5, 1.0]>(x)", x=X
    ),
    "ai.onnx.ml:ArrayFeatureExtractor": of_domain(
        "ai.onnx.ml", "ArrayFeatureExtractor(x, i)", x=X, i=ints(2, 0)
    ),
    "com.microsoft:Gelu": of_domain(MICROSOFT, "Gelu(x)", x=X),
    "com.microsoft:QuickGelu": of_domain(MICROSOFT, "QuickGelu(x)", x=X),
    "com.microsoft:BiasGelu": of_domain(MICROSOFT, "BiasGelu(x, w)", x=X, w=floats(3)),
    "com.microsoft:FastGelu": of_domain(MICROSOFT, "FastGelu(x, w)", x=X, w=floats(3)),
    "com.microsoft:FusedMatMul": of_domain(
        MICROSOFT, "FusedMatMul<transB=1, alpha=0.5>(x, w)", x=X, w=floats(4, 3)
    ),
    "com.microsoft:SkipLayerNormalization": of_domain(
        MICROSOFT,
        "SkipLayerNormalization(x, w, s)",
        x=floats(2, 3, 4),
        w=floats(2, 3, 4, seed=1),
        s=floats(4),
    ),
}
SEQUENCES = {
    "SequenceAt": "SequenceEmpty",
    "SequenceInsert": "SequenceEmpty",
    "SequenceLength": "SplitToSequence",
    "ConcatFromSequence": "SequenceConstruct",
}
CODED = {
    "QuantizeLinear": Case("q = QuantizeLinear(x, s, o) y = DequantizeLinear(q, s, o)", {"x": X}),
    "DequantizeLinear": Case("v = DequantizeLinear(w, t, p) y = MatMul(x, v)", {"x": X}),
    "com.microsoft:QuantizeLinear": Case(
        "q = com.microsoft.QuantizeLinear(x, s, o) y = com.microsoft.DequantizeLinear(q, s, o)",
        {"x": X},
        domains=', "com.microsoft" : 1',
    ),
    "DynamicQuantizeLinear": Case(
        # What spans the range stands still, as the scale gets no gradient.
        "e = Constant<value_floats=[-3.0, 3.0]>() c = Concat<axis=0>(x, e) "
        "q, u, v = DynamicQuantizeLinear(c) y = DequantizeLinear(q, u, v)",
        {"x": floats(5)},
    ),
    "MatMulInteger": Case(
        "q = QuantizeLinear(x, s, o) h = MatMulInteger(q, w, o, p) y = Cast<to=11>(h)", {"x": X}
    ),
    "ConvInteger": Case(
        "q = QuantizeLinear(x, s, o) h = ConvInteger(q, k, o) y = Cast<to=11>(h)", {"x": PLANE}
    ),
    "QLinearMatMul": Case(
        "h = QuantizeLinear(x, s, o) i = QLinearMatMul(h, s, o, w, t, p, u, q) "
        "y = DequantizeLinear(i, u, q)",
        {"x": X},
    ),
    "QLinearConv": Case(
        "h = QuantizeLinear(x, s, o) i = QLinearConv(h, s, o, k, t, p, u, q, b) "
        "y = DequantizeLinear(i, u, q)",
        {"x": PLANE},
    ),
}
NO_GRADIENT = (
    "And Or Xor Not BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift Equal Greater Less "
    "GreaterOrEqual LessOrEqual IsNaN IsInf Shape Size NonZero ArgMax ArgMin ConstantOfShape"
)
"""Integers, truths and shapes: there is nothing for a gradient to pass."""
SINGLE = "ai.onnx.ml:Scaler"
"""What gives 32 bits whatever comes in: too few for differences."""


def test_every_rule_has_its_case() -> None:
    assert {*CASES, *SEQUENCES, *CODED, "com.microsoft:DequantizeLinear"} == set(OPERATORS)
    assert set(SEQUENCES.values()) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_what_the_runtime_does(name: str) -> None:
    case = CASES[name]
    same_as_the_runtime(
        case.text, case.feeds, case.constants, case.opset, domains=case.domains, tolerance=2e-5
    )


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in {*NO_GRADIENT.split(), SINGLE}]
)
def test_the_gradient_of_a_rule_is_that_of_differences(name: str) -> None:
    case = CASES[name]
    gradient_is_right(case.text, case.feeds, case.constants, case.opset, domains=case.domains)


def test_the_gradient_of_a_scaler_is_its_scale() -> None:
    case = CASES[SINGLE]
    module = same_as_the_runtime(case.text, case.feeds, domains=case.domains)
    x = torch.from_numpy(X).requires_grad_()
    module({"x": x})["y"].sum().backward()
    assert x.grad.tolist() == [[2.0, 0.5, 1.0]] * 2


@pytest.mark.parametrize("name", CODED)
def test_the_gradient_of_codes_is_that_without_rounding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CODED[name]
    tensors: dict[str, Any] = {
        **SCALES,
        "w": codes(3, 4),
        "k": codes(3, 2, 2, 2),
        "b": np.array([9, -90, 5], "i"),
    }
    words = set(re.findall(r"\w+", case.text))
    made = set(re.findall(r"(\w+)(?=(?:, \w+)* =)", case.text))
    constants = {n: v for n, v in tensors.items() if n in words - made}
    same_as_the_runtime(case.text, case.feeds, constants, 13, domains=case.domains)
    for module in (quantized, weight):
        monkeypatch.setattr(module, "rounded", lambda x: x)
    gradient_is_right(case.text, case.feeds, constants, 13, domains=case.domains)
