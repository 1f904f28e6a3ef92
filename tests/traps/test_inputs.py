"""Traps of inputs: padding, dimensions that aren't written, states that start as zeros."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxslim_tk.errors import SessionError
from onnxslim_tk.measure.runtime import Session
from tests.models import model_of, normal

from .compressed import Array, compressed, sqnr

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def reader(padding: float) -> onnx.ModelProto:
    """Embeddings of ``ids``, two layers, and the mean over the steps that the mask keeps.

    The row of what stands for nothing is ``padding`` times as large as the others.
    """
    text = f"""{HEAD} g (int64[N, S] ids, int64[N, S] attention_mask) => (float[N, 16] y) {{
        e = Gather(table, ids)
        m1 = MatMul(e, w1) a1 = Add(m1, b1) r1 = Relu(a1)
        m2 = MatMul(r1, w2) a2 = Add(m2, b2)
        f = Cast<to=1>(attention_mask) f3 = Unsqueeze(f, last)
        kept = Mul(a2, f3)
        total = ReduceSum<keepdims=0>(kept, steps)
        count = ReduceSum<keepdims=1>(f, steps)
        y = Div(total, count)
    }}"""
    table = normal(0, 200, 32)
    table[0] *= padding
    return model_of(
        text,
        {
            "table": table,
            "w1": normal(1, 32, 64, scale=0.2),
            "b1": normal(2, 64, scale=0.2),
            "w2": normal(3, 64, 16, scale=0.2),
            "b2": normal(4, 16, scale=0.2),
            "last": np.array([2]),
            "steps": np.array([1]),
        },
    )


def texts(count: int, pad: int, seed: int = 0) -> list[dict[str, Array]]:
    """Texts of 3 to 14 ids, padded with id 0 to ``pad`` steps."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(rng.integers(3, 15))
        ids = np.zeros((1, max(pad, length)), np.int64)
        ids[0, :length] = rng.integers(1, 200, length)
        found.append({"ids": ids, "attention_mask": (np.arange(ids.shape[1]) < length)[None] + 0})
    return found


@pytest.mark.parametrize("pad", [0, 16, 64], ids=["none", "some", "mostly"])
def test_padded_samples_show_the_ranges_of_what_counts(pad: int, tmp_path: Path) -> None:
    outcome = compressed(reader(1), texts(16, pad), tmp_path)
    assert outcome.shrunk < 0.35
    assert sum(outcome.runs[name] for name in ("MatMulIntegerToFloat", "QGemm")) == 2
    for used in (0, 16, 64):
        assert outcome.decibels(texts(8, used, seed=7)) > 25


@pytest.mark.parametrize("pad", [16, 64], ids=["some", "mostly"])
def test_padding_that_was_never_trained_sets_no_range(pad: int, tmp_path: Path) -> None:
    outcome = compressed(reader(300), texts(16, pad), tmp_path)
    assert outcome.shrunk < 0.6
    for used in (0, 16, 64):
        assert outcome.decibels(texts(8, used, seed=7)) > 20


def shaped(dims: list[str | int | None], output: list[str | int | None]) -> onnx.ModelProto:
    """A small convolutional network whose input and output have the dimensions given."""
    text = f"""{HEAD} g (float[N, 4, 12, 12] x) => (float[N, 16, 12, 12] y) {{
        c0 = Conv<pads=[1, 1, 1, 1]>(x, w0, b0)
        r0 = Relu(c0)
        c1 = Conv<pads=[1, 1, 1, 1]>(r0, w1, b1)
        y = Relu(c1)
    }}"""
    proto = model_of(
        text,
        {
            "w0": normal(0, 32, 4, 3, 3, scale=0.2),
            "b0": normal(1, 32, scale=0.3),
            "w1": normal(2, 16, 32, 3, 3, scale=0.1),
            "b1": normal(3, 16, scale=0.3),
        },
    )
    for port, wanted in ((proto.graph.input[0], dims), (proto.graph.output[0], output)):
        port.CopyFrom(helper.make_tensor_value_info(port.name, onnx.TensorProto.FLOAT, wanted))
    return proto


