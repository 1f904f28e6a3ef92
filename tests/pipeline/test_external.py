import hashlib
import os
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.edit import constants
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import to_parts, to_stored
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.pipeline import Options, external, files, load, optimize, pack, save
from onnxslim_tk.pipeline.files import packed, parse, read_model, write_file
from onnxslim_tk.plan.recipe import Recipe
from tests.models import mlp, model_of, normal, operators, since


def beside(proto: onnx.ModelProto, folder: Path, names: Callable[[str], str]) -> Path:
    """Write ``proto`` to ``model.onnx`` with each initializer in the data file of its choice."""
    folder.mkdir(exist_ok=True)
    for tensor in proto.graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        path = folder / names(tensor.name)
        start = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(raw)
        tensor.raw_data = b""
        external_data_helper.set_external_data(tensor, names(tensor.name), start, len(raw))
        tensor.ClearField("raw_data")
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A small network with its weights in two data files."""
    return beside(mlp(), tmp_path / "in", lambda name: "a.bin" if name < "w" else "b.bin")


@pytest.fixture
def two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let results of more than 4 KB be too big for one file."""
    plain = external.laid_out
    monkeypatch.setattr(files, "laid_out", lambda p, w, name: plain(p, w, name, largest=4096))


def ran(path: Path) -> np.ndarray:
    return Session(path).run({"x": normal(0, 2, 32)})["y"]


def test_several_data_files_become_one_model(split: Path, tmp_path: Path) -> None:
    report = optimize(split, tmp_path / "out.onnx", "light")
    assert report.validation.original.file_bytes == sum(
        f.stat().st_size for f in split.parent.iterdir()
    )
    assert report.validation.result.file_bytes == (tmp_path / "out.onnx").stat().st_size
    np.testing.assert_allclose(ran(tmp_path / "out.onnx"), ran(split), atol=0.3)


def test_big_weights_are_mapped_and_shared_by_copies(split: Path) -> None:
    model = load(split)
    arrays = {t.name: t.values for t in constants(model)}
    big = [name for name, array in arrays.items() if array.nbytes >= 4096]
    assert big
    for twin in (model.copy(), model.copy().copy(), parse(to_stored(model))):
        for tensor in constants(twin):
            if tensor.name in big:
                assert np.shares_memory(tensor.values, arrays[tensor.name])
                assert not tensor.values.flags.writeable


def test_an_edit_of_a_copy_leaves_the_mapped_weights_alone(split: Path) -> None:
    model = load(split)
    before = [layer.weight.copy() for layer in layers(model)]
    twin = model.copy()
    for layer in list(layers(twin)):
        layer.set_dense(twin, np.zeros_like(layer.weight))
    for layer, weight in zip(layers(model), before, strict=True):
        np.testing.assert_array_equal(layer.weight, weight)


