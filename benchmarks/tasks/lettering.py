"""Text to render and fonts to render it in."""

import re
import textwrap
from pathlib import Path
from pydoc_data.topics import topics
from typing import Final

import numpy as np
from PIL import Image, ImageFont

from benchmarks.tasks.evaluation import Split, split_of

_FOLDER: Final = Path("/usr/share/fonts/truetype")
_FONTS: Final = {
    "dejavu": ("fonts-dejavu", "DejaVuSans-Bold DejaVuSans DejaVuSerif"),
    "freefont": ("fonts-freefont-ttf", "FreeMono FreeSans FreeSerif"),
    "lato": ("fonts-lato", "Lato-BoldItalic Lato-Light Lato-LightItalic Lato-Regular"),
    "liberation": (
        "fonts-liberation",
        "LiberationMono-Regular LiberationSans-Regular LiberationSerif-Italic "
        "LiberationSerif-Regular",
    ),
    "noto": ("fonts-noto-core", "NotoSans-Regular NotoSerif-Regular"),
}
FONTS: Final = tuple(
    _FOLDER / folder / f"{name}.ttf"
    for folder, (_, names) in _FONTS.items()
    for name in names.split()
)
_WIDTH: Final = 40
_SHORTEST: Final = 20


def missing_fonts() -> list[str]:
    """Packages of Debian whose fonts aren't here."""
    return [
        package
        for folder, (package, names) in _FONTS.items()
        if not all((_FOLDER / folder / f"{name}.ttf").is_file() for name in names.split())
    ]


def font(rng: np.random.Generator, low: int, high: int) -> ImageFont.FreeTypeFont:
    """Any font, in a size from ``low`` up to but not including ``high``."""
    path = FONTS[rng.integers(len(FONTS))]
    return ImageFont.truetype(str(path), int(rng.integers(low, high)))


def colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    """Any colour with values from ``low`` up to but not including ``high``."""
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue


def noisy(picture: Image.Image, rng: np.random.Generator, low: float, high: float) -> Image.Image:
    """The picture with Gaussian noise of any deviation between ``low`` and ``high``."""
    clean = np.asarray(picture, np.float64)
    pixels = clean + rng.normal(0, rng.uniform(low, high), clean.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def lines(split: Split) -> list[str]:
    """Lines of English, 20 to 40 characters long, from Python's own documentation."""
    body = " ".join(re.sub(r"[^\x20-\x7e]", " ", topics[name]) for name in sorted(topics))
    body = re.sub(r"[\s`*_|~^\\]+", " ", body)
    wordy = (
        line
        for line in textwrap.wrap(body, _WIDTH)
        if len(line) >= _SHORTEST and sum(c.isalnum() for c in line) > 0.7 * len(line)
    )
    return [line for line in wordy if split_of(line) == split]
