import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxslim_tk.graph.stored import Stored, joined, joined_size
from onnxslim_tk.graph.weights import Weights
from tests.models import mlp, normal


def described() -> onnx.ModelProto:
    """A model that has something in fields before and behind all that is spliced."""
    proto = mlp()
    proto.producer_name, proto.doc_string, proto.graph.doc_string = "us", "model", "graph"
    proto.metadata_props.add(key="k", value="v")
    proto.graph.value_info.add(name="h")
    for tensor in proto.graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
    proto.graph.initializer.append(numpy_helper.from_array(normal(7, 64, 300), "wide"))
    return proto


@pytest.mark.parametrize("smallest", [1, 300, 4096, 1 << 30])
def test_a_joined_file_is_the_one_that_protobuf_would_write(smallest: int) -> None:
    proto = described()
    expected = proto.SerializeToString(deterministic=True)
    weights = Weights(smallest)
    for tensor in proto.graph.initializer:
        weights.lift(tensor)
    assert len(weights) == sum(len(t.raw_data) == 0 for t in proto.graph.initializer)
    stored = Stored(proto.SerializeToString(deterministic=True), weights, joined=True)
    assert b"".join(stored.pieces()) == expected
    assert len(stored) == len(expected)
    assert stored.sha256 == hashlib.sha256(expected).hexdigest()
    assert joined_size(proto, weights) == pytest.approx(len(expected), abs=8)
    assert joined(proto, weights).SerializeToString(deterministic=True) == expected


def test_two_tensors_of_one_array_are_both_written() -> None:
    proto, weights = onnx.ModelProto(ir_version=8), Weights(1)
    values = np.arange(40, dtype=np.float32)
    for name in ("a", "b"):
        tensor = proto.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=[40])
        weights.put(tensor, values)
    assert len(weights) == 1
    stored = Stored(proto.SerializeToString(), weights, joined=True)
    back = onnx.ModelProto.FromString(b"".join(stored.pieces()))
    for tensor in back.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), values)
