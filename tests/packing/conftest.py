from collections.abc import Callable
from typing import Any

import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

Build = Callable[..., onnx.ModelProto]


def _build(text: str, opset: int = 13, **weights: NDArray[Any]) -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    model = onnx.parser.parse_model(header + text)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.fixture(scope="session")
def build() -> Build:
    """Parse a model's text and add weights, by name, to its outermost graph."""
    return _build
