"""Inputs made up for models without a truth at hand: they show faithfulness, not accuracy."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.tasks.evaluation import Evaluation, Items, Run, Split, singly
from benchmarks.tasks.lettering import lines, missing_fonts
from benchmarks.tasks.pages import normalized, page
from onnxslim_tk.measure.fidelity import Fidelity
from onnxslim_tk.measure.runtime import Feed

_WORDS: Final = 58_224
_ATOMS: Final = (8, 8, 8, 8, 9, 10, 19)
"""Carbon, nitrogen, oxygen, chlorine, as numbers in the periodic table plus 2."""
_FARTHEST: Final = 10


class MadeUp(Evaluation):
    """Agreement only, of the outputs themselves."""

    metric = None
    agreement = "cosine"
    test_items = 32
    calibration_items = 64

    def items(self, count: int, split: Split) -> Items:
        """Feeds drawn one by one."""
        rng = np.random.default_rng(31 if split == "calib" else 32)
        feeds = [self.feed(rng, split) for _ in range(count)]
        return Items(feeds, [None] * count, singly(count))

    @abstractmethod
    def feed(self, rng: np.random.Generator, split: Split) -> Feed:
        """One feed."""

    def answer(self, run: Run, feed: Feed) -> Mapping[str, NDArray[Any]]:
        """All outputs, by their place."""
        return {str(place): output for place, output in enumerate(run(feed))}

    def agree(self, original: Sequence[Any], result: Sequence[Any]) -> float:
        """The least mean cosine of the outputs."""
        fidelity = Fidelity()
        for before, after in zip(original, result, strict=True):
            for name, reference in before.items():
                fidelity.update(name, reference, after[name])
        return min(output.cosine for output in fidelity.result())


class Ranked(MadeUp):
    """Agreement of the best classes of the only output."""

    agreement = "top-1"

    def agree(self, original: Sequence[Any], result: Sequence[Any]) -> float:
        """The share of rows with the same best class."""
        a, b = (
            np.concatenate([answer["0"].argmax(axis=-1).reshape(-1) for answer in answers])
            for answers in (original, result)
        )
        return float(np.mean(a == b))


class Pictures(Ranked):
    """Smooth grey blobs on black, somewhat like a scan, ``(1, 240, 240, 3)`` in [0, 1]."""

    name = "made-up pictures"

    def feed(self, rng: np.random.Generator, split: Split) -> Feed:
        """A blob of a few coarse shades."""
        coarse = rng.uniform(0, 255, (int(rng.integers(3, 16)),) * 2).astype(np.uint8)
        shades = Image.fromarray(coarse).resize((240, 240), Image.Resampling.BICUBIC)
        rows, columns = np.mgrid[-1:1:240j, -1:1:240j]
        inside = (rows / rng.uniform(0.6, 0.95)) ** 2 + (columns / rng.uniform(0.5, 0.9)) ** 2 < 1
        grey = np.asarray(shades, np.float32) / 255 * inside
        return {"input": np.repeat(grey[None, :, :, None], 3, axis=3).astype(np.float32)}


class Layouts(MadeUp):
    """Pages of text, ``(1, 3, 800, 608)``."""

    name = "made-up layouts"
    calibration_items = 32

    @classmethod
    def missing(cls) -> list[str]:
        """Fonts."""
        return missing_fonts()

    def feed(self, rng: np.random.Generator, split: Split) -> Feed:
        """A page of lines."""
        known = lines(split)
        texts = [known[k] for k in rng.integers(0, len(known), 24)]
        return {"image": normalized(page(texts, rng, (608, 800))[0])}


class Sentences(Ranked):
    """Words drawn from the whole dictionary, as no language would."""

    name = "made-up sentences"

    def feed(self, rng: np.random.Generator, split: Split) -> Feed:
        """A sentence of 8 to 40 words."""
        length = int(rng.integers(8, 41))
        return {
            "token_ids": rng.integers(1, _WORDS, (1, length)),
            "length": np.array([length], np.int64),
        }


class Molecules(MadeUp):
    """Chains of atoms, on the left and right of a reaction."""

    name = "made-up molecules"

    def feed(self, rng: np.random.Generator, split: Split) -> Feed:
        """Two chains of equal length; distances count bonds, 1 stands for no path."""
        length = int(rng.integers(6, 20))
        steps = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
        chain = np.minimum(steps, _FARTHEST) + 2
        distances = np.kron(np.eye(2, dtype=np.int64), chain)
        distances[distances == 0] = 1
        neighbours = np.full(length, 4)
        neighbours[[0, -1]] = 3
        atoms = rng.choice(_ATOMS, length)
        return {
            "atoms": np.tile(atoms, 2)[None].astype(np.int64),
            "neighbors": np.tile(neighbours, 2)[None].astype(np.int64),
            "distances": distances[None],
            "roles": np.repeat([2, 3], length)[None].astype(np.int64),
        }