def test_what_takes_more_than_one_file_gets_a_data_file(
    split: Path, tmp_path: Path, two_files: None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    save(load(split), out / "big.onnx")
    (name,) = {f.name for f in out.iterdir()} - {"big.onnx"}
    assert name.startswith("big.onnx.")
    assert name.endswith(".data")
    np.testing.assert_array_equal(ran(out / "big.onnx"), ran(split))
    onnx.checker.check_model(out / "big.onnx", full_check=True)
    again = {layer.id: layer.weight for layer in layers(load(out / "big.onnx"))}
    for layer in layers(load(split)):
        np.testing.assert_array_equal(again[layer.id], layer.weight)


def test_a_new_result_takes_the_old_one_s_data_away(
    split: Path, tmp_path: Path, two_files: None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "big.onnx.0123456789abcdef.data").write_bytes(b"somebody's")
    save(load(split), out / "big.onnx")
    first = {f.name for f in out.iterdir()}
    model = load(split)
    for layer in list(layers(model)):
        layer.set_dense(model, layer.weight * 2)
    save(model, out / "big.onnx")
    second = {f.name for f in out.iterdir()}
    assert len(first) == len(second) == 3
    assert first & second == {"big.onnx", "big.onnx.0123456789abcdef.data"}
    save(model, out / "big.onnx")
    assert {f.name for f in out.iterdir()} == second


def test_a_result_in_two_files_runs_from_memory_as_from_disk(
    split: Path, tmp_path: Path, two_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, _ = packed(load(split), {}, "out.onnx")
    assert not stored.is_single
    feed = {"x": normal(0, 2, 32)}
    expected = ran(split)
    np.testing.assert_array_equal(Session(stored).run(feed)["y"], expected)
    # Lent arrays, as for models too big for one message.
    monkeypatch.setattr("onnxslim_tk.measure.runtime._BIG", 1)
    monkeypatch.setattr("onnxslim_tk.measure.runtime._LENT", 4096)
    np.testing.assert_array_equal(Session(stored).run(feed)["y"], expected)
    write_file(stored, tmp_path / "out.onnx")
    np.testing.assert_array_equal(ran(tmp_path / "out.onnx"), expected)


def test_the_same_input_gives_the_same_two_files(
    split: Path, tmp_path: Path, two_files: None
) -> None:
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        optimize(split, folder / "out.onnx", "light")
        found.append({f.name: f.read_bytes() for f in folder.iterdir()})
    assert found[0] == found[1]


def test_the_original_unchanged_brings_its_data_along(
    split: Path, tmp_path: Path, two_files: None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert pack(split, out / "same.onnx") == ()
    assert len(list(out.iterdir())) == 2
    np.testing.assert_array_equal(ran(out / "same.onnx"), ran(split))


def test_a_failed_write_leaves_the_old_result_whole(
    split: Path, tmp_path: Path, two_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    save(load(split), out / "big.onnx")
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    model = load(split)
    for layer in list(layers(model)):
        layer.set_dense(model, layer.weight * 2)
    replace = os.replace

    def full(source: str, target: Path) -> None:
        if str(target).endswith(".onnx"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelError, match="cannot be written: No space left"):
        save(model, out / "big.onnx")
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="no locks of folders elsewhere")
def test_of_two_runs_none_takes_away_the_other_s_data(
    split: Path, tmp_path: Path, two_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first, second = load(split), load(split)
    for layer in list(layers(second)):
        layer.set_dense(second, layer.weight * 2)
    save(first, out / "big.onnx")
    other = Thread(target=save, args=(first, out / "big.onnx"))
    replace = os.replace

    def meanwhile(source: str, target: Path) -> None:
        """The model is there, the old data are to go: now another run writes what was there."""
        replace(source, target)
        if str(target).endswith(".onnx") and other.ident is None:
            other.start()
            other.join(0.5)

    monkeypatch.setattr(os, "replace", meanwhile)
    save(second, out / "big.onnx")
    other.join()
    assert len(list(out.iterdir())) == 2
    np.testing.assert_array_equal(ran(out / "big.onnx"), ran(split))


def test_the_hash_is_that_of_all_files(split: Path) -> None:
    assert read_model(split) == read_model(split)
    before = read_model(split).sha256
    with (split.parent / "b.bin").open("r+b") as file:
        file.write(b"other")
    assert read_model(split).sha256 != before


def test_weights_of_bodies_may_lie_outside_too(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weight = normal(1, 64, 64)
    bodies = []
    for name in ("then_branch", "else_branch"):
        node = helper.make_node("MatMul", ["x", f"w_{name}"], ["y"])
        tensor = numpy_helper.from_array(weight, f"w_{name}")
        bodies.append(helper.make_graph([node], name, [], [x], [tensor]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    inp = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])
    proto = helper.make_model(helper.make_graph([node], "g", [c, inp], [x]), ir_version=8)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", 17))
    (tmp_path / "body.bin").write_bytes(weight.tobytes())
    for attribute in proto.graph.node[0].attribute:
        (tensor,) = attribute.g.initializer
        external_data_helper.set_external_data(tensor, "body.bin", 0, weight.nbytes)
        tensor.ClearField("raw_data")
    onnx.save(proto, tmp_path / "in.onnx")
    save(load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    feed = {"c": np.array(True), "x": normal(2, 1, 64)}
    np.testing.assert_allclose(
        Session(tmp_path / "out.onnx").run(feed)["y"], feed["x"] @ weight, rtol=1e-4
    )


def aimed(split: Path, **entries: str) -> Path:
    """Let one tensor of the model say other things of its data."""
    proto = onnx.load(split, load_external_data=False)
    tensor = proto.graph.initializer[0]
    for item in tensor.external_data:
        item.value = entries.pop(item.key, item.value)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(proto, split)
    return split


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "/etc/hostname"}, "lies outside the model's folder"),
        ({"location": "../in/a.bin"}, "lies outside the model's folder"),
        ({"location": "sub/../../a.bin"}, "lies outside the model's folder"),
        ({"location": "..\\a.bin"}, "lies outside the model's folder"),
        ({"location": "C:\\a.bin"}, "lies outside the model's folder"),
        ({"location": "link.bin"}, "is a link that leads outside"),
        ({"location": "linked/x.bin"}, "is a link that leads outside"),
        ({"location": "pipe"}, "is no regular file"),
        ({"location": "folder"}, "is no regular file"),
        ({"location": "loop"}, "cannot be read"),
        ({"location": ""}, "names no file"),
        ({"location": "a\0.bin"}, "names no file"),
        ({"location": "none.bin"}, "No such file"),
        ({"offset": "100000"}, "ends at byte 1"),
        ({"offset": "-4"}, "is no number"),
        ({"offset": "1e3"}, "is no number"),
        ({"length": "12"}, "is said to have 12"),
        ({"length": "9" * 30}, "is no number"),
    ],
)
def test_data_outside_the_folder_or_the_file_are_refused(
    split: Path, tmp_path: Path, entries: dict[str, str], words: str
) -> None:
    folder = split.parent
    (tmp_path / "x.bin").write_bytes(bytes(100_000))
    (folder / "link.bin").symlink_to(tmp_path / "x.bin")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    for verb in (load, read_model):
        with pytest.raises(ModelError, match=r"the external data of model\.onnx") as caught:
            verb(aimed(split, **entries))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_link_within_the_folder_is_followed(split: Path) -> None:
    (split.parent / "a.bin").rename(split.parent / "real.bin")
    (split.parent / "a.bin").symlink_to("real.bin")
    assert list(layers(load(split)))


def test_dims_beyond_the_file_are_refused_before_any_memory_is_taken(split: Path) -> None:
    proto = onnx.load(split, load_external_data=False)
    proto.graph.initializer[0].dims[0] = 1 << 62
    onnx.save(proto, split)
    with pytest.raises(ModelError, match="must fit in memory"):
        load(split)


def test_a_location_that_is_no_text_is_refused(split: Path) -> None:
    split.write_bytes(split.read_bytes().replace(b"a.bin", b"\xff.bin"))
    for verb in (load, read_model):
        with pytest.raises(ModelError, match="all text must be UTF-8"):
            verb(split)


def test_indices_outside_the_file_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(np.array([1, 99], np.int64).tobytes())
    proto = mlp()
    values = numpy_helper.from_array(np.ones(2, np.float32), "sparse")
    indices = TensorProto(name="i", data_type=TensorProto.INT64, dims=[2], raw_data=b"")
    external_data_helper.set_external_data(indices, "a.bin", 0, 16)
    proto.graph.sparse_initializer.add(values=values, indices=indices, dims=[4, 4])
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="'sparse' has indices outside its dimensions"):
        load(tmp_path / "model.onnx")


def test_many_tensors_at_one_place_allow_no_more_decoding(tmp_path: Path) -> None:
    values = normal(0, 1 << 12)
    (tmp_path / "a.bin").write_bytes(values.tobytes())
    proto = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        huge (float[1] x) => (float[16384, 4096] y) {
            big = Expand(w0, shape)
            y = Add(x, big)
        }""",
        {"shape": np.array([1 << 14, 1 << 12])},
    )
    for k in range(999):
        tensor = proto.graph.initializer.add(name=f"w{k}", data_type=TensorProto.FLOAT)
        tensor.dims.append(len(values))
        tensor.raw_data = b""
        external_data_helper.set_external_data(tensor, "a.bin", 0, values.nbytes)
        tensor.ClearField("raw_data")
    onnx.save(proto, tmp_path / "model.onnx")
    assert "Expand" in operators(load(tmp_path / "model.onnx"))


def test_a_device_takes_a_result(split: Path) -> None:
    report = optimize(split, os.devnull, "light")
    assert report.validation.result.file_bytes < report.validation.original.file_bytes
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_the_parts_of_a_model_hold_is_what_it_was_given(split: Path) -> None:
    proto, weights = to_parts(load(split))
    expected = {t.name: numpy_helper.to_array(t) for t in onnx.load(split).graph.initializer}
    for tensor in proto.graph.initializer:
        np.testing.assert_array_equal(weights.values(tensor), expected[tensor.name])


def test_models_too_big_to_be_open_at_once_are_judged_alike(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(calibration=Samples([{"x": normal(k, 1, 32)} for k in range(30)]))
    together = optimize(split, tmp_path / "a.onnx", options=options).validation
    monkeypatch.setattr("onnxslim_tk.measure.runtime._TOGETHER", 0)
    apart = optimize(split, tmp_path / "b.onnx", options=options).validation
    assert apart.faithfulness == together.faithfulness
    assert apart.layers == together.layers
    assert apart.latency is not None
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_data_of_the_source_are_no_place_for_the_result(split: Path) -> None:
    before = (split.parent / "b.bin").read_bytes()
    for place in (True, False):
        with pytest.raises(ModelError, match=r"b\.bin holds data of the source"):
            optimize(split, split.parent / "b.bin", options=Options(in_place=place))
    assert (split.parent / "b.bin").read_bytes() == before


def test_in_place_the_new_data_replace_our_own_and_leave_a_vendor_s(
    split: Path, two_files: None
) -> None:
    folder = split.parent
    with pytest.raises(ModelError, match="is the source itself"):
        optimize(split, split, "light")
    expected = ran(split)
    optimize(split, split, Recipe("nothing", ()), Options(in_place=True))
    assert {"a.bin", "b.bin", "model.onnx"} < {f.name for f in folder.iterdir()}
    np.testing.assert_array_equal(ran(split), expected)
    count = len(list(folder.iterdir()))
    report = optimize(split, split, "light", Options(in_place=True))
    assert len(list(folder.iterdir())) <= count
    assert report.validation.result.file_bytes < report.validation.original.file_bytes
    np.testing.assert_allclose(ran(split), expected, atol=0.3)


@pytest.fixture
def tall(tmp_path: Path) -> Path:
    """Sixteen equal layers, 4 MB, with their weights in one data file."""
    rng = np.random.default_rng(0)
    body = "\n".join(f"m{k} = MatMul(h{k}, w{k})\nh{k + 1} = Relu(m{k})" for k in range(16))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 256] h0) => (float[N, 256] h16) {{ {body} }}"""
    weights = {f"w{k}": rng.standard_normal((256, 256), np.float32) / 11 for k in range(16)}
    return beside(model_of(text, weights), tmp_path / "tall", lambda name: "all.bin")


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few MB be as big for us as some GB are."""
    monkeypatch.setattr("onnxslim_tk.measure.runtime._BIG", 1)
    monkeypatch.setattr("onnxslim_tk.measure.runtime._LENT", 4096)
    monkeypatch.setattr("onnxslim_tk.kernels.rounding._BLOCKS", 1)
    monkeypatch.setattr("onnxslim_tk.kernels.rounding._CHUNK", 4096)
    monkeypatch.setattr("onnxslim_tk.kernels.least_squares._BLOCK", 4096)
    monkeypatch.setattr("onnxslim_tk.packing.inspect._BLOCK", 4096)
    monkeypatch.setattr("onnxslim_tk.packing.encode._BLOCK", 4096)
    monkeypatch.setattr("onnxslim_tk.packing.options._FREE", 0)
    plain = external.laid_out
    monkeypatch.setattr(files, "laid_out", lambda p, w, name: plain(p, w, name, at_once=4096))


@pytest.mark.parametrize("recipe", ["light", "balanced"])
def test_what_a_run_allocates_stays_below_the_size_of_the_weights(
    tall: Path, tmp_path: Path, in_small_pieces: None, recipe: str
) -> None:
    # Once before, for what libraries set up at their first use.
    optimize(tall, tmp_path / "out.onnx", recipe)
    size = (tall.parent / "all.bin").stat().st_size
    tracemalloc.start()
    try:
        report = optimize(tall, tmp_path / "out.onnx", recipe)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out.onnx").stat().st_size < 0.27 * size
    assert report.validation.result.file_bytes == (tmp_path / "out.onnx").stat().st_size
    # The result's int8 values are a quarter; what the runtime takes is not seen here.
    assert peak < size


def test_a_runtime_that_knows_no_folder_borrows_the_arrays(
    tall: Path, in_small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxslim_tk.measure.runtime._KNOWS_FOLDER", False)
    feed = {"h0": normal(1, 2, 256)}
    expected = Session(tall).run(feed)["h16"]
    entries: list[str] = []
    monkeypatch.setattr(
        ort.SessionOptions, "add_session_config_entry", lambda _, key, value: entries.append(key)
    )
    np.testing.assert_array_equal(Session(to_stored(load(tall))).run(feed)["h16"], expected)
    assert not any("folder" in key for key in entries)


def test_a_file_put_together_as_it_is_written_is_the_same(
    tall: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimize(tall, tmp_path / "whole.onnx", "light")
    plain = external.laid_out
    monkeypatch.setattr(files, "laid_out", lambda p, w, name: plain(p, w, name, at_once=4096))
    report = optimize(tall, tmp_path / "out.onnx", "light")
    data = (tmp_path / "out.onnx").read_bytes()
    assert data == (tmp_path / "whole.onnx").read_bytes()
    assert report.result_sha256 == hashlib.sha256(data).hexdigest()
    assert [path.name for path in tmp_path.glob("out*")] == ["out.onnx"]


@since("1.21", "maps no file of a model that it gets as bytes")
def test_the_runtime_maps_what_lies_in_a_file(
    tall: Path, in_small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lent = load(tall), []
    plain = ort.SessionOptions.add_external_initializers

    def recorded(options: object, names: list[str], values: list[object]) -> None:
        lent.extend(names)
        plain(options, names, values)

    monkeypatch.setattr(ort.SessionOptions, "add_external_initializers", recorded)
    feed = {"h0": normal(1, 2, 256)}
    expected = Session(tall).run(feed)["h16"]
    np.testing.assert_array_equal(Session(to_stored(model)).run(feed)["h16"], expected)
    assert lent == []
    first = next(iter(layers(model)))
    first.set_dense(model, first.weight * 2)
    changed = Session(to_stored(model)).run(feed)["h16"]
    np.testing.assert_allclose(changed, 2 * expected, rtol=1e-4, atol=1e-5)
    assert len(lent) == 1
