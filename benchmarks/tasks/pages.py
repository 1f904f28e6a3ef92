"""Pages of text, rendered: where its lines are, and how the page was turned."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

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

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_MEAN: Final = (0.485, 0.456, 0.406)
_DEVIATION: Final = (0.229, 0.224, 0.225)
_INK: Final = 0.3
_SURE: Final = 0.6
_OVERLAP: Final = 0.5


class TextBoxes(Evaluation):
    """F1 of boxes at an overlap (intersection over union) of 0.5."""

    name = "text boxes"
    metric = "box F1"
    agreement = "box F1"
    test_items = 60
    # A page has as many pixels as 8 photographs.
    calibration_items = 32

    @classmethod
    def missing(cls) -> list[str]:
        """Fonts."""
        return missing_fonts()

    def items(self, count: int, split: Split) -> Items:
        """Pages ``(1, 3, 640, 640)``, blue first, and the boxes of their lines."""
        rng = np.random.default_rng(3 if split == "calib" else 4)
        known = lines(split)
        feeds: list[Feed] = []
        truths = []
        for _ in range(count):
            texts = [known[k] for k in rng.integers(0, len(known), 14)]
            pixels, boxes = page(texts, rng, (640, 640))
            feeds.append({"x": normalized(pixels[:, :, ::-1])})
            truths.append(boxes)
        return Items(feeds, truths, singly(count))

    def answer(self, run: Run, feed: Feed) -> list[Box]:
        """Boxes around connected pixels of text, widened by what training shrinks them."""
        return _boxes(run(feed)[0][0, 0])

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """Twice the hits over all boxes, found and there."""
        pairs = list(zip(answers, truths, strict=True))
        hits = [2 * _hits(found, truth) for found, truth in pairs]
        return ratio_of(hits, [len(found) + len(truth) for found, truth in pairs])

    def agree(self, original: Sequence[Any], result: Sequence[Any]) -> float:
        """F1 of the result's boxes with the original's for truth."""
        return self.scorer(result, original)(singly(len(original)))


class Orientation(Evaluation):
    """Share of pages whose turn by 0, 90, 180 or 270 degrees is recognized."""

    name = "orientation"
    metric = "accuracy"
    test_items = 300

    @classmethod
    def missing(cls) -> list[str]:
        """Fonts."""
        return missing_fonts()

    def items(self, count: int, split: Split) -> Items:
        """Thumbnails ``(1, 3, 224, 224)``; classes count clockwise."""
        rng = np.random.default_rng(14 if split == "calib" else 15)
        known = lines(split)
        feeds: list[Feed] = []
        for k in range(count):
            thumbnail = _thumbnail([known[j] for j in rng.integers(0, len(known), 24)], rng)
            turned = thumbnail.rotate(90 * (k % 4), expand=True)
            zoom = 256 / min(turned.size)
            wide, high = (round(side * zoom) for side in turned.size)
            left, top = (wide - 224) // 2, (high - 224) // 2
            whole = turned.resize((wide, high), Image.Resampling.BILINEAR)
            middle = whole.crop((left, top, left + 224, top + 224))
            feeds.append({"x": normalized(np.asarray(middle, np.float32))})
        return Items(feeds, [-(k % 4) % 4 for k in range(count)], singly(count))

    def answer(self, run: Run, feed: Feed) -> int:
        """The class with the highest score."""
        return int(run(feed)[0].argmax())


def page(
    texts: Iterable[str], rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.float64], list[Box]]:
    """Pixels ``(height, width, 3)`` of a page of lines over boxes of colour, and their boxes.

    ``size`` is width and height.
    """
    width, height = size
    paper = Image.new("RGB", size, colour(rng, 120, 256))
    draw = ImageDraw.Draw(paper)
    for _ in range(6):
        left, top, right, bottom = map(int, np.sort(rng.integers(0, size, (2, 2)), axis=0).ravel())
        draw.rectangle((left, top, right, bottom), fill=colour(rng, 100, 256))
    boxes: list[Box] = []
    y = int(rng.integers(8, 40))
    for text in texts:
        face = font(rng, 14, 40)
        part = text[: int(rng.integers(6, 30))].strip()
        x = int(rng.integers(5, 160))
        box = draw.textbbox((x, y), part, font=face)
        if box[3] > height - 8:
            break
        if box[2] < width - 5:
            draw.text((x, y), part, font=face, fill=colour(rng, 0, 110))
            boxes.append(box)
        y = int(box[3]) + int(rng.integers(10, 40))
    noise = rng.normal(0, rng.uniform(0, 25), (height, width, 3))
    return (np.asarray(paper, np.float64) + noise).clip(0, 255), boxes


def normalized(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Pixels ``(height, width, 3)`` up to 255 as a feed ``(1, 3, height, width)``."""
    scaled = (pixels / 255 - _MEAN) / _DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def _thumbnail(texts: Iterable[str], rng: np.random.Generator) -> Image.Image:
    width, height = int(rng.integers(500, 900)), int(rng.integers(500, 900))
    paper = Image.new("RGB", (width, height), colour(rng, 200, 256))
    draw = ImageDraw.Draw(paper)
    face = font(rng, 18, 40)
    y = int(rng.integers(10, 60))
    for text in texts:
        if y > height - 60:
            break
        if rng.random() < 0.85:
            x = int(rng.integers(15, 40))
            part = text[: int(rng.integers(12, 40))]
            draw.text((x, y), part, font=face, fill=colour(rng, 0, 100))
        y += int(face.size * rng.uniform(1.2, 1.8))
    zoom = rng.uniform(0.12, 0.5)
    small = paper.resize((int(width * zoom), int(height * zoom)), Image.Resampling.BILINEAR)
    return noisy(small, rng, 0, 40)


def _boxes(probability: NDArray[Any]) -> list[Box]:
    labels, _ = ndimage.label(probability > _INK)
    found = []
    for place, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        inside = probability[rows, columns][labels[rows, columns] == place]
        if min(high, wide) < 3 or inside.mean() < _SURE:
            continue
        grow = high * wide / (2 * (high + wide))
        found.append(
            (columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow)
        )
    return found


def _hits(found: Sequence[Box], truth: Sequence[Box]) -> int:
    left = list(truth)
    hits = 0
    for box in found:
        overlaps = [_overlap(box, other) for other in left]
        if overlaps and max(overlaps) >= _OVERLAP:
            # Of equals the last.
            best = max(range(len(left)), key=lambda k: (overlaps[k], k))
            left.pop(best)
            hits += 1
    return hits


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, wide) * max(0.0, high)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (areas - common)
