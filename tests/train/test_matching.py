import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.train.distillation import distill
from onnxslim_tk.train.matching import (
    attention,
    by_name,
    by_position,
    form_of,
    hidden,
    output_terms,
)
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.terms import Term
from tests.models import model_of, normal, opened

FEEDS = [{"x": normal(k, 1, 3, 8, 8)} for k in range(32)]


def cnn(width: int, prefix: str, seed: int, layers: int = 2) -> onnx.ModelProto:
    """Convolutions of 3x3 at one size, a pool, classes as probabilities."""
    lines, constants, last, before = [], {}, "x", 3
    for k in range(layers):
        name = f"{prefix}{k}"
        lines.append(f"{name} = Conv<pads=[1, 1, 1, 1]>({last}, w{name})")
        lines.append(f"r{name} = Relu({name})")
        constants[f"w{name}"] = normal(seed + k, width, before, 3, 3, scale=(2 / 9 / before) ** 0.5)
        last, before = f"r{name}", width
    body = "\n".join(lines)
    constants["head"] = normal(seed + 9, width, 4)
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 3, 8, 8] x) => (float[n, 4] y) {{
        {body}
        p = GlobalAveragePool({last})
        f = Flatten(p)
        s = MatMul(f, head)
        y = Softmax(s)
    }}"""
    return model_of(text, constants)


def transformer(blocks: int, width: int, seed: int) -> onnx.ModelProto:
    """One head of attention a block, and a LayerNormalization."""
    lines, constants, last = [], {"two": np.array([-1], np.int64)}, "x"
    for k in range(blocks):
        lines += [
            f"q{k} = MatMul({last}, wq{k})",
            f"t{k} = Transpose<perm=[0, 2, 1]>({last})",
            f"s{k} = MatMul(q{k}, t{k})",
            f"u{k} = Unsqueeze(s{k}, one)",
            f"a{k} = Softmax<axis=-1>(u{k})",
            f"b{k} = Squeeze(a{k}, one)",
            f"v{k} = MatMul(b{k}, {last})",
            f"h{k} = Add(v{k}, {last})",
            f"n{k} = LayerNormalization(h{k}, g{k}, z{k})",
        ]
        constants[f"wq{k}"] = normal(seed + k, width, width, scale=0.3)
        constants[f"g{k}"] = np.ones(width, np.float32)
        constants[f"z{k}"] = np.zeros(width, np.float32)
        last = f"n{k}"
    constants["one"] = np.array([1], np.int64)
    constants["in"] = normal(seed + 50, 6, width)
    body = "\n".join(["x = MatMul(e, in)", *lines, f"y = Identity({last})"])
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 5, 6] e) => (float[n, 5, {width}] y) {{
        {body}
    }}"""
    del constants["two"]
    return model_of(text, constants)


def test_outputs_are_compared_as_what_they_are() -> None:
    student, teacher = (GraphModule(opened(cnn(w, "c", 0))) for w in (4, 8))
    (term,) = output_terms(student, teacher, FEEDS[:2], temperature=2, weight=0.5)
    assert (term.student, term.kind, term.temperature, term.weight) == (
        "y",
        "probabilities",
        2,
        0.5,
    )
    assert form_of(teacher, "y") == "probabilities"
    with pytest.raises(TrainingError, match="are no outputs"):
        output_terms(student, teacher, FEEDS[:2], names={"y": "nothing"})


def test_layers_of_one_name_are_paired_with_an_adapter_where_channels_differ() -> None:
    student, teacher = (GraphModule(opened(cnn(w, "c", 0))) for w in (4, 8))
    found = by_name(student, teacher, FEEDS[0])
    assert [(t.student, t.teacher, t.adapter) for t in found] == [
        ("c0", "c0", True),
        ("c1", "c1", True),
        ("s", "s", False),
    ]
    same = by_name(teacher, teacher, FEEDS[0])
    assert not any(term.adapter for term in same)
    assert sum(term.weight for term in same) == pytest.approx(1)


def test_layers_at_the_same_depth_are_paired_the_last_with_the_last() -> None:
    student = GraphModule(opened(cnn(4, "mine", 0, layers=2)))
    teacher = GraphModule(opened(cnn(8, "theirs", 1, layers=4)))
    assert by_name(student, teacher, FEEDS[0]) == [Term("s", "s")]
    pairs = [(t.student, t.teacher) for t in by_position(student, teacher, FEEDS[0])]
    assert pairs[:2] == [("mine0", "theirs1"), ("mine1", "theirs3")]


def test_pairs_are_few_and_spread_over_the_depth() -> None:
    deep = GraphModule(opened(cnn(4, "c", 0, layers=9)))
    found = by_name(deep, deep, FEEDS[0], most=3)
    assert [term.student for term in found] == ["c2", "c6", "s"]


def test_adapters_are_learnt_and_no_part_of_the_student() -> None:
    student = GraphModule(opened(cnn(4, "mine", 0)))
    teacher = GraphModule(opened(cnn(8, "theirs", 1)))
    terms = by_position(student, teacher, FEEDS[0])
    before = len(list(student.parameters()))
    parts = Samples(FEEDS[:24]), Samples(FEEDS[24:])
    lesson = distill(student, teacher, terms, *parts, Schedule(steps=40, batch=8, rate=5e-3))
    assert lesson.after.loss < 0.9 * lesson.before.loss
    assert len(list(student.parameters())) == before


def test_attention_and_hidden_states_are_paired_by_depth() -> None:
    feed = {"e": normal(0, 1, 5, 6)}
    student, teacher = (
        GraphModule(opened(transformer(blocks, width, 0))) for blocks, width in ((2, 4), (4, 8))
    )
    found = attention(student, teacher, feed)
    assert [(t.student, t.teacher) for t in found] == [("a0", "a1"), ("a1", "a3")]
    assert {term.kind for term in found} == {"attention"}
    states = hidden(student, teacher, feed)
    assert [(t.student, t.teacher, t.adapter) for t in states] == [
        ("n0", "n1", True),
        ("n1", "n3", True),
    ]
    feeds = [{"e": normal(k, 1, 5, 6)} for k in range(24)]
    parts = Samples(feeds[:16]), Samples(feeds[16:])
    schedule = Schedule(steps=40, batch=8, rate=5e-3)
    lesson = distill(student, teacher, [*found, *states], *parts, schedule)
    assert lesson.after.loss < lesson.before.loss
    cnns = GraphModule(opened(cnn(4, "c", 0)))
    with pytest.raises(TrainingError, match="need attention"):
        attention(cnns, cnns, FEEDS[0])
    with pytest.raises(TrainingError, match="need hidden states"):
        hidden(cnns, cnns, FEEDS[0])
