"""Proposals, measured errors and models in the form that a cache keeps."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx

from onnxslim_tk.graph.check import check
from onnxslim_tk.graph.model import Model, to_parts, wrapped
from onnxslim_tk.graph.weights import Weights
from onnxslim_tk.pipeline.cache import Arrays, as_text, from_text
from onnxslim_tk.plan.proposal import Proposal, Refusal

Offers = tuple[list[Proposal], list[Refusal]]


def offers_arrays(offers: Offers) -> Arrays:
    """Proposals and refusals as JSON."""
    return {"offers": as_text([[asdict(row) for row in rows] for rows in offers])}


def offers_of(arrays: Arrays) -> Offers:
    """What :func:`offers_arrays` kept."""
    proposals, refusals = from_text(arrays["offers"])
    rows = [Proposal(**{**row, "targets": tuple(row["targets"])}) for row in proposals]
    return rows, [Refusal(**row) for row in refusals]


def identity(row: Proposal) -> list[Any]:
    """What of a row decides on what comes of it, as JSON."""
    return [row.method, list(row.targets), row.setting, dict(row.details), row.error > 0]


def rows_of(rows: Sequence[Proposal]) -> str:
    """What tells rows that do the same from others."""
    return as_text([identity(row) for row in rows]).tobytes().decode()


def model_arrays(model: Model) -> Arrays:
    """A model in mid-work: its message, big weights, and what it remembers of names."""
    proto, weights = to_parts(model)
    arrays = weights.arrays
    state = {
        "source": [model.source_sha256, model.source_bytes],
        "origins": {key: list(names) for key, names in model.origins.items()},
        "taken": sorted(model.taken),
        "counter": model.counter,
        "keys": list(arrays),
    }
    held = {f"w{k}": array for k, array in enumerate(arrays.values())}
    data = np.frombuffer(proto.SerializeToString(), np.uint8)
    return {"state": as_text(state), "proto": data, **held}


def model_of(arrays: Arrays) -> Model:
    """What :func:`model_arrays` kept; raises ModelError, DecodeError and others for damage."""
    state = from_text(arrays["state"])
    proto = onnx.ModelProto.FromString(arrays["proto"].tobytes())
    check(proto)
    weights = Weights()
    for k, key in enumerate(state["keys"]):
        weights.add(key, arrays[f"w{k}"])
    sha256, size = state["source"]
    model = wrapped(proto, weights, sha256, size)
    model.origins = {key: tuple(names) for key, names in state["origins"].items()}
    model.taken = set(state["taken"])
    model.counter = int(state["counter"])
    return model
