"""Single nodes, run by the module and by onnxruntime, and their gradients by differences."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.train.module import GraphModule
from tests.models import opened

Array = NDArray[Any]


def floats(*shape: int, seed: int = 0) -> Array:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int, seed: int = 0) -> Array:
    """Numbers above a half, float32."""
    return np.abs(floats(*shape, seed=seed)) + np.float32(0.5)


def apart(*shape: int, seed: int = 0) -> Array:
    """Numbers of which no two are near, nor one near a whole, for functions with steps."""
    count = int(np.prod(shape))
    order = np.random.default_rng(seed).permutation(count)
    return ((order - count / 2) * 0.37 + 0.11).reshape(shape).astype(np.float32)


def ints(*values: int) -> Array:
    """Integers of 64 bits, flat."""
    return np.array(values, np.int64)


def node_model(
    text: str,
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array],
    opset: int = 17,
    domains: str = "",
) -> onnx.ModelProto:
    """A model of the nodes in ``text`` that gives out ``y``, and ``z`` where it is made."""
    outputs = [name for name in ("y", "z") if f"{name} =" in text or f", {name}" in text]
    opsets = f'["" : {opset}{domains}]'
    proto = parser.parse_model(f"<ir_version: 8, opset_import: {opsets}> g () => () {{ {text} }}")
    for name, value in feeds.items():
        element = helper.np_dtype_to_tensor_dtype(value.dtype)
        proto.graph.input.append(helper.make_tensor_value_info(name, element, value.shape))
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return proto


def same_as_the_runtime(
    text: str,
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
    *,
    domains: str = "",
    tolerance: float = 1e-5,
    detached: bool = False,
) -> GraphModule:
    """Run both and compare; give the module."""
    proto = node_model(text, feeds, constants or {}, opset, domains)
    session = Session(proto.SerializeToString(), optimize=False)
    for output, info in zip(proto.graph.output, session.outputs, strict=True):
        element = helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype))
        output.CopyFrom(helper.make_tensor_value_info(output.name, element, None))
    expected = session.run(feeds)
    module = GraphModule(opened(proto))
    found = module(feeds)
    for name, wanted in expected.items():
        got = found[name].detach().numpy()
        assert got.shape == wanted.shape, name
        assert (got.dtype.kind == "f") == (wanted.dtype.kind == "f"), name
        scale = max(float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)), 1e-6)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * scale)
    assert bool(module.detached) == detached, module.detached
    return module


def gradient_is_right(
    text: str,
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
    *,
    domains: str = "",
) -> None:
    """Compare the gradient to all float inputs with differences, in 64 bits."""
    proto = node_model(text, feeds, constants or {}, opset, domains)
    module = GraphModule(opened(proto)).double()
    names = [name for name, value in feeds.items() if value.dtype == np.float32]
    others = {name: value for name, value in feeds.items() if name not in names}
    inputs = [torch.from_numpy(feeds[name].astype(np.float64)).requires_grad_() for name in names]

    def run(*values: Any) -> Any:
        found = module({**others, **dict(zip(names, values, strict=True))})
        return tuple(value for value in found.values() if value.is_floating_point())

    assert torch.autograd.gradcheck(run, inputs, fast_mode=False)
