import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.weights import Weights


def test_values_are_those_of_the_message() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(Weights().values(numpy_helper.from_array(values)), values)


def test_data_that_do_not_fit_are_told_in_one_sentence() -> None:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2])
    tensor.raw_data = b"1234"
    with pytest.raises(ModelError, match=r"^model: the data of the tensor 'w' cannot be read: "):
        Weights().values(tensor)
