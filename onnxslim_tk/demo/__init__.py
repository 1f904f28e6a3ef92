"""The built-in demo: a digit classifier with labelled images to calibrate and to test.

The model takes ``image`` ``(batch, 1, 8, 8)``, float32 in [0, 1], and gives ``logits``
``(batch, 10)``. The two sets share no image with each other, nor with the training set.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "digits.onnx"
CALIBRATION = Path(__file__).parent / "digits_calibration.npz"
TEST = Path(__file__).parent / "digits_test.npz"
