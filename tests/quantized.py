"""Models with every layer quantized, the rows that led there, and how near they come."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import Session, running_operators
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.plan.proposal import Context
from tests.models import SLOW_FLOATS, model_of, normal, opened, outputs, outputs_of, to_proto
from tests.rows import asked

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
EXPECTED = Quantize(bias_correction="expected")
Feeds = Sequence[Mapping[str, NDArray[Any]]]
CONV = {
    "w": normal(0, 16, 4, 3, 3, scale=0.2),
    "v": normal(1, 8, 16, 1, 1, scale=0.3),
    "b": normal(2, 16, scale=0.5),
}
IMAGE = "1, 4, 9, 9"
W64 = normal(7, 64, 64, scale=0.2)


def graph(body: str, shape: str, rank: int, constants: Mapping[str, Any]) -> onnx.ModelProto:
    """A model of one input ``x`` and one output ``y`` of ``rank`` axes that ``body`` computes."""
    free = ", ".join("ABCDE"[:rank])
    return model_of(f"{HEAD} g (float[{shape}] x) => (float[{free}] y) {{ {body} }}", constants)


def feeds_of(*shape: int, count: int = 6) -> list[dict[str, NDArray[Any]]]:
    """Random inputs ``x`` of one shape."""
    return [{"x": normal(100 + k, *shape)} for k in range(count)]


def context_of(model: Model, feeds: Feeds, **more: Any) -> Context:
    """What a pass is told after a look at ``feeds``; without them it has seen no samples."""
    if not feeds:
        return Context(SLOW_FLOATS, **more)
    found = observe(model, feeds, frozenset({"mean", "range"}), 0)
    return Context(SLOW_FLOATS, statistics=found, feeds=feeds, shapes=found.shapes, **more)


def quantized(
    proto: onnx.ModelProto, feeds: Feeds, method: Quantize = EXPECTED, **more: Any
) -> Model:
    """``proto`` with the first setting of every layer carried out."""
    model = opened(onnx.ModelProto.FromString(proto.SerializeToString()))
    context = context_of(model, feeds, **more)
    method.apply(model, asked(model, context, method), context)
    return model


def running(model: Model) -> dict[str, int]:
    """Operators that onnxruntime really runs, layout changes left aside."""
    found = running_operators(to_proto(model).SerializeToString())
    return {name: n for name, n in found.items() if not name.startswith(("Transpose", "Reorder"))}


def sqnr(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Signal to noise of ``value``, in dB."""
    noise = np.square(reference.astype(np.float64) - value).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))


def near(proto: onnx.ModelProto, model: Model, feed: Mapping[str, Any], least: float) -> None:
    """Same names and shapes, and outputs within ``least`` dB, whether optimized or not."""
    expected = outputs(proto, feed)
    found = outputs_of(model, feed)
    plain = Session(to_proto(model).SerializeToString(), optimize=False).run(feed)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert sqnr(value, found[name]) > least
        assert sqnr(value, plain[name]) > least
