"""Small models for the tests of passes: every one is built from a seed, and checks."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import checker, helper, numpy_helper, parser

from onnxslim_tk.graph.model import Model, from_proto, to_parts
from onnxslim_tk.graph.stored import joined
from onnxslim_tk.measure.runtime import Session, runtime_version
from onnxslim_tk.plan.proposal import Context
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU, Speed

Array = NDArray[Any]

CONTEXT = Context(target=ONNXRUNTIME_CPU)
# All that can run in integers gains by it: small models show what is written for big ones.
SLOW_FLOATS = replace(
    ONNXRUNTIME_CPU,
    floats=dict.fromkeys(ONNXRUNTIME_CPU.floats, Speed(20.0)),
    dynamic=dict.fromkeys(ONNXRUNTIME_CPU.dynamic, Speed(10.0)),
)


def since(version: str, lacking: str) -> pytest.MarkDecorator:
    """Skip a test on a runtime before ``version``, for what that is ``lacking``."""
    here, needed = ([int(part) for part in v.split(".")[:2]] for v in (runtime_version(), version))
    return pytest.mark.skipif(here < needed, reason=f"before {version} the runtime {lacking}")


def model_of(text: str, constants: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """A model from ONNX text with ``constants`` as initializers."""
    proto = parser.parse_model(text)
    for name, values in (constants or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return proto


def opened(proto: onnx.ModelProto) -> Model:
    """``proto`` as passes get it."""
    return from_proto(proto, proto.SerializeToString())


def to_proto(model: Model) -> onnx.ModelProto:
    """The model as ONNX in one message."""
    return joined(*to_parts(model))


def outputs(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
    """What onnxruntime computes, after the full checker has had its say."""
    checker.check_model(proto, full_check=True)
    return Session(proto.SerializeToString()).run(feed)


def outputs_of(model: Model, feed: Mapping[str, Array]) -> dict[str, Array]:
    """What onnxruntime computes for a model that was edited."""
    return outputs(to_proto(model), feed)


def operators(model: Model) -> list[str]:
    """The operators of the outermost graph in order."""
    return [node.op_type for node in to_proto(model).graph.node]


def digest(model: Model) -> str:
    """A fingerprint of the whole model."""
    return hashlib.sha256(to_proto(model).SerializeToString(deterministic=True)).hexdigest()


def normal(seed: int, *shape: int, scale: float = 1.0) -> Array:
    """Normal numbers, float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def statistics(seed: int, channels: int, prefix: str) -> dict[str, Array]:
    """The four constants of a BatchNormalization, named ``prefix`` and s, b, m or v."""
    return {
        f"{prefix}s": 1 + normal(seed, channels, scale=0.3),
        f"{prefix}b": normal(seed + 1, channels),
        f"{prefix}m": normal(seed + 2, channels),
        f"{prefix}v": np.abs(normal(seed + 3, channels)) + 0.5,
    }


def chain_cnn(seed: int = 0) -> onnx.ModelProto:
    """``x (N, 3, 16, 16)`` to ``y (N, 10)``: two Conv with BatchNormalization and Relu, a Gemm."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    chain_cnn (float[N, 3, 16, 16] x) => (float[N, 10] y) {
        c1 = Conv<pads=[1, 1, 1, 1]>(x, w1)
        n1 = BatchNormalization(c1, as, ab, am, av)
        r1 = Relu(n1)
        c2 = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(r1, w2, b2)
        n2 = BatchNormalization(c2, bs, bb, bm, bv)
        r2 = Relu(n2)
        p = GlobalAveragePool(r2)
        f = Flatten(p)
        y = Gemm<transB=1>(f, w3, b3)
    }"""
    constants = {
        "w1": normal(seed, 16, 3, 3, 3, scale=0.2),
        "w2": normal(seed + 1, 32, 16, 3, 3, scale=0.1),
        "b2": normal(seed + 2, 32),
        "w3": normal(seed + 3, 10, 32, scale=0.2),
        "b3": normal(seed + 4, 10),
        **statistics(seed + 5, 16, "a"),
        **statistics(seed + 9, 32, "b"),
    }
    return model_of(text, constants)


