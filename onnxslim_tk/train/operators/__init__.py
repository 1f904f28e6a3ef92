"""The rules of all operators, in one table by operator."""

from onnxslim_tk.train.operators.convolution import CONVOLUTION
from onnxslim_tk.train.operators.elementwise import ELEMENTWISE
from onnxslim_tk.train.operators.indexing import INDEXING
from onnxslim_tk.train.operators.matrix import MATRIX
from onnxslim_tk.train.operators.normalization import NORMALIZATION
from onnxslim_tk.train.operators.quantized import QUANTIZED
from onnxslim_tk.train.operators.recurrent import RECURRENT
from onnxslim_tk.train.operators.resize import RESIZE
from onnxslim_tk.train.operators.shape import SHAPE
from onnxslim_tk.train.rules import Rule

OPERATORS: dict[str, Rule] = {
    **ELEMENTWISE,
    **MATRIX,
    **CONVOLUTION,
    **NORMALIZATION,
    **SHAPE,
    **INDEXING,
    **RESIZE,
    **RECURRENT,
    **QUANTIZED,
}
"""What each operator computes; its name has the domain and a colon before it where it has one."""
