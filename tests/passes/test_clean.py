import json

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.passes.clean import Clean
from onnxslim_tk.plan.proposal import Proposal
from tests.models import (
    CONTEXT,
    chain_cnn,
    depthwise_cnn,
    digest,
    mlp,
    model_of,
    normal,
    opened,
    operators,
    outputs,
    outputs_of,
    residual_cnn,
    since,
    to_proto,
    with_metadata,
)

X = normal(1, 2, 3, 4)


def graph(body: str, opset: int = 17, ir: int = 8, out: str = "A, B, C") -> onnx.ModelProto:
    text = f"""<ir_version: {ir}, opset_import: ["": {opset}]>
    g (float[N, 3, 4] x) => (float[{out}] y) {{ {body} }}"""
    return model_of(text)


def rows(model: Model) -> list[Proposal]:
    found = list(Clean().propose(model, CONTEXT))
    assert all(isinstance(row, Proposal) for row in found)
    return [row for row in found if isinstance(row, Proposal)]


def cleaned(proto: onnx.ModelProto, x: NDArray[np.float32] = X) -> tuple[Model, Proposal]:
    """The tidied model and its row, after all that is promised of any was checked."""
    model = opened(proto)
    before = digest(model)
    size = to_proto(model).ByteSize()
    (row,) = rows(model)
    assert digest(model) == before
    Clean().apply(model, [row], CONTEXT)
    assert size - to_proto(model).ByteSize() == row.bytes_saved
    assert (row.targets, row.setting, row.error) == (("model",), "", 0.0)
    assert json.loads(json.dumps(row.details)) == row.details
    for name, values in outputs(proto, {"x": x}).items():
        after = outputs_of(model, {"x": x})[name]
        assert (after.dtype, after.tobytes()) == (values.dtype, values.tobytes())
    assert rows(model) == []
    return model, row


def untouched(proto: onnx.ModelProto) -> None:
    assert rows(opened(proto)) == []


def with_constants(proto: onnx.ModelProto, **values: object) -> onnx.ModelProto:
    for name, value in values.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


@pytest.mark.parametrize("build", [chain_cnn, residual_cnn, mlp, depthwise_cnn])
def test_finds_nothing_in_a_tidy_model(build) -> None:  # type: ignore[no-untyped-def]
    untouched(build())


@pytest.mark.parametrize(
    ("body", "constants", "counted"),
    [
        ("a = Relu(x) b = Identity(a) y = Neg(b)", {}, "identities"),
        ("a = Relu(x) y = Identity(a)", {}, "identities"),
        ("a = Relu(x) b = Dropout(a) y = Neg(b)", {}, "dropouts"),
        ("a = Relu(x) b, mask = Dropout(a, r, f) y = Neg(b)", {"f": False}, "dropouts"),
        ("a = Cast<to = 1>(x) y = Neg(a)", {}, "casts"),
        ("a = Transpose<perm = [0, 1, 2]>(x) y = Neg(a)", {}, "transposes"),
        ("a = Pad(x, none) y = Neg(a)", {}, "pads"),
        ("a = Reshape(x, same) y = Neg(a)", {}, "reshapes"),
        ("a = Slice(x, nothing, far, turned, each) y = Neg(a)", {}, "slices"),
        ("a = Mul(one, x) y = Neg(a)", {}, "arithmetic"),
        ("a = Div(x, ones) y = Neg(a)", {}, "arithmetic"),
        ("a = Add(x, minus_zero) y = Neg(a)", {}, "arithmetic"),
        ("a = Sub(x, zero) y = Neg(a)", {}, "arithmetic"),
        ("a = Relu(x) b = Exp(a) y = Neg(a)", {}, "dead"),
    ],
)
def test_drops_what_changes_nothing(body: str, constants: dict[str, object], counted: str) -> None:
    proto = with_constants(
        graph(body),
        **{
            "r": np.float32(0.5),
            "none": np.zeros(6, np.int64),
            "same": np.array([0, 3, -1]),
            "nothing": np.zeros(3, np.int64),
            "far": np.array([2**31 - 1, 4, 10**9]),
            "turned": np.array([0, 2, -2]),
            "each": np.ones(3, np.int64),
            "one": np.float32(1),
            "ones": np.ones((3, 1), np.float32),
            "zero": np.float32(0),
            "minus_zero": np.float32(-0.0),
        }
        | constants,
    )
    model, row = cleaned(proto)
    assert row.details[counted] == 1
    assert len(operators(model)) == len(proto.graph.node) - 1


