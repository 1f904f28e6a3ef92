"""Lines of text, rendered: what they say, and which way up they are."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.sources import SourceError
from benchmarks.tasks.evaluation import (
    Evaluation,
    Items,
    Run,
    Scorer,
    Split,
    ratio_of,
    singly,
)
from benchmarks.tasks.lettering import colour, font, lines, missing_fonts, noisy
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.scoring import edit_distance

_HEIGHT: Final = 48
_NARROWEST: Final = 320
_LINE_WIDTH: Final = 192


class TextLines(Evaluation):
    """Share of characters read right, spaces aside: one less the edit distance by length."""

    name = "text lines"
    metric = "characters"
    agreement = "strings"
    files: ClassVar = ("data/charsets/18385.txt",)
    test_items = 300
    _characters: list[str] | None = None

    @classmethod
    def missing(cls) -> list[str]:
        """Fonts."""
        return missing_fonts()

    def items(self, count: int, split: Split) -> Items:
        """Lines ``(1, 3, 48, width)`` in [-1, 1], blue first, padded on the right."""
        rng = np.random.default_rng(1 if split == "calib" else 2)
        known = lines(split)
        texts = [known[k] for k in rng.permutation(len(known))[:count]]
        feeds: list[Feed] = [{"x": _fitted(picture(text, rng))} for text in texts]
        return Items(feeds, [text.replace(" ", "") for text in texts], singly(len(feeds)))

    def answer(self, run: Run, feed: Feed) -> str:
        """The text without spaces: repeats merged, blanks dropped."""
        scores = run(feed)[0][0]
        best = scores.argmax(axis=1)
        if self._characters is None:
            self._characters = self._charset(scores.shape[1])
        kept = [int(best[0]), *(int(b) for a, b in pairwise(best) if a != b)]
        return "".join(self._characters[k] for k in kept if k).replace(" ", "")

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """Characters kept over characters there."""
        kept = [len(t) - edit_distance(a, t) for a, t in zip(answers, truths, strict=True)]
        return ratio_of(kept, [len(truth) for truth in truths])

    def _charset(self, classes: int) -> list[str]:
        """The original's own characters, or those that belong to so many classes."""
        stored = onnx.load(self.model, load_external_data=False).metadata_props
        texts = [entry.value for entry in stored if entry.key == "character"]
        if not texts:
            path = self.data / f"data/charsets/{classes}.txt"
            if not path.is_file():
                raise SourceError(f"no character set is known for {classes} classes")
            texts = [path.read_text(encoding="utf-8")]
        return ["", *texts[0].rstrip("\n").split("\n"), *(" " * 3)][:classes]


class WholeLines(TextLines):
    """Share of lines without a wrong character, spaces aside."""

    name = "whole lines"
    metric = "lines"

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """Lines read right over lines there."""
        right = [int(a == t) for a, t in zip(answers, truths, strict=True)]
        return ratio_of(right, [1] * len(right))


class LineOrientation(Evaluation):
    """Share of lines that are recognized as upright or upside down."""

    name = "line orientation"
    metric = "accuracy"
    test_items = 300

    @classmethod
    def missing(cls) -> list[str]:
        """Fonts."""
        return missing_fonts()

    def items(self, count: int, split: Split) -> Items:
        """Lines ``(1, 3, 48, 192)`` in [-1, 1], every other one turned by 180 degrees."""
        rng = np.random.default_rng(21 if split == "calib" else 22)
        known = lines(split)
        feeds: list[Feed] = []
        for k, place in enumerate(rng.permutation(len(known))[:count]):
            line = picture(known[place][:16], rng)
            turned = line.transpose(Image.Transpose.ROTATE_180) if k % 2 else line
            feeds.append({"x": _fitted(turned, _LINE_WIDTH, fixed=True)})
        return Items(feeds, [k % 2 for k in range(len(feeds))], singly(len(feeds)))

    def answer(self, run: Run, feed: Feed) -> int:
        """The class with the highest score."""
        return int(run(feed)[0].argmax())


def picture(text: str, rng: np.random.Generator) -> Image.Image:
    """A line in any font and colours, a little turned, coarse and noisy."""
    face = font(rng, 22, 42)
    left, top, right, bottom = (int(side) for side in face.getbbox(text))
    if rng.random() < 0.7:
        paper, ink = colour(rng, 170, 256), colour(rng, 0, 90)
    else:
        paper, ink = colour(rng, 0, 90), colour(rng, 170, 256)
    line = Image.new("RGB", (right - left + 16, bottom - top + 12), paper)
    ImageDraw.Draw(line).text((8 - left, 6 - top), text, font=face, fill=ink)
    line = line.rotate(rng.uniform(-1, 1), Image.Resampling.BICUBIC, fillcolor=paper)
    zoom = rng.uniform(0.45, 1.0)
    size = max(8, int(line.width * zoom)), max(8, int(line.height * zoom))
    return noisy(line.resize(size, Image.Resampling.BILINEAR), rng, 2, 22)


def _fitted(line: Image.Image, width: int = _NARROWEST, fixed: bool = False) -> NDArray[np.float32]:
    natural = int(_HEIGHT * line.width / line.height)
    if not fixed:
        width = max(width, -(-natural // 32) * 32)
    scaled = line.resize((min(width, natural), _HEIGHT), Image.Resampling.BILINEAR)
    pixels = np.asarray(scaled, np.float32)[:, :, ::-1] / 127.5 - 1
    padded = np.zeros((1, 3, _HEIGHT, width), np.float32)
    padded[0, :, :, : pixels.shape[1]] = pixels.transpose(2, 0, 1)
    return padded