SHAPES: dict[str, tuple[list[str | int | None], list[str | int | None]]] = {
    "-1": ([-1, 4, 12, 12], [-1, 16, 12, 12]),
    "nothing": ([None, 4, None, None], [None, 16, None, None]),
    "a symbol": (["batch", 4, 12, 12], ["batch", 16, 12, 12]),
    "several symbols": (["batch", 4, "height", "width"], ["batch", 16, "height", "width"]),
    "?": (["?", 4, "?", "?"], ["?", 16, "?", "?"]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_samples_of_any_batch_fit_an_open_dimension(name: str, tmp_path: Path) -> None:
    proto = shaped(*SHAPES[name])
    feeds = [{"x": normal(100 + k, 4 if k % 3 else 1, 4, 12, 12)} for k in range(12)]
    outcome = compressed(proto, feeds, tmp_path, full=name != "-1")
    assert outcome.runs["QLinearConv"] == 2
    assert outcome.shrunk < 0.45
    written = onnx.load(outcome.result).graph
    assert list(written.input) == list(proto.graph.input)
    assert list(written.output) == list(proto.graph.output)
    for batch in (1, 3, 4):
        assert outcome.decibels([{"x": normal(300, batch, 4, 12, 12)}]) > 20


def test_symbols_are_open_to_samples_of_other_sizes(tmp_path: Path) -> None:
    sizes = [(1, 12, 12), (4, 8, 20), (2, 15, 9)]
    feeds = [{"x": normal(100 + k, sizes[k % 3][0], 4, *sizes[k % 3][1:])} for k in range(12)]
    outcome = compressed(shaped(*SHAPES["several symbols"]), feeds, tmp_path)
    assert outcome.runs["QLinearConv"] == 2
    assert outcome.decibels([{"x": normal(300, 3, 4, 10, 11)}]) > 20


@pytest.mark.parametrize("name", SHAPES)
def test_open_dimensions_need_no_samples(name: str, tmp_path: Path) -> None:
    outcome = compressed(shaped(*SHAPES[name]), None, tmp_path, full=name != "-1")
    assert outcome.shrunk < 0.45
    assert outcome.decibels([{"x": normal(300, 3, 4, 12, 12)}]) > 25


def test_a_batch_of_nothing_is_what_the_runtime_says_it_is(tmp_path: Path) -> None:
    """Some exporters write 0 for an open batch; the runtime takes that at its word."""
    proto = shaped([0, 4, 12, 12], [0, 16, 12, 12])
    with pytest.raises(SessionError, match="Got: 1 Expected: 0"):
        compressed(proto, [{"x": normal(k, 1, 4, 12, 12)} for k in range(12)], tmp_path)
    assert not (tmp_path / "out.onnx").exists()
    outcome = compressed(proto, None, tmp_path)
    assert outcome.shrunk < 0.45
    written = onnx.load(outcome.result).graph
    assert list(written.input) == list(proto.graph.input)


RECURRENT = {"LSTM": (4, ["h", "c"]), "GRU": (3, ["h"])}


def recurrent(kind: str) -> onnx.ModelProto:
    """One recurrent node whose states go in and come out, between two layers."""
    gates, states = RECURRENT[kind]
    ins = ", ".join(f"float[1, N, 32] {name}" for name in states)
    outs = ", ".join(f"float[1, N, 32] {name}n" for name in states)
    text = f"""{HEAD} g (float[4, N, 16] x, {ins}) => (float[4, N, 8] y, {outs}) {{
        e = MatMul(x, w1)
        a = Add(e, b1)
        t = Tanh(a)
        s, {", ".join(f"{name}n" for name in states)} =
            {kind}<hidden_size=32>(t, W, R, B, lengths, {", ".join(states)})
        q = Squeeze(s, axes)
        y = MatMul(q, w2)
    }}"""
    proto = model_of(
        text,
        {
            "w1": normal(0, 16, 32, scale=0.3),
            "b1": normal(1, 32, scale=0.3),
            "W": normal(2, 1, gates * 32, 32, scale=0.15),
            "R": normal(3, 1, gates * 32, 32, scale=0.15),
            "B": normal(4, 1, 2 * gates * 32, scale=0.1),
            "w2": normal(5, 32, 8, scale=0.3),
            "axes": np.array([1]),
        },
    )
    # The text has no word for an input that is left out.
    proto.graph.node[3].input[4] = ""
    return proto


@pytest.mark.parametrize("kind", RECURRENT)
def test_states_that_are_zeros_in_the_samples_count_in_use(kind: str, tmp_path: Path) -> None:
    _, states = RECURRENT[kind]
    zeros = {name: np.zeros((1, 1, 32), np.float32) for name in states}
    feeds = [{"x": normal(100 + k, 4, 1, 16), **zeros} for k in range(12)]
    outcome = compressed(recurrent(kind), feeds, tmp_path)
    assert outcome.shrunk < 0.5
    # A stream: each run goes on from the states of the last, in either file.
    runs = Session(outcome.original), Session(outcome.result)
    held = [dict(zeros), dict(zeros)]
    heard: list[list[Array]] = [[], []]
    for k in range(12):
        for which, run in enumerate(runs):
            found = run.run({"x": normal(300 + k, 4, 1, 16), **held[which]})
            held[which] = {name: found[f"{name}n"] for name in states}
            heard[which].append(found["y"])
    assert sqnr(np.concatenate(heard[0]), np.concatenate(heard[1])) > 20
    # Farther from zero, too.
    far = {
        name: np.clip(normal(50 + k, 1, 1, 32, scale=0.5), -1, 1) for k, name in enumerate(states)
    }
    for before, after in outcome.both([{"x": normal(400, 4, 1, 16), **far}]):
        for name in before:
            assert sqnr(before[name], after[name]) > 20


def test_a_state_of_zeros_that_a_layer_reads_gets_no_grid_of_zeros(tmp_path: Path) -> None:
    text = f"""{HEAD} g (float[N, 16] x, float[N, 32] h) => (float[N, 32] hn) {{
        a = MatMul(x, w1)
        b = MatMul(h, w2)
        s = Add(a, b)
        hn = Tanh(s)
    }}"""
    constants = {"w1": normal(0, 16, 32, scale=0.3), "w2": normal(1, 32, 32, scale=0.15)}
    zeros = np.zeros((1, 32), np.float32)
    feeds = [{"x": normal(100 + k, 1, 16), "h": zeros} for k in range(60)]
    outcome = compressed(model_of(text, constants), feeds, tmp_path)
    used = [{"x": normal(300 + k, 1, 16), "h": normal(400 + k, 1, 32)} for k in range(4)]
    assert outcome.decibels(used, "hn") > 20
