from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxslim_tk.packing.decode import evaluate
from onnxslim_tk.packing.operators import LIMIT, UndecodableError

GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
WHOLE = np.arange(-12, 12, dtype=np.int32).reshape(2, 3, 4)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


CASES: list[tuple[str, list[NDArray[Any]], dict[str, Any]]] = [
    ("Add", [GRID, GRID[:, :1]], {}),
    ("Sub", [WHOLE, WHOLE[0]], {}),
    ("Mul", [GRID, GRID[0, 0]], {}),
    ("Max", [WHOLE, np.array(0, np.int32)], {}),
    ("Mod", [WHOLE, np.array(5, np.int32)], {}),
    ("Mod", [WHOLE, np.array(5, np.int32)], {"fmod": 1}),
    ("BitShift", [np.arange(9, dtype=np.uint8), np.array(2, np.uint8)], {"direction": "LEFT"}),
    ("BitShift", [np.arange(9, dtype=np.uint8), np.array(2, np.uint8)], {"direction": "RIGHT"}),
    ("BitwiseAnd", [WHOLE, np.array(5, np.int32)], {}),
    ("BitwiseOr", [WHOLE, np.array(5, np.int32)], {}),
    ("Cast", [GRID], {"to": onnx.TensorProto.INT8}),
    ("Cast", [WHOLE], {"to": onnx.TensorProto.FLOAT16}),
    ("Concat", [GRID, GRID[:, :2]], {"axis": 1}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("CumSum", [GRID, np.array(1, np.int64)], {}),
    ("CumSum", [GRID, np.array(2, np.int64)], {"exclusive": 1}),
    ("CumSum", [GRID, np.array(0, np.int64)], {"exclusive": 1, "reverse": 1}),
    ("Expand", [GRID[:, :1], ints(3, 1)], {}),
    ("Gather", [GRID, np.array([[-1, 0]], np.int64)], {"axis": 2}),
    ("Identity", [GRID], {}),
    ("Reshape", [GRID, ints(0, -1)], {}),
    ("ScatterElements", [GRID, np.array([[[1, -1]]]), np.ones((1, 1, 2), np.float32)], {"axis": 2}),
    ("ScatterND", [GRID, np.array([[1, 0], [0, 2]]), np.ones((2, 4), np.float32)], {}),
    ("Slice", [GRID, ints(1), ints(2)], {}),
    ("Slice", [GRID, ints(-1, 0), ints(-100, 99), ints(2, 1), ints(-1, 2)], {}),
    ("Slice", [GRID, ints(100), ints(0), ints(2), ints(-2)], {}),
    ("Slice", [GRID, ints(-100), ints(-1), ints(-1)], {}),
    ("Squeeze", [GRID[:1], ints(0)], {}),
    ("Squeeze", [GRID[:1, :, :1]], {}),
    ("Transpose", [GRID], {}),
    ("Transpose", [GRID], {"perm": [1, 2, 0]}),
    ("Unsqueeze", [GRID, ints(0, -1)], {}),
]


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    CASES,
    ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)],
)
def test_computes_what_the_reference_computes(
    op_type: str, inputs: list[NDArray[Any]], attributes: dict[str, Any]
) -> None:
    names = [f"i{position}" for position in range(len(inputs))]
    node = helper.make_node(op_type, names, ["o"], **attributes)
    kinds = [helper.np_dtype_to_tensor_dtype(value.dtype) for value in inputs]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)],
        [helper.make_empty_tensor_value_info("o")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    outputs: Any = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    expected = outputs[0]
    result = evaluate(node, inputs)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


def test_divides_integers_towards_zero() -> None:
    # As onnxruntime does; numpy and the reference round down.
    node = helper.make_node("Div", ["x", "d"], ["y"])
    result = evaluate(node, [np.array([7, -7, 7, -7, 6]), np.array([2, 2, -2, -2, -3])])
    assert result.tolist() == [3, -3, -3, 3, -2]


def test_reads_the_attributes_of_older_operator_sets() -> None:
    cut = helper.make_node("Slice", ["x"], ["y"], starts=[1], ends=[3], axes=[2])
    np.testing.assert_array_equal(evaluate(cut, [GRID]), GRID[:, :, 1:3])
    wide = helper.make_node("Unsqueeze", ["x"], ["y"], axes=[0])
    assert evaluate(wide, [GRID]).shape == (1, 2, 3, 4)
    flat = helper.make_node("Squeeze", ["x"], ["y"], axes=[0])
    assert evaluate(flat, [GRID[:1]]).shape == (3, 4)


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (helper.make_node("Relu", ["x"], ["y"]), [GRID]),
        (helper.make_node("ConstantOfShape", ["x"], ["y"]), [ints(LIMIT, LIMIT, LIMIT)]),
        (helper.make_node("Expand", ["x", "s"], ["y"]), [GRID, ints(LIMIT, 1, 1, 1)]),
        (helper.make_node("Expand", ["x", "s"], ["y"]), [GRID, ints(*[1] * 36)]),
        (helper.make_node("Gather", ["x", "i"], ["y"]), [GRID, ints(7)]),
        (helper.make_node("Mod", ["x", "d"], ["y"]), [WHOLE, np.array(0, np.int32)]),
        (helper.make_node("Div", ["x", "d"], ["y"]), [WHOLE, np.array(0, np.int32)]),
        (helper.make_node("Div", ["x", "d"], ["y"]), [GRID, np.array(2, np.float32)]),
        (
            helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.INT8),
            [np.array([300.0, np.nan], np.float32)],
        ),
        (helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.STRING), [GRID]),
        (
            helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction="add"),
            [GRID, np.array([[0]]), GRID[:1]],
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_refuses_what_it_cannot_evaluate_exactly(
    node: onnx.NodeProto, inputs: list[NDArray[Any]]
) -> None:
    with pytest.raises(UndecodableError):
        evaluate(node, inputs)
