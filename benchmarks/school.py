"""What the trainings of ``training.py`` share: digits in three parts, nets, teachers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.nets import SmallResNet, TinyNet, exported
from benchmarks.rows import commit_of_code
from benchmarks.sources import fetch
from benchmarks.tasks.digits import Digits
from benchmarks.tasks.evaluation import split_of
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline import Options
from onnxslim_tk.pipeline.attempt import Workshop
from onnxslim_tk.pipeline.files import parse, read_model, write_file
from onnxslim_tk.pipeline.stepping import Asking
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.train.module import GraphModule

Array = NDArray[Any]

LEARNT: Final = 2000
CHOSEN: Final = 450
TESTED: Final = 3000
SLANTS: Final = 3
_WIDTH: Final = 8
_EPOCHS: Final = 30
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Part:
    """Images ``(n, 1, 28, 28)``, and two labels each: the digit, and how it slants."""

    images: Array
    labels: Array

    def samples(self, column: int | None = None) -> Samples:
        """One feed an image, with one column of the labels or both."""
        feeds = [{"x": image[None]} for image in self.images]
        labels = self.labels if column is None else self.labels[:, column]
        return Samples(feeds, labels, "digits")


class School:
    """Digits of MNIST, and nets for a seed; what was made once is kept in a folder.

    Teachers, which also are what is compressed, are the same for all seeds.
    """

    def __init__(self, data: Path, folder: Path, seed: int) -> None:
        self.data, self.seed = data, seed
        self.folder = folder / f"seed{seed}-{commit_of_code()}"
        self._teachers = folder / "teachers"
        for made in (self.folder, self._teachers):
            made.mkdir(parents=True, exist_ok=True)

    @cached_property
    def parts(self) -> tuple[Part, Part, Part]:
        """To learn from, to choose by, to test; which images are which is the same for all seeds.

        The test images are of the split that nothing else in these benchmarks learns from.
        """
        fetch(self.data, Digits.files)
        images, digits = [], []
        for digit, name in enumerate(Digits.files):
            content = json.loads((self.data / name).read_text(encoding="utf-8"))["data"]
            images.append(np.asarray(content, np.float32).reshape(-1, 1, 28, 28))
            digits += [digit] * len(images[-1])
        pixels = np.concatenate(images)
        labels = np.stack([np.array(digits), _slants(pixels)], 1).astype(np.int64)
        mine = np.array([split_of(place) == "calib" for place in range(len(pixels))])
        rng = np.random.default_rng(7)
        known, unseen = rng.permutation(np.flatnonzero(mine)), np.flatnonzero(~mine)
        rows = known[:LEARNT], known[LEARNT : LEARNT + CHOSEN], rng.permutation(unseen)[:TESTED]
        scaled = (pixels - 0.1307) / 0.3081
        first, second, third = (Part(scaled[some], labels[some]) for some in rows)
        return first, second, third

    def teacher(self, column: int = 0) -> Path:
        """A small ResNet that knows one of the two labels."""
        path = self._teachers / f"teacher{column}.onnx"
        if not path.exists():
            torch.manual_seed(0)
            net = SmallResNet(_WIDTH, (10, SLANTS)[column], inputs=1, stride=2)
            learn = self.parts[0]
            _train(net, torch.from_numpy(learn.images), torch.from_numpy(learn.labels[:, column]))
            self._write(exported(net, torch.zeros(2, 1, 28, 28)), path)
        return path

    def student(self, *tasks: int) -> Path:
        """A tiny net that knows nothing, with heads of so many classes: ``y0``, ``y1``."""
        path = self.folder / f"student{'-'.join(map(str, tasks))}.onnx"
        if not path.exists():
            torch.manual_seed(self.seed)
            names = [f"y{k}" for k in range(len(tasks))]
            self._write(exported(TinyNet(tasks), torch.zeros(2, 1, 28, 28), names), path)
        return path

    def compressed(self, source: Path, name: str, stages: str) -> Path:
        """``source`` under a recipe of ``stages``, without a budget, as it comes out."""
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            recipe = parse_recipe(f"stages: {stages}", name, PASSES)
            data = read_model(source)
            few = self.parts[0].samples(0).take(range(256))
            options = Options(calibration=few, seed=self.seed)
            session = Session(data)
            shop = Workshop(source, data, parse(data), session.inputs, recipe, few, options)
            write_file(shop.attempt(Asking(), 0).data, path)
        return path

    def accuracy(self, model: Path, column: int = 0, output: int = 0) -> float:
        """The share of test images that a model puts right, in the runtime."""
        test = self.parts[2]
        session = Session(model)
        scores = session.run({session.inputs[0].name: test.images})
        found = scores[session.outputs[output].name].argmax(-1)
        return float((found == test.labels[:, column]).mean())

    def _write(self, proto: onnx.ModelProto, path: Path) -> None:
        part = path.with_suffix(".part")
        part.write_bytes(proto.SerializeToString())
        part.rename(path)


def macs(model: GraphModule) -> int:
    """Multiply-accumulates of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model({"x": np.zeros((1, 1, 28, 28), np.float32)})
    return int(counter.get_total_flops()) // 2


def _slants(pixels: Array) -> Array:
    """How digits lean: three classes of one size, by their moments."""
    places = np.arange(28.0)
    weight = pixels[:, 0].astype(np.float64)
    total = weight.sum((1, 2))
    rows = (weight.sum(2) @ places / total)[:, None] - places
    columns = (weight.sum(1) @ places / total)[:, None] - places
    mixed = np.einsum("nij,ni,nj->n", weight, rows, columns)
    upright = np.einsum("nij,ni->n", weight, rows**2)
    lean = mixed / upright
    return np.searchsorted(np.quantile(lean, [1 / 3, 2 / 3]), lean)


def _train(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train in PyTorch as usual, with statistics of the batch, and shifted images."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    steps = _EPOCHS * (len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randperm(len(images))[:_BATCH]
        optimizer.zero_grad()
        functional.cross_entropy(net(_shifted(images[rows])), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    net.eval()


def _shifted(images: torch.Tensor, most: int = 2) -> torch.Tensor:
    """All images of a batch, each moved by up to ``most`` pixels."""
    moved = []
    for image in images:
        by = torch.randint(-most, most + 1, (2,)).tolist()
        moved.append(torch.roll(image, by, (1, 2)))
    return torch.stack(moved)


Trial = Callable[[School], dict[str, float]]
"""A way to train, for the nets of one seed: its figures by name."""
