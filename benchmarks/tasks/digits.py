"""Handwritten digits: 10,000 real images of MNIST (LeCun et al., 1998)."""

import json
from typing import ClassVar

import numpy as np

from benchmarks.tasks.evaluation import Evaluation, Items, Run, Split, singly, split_of
from onnxslim_tk.measure.runtime import Feed


class Digits(Evaluation):
    """Share of right classes; the images may be among those that the model was trained on."""

    name = "digits"
    metric = "accuracy"
    files: ClassVar = tuple(f"data/mnist/{digit}.json" for digit in range(10))
    test_items = 7000

    def items(self, count: int, split: Split) -> Items:
        """Images ``(1, 1, 28, 28)``, normalized as in training."""
        images, classes = [], []
        for digit, name in enumerate(self.files):
            content = json.loads((self.data / name).read_text(encoding="utf-8"))["data"]
            images.append(np.asarray(content, np.float32).reshape(-1, 1, 1, 28, 28))
            classes += [digit] * len(images[-1])
        pixels = np.concatenate(images)
        mine = np.flatnonzero([split_of(place) == split for place in range(len(pixels))])
        chosen = np.random.default_rng(7).permutation(mine)[:count]
        feeds: list[Feed] = [{"image": (pixels[k] - 0.1307) / 0.3081} for k in chosen]
        return Items(feeds, [classes[k] for k in chosen], singly(len(feeds)))

    def answer(self, run: Run, feed: Feed) -> int:
        """The class with the highest score."""
        return int(run(feed)[0].argmax())
