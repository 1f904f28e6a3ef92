"""Rows that a method yields for a model, and what it has seen before."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from tests.models import CONTEXT, Array, model_of, normal

# Inputs that go together, so that some weights can stand in for others.
TOKENS: dict[str, Array] = {
    "x": (normal(1, 400, 8) @ normal(2, 8, 32) + 0.1 * normal(3, 400, 32)).astype(np.float32)
}
IMAGES: dict[str, Array] = {"x": normal(90, 6, 3, 16, 16)}


def seen(model: Model, feed: Mapping[str, Array], base: Context = CONTEXT) -> Context:
    """``base`` with the moments of layer inputs and the shapes that one feed shows."""
    found = observe(model, [feed], frozenset({"mean", "covariance"}), 0)
    return replace(base, statistics=found, shapes=found.shapes)


def rows_of(model: Model, context: Context, method: Any) -> list[Proposal]:
    """All proposals of ``method``."""
    return [row for row in method.propose(model, context) if isinstance(row, Proposal)]


def asked(model: Model, context: Context, method: Any) -> list[Proposal]:
    """The first proposal for every target: the setting that was asked for."""
    first: dict[tuple[str, ...], Proposal] = {}
    for row in rows_of(model, context, method):
        first.setdefault(row.targets, row)
    return list(first.values())


def refusals_of(model: Model, context: Context, method: Any) -> dict[str, str]:
    """Why ``method`` leaves layers alone, by their ids."""
    rows = method.propose(model, context)
    return {row.target: row.reason for row in rows if isinstance(row, Refusal)}


def silent_cnn() -> onnx.ModelProto:
    """``x (N, 3, 16, 16)``: a Relu lets nothing through to the second convolution."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 16, 16] x) => (float[N, 16, 16, 16] y) {
        c = Conv(x, w1, b1) r = Relu(c) d = Conv(r, w2) s = Relu(d) y = Conv(s, w3)
    }"""
    constants = {
        "w1": normal(1, 16, 3, 1, 1),
        "b1": np.full(16, -100, np.float32),
        "w2": normal(2, 16, 16, 1, 1),
        "w3": normal(3, 16, 16, 1, 1),
    }
    return model_of(text, constants)
