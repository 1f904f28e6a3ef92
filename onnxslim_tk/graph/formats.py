"""Number formats that a model has already: which kinds of quantization stand in its graphs."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from onnxslim_tk.graph.edit import producer
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model, Node, bodies
from onnxslim_tk.graph.weight_slot import WEIGHT_SLOTS

QDQ: Final = "int8 between QuantizeLinear and DequantizeLinear"
OPERATORS: Final = "quantized operators"
DYNAMIC: Final = "dynamic int8"
WEIGHTS: Final = "quantized weights alone"
HALF: Final = "float16"

_DYNAMIC: Final = frozenset(
    (
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
    )
)
_WEIGHTS: Final = frozenset(("GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "MatMulNBits"))


def number_formats(model: Model) -> dict[str, int]:
    """How many weighted operators have which quantized or narrow format; empty for a float model.

    Standard operators and those of onnxruntime alike, in all bodies.
    """
    found: Counter[str] = Counter()
    for layer in layers(model):
        if layer.is_half:
            found[HALF] += 1
        if not layer.is_dense:
            before = producer(layer.input)
            integer = before is not None and before.op == "DequantizeLinear"
            found[QDQ if integer else WEIGHTS] += 1
    for _, graph in bodies(model.graph):
        found.update(form for node in graph.nodes if (form := _format(node)))
    return {form: found[form] for form in (QDQ, OPERATORS, DYNAMIC, WEIGHTS, HALF) if found[form]}


def told(formats: Mapping[str, int]) -> str:
    """The formats as words for a table or a sentence; empty for a float model."""
    return ", ".join(f"{form} x {count}" for form, count in formats.items())


def _format(node: Node) -> str:
    if node.op.startswith(("QLinear", "QGemm", "QAttention")):
        return OPERATORS
    if node.op in _DYNAMIC:
        return DYNAMIC
    if node.op in _WEIGHTS:
        return WEIGHTS
    # Blocks of weights behind one scale each make no matrix with a scale per channel.
    slots = WEIGHT_SLOTS.get(node.op, ())
    makers = [producer(node.inputs[k]) for k in slots if k < len(node.inputs)]
    blocks = [m for m in makers if m is not None and m.op == "DequantizeLinear"]
    return WEIGHTS if any(maker.attrs.get("block_size") for maker in blocks) else ""
