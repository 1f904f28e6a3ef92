"""Recurrent weights as layers: two of one node, each a matrix per direction."""

import numpy as np
import onnx
import pytest

from onnxslim_tk.graph.layers import Layer, layer_of, layers
from onnxslim_tk.measure.rows import input_rows
from onnxslim_tk.measure.runtime import running_operators
from tests.models import model_of, normal, opened, outputs, outputs_of, to_proto

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN, INPUTS = 8, 6


def recurrent(op: str, directions: int = 1, first_output: bool = True) -> onnx.ModelProto:
    """``x (S, B, 6)`` through one recurrent node to ``y``, its first output or its second."""
    direction = "bidirectional" if directions == 2 else "forward"
    rank, outputs = ("A, B, C, D", "y") if first_output else ("A, B, C", "unread, y")
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[S, N, {INPUTS}] x) => (float[{rank}] y) {{
        {outputs} = {op}<hidden_size={HIDDEN}, direction="{direction}">(x, w, r, b)
    }}"""
    rows = GATES[op] * HIDDEN
    constants = {
        "w": normal(0, directions, rows, INPUTS, scale=0.4),
        "r": normal(1, directions, rows, HIDDEN, scale=0.4),
        "b": normal(2, directions, 2 * rows, scale=0.1),
    }
    proto = model_of(text, constants)
    if not first_output:
        proto.graph.node[0].output[0] = ""
    return proto


def both(proto: onnx.ModelProto) -> tuple[Layer, Layer]:
    first, second = layers(opened(proto))
    return first, second


@pytest.mark.parametrize("first_output", [True, False])
@pytest.mark.parametrize("op", GATES)
def test_a_recurrent_node_is_two_layers_known_by_its_name(op: str, first_output: bool) -> None:
    first, second = both(recurrent(op, first_output=first_output))
    assert (first.id, second.id) == ("y:W", "y:R")
    assert all("y" in layer.names for layer in (first, second))
    assert (first.shape, second.shape) == ((1, GATES[op] * 8, 6), (1, GATES[op] * 8, 8))
    assert first.meets_input
    assert not second.meets_input
    assert first.macs({"x": (5, 2, INPUTS)}) == 5 * 2 * first.size


def test_a_recurrent_node_is_no_single_layer() -> None:
    model = opened(recurrent("GRU"))
    assert layer_of(model, model.graph.nodes[0], model.graph, "") is None


def test_rows_of_both_directions_are_what_the_weight_meets() -> None:
    first, _ = both(recurrent("LSTM", directions=2))
    x = normal(3, 4, 2, INPUTS)
    rows = input_rows(first, x, 10**9, np.random.default_rng(0))
    assert rows.shape == (2, 8, INPUTS)
    np.testing.assert_array_equal(rows[1], x.reshape(8, INPUTS))
    assert first.matrix().shape == (2, 4 * HIDDEN, INPUTS)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", GATES)
def test_scales_by_row_and_direction_are_read_back_and_folded(op: str, directions: int) -> None:
    proto = recurrent(op, directions)
    model = opened(proto)
    for layer in list(layers(model)):
        rows = layer.by_channel(layer.weight)
        np.testing.assert_array_equal(layer.from_channels(rows), layer.weight)
        scale = np.abs(rows).max(1) / 127
        values = layer.from_channels(np.rint(rows / scale[:, None]))
        layer.set_scaled(model, values, scale)
    again = list(layers(model))
    assert [layer.id for layer in again] == ["y:W", "y:R"]
    assert all(layer.scale is not None and layer.scale.size == layer.channels for layer in again)
    for before, after in zip(both(proto), again, strict=True):
        np.testing.assert_allclose(after.weight, before.weight, atol=0.01)
    x = {"x": normal(3, 4, 2, INPUTS)}
    np.testing.assert_allclose(outputs_of(model, x)["y"], outputs(proto, x)["y"], atol=0.02)
    assert set(running_operators(to_proto(model).SerializeToString())) == {op}


def test_a_scale_by_direction_alone_is_not_one_by_row() -> None:
    proto = recurrent("GRU", directions=2)
    proto.graph.node[0].input[1] = "d"
    text = """<ir_version: 8, opset_import: ["": 17]>
    g () => (float[A, B, C] d) { c = Cast<to=1>(q) d = Mul(c, s) }"""
    decode = model_of(
        text, {"q": np.ones((2, 24, 6), np.int8), "s": np.ones((2, 1, 1), np.float32)}
    )
    proto.graph.initializer.extend(decode.graph.initializer)
    for node in reversed(decode.graph.node):
        proto.graph.node.insert(0, node)
    assert [layer.id for layer in layers(opened(proto))] == ["y:R"]