@pytest.mark.parametrize(
    "body",
    [
        "a = Cast<to = 11>(x) y = Cast<to = 1>(a)",
        "a = Transpose<perm = [0, 2, 1]>(x) y = Neg(a)",
        "a = Pad(x, some) y = Neg(a)",
        "a = Reshape(x, other) y = Neg(a)",
        "a = Mul(x, grows) y = Neg(a)",
        # -0.0 + 0.0 is +0.0, and 1 / it shows the difference.
        "a = Add(x, zero) y = Neg(a)",
        "y = Identity(x)",
    ],
)
def test_keeps_what_changes_something(body: str) -> None:
    untouched(
        with_constants(
            graph(body),
            some=np.array([0, 0, 0, 0, 0, 1]),
            other=np.array([0, 4, 3]),
            grows=np.ones((5, 1, 3, 4), np.float32)[:, :, :1],
            zero=np.float32(0),
        )
    )


@pytest.mark.parametrize(
    "body",
    ["a = Slice(x, one, end) y = Neg(a)", "a = Slice(x, many, ends, axes) y = Neg(a)"],
)
def test_leaves_alone_a_slice_whose_numbers_are_no_lists(body: str) -> None:
    untouched(
        with_constants(
            graph(body),
            one=np.int64(0),
            end=np.int64(2**31),
            many=np.zeros(1, np.int64),
            ends=np.array([2**31]),
            axes=np.zeros((1, 1), np.int64),
        )
    )


def test_keeps_a_dropout_that_trains_or_whose_mask_is_given_out() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x, bool t) => (float[N, 3] y, bool[N, 3] m) {
        a = Dropout(x, r, t)
        b, m = Dropout(a)
        y = Neg(b)
    }"""
    untouched(model_of(text, {"r": np.float32(0.5)}))


def test_takes_every_dropout_of_old_operator_sets_for_inference() -> None:
    model, row = cleaned(graph("a = Dropout<ratio = 0.9>(x) y = Neg(a)", opset=11))
    assert row.details == {"dropouts": 1}
    assert operators(model) == ["Neg"]


def test_does_not_trust_a_free_size_written_as_a_number() -> None:
    proto = with_constants(
        graph("a = Concat<axis = 1>(x, c) b = Reshape(a, s) y = Neg(b)"),
        c=normal(0, 1, 3, 4),
        s=np.array([0, 3, 4]),
    )
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_value = 0
    untouched(proto)


def test_merges_transposes_to_one_or_none() -> None:
    model, _ = cleaned(
        graph("a = Transpose<perm = [1, 2, 0]>(x) b = Transpose<perm = [1, 0, 2]>(a) y = Neg(b)")
    )
    assert operators(model) == ["Transpose", "Neg"]
    model, _ = cleaned(
        graph("a = Transpose<perm = [2, 0, 1]>(x) b = Transpose<perm = [1, 2, 0]>(a) y = Neg(b)")
    )
    assert operators(model) == ["Neg"]


@pytest.mark.parametrize(
    "op",
    [
        "Abs",
        pytest.param("Sqrt", marks=since("1.21", "has square roots that are a last bit off")),
    ],
)
def test_folds_constants_when_the_file_shrinks(op: str) -> None:
    body = f"a = {op}(c) b = Reciprocal(a) d = Unsqueeze(b, zero) y = Mul(x, d)"
    proto = with_constants(graph(body), c=np.array([1, 4, 9, 2], np.float32), zero=np.array([0]))
    model, row = cleaned(proto)
    assert operators(model) == ["Mul"]
    assert row.details["folded"] == 3
    assert row.bytes_saved > 0


@pytest.mark.parametrize(
    "body",
    [
        "a = Expand(c, shape) y = Add(x, a)",
        "a = Tile(c, times) b = Reshape(a, shape) y = Add(x, b)",
        "a = ConstantOfShape(shape) y = Add(x, a)",
    ],
)
def test_never_folds_to_a_bigger_file(body: str) -> None:
    proto = with_constants(
        graph(body),
        c=np.array([0.5], np.float32),
        shape=np.array([50, 3, 4]),
        times=np.array([600]),
    )
    untouched(proto)


def test_leaves_constants_that_others_read_where_folding_would_keep_both() -> None:
    body = "a = Transpose<perm = [1, 0]>(w) b = MatMul(x, w) y = MatMul(b, a)"
    untouched(with_constants(graph(body), w=normal(3, 4, 64)))


def test_folds_no_exponential_and_no_float_sum() -> None:
    for op in ("Exp", "Tanh", "ReduceSum<keepdims = 1>"):
        body = f"a = {op}(c) y = Mul(x, a)"
        untouched(with_constants(graph(body), c=np.array([0.1, 0.2, 0.3, 0.4], np.float32)))


def test_never_multiplies_out_stored_values() -> None:
    # Four values only: folding would shrink this file, but cost the int8 kernel.
    codes, scale = np.array([[1], [-2], [3], [4]], np.int8), np.array([0.5], np.float32)
    decoded = "a = Cast<to = 1>(q) w = Mul(a, s) y = MatMul(x, w)"
    untouched(with_constants(graph(decoded), q=codes, s=scale))
    dequantized = "w = DequantizeLinear(q, s) y = MatMul(x, w)"
    untouched(with_constants(graph(dequantized), q=codes, s=np.float32(0.5)))


def test_leaves_a_codebook_behind_its_scale() -> None:
    # As plain bytes the product is smaller than its factors; packed it would be far bigger.
    values = np.random.default_rng(0).choice(normal(5, 8), (64, 512))
    proto = with_constants(
        model_of(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[N, 64] x) => (float[N, 512] y) { w = Mul(v, s) y = MatMul(x, w) }"""
        ),
        v=values.astype(np.float32),
        s=np.abs(normal(6, 1, 512)) + 0.1,
    )
    untouched(proto)