def residual_cnn(seed: int = 0) -> onnx.ModelProto:
    """``x (N, 3, 16, 16)`` to ``y (N, 10)``: a stem, two residual blocks, a Gemm."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    residual_cnn (float[N, 3, 16, 16] x) => (float[N, 10] y) {
        c0 = Conv<pads=[1, 1, 1, 1]>(x, w0, b0)
        r0 = Relu(c0)
        c1 = Conv<pads=[1, 1, 1, 1]>(r0, w1, b1)
        r1 = Relu(c1)
        c2 = Conv<pads=[1, 1, 1, 1]>(r1, w2, b2)
        s2 = Add(c2, r0)
        r2 = Relu(s2)
        c3 = Conv<pads=[1, 1, 1, 1]>(r2, w3, b3)
        r3 = Relu(c3)
        c4 = Conv<pads=[1, 1, 1, 1]>(r3, w4, b4)
        s4 = Add(c4, r2)
        r4 = Relu(s4)
        p = GlobalAveragePool(r4)
        f = Flatten(p)
        y = Gemm<transB=1>(f, w5, b5)
    }"""
    constants = {"w0": normal(seed, 16, 3, 3, 3, scale=0.2), "b0": normal(seed + 1, 16)}
    for k in range(1, 5):
        constants[f"w{k}"] = normal(seed + 2 * k, 16, 16, 3, 3, scale=0.08)
        constants[f"b{k}"] = normal(seed + 2 * k + 1, 16, scale=0.1)
    constants["w5"], constants["b5"] = normal(seed + 20, 10, 16, scale=0.3), normal(seed + 21, 10)
    return model_of(text, constants)


def mlp(seed: int = 0) -> onnx.ModelProto:
    """``x (N, 32)`` to ``y (N, 8)``: a MatMul with an Add, a Gemm of each layout, Relu between."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    mlp (float[N, 32] x) => (float[N, 8] y) {
        m1 = MatMul(x, w1)
        a1 = Add(m1, b1)
        r1 = Relu(a1)
        g2 = Gemm(r1, w2, b2)
        r2 = Relu(g2)
        y = Gemm<transB=1>(r2, w3, b3)
    }"""
    constants = {
        "w1": normal(seed, 32, 64, scale=0.2),
        "b1": normal(seed + 1, 64),
        "w2": normal(seed + 2, 64, 48, scale=0.15),
        "b2": normal(seed + 3, 48),
        "w3": normal(seed + 4, 8, 48, scale=0.2),
        "b3": normal(seed + 5, 8),
    }
    return model_of(text, constants)


def depthwise_cnn(seed: int = 0) -> onnx.ModelProto:
    """``x (N, 3, 16, 16)`` to ``y (N, 10)``: Conv, depthwise Conv, pointwise Conv, Clip between."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    depthwise_cnn (float[N, 3, 16, 16] x) => (float[N, 10] y) {
        c1 = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(x, w1, b1)
        r1 = Clip(c1, low, high)
        c2 = Conv<pads=[1, 1, 1, 1], group=16>(r1, w2, b2)
        r2 = Clip(c2, low, high)
        c3 = Conv(r2, w3, b3)
        p = GlobalAveragePool(c3)
        f = Flatten(p)
        y = Gemm<transB=1>(f, w4, b4)
    }"""
    constants = {
        "low": np.float32(0),
        "high": np.float32(6),
        "w1": normal(seed, 16, 3, 3, 3, scale=0.3),
        "b1": normal(seed + 1, 16),
        "w2": normal(seed + 2, 16, 1, 3, 3, scale=0.4),
        "b2": normal(seed + 3, 16),
        "w3": normal(seed + 4, 32, 16, 1, 1, scale=0.3),
        "b3": normal(seed + 5, 32),
        "w4": normal(seed + 6, 10, 32, scale=0.2),
        "b4": normal(seed + 7, 10),
    }
    return model_of(text, constants)


def mobile_cnn(seed: int = 0) -> onnx.ModelProto:
    """``x (N, 3, 16, 16)`` to ``y (N, 10)``: Conv, HardSwish, a depthwise 5x5, a 1x1, a Gemm."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    mobile_cnn (float[N, 3, 16, 16] x) => (float[N, 10] y) {
        c1 = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
        h1 = HardSwish(c1)
        c2 = Conv<pads=[2, 2, 2, 2], group=16, strides=[2, 2]>(h1, w2, b2)
        r2 = Relu(c2)
        c3 = Conv(r2, w3, b3)
        r3 = Relu(c3)
        p = GlobalAveragePool(r3)
        f = Flatten(p)
        y = Gemm<transB=1>(f, w4, b4)
    }"""
    constants = {
        "w1": normal(seed, 16, 3, 3, 3, scale=0.2),
        "b1": normal(seed + 1, 16),
        "w2": normal(seed + 2, 16, 1, 5, 5, scale=0.2),
        "b2": normal(seed + 3, 16),
        "w3": normal(seed + 4, 32, 16, 1, 1, scale=0.3),
        "b3": normal(seed + 5, 32),
        "w4": normal(seed + 6, 10, 32, scale=0.2),
        "b4": normal(seed + 7, 10),
    }
    return model_of(text, constants)


def opset_of(model: Model) -> int:
    """The standard operator set that the model's file would name."""
    return next(o.version for o in to_proto(model).opset_import if o.domain == "")


def with_metadata(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` with all that editors lose: a producer, properties, and a note at each node."""
    proto.producer_name, proto.doc_string = "a vendor", "a model"
    helper.set_model_props(proto, {"stride": "32"})
    for node in proto.graph.node:
        node.name, node.doc_string = f"node/{node.output[0]}", f"makes {node.output[0]}"
    return proto
