"""Training: an ONNX graph as a PyTorch module whose parameters are the tensors of the file.

Importing this package needs PyTorch, which the extra ``train`` brings; raises TrainingError
without it. The rest of the package imports it only where it trains.
"""

from onnxslim_tk.errors import TrainingError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise TrainingError(
        "train: PyTorch is needed and isn't installed: pip install 'onnxslim-tk[train]'"
    ) from error