def test_merges_equal_constants_but_not_those_that_only_compare_equal() -> None:
    body = "a = Add(x, p) b = Mul(a, longer) c = Max(b, plus) y = Min(c, minus)"
    proto = with_constants(
        graph(body),
        p=np.array([1, 2, 3, 4], np.float32),
        longer=np.array([1, 2, 3, 4], np.float32),
        plus=np.float32(0),
        minus=np.float32(-0.0),
    )
    model, row = cleaned(proto)
    assert row.details == {"constants": 1}
    assert {t.name for t in to_proto(model).graph.initializer} == {"p", "plus", "minus"}


def test_big_constants_merge_only_where_they_agree_to_the_end() -> None:
    first = normal(2, 64, 300)
    last = first.copy()
    last[-1, -1] += 1
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 64] x) => (float[N, 300] y) {
        a = MatMul(x, p) b = MatMul(x, same) c = MatMul(x, other) d = Add(a, b) y = Add(d, c)
    }"""
    proto = model_of(text, {"p": first, "same": first.copy(), "other": last})
    model, row = cleaned(proto, normal(3, 2, 64))
    assert row.details["constants"] == 1
    assert {t.name for t in to_proto(model).graph.initializer} == {"p", "other"}


def test_merges_nodes_that_compute_the_same_and_what_follows_from_it() -> None:
    body = "a = Relu(x) b = Relu(x) c = Exp(a) d = Exp(b) y = Add(c, d)"
    model, row = cleaned(graph(body))
    assert row.details == {"nodes": 2}
    assert operators(model) == ["Relu", "Exp", "Add"]
    assert model.origins["a"] == ("a", "b")


def test_keeps_nodes_that_differ_by_an_attribute_or_by_chance() -> None:
    untouched(graph("a = Softmax<axis = 1>(x) b = Softmax<axis = 2>(x) y = Add(a, b)"))
    untouched(graph("a = RandomNormalLike(x) b = RandomNormalLike(x) c = Sub(a, b) y = Add(x, c)"))


def test_keeps_all_outputs_and_their_names() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 4] x) => (float[N, 3, 4] y, float[N, 3, 4] z, float[N, 3, 4] u) {
        a = Relu(x)
        y = Identity(a)
        z = Identity(a)
        u = Relu(x)
    }"""
    model, _ = cleaned(model_of(text))
    assert [value.name for value in to_proto(model).graph.output] == ["y", "z", "u"]


