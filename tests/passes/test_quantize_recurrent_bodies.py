"""Recurrent weights in the bodies of Loop, Scan and If, nested in each other."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.measure.runtime import running_operators
from onnxslim_tk.packing import pack
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Proposal
from tests.models import CONTEXT, model_of, normal, opened, outputs, to_proto

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SIZE = 24
STATE = f"float[S, 1, {SIZE}]"
RUN = f"OP<hidden_size={SIZE}>(s, w, r)"
CELL = f"k = {RUN} t = Squeeze(k, axes)"
BRANCHES = f"""t = If(yes)<
    then_branch = one () => ({STATE} p) {{ k = {RUN} p = Squeeze(k, axes) }},
    else_branch = two () => ({STATE} q) {{ l = {RUN} q = Squeeze(l, axes) }}
>"""
LOOP = f"""Loop(n, yes, x)<
    body = step (int64 i, bool c, {STATE} s) => (bool d, {STATE} t) {{ d = Identity(c) INNER }}
>"""
SCAN = f"""Scan<
    num_scan_inputs = 1,
    body = step ({STATE} a, {STATE} s) => ({STATE} z, {STATE} t) {{ INNER z = Add(a, t) }}
>(x, xs)"""
BODIES = {
    "Loop": f"y = {LOOP.replace('INNER', CELL)}",
    "Scan": f"y, all = {SCAN.replace('INNER', CELL)}",
    "If in Loop": f"y = {LOOP.replace('INNER', BRANCHES)}",
    "If in Scan": f"y, all = {SCAN.replace('INNER', BRANCHES)}",
    "Loop in If": f"""y = If(yes)<
        then_branch = run () => ({STATE} v) {{ v = {LOOP.replace("INNER", CELL)} }},
        else_branch = rest () => ({STATE} u) {{ u = Identity(x) }}
    >""",
}


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def net(op: str, where: str, inside: bool) -> onnx.ModelProto:
    """``x0 (5, 1, 24)`` through cells in bodies; the weights lie ``inside``, or outside of them.

    Outside they are read by a cell of the main graph as well.
    """
    first = (
        "x = Identity(x0)"
        if inside
        else f"""
        o = OP<hidden_size={SIZE}>(x0, w, r)
        x = Squeeze(o, axes)"""
    )
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[5, 1, {SIZE}] x0, int64 n, bool yes) => (float[A, B, C] y) {{
        {first}
        e = Unsqueeze(x, front)
        xs = Concat<axis=0>(e, e, e)
        {BODIES[where]}
    }}""".replace("OP", op)
    shape = (1, GATES[op] * SIZE, SIZE)
    weights = {"w": normal(0, *shape, scale=0.3), "r": normal(1, *shape, scale=0.2)}
    proto = model_of(text, {**weights, "axes": np.array([1]), "front": np.array([0])})
    if inside:
        # Into each body that reads them, as exporters do.
        initializers = {t.name: t for t in proto.graph.initializer}
        for body in list(graphs(proto.graph))[1:]:
            if any(node.op_type == op for node in body.node):
                body.initializer.extend(initializers[name] for name in weights)
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(t for t in initializers.values() if t.name not in weights)
    onnx.checker.check_model(proto, full_check=True)
    return proto


FEED = {"x0": normal(2, 5, 1, SIZE), "n": np.array(3), "yes": np.array(True)}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("where", BODIES)
@pytest.mark.parametrize("op", GATES)
def test_recurrent_weights_in_bodies_are_int8_stored_once_and_fold_away(
    op: str, where: str, inside: bool
) -> None:
    proto = net(op, where, inside)
    model = opened(onnx.ModelProto.FromString(proto.SerializeToString()))
    rows = [row for row in Quantize().propose(model, CONTEXT) if isinstance(row, Proposal)]
    assert {row.setting for row in rows} == {"float"}
    Quantize().apply(model, asked_for(rows), CONTEXT)
    drop_unused(model)
    result = to_proto(model)
    pack(result)
    onnx.checker.check_model(result, full_check=True)
    expected, found = outputs(proto, FEED)["y"], outputs(result, FEED)["y"]
    assert np.square(found - expected).sum() < 1e-3 * np.square(expected).sum()
    stored = [t for g in graphs(result.graph) for t in g.initializer if len(t.dims) > 1]
    codes = [t for t in stored if np.prod(t.dims) >= GATES[op] * SIZE * SIZE]
    assert sorted(t.data_type for t in codes) == [TensorProto.INT8] * 2
    weights = 2 * 4 * GATES[op] * SIZE * SIZE
    assert sum(len(t.raw_data) for t in stored) < 0.4 * weights
    # Decoded when the model is loaded, not in each step.
    running = running_operators(result.SerializeToString())
    assert not {"DequantizeLinear", "Cast", "Mul"} & set(running)
    assert running[op] == running_operators(proto.SerializeToString())[op]
