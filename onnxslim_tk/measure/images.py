"""Samples in folders of images, prepared as a vision model expects them."""

import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.feeds import Labels, LazyFeeds, group_labels, spell
from onnxslim_tk.measure.runtime import Feed, TensorInfo

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_CHANNELS: Final = {"RGB": 3, "BGR": 3, "L": 1}
# Pillow's plugins let errors of all kinds through where a file's numbers make no sense.
_FAILURES: Final = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, RuntimeError, struct.error),
)
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How pixels become a model's input: ``(pixel * scale - mean) / std``.

    ``mean`` and ``std`` are one number or one a channel, in the order of ``channels``. ``size``
    is (height, width); without it the model's input decides, and a side that is open there keeps
    the image's proportions. ``layout`` and ``channels`` are read off the model's input by
    default. A model that takes whole numbers gets the pixels as they are. Raises
    CalibrationError for a value out of range.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    scale: float = 1 / 255
    channels: Literal["RGB", "BGR", "L"] | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3, 4) or not all(map(math.isfinite, values)):
                raise CalibrationError(
                    f"images: {name} must be 1, 3 or 4 finite numbers, got {values}"
                )
        if min(self.std) <= 0:
            raise CalibrationError(f"images: std must be above 0, got {self.std}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise CalibrationError(f"images: scale must be above 0, got {self.scale}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise CalibrationError(f"images: size must be (height, width), got {self.size}")
        if self.layout not in (None, "NCHW", "NHWC"):
            raise CalibrationError(f"images: layout must be NCHW or NHWC, got {self.layout}")
        if self.channels not in (None, "RGB", "BGR", "L"):
            raise CalibrationError(f"images: channels must be RGB, BGR or L, got {self.channels}")


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image input of a model, every question answered but the sides that stay open.

    ``mode`` is Pillow's, ``batch`` the images a run takes.
    """

    name: str
    dtype: np.dtype[Any]
    layout: Literal["NCHW", "NHWC"]
    mode: str
    batch: int
    height: int | None
    width: int | None


def list_images(folder: Path) -> tuple[list[Path], list[int] | None]:
    """The images in ``folder``, sorted by name, or those of its class folders with labels.

    A class's label is its folder's place in the sorted names or, when all names are whole
    numbers, that number. Raises CalibrationError when images lie beside class folders.
    """
    images = _images_in(folder)
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )
    members = [_images_in(path) for path in classes]
    if not any(members):
        return images, None
    if images:
        raise CalibrationError(
            f"samples: {folder.name} must hold images or class folders, it holds both"
        )
    # Sorted as text, "10" would come before "2".
    numbered = all(path.name.isdecimal() for path in classes)
    numbers = [int(path.name) if numbered else place for place, path in enumerate(classes)]
    labels = [n for n, found in zip(numbers, members, strict=True) for _ in found]
    return [path for found in members for path in found], labels


def read_images(
    paths: Sequence[Path],
    labels: Sequence[int] | None,
    inputs: Sequence[TensorInfo],
    options: ImageOptions,
) -> tuple[Sequence[Feed], Labels | None]:
    """Feeds that decode the images at ``paths`` on access, labels grouped as the feeds are.

    Raises CalibrationError when the model doesn't take a single image, the options don't fit
    it, or, on access, when an image is broken or too large to open in safety.
    """
    target = image_input(inputs, options)
    count = len(paths) // target.batch
    if count == 0:
        raise CalibrationError(
            f"samples: the model takes {target.batch} images a run, got {len(paths)}"
        )

    def read(index: int) -> Feed:
        chosen = paths[index * target.batch : (index + 1) * target.batch]
        images = [decode(path, target, options) for path in chosen]
        if len({image.shape for image in images}) > 1:
            raise CalibrationError(
                f"samples: {chosen[0].name}: images of one run must have one size, "
                "set the size of images"
            )
        return {target.name: np.stack(images)}

    if labels is None:
        return LazyFeeds(count, read), None
    grouped = group_labels(np.array(labels, np.int64), count, target.batch, "images")
    return LazyFeeds(count, read), grouped


def image_input(inputs: Sequence[TensorInfo], options: ImageOptions) -> ImageInput:
    """Settle how the model's only input takes images; raises CalibrationError if it can't."""
    if len(inputs) != 1:
        raise CalibrationError(
            f"samples: images need a model with one input, this one has {len(inputs)}: "
            "save its inputs to .npz files instead"
        )
    (info,) = inputs
    who = f"images: input {info.name!r} {spell(info.shape)}"
    if len(info.shape) != 4 or info.dtype is None or info.dtype.kind not in "fiu":
        raise CalibrationError(f"{who} must be numbers with 4 axes to take images")
    layout = options.layout or _guess_layout(info, who)
    batch, *rest = info.shape
    channels, height, width = rest if layout == "NCHW" else (rest[2], rest[0], rest[1])
    if info.dtype.kind in "iu":
        if (options.mean, options.std, options.scale) != ((0.0,), (1.0,), 1 / 255):
            raise CalibrationError(f"{who} takes whole pixels: mean, std and scale don't apply")
        if np.iinfo(info.dtype).max < 255:
            raise CalibrationError(f"{who} must hold 0 to 255 to take images, it is {info.dtype}")
    sides = [
        _side(fixed, asked, who)
        for fixed, asked in zip((height, width), options.size or (None, None), strict=True)
    ]
    return ImageInput(
        name=info.name,
        dtype=info.dtype,
        layout=layout,
        mode=_mode(channels, options, who),
        batch=batch if isinstance(batch, int) and batch > 0 else 1,
        height=sides[0],
        width=sides[1],
    )


def decode(path: Path, target: ImageInput, options: ImageOptions) -> NDArray[Any]:
    """One image as ``(channels, height, width)`` or ``(height, width, channels)``."""
    pixels: NDArray[Any] = _pixels(path, target)
    if options.channels == "BGR":
        pixels = pixels[..., ::-1]
    if target.dtype.kind == "f":
        mean, std = np.array(options.mean, np.float32), np.array(options.std, np.float32)
        pixels = (pixels * np.float32(options.scale) - mean) / std
    if target.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels, target.dtype)


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _guess_layout(info: TensorInfo, who: str) -> Literal["NCHW", "NHWC"]:
    if info.shape[1] in _MODES:
        return "NCHW"
    if info.shape[3] in _MODES:
        return "NHWC"
    raise CalibrationError(f"{who} shows no axis of 1, 3 or 4 channels: set the layout of images")


def _side(fixed: int | str | None, asked: int | None, who: str) -> int | None:
    if isinstance(fixed, int) and asked is not None and asked != fixed:
        raise CalibrationError(f"{who} is fixed, got another size of images: {asked}")
    return fixed if isinstance(fixed, int) else asked


def _mode(channels: int | str | None, options: ImageOptions, who: str) -> str:
    asked = _CHANNELS[options.channels] if options.channels else None
    count = channels if isinstance(channels, int) else asked or 3
    if count not in _MODES or asked not in (None, count):
        got = options.channels or "images of 1, 3 or 4"
        raise CalibrationError(f"{who} has {count} channels, got {got}")
    for name, values in (("mean", options.mean), ("std", options.std)):
        if len(values) not in (1, count):
            raise CalibrationError(f"{who}: {name} must be one number or {count}, got {values}")
    return _MODES[count]


def _pixels(path: Path, target: ImageInput) -> NDArray[np.uint8]:
    """The image ``(height, width, channels)`` in 0..255, upright and in the target's size."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                image = _eight_bits(ImageOps.exif_transpose(opened)).convert(target.mode)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise CalibrationError(
            f"samples: {path.name} must have at most {Image.MAX_IMAGE_PIXELS} pixels: {error}"
        ) from error
    except _FAILURES as error:
        raise CalibrationError(f"samples: {path.name} cannot be read: {error}") from error
    height, width = _final_size(image.height, image.width, target)
    if height * width > (Image.MAX_IMAGE_PIXELS or height * width):
        raise CalibrationError(
            f"samples: {path.name} must have at most {Image.MAX_IMAGE_PIXELS} pixels in the "
            f"model's size, it would be {width} by {height}"
        )
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, -1)


def _eight_bits(image: "Image") -> "Image":
    # Pillow's own conversion clips 16-bit greys at 255 and leaves nothing but white.
    if image.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image


def _final_size(height: int, width: int, target: ImageInput) -> tuple[int, int]:
    if target.height is not None and target.width is not None:
        return target.height, target.width
    if target.height is not None:
        return target.height, max(1, round(width * target.height / height))
    if target.width is not None:
        return max(1, round(height * target.width / width)), target.width
    return height, width
