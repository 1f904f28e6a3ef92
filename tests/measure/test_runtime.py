from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxslim_tk.errors import SessionError
from onnxslim_tk.measure.runtime import Session, TensorInfo, running_operators, runtime_version


def model(text: str, opset: int = 17) -> bytes:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    serialized: bytes = parser.parse_model(header + text).SerializeToString()
    return serialized


SCALED = model(
    "g (float[n,3] x, float[] s) => (float[n,3] y, float[n,3] z) {y = Mul(x, s) z = Neg(x)}"
)


def test_describes_inputs_and_outputs() -> None:
    session = Session(
        model(
            """g (float16[n,3,"?"] x, string[2] t, int64[] i) => (string[2] u, seq(float16[n,3]) q)
            {u = Identity(t) q = SequenceConstruct(x)}"""
        )
    )
    assert session.inputs == (
        TensorInfo("x", np.dtype(np.float16), ("n", 3, None)),
        TensorInfo("t", np.dtype(object), (2,)),
        TensorInfo("i", np.dtype(np.int64), ()),
    )
    assert [o.dtype for o in session.outputs] == [np.dtype(object), None]


def test_runs_all_tensors_or_those_named() -> None:
    feed = {"x": np.ones((2, 3), np.float32), "s": np.asarray(np.float32(4))}
    session = Session(SCALED)
    assert list(session.run(feed)) == ["y", "z"]
    (only,) = session.run(feed, ["z"]).values()
    np.testing.assert_array_equal(only, -feed["x"])
    assert session.run(feed, []) == {}


def test_leaves_out_what_is_no_tensor() -> None:
    session = Session(model("g (float[2] x) => (seq(float[2]) q) {q = SequenceConstruct(x)}"))
    feed = {"x": np.zeros(2, np.float32)}
    assert session.run(feed) == {}
    with pytest.raises(SessionError, match="output 'q' must be a tensor, got list"):
        session.run(feed, ["q"])


def test_opens_a_path_with_external_data(tmp_path: Path) -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) '
        "<float[2] w = {1.0, 2.0}> {y = Mul(x, w)}"
    )
    weight = proto.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.array([3, 4], np.float32), "w"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").is_file()
    assert Session(path).run({"x": np.ones(2, np.float32)})["y"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("feed", "reason"),
    [
        ({"x": np.ones((2, 3), np.float32)}, "missing"),
        ({"x": np.ones((2, 4), np.float32), "s": np.float32(1)}, "Got: 4 Expected: 3"),
        ({"x": np.ones((2, 3)), "s": np.float32(1)}, r"tensor\(double\)"),
        ({"x": np.ones((2, 3), np.float32), "s": np.float32(1), "q": np.ones(1)}, "q"),
    ],
)
def test_says_in_one_line_why_a_feed_does_not_fit(feed: dict[str, object], reason: str) -> None:
    with pytest.raises(SessionError, match=reason) as caught:
        Session(SCALED).run(feed)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith("session: ")
    assert "\n" not in message
    assert "ONNXRuntimeError" not in message


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="protobuf"):
        Session(b"junk")
    with pytest.raises(SessionError, match="no such file"):
        Session(tmp_path / "missing.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    with pytest.raises(SessionError, match=r"^session: (?!.*bad\.onnx)"):
        Session(tmp_path / "bad.onnx")
    with pytest.raises(SessionError, match="Bar"):
        Session(model("g (float[2] x) => (float[2] y) {y = Bar(x)}"))


def test_hides_the_runtime_s_own_source_from_a_message() -> None:
    session = Session(
        model("g (float[n] x, int64[k] s) => (float[a,b] y) {y = Reshape(x, s)}"), optimize=False
    )
    with pytest.raises(SessionError, match="cannot be reshaped") as caught:
        session.run({"x": np.ones(3, np.float32), "s": np.array([5, 5])})
    assert "onnxruntime" not in str(caught.value)


def test_counts_operators_after_folding_and_fusion() -> None:
    text = """g (float[n,4] x) => (float[n,4] y)
    <float[1,4] c = {1.0, 2.0, 3.0, 4.0}> {d = Neg(c) e = Add(x, d) f = Identity(e) y = Relu(f)}"""
    assert running_operators(model(text)) == Counter({"Add": 1, "Relu": 1})


def test_counts_operators_in_bodies(tmp_path: Path) -> None:
    text = """g (float[2] x, bool[] b) => (float[2] y) {
    y = If(b) <then_branch = t () => (float[2] p) {p = Sin(x)},
               else_branch = e () => (float[2] q) {q = Cos(x)}>}"""
    (tmp_path / "m.onnx").write_bytes(model(text))
    counts = running_operators(tmp_path / "m.onnx")
    assert counts == Counter({"If": 1, "Sin": 1, "Cos": 1})


def test_repeats_its_results_to_the_bit() -> None:
    feed = {"x": np.random.default_rng(0).normal(size=(64, 3)), "s": np.float64(0.3)}
    cast = {name: np.asarray(value, np.float32) for name, value in feed.items()}
    first, second = (Session(SCALED).run(cast)["y"].tobytes() for _ in range(2))
    assert first == second


def test_names_its_version() -> None:
    assert runtime_version()[0].isdigit()


def test_a_lean_session_gives_the_same() -> None:
    text = """g (float[n,64] x) => (float[n,64] y) {
        c = Cast<to = 1>(w) s = Mul(c, f) y = MatMul(x, s)
    }"""
    codes = np.random.default_rng(0).integers(-9, 9, (64, 64), np.int8)
    proto = onnx.ModelProto.FromString(model(text))
    for name, values in (("w", codes), ("f", np.full((1, 64), 0.5, np.float32))):
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    feed = {"x": np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)}
    data = proto.SerializeToString()
    expected, found = (Session(data, lean=lean).run(feed)["y"] for lean in (False, True))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
