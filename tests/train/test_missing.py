import subprocess
import sys

CODE = """
import sys
sys.modules["torch"] = None
import onnxslim_tk.pipeline
from onnxslim_tk.errors import OnnxSlimError
try:
    import onnxslim_tk.train
except OnnxSlimError as error:
    print(error)
"""


def test_without_pytorch_one_sentence_says_what_to_install() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    expected = "train: PyTorch is needed and isn't installed: pip install 'onnxslim-tk[train]'"
    assert run.stdout.strip() == expected


def test_the_rest_of_the_package_doesn_t_import_pytorch() -> None:
    code = "import sys, onnxslim_tk.pipeline; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
