from typing import Literal

import numpy as np

from onnxslim_tk import demo
from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import Feed, Session
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.pipeline.files import load, packed
from onnxslim_tk.plan.proposal import Context
from onnxslim_tk.recover.measured_bias import FloatMeans, channel_means
from tests.models import SLOW_FLOATS
from tests.rows import rows_of


def feeds_of(count: int) -> list[Feed]:
    images = np.load(demo.CALIBRATION)["image"][:count]
    return [{"image": image[None]} for image in images]


def in_integers(model: Model, feeds: list[Feed], method: Quantize, shown: bool = True) -> None:
    """Carry out the integer rows of ``method``, with or without feeds for it to measure on."""
    statistics = observe(model, feeds, frozenset({"mean", "range"}), seed=0)
    context = Context(SLOW_FLOATS, statistics, feeds if shown else (), statistics.shapes)
    rows = rows_of(model, context, method)
    method.apply(model, [row for row in rows if row.setting == "integer"], context)


def quantized(kind: Literal["none", "expected", "measured"], feeds: list[Feed]) -> Stored:
    model = load(demo.MODEL)
    in_integers(model, feeds, Quantize(bias_correction=kind))
    return packed(model, {})[0]


def noise(data: Stored, feeds: list[Feed]) -> float:
    sessions = Session(demo.MODEL), Session(data)
    errors = [np.subtract(*(s.run(feed)["logits"] for s in sessions)) for feed in feeds]
    return float(np.square(errors).mean())


def test_comes_no_farther_from_the_original_than_expected_correction() -> None:
    feeds = feeds_of(24)
    assert noise(quantized("measured", feeds), feeds[-8:]) <= noise(
        quantized("expected", feeds), feeds[-8:]
    )


def biased(model: Model, by: int) -> list[tuple[object, str]]:
    convolutions = [node for node in model.graph.nodes if node.op == "Conv"]
    for node in convolutions:
        codes = node.inputs[2].inputs[0].inputs[0]
        codes.values = codes.values + np.int32(by)
    return [(node, node.outputs[0].name) for node in convolutions]


def test_restores_the_means_of_layers_whose_bias_went_astray() -> None:
    feeds = feeds_of(16)
    model = load(demo.MODEL)
    convolutions = [node for node in model.graph.nodes if node.op == "Conv"]
    means = FloatMeans(model, convolutions, feeds)
    names = [node.outputs[0].name for node in convolutions]
    wanted = channel_means(model, names, feeds)
    in_integers(model, feeds, Quantize(), shown=False)
    biased(model, 300)
    assert means.correct(model, [(node, 0.0) for node in convolutions], feeds)
    found = channel_means(model, [node.outputs[0].name for node in convolutions], feeds)
    for (name, mean), node in zip(wanted.items(), convolutions, strict=True):
        scale = float(np.abs(mean).max())
        assert np.allclose(mean, found[node.outputs[0].name], atol=0.02 * scale), name


def test_the_means_restored_are_those_of_the_reference() -> None:
    feeds = feeds_of(16)
    reference, model = load(demo.MODEL), load(demo.MODEL)
    outputs = output_names(model)
    # What an earlier method has done to the means of the model that is quantized now.
    for layer in [found for found in layers(model) if found.kind == "Conv"]:
        assert layer.shift_bias(model, np.full(layer.channels, 0.3), outputs)
    convolutions = [node for node in model.graph.nodes if node.op == "Conv"]
    names = [node.outputs[0].name for node in convolutions]
    wanted, astray = (channel_means(m, names, feeds) for m in (reference, model))
    means = FloatMeans(model, convolutions, feeds, reference)
    in_integers(model, feeds, Quantize(), shown=False)
    assert means.correct(model, [(node, 0.0) for node in convolutions], feeds)
    found = channel_means(model, [node.outputs[0].name for node in convolutions], feeds)
    for name, node in zip(names, convolutions, strict=True):
        off = np.abs(found[node.outputs[0].name] - wanted[name]).max()
        assert off < 0.1 * np.abs(astray[name] - wanted[name]).max()


def test_takes_back_what_brings_the_outputs_no_closer() -> None:
    feeds = feeds_of(16)
    model = load(demo.MODEL)
    convolutions = [node for node in model.graph.nodes if node.op == "Conv"]
    means = FloatMeans(model, convolutions, feeds)
    in_integers(model, feeds, Quantize(), shown=False)
    before = [node.inputs[2].inputs[0].inputs[0].values.copy() for node in convolutions]
    # Means of other images than the model is checked with lead astray.
    blank = [{"image": replace_with_zeros(feed)} for feed in feeds]
    kept = means.correct(model, [(node, 0.0) for node in convolutions], blank)
    after = [node.inputs[2].inputs[0].inputs[0].values for node in convolutions]
    assert not kept
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def replace_with_zeros(feed: Feed) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.zeros_like(feed["image"])