def test_a_layer_keeps_its_id_when_its_output_is_renamed() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) y = Identity(a) }"""
    model = opened(with_metadata(model_of(text, {"w": normal(0, 8, 8)})))
    Clean().apply(model, rows(model), CONTEXT)
    (layer,) = layers(model)
    assert layer.output.name == "y"
    assert layer.names == ("a", "node/a", "y", "node/y")
    assert to_proto(model).graph.node[0].doc_string == "makes a"


BODIES = """<ir_version: 8, opset_import: ["": 17]>
g (bool c, float[2, 8] x) => (float[A, B] y) {
    s = Identity(x)
    r = If(c)<
        then_branch = yes () => (float[A, B] p) {
            p0 = MatMul(s, w)
            p1 = Identity(p0)
            p2 = Dropout(p1)
            p = Add(p2, u1)
        },
        else_branch = no () => (float[A, B] q) { q0 = Mul(s, u1) q1 = Mul(s, u2) q = Add(q0, q1) }
    >
    y = Identity(r)
}"""


def test_tidies_bodies_and_keeps_what_is_known_of_their_layers() -> None:
    constants = {
        "w": normal(0, 8, 8),
        "u1": np.array([2], np.float32),
        "u2": np.array([2], np.float32),
    }
    proto = with_metadata(model_of(BODIES, constants))
    model = opened(proto)
    (row,) = rows(model)
    Clean().apply(model, [row], CONTEXT)
    assert row.details == {"constants": 1, "dropouts": 1, "identities": 3, "nodes": 1}
    (layer,) = layers(model)
    assert layer.path == "y/then_branch/"
    assert layer.id == "r/then_branch/p0"
    for c in (True, False):
        feed = {"c": np.array(c), "x": normal(2, 2, 8)}
        np.testing.assert_array_equal(outputs_of(model, feed)["y"], outputs(proto, feed)["y"])


def test_dead_branches_no_longer_read_what_is_outside() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (bool c, float[2, 8] x) => (float[A, B] y) {
        m = MatMul(x, w)
        d = If(c)<
            then_branch = yes () => (float[A, B] p) { p = Neg(m) },
            else_branch = no () => (float[A, B] q) { q = MatMul(x, w) }
        >
        y = Relu(m)
    }"""
    model = opened(model_of(text, {"w": normal(0, 8, 8)}))
    Clean().apply(model, rows(model), CONTEXT)
    (layer,) = layers(model)
    assert not layer.is_shared
    assert len(layer.output.outputs) == 1


def test_folding_outside_serves_every_body() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (bool c, float[2, 8] x) => (float[A, B] y) {
        k = Transpose<perm = [1, 0]>(w)
        y = If(c)<
            then_branch = yes () => (float[A, B] p) { p = MatMul(x, k) },
            else_branch = no () => (float[A, B] q) { q0 = Neg(x) q = MatMul(q0, k) }
        >
    }"""
    proto = model_of(text, {"w": normal(0, 8, 8)})
    model = opened(proto)
    (row,) = rows(model)
    Clean().apply(model, [row], CONTEXT)
    assert row.bytes_saved > 0
    assert [t.name for t in to_proto(model).graph.initializer] == ["k"]
    feed = {"c": np.array(False), "x": normal(2, 2, 8)}
    np.testing.assert_array_equal(outputs_of(model, feed)["y"], outputs(proto, feed)["y"])


def test_the_same_model_gives_the_same_bytes() -> None:
    body = "a = Relu(x) b = Relu(x) c = Identity(b) y = Add(a, c)"
    first, second = (opened(graph(body)) for _ in range(2))
    for model in (first, second):
        Clean().apply(model, rows(model), CONTEXT)
    assert digest(first) == digest(second)


def test_does_nothing_without_a_chosen_row() -> None:
    model = opened(graph("a = Relu(x) y = Identity(a)"))
    Clean().apply(model, [], CONTEXT)
    assert operators(model) == ["Relu", "Identity"]


def test_drops_notes_on_nodes_only_when_asked() -> None:
    proto = with_metadata(mlp())
    for node in proto.graph.node:
        node.doc_string = "made here"
        node.metadata_props.add(key="stack_trace", value="a line of a file\n" * 40)
    model = opened(proto)
    assert not rows(model)
    (row,) = Clean(notes="drop").propose(model, CONTEXT)
    assert isinstance(row, Proposal)
    assert row.details == {"notes": len(proto.graph.node)}
    Clean(notes="drop").apply(model, [row], CONTEXT)
    result = to_proto(model)
    assert abs(proto.ByteSize() - result.ByteSize() - row.bytes_saved) < 8
    assert row.bytes_saved > 6 * 40 * 15
    assert not any(node.doc_string or node.metadata_props for node in result.graph.node)
    assert result.metadata_props == proto.metadata_props
    assert result.doc_string == proto.doc_string


def test_refuses_another_word_for_notes() -> None:
    with pytest.raises(RecipeError, match="notes must be keep or drop, got 'some'"):
        Clean(notes="some")  # type: ignore[arg-type]
