"""Photographs with ImageNet's classes: cut-outs on soft backgrounds, and some of ImageNet's own.

The cut-outs are those of the drawing program Tux Paint, whose file names say what they show.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from PIL import Image

from benchmarks.tasks.evaluation import (
    Evaluation,
    Items,
    Run,
    Scorer,
    Split,
    mean_of,
    split_of,
)
from onnxslim_tk.measure.runtime import Feed

STAMPS: Final = Path("/usr/share/tuxpaint/stamps")
_NUMBERS: Final = (
    (0, 243), (1, 559), (2, 438), (3, 990), (4, 949), (5, 853), (6, 609), (7, 609), (8, 915),
    (9, 455), (10, 541), (11, 630), (12, 741), (13, 471), (14, 129), (15, 99), (16, 251),
    (17, 22), (18, 317), (19, 305),
)  # fmt: skip
_CLASSES: Final = {
    name: frozenset(map(int, numbers.split(",")))
    for numbers, names in (
        line.split(": ")
        for line in """\
30,31,32: frog-1 frog
7,8: chicken_profile hen
7: rooster
97: drake
97,98: duck
99: gander
131: heron_greatblue
145: little-penguin magellanic_penguin penguin
18: magpie
9: ostrich
24: owl
84: peacock
144: pelican
130: pink_flamingo
90: rainbow-lorikeet
88,90: adelaide-rosella
96: tucan
23: vulture
134: crowned_crane
393: clownfish
396: lionfish
122,123: lobster
308: fly
308,309: hoverfly
311,312: grasshopper
315: mantis
114: Brown_slug
126: Woodlouse
39,40,47: iguana
367: chimp
366: gorilla
148: orca
360: otter
150: sea_lion
362: badger
294,295,297: bear european-bear
850: edward_bear
347: bison
345: bull cow cow_white zebu
345,347: yak
351,352,353: indian_blackbuck
348,349: ram sheep
348: sheep_lamb
354: camel dromedary
291: lion lion-2
292: tiger tiger_sumatran
273: dingo
277,278,280: fox
102: echidna
101,385,386: elephant
339: horse
340: zebra
356,357,358,359: ferret
344: hippopotamus
341: pig pig_golden pig_golden2
337: beaver
336: marmot
330,331,332: rabbit rabbit-2 rabbit_little
335: squirrel
342: wildboar
104: kangaroo
105: koala
106: wombat
948: apple_granny_smith apple_green
954: banana
951: lemon
950,951: mandarine orange orange_seville sliced_orange
957: pomegranate
949: strawberry Strawberry2
953: pineapple
956: cherimoya
937: broccoli
987,998: corn
947,992,997: mushroom cep cep-1 cep-2
945: pepper yellowpepper
447: binoculars
732,759: camera_35mm
513: trumpet
541: drumkit drum_tomtom_floor
486,889: cello violin
402,546: guitar2 guitar_electric guitar_electric_bass
402: guitar_classical
432,683: bassoon
504,925,968: mug
505,849: teapot kettle
725: pitcher_small
412: garbagecan wheelie_bin
861: toilet
587: hammer
792: spade
499,777: saw
696: paintbrush_large
587,784: wrench
430: basketball
805: soccer
852: tennis_ball
752: tennis_racket
479,511,817: sportscar2
436,468,479,511,656,817: sedan
555,569,675,717,867: truck
555: firetruck
468,734: sedan_police
417: balloon360
404,895: 747
569,675,864: garbagetruck
654,779,874: green_korean_bus
751: indycar
870: pink_tricycle
866: wheel_tractor
619,818: Lightbulb
572,747,876: trophy_cup""".splitlines()
    )
    for name in names.split()
}
"""The classes that count as right for each cut-out."""


class Photographs(Evaluation):
    """Top-1 accuracy; several views of one photograph are resampled together."""

    name = "imagenet"
    metric = "top-1"
    files: ClassVar = tuple(f"data/foolbox/imagenet_{a:02}_{b}.jpg" for a, b in _NUMBERS)
    test_items = 600
    size: ClassVar = 224

    @classmethod
    def missing(cls) -> list[str]:
        """The cut-outs."""
        return [] if STAMPS.is_dir() else ["tuxpaint-stamps-default"]

    def items(self, count: int, split: Split) -> Items:
        """Views ``(1, 3, 224, 224)``, all photographs in turn until there are enough."""
        rng = np.random.default_rng(8 if split == "calib" else 9)
        photographs = self._photographs(split)
        feeds: list[Feed] = []
        for k in range(count):
            picture = _view(photographs[k % len(photographs)][0], rng, self.size)
            pixels = (np.asarray(picture, np.float32) - 127.0) / 128.0
            feeds.append({"image": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})
        groups = np.arange(count, dtype=np.int64) % len(photographs)
        return Items(feeds, [photographs[k][1] for k in groups], groups)

    def answer(self, run: Run, feed: Feed) -> int:
        """The class with the highest score."""
        return int(run(feed)[0].argmax())

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """Hits among the classes that count as right."""
        return mean_of([answer in truth for answer, truth in zip(answers, truths, strict=True)])

    def _photographs(self, split: Split) -> list[tuple[Path, frozenset[int]]]:
        found = []
        for folder, _, names in sorted(os.walk(STAMPS)):
            for name in sorted(names):
                stem = name[:-4]
                cut_out = name.endswith(".png") and stem in _CLASSES and "cartoon" not in folder
                if cut_out and split_of(stem) == split:
                    found.append((Path(folder, name), _CLASSES[stem]))
        for target, (_, label) in zip(self.files, _NUMBERS, strict=True):
            path = self.data / target
            if split_of(path.name) == split:
                found.append((path, frozenset({label})))
        return found


def _view(path: Path, rng: np.random.Generator, size: int) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    bicubic = Image.Resampling.BICUBIC
    if path.suffix == ".jpg":
        zoom = size / min(picture.size) * rng.uniform(1.0, 1.25)
        wide, high = (round(side * zoom) for side in picture.size)
        left, top = (wide - size) // 2, (high - size) // 2
        whole = picture.resize((wide, high), bicubic)
        return whole.crop((left, top, left + size, top + size)).convert("RGB")
    corners = rng.uniform(60, 235, (2, 2, 3)).astype(np.uint8)
    background = Image.fromarray(corners).resize((size, size), bicubic)
    zoom = size * rng.uniform(0.6, 0.95) / max(picture.size)
    wide, high = (max(1, round(side * zoom)) for side in picture.size)
    picture = picture.resize((wide, high), bicubic)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    background.paste(picture, ((size - wide) // 2, (size - high) // 2), picture)
    return background
