"""Augmentations: how samples are varied while a model learns from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError

Array = NDArray[Any]


class Augmentation(Protocol):
    """One way to vary a sample; ``main`` names the setting that a bare value sets."""

    name: ClassVar[str]
    main: ClassVar[str]

    @property
    def input(self) -> str:
        """The input that is varied; empty for all of its kind."""
        ...

    def __call__(self, values: Array, rng: np.random.Generator) -> Array:
        """``values`` varied, of the same shape and type."""
        ...


def _check(who: str, **numbers: tuple[float, float, float]) -> None:
    for name, (value, low, high) in numbers.items():
        if not (isfinite(value) and low <= value <= high):
            raise RecipeError(f"{who}: {name} must be in [{low:g}, {high:g}], got {value}")


@dataclass(frozen=True, slots=True)
class Flip:
    """Turns an axis round in a ``chance`` of all samples; of pictures the width by default."""

    name: ClassVar[str] = "flip"
    main: ClassVar[str] = "axis"

    axis: int = -1
    chance: float = 0.5
    input: str = ""

    def __post_init__(self) -> None:
        _check("flip", chance=(self.chance, 0, 1))

    def __call__(self, values: Array, rng: np.random.Generator) -> Array:
        """``values``, or their mirror image."""
        turned = rng.random() < self.chance
        return np.flip(values, _axis("flip", self.axis, values)) if turned else values


@dataclass(frozen=True, slots=True)
class Shift:
    """Moves values by up to ``most`` places along ``axes``; what comes in repeats the edge."""

    name: ClassVar[str] = "shift"
    main: ClassVar[str] = "most"

    most: int = 2
    axes: Sequence[int] = (-2, -1)
    input: str = ""

    def __post_init__(self) -> None:
        _check("shift", most=(self.most, 0, 1e6))

    def __call__(self, values: Array, rng: np.random.Generator) -> Array:
        """``values``, moved."""
        for axis in self.axes:
            place = _axis("shift", axis, values)
            by = int(rng.integers(-self.most, self.most + 1))
            rows = np.clip(np.arange(values.shape[place]) + by, 0, values.shape[place] - 1)
            values = values.take(rows, place)
        return values


@dataclass(frozen=True, slots=True)
class Noise:
    """Adds normal noise of up to ``deviation`` times that of the values."""

    name: ClassVar[str] = "noise"
    main: ClassVar[str] = "deviation"

    deviation: float = 0.1
    input: str = ""

    def __post_init__(self) -> None:
        _check("noise", deviation=(self.deviation, 0, 1e6))

    def __call__(self, values: Array, rng: np.random.Generator) -> Array:
        """``values``, disturbed."""
        size = rng.random() * self.deviation * float(np.std(values))
        noisy: Array = values + size * rng.standard_normal(values.shape)
        return noisy.astype(values.dtype)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Stretches values about their mean and moves them, by up to ``most`` of their deviation."""

    name: ClassVar[str] = "contrast"
    main: ClassVar[str] = "most"

    most: float = 0.2
    input: str = ""

    def __post_init__(self) -> None:
        _check("contrast", most=(self.most, 0, 1))

    def __call__(self, values: Array, rng: np.random.Generator) -> Array:
        """``values``, stretched and moved."""
        by, shift = rng.uniform(-self.most, self.most, 2)
        mean, spread = float(np.mean(values)), float(np.std(values))
        stretched: Array = mean + (values - mean) * (1 + by) + shift * spread
        return stretched.astype(values.dtype)


@dataclass(frozen=True, slots=True)
class Gain:
    """Multiplies values by up to ``most`` or its inverse, as sound may be louder."""

    name: ClassVar[str] = "gain"
    main: ClassVar[str] = "most"

    most: float = 2.0
    input: str = ""

    def __post_init__(self) -> None:
        _check("gain", most=(self.most, 1, 1e6))

    def __call__(self, values: Array, rng: np.random.Generator) -> Array:
        """``values``, louder or softer."""
        louder: Array = values * self.most ** rng.uniform(-1, 1)
        return louder.astype(values.dtype)


@dataclass(frozen=True, slots=True)
class Erase:
    """Puts the mean in place of a box, ``share`` of each axis at most (DeVries, Taylor, 2017)."""

    name: ClassVar[str] = "erase"
    main: ClassVar[str] = "share"

    share: float = 0.3
    axes: Sequence[int] = (-2, -1)
    chance: float = 0.5
    input: str = ""

    def __post_init__(self) -> None:
        _check("erase", share=(self.share, 0, 1), chance=(self.chance, 0, 1))

    def __call__(self, values: Array, rng: np.random.Generator) -> Array:
        """``values``, or a copy with a hole."""
        if rng.random() >= self.chance:
            return values
        box = [slice(None)] * values.ndim
        for axis in self.axes:
            place = _axis("erase", axis, values)
            length = int(rng.integers(0, int(values.shape[place] * self.share) + 1))
            start = int(rng.integers(0, values.shape[place] - length + 1))
            box[place] = slice(start, start + length)
        values = values.copy()
        values[tuple(box)] = values.mean()
        return values


@dataclass(frozen=True, slots=True)
class Replace:
    """Puts other values of the same sample in place of a ``share`` of integers, such as tokens."""

    name: ClassVar[str] = "replace"
    main: ClassVar[str] = "share"

    share: float = 0.1
    input: str = ""

    def __post_init__(self) -> None:
        _check("replace", share=(self.share, 0, 1))

    def __call__(self, values: Array, rng: np.random.Generator) -> Array:
        """``values``, some of them others."""
        picked = rng.random(values.shape) < self.share
        return np.where(picked, rng.permutation(values.reshape(-1)).reshape(values.shape), values)


KINDS: Final[tuple[type[Any], ...]] = (Flip, Shift, Noise, Contrast, Gain, Erase, Replace)
AUGMENTATIONS: Final[Mapping[str, type[Any]]] = {kind.name: kind for kind in KINDS}
"""The augmentations by name."""
_FOR_INTEGERS: Final = ("flip", "shift", "replace")


def augmented(
    feed: Mapping[str, Array], chain: Sequence[Augmentation], rng: np.random.Generator
) -> dict[str, Array]:
    """A sample, varied by each augmentation in turn.

    One that names no input varies all inputs of its kind: ``replace`` integers, all others floats.
    """
    varied = dict(feed)
    for augmentation in chain:
        if augmentation.input and augmentation.input not in feed:
            raise RecipeError(f"{augmentation.name}: the model has no input {augmentation.input!r}")
        for name, values in varied.items():
            fits = values.dtype.kind == ("i" if augmentation.name == "replace" else "f")
            named = augmentation.input == name
            if named and values.dtype.kind != "f" and augmentation.name not in _FOR_INTEGERS:
                raise RecipeError(f"{augmentation.name}: the input {name!r} holds no floats")
            if named or (fits and not augmentation.input):
                varied[name] = np.ascontiguousarray(augmentation(values, rng))
    return varied


def _axis(who: str, axis: int, values: Array) -> int:
    if not -values.ndim <= axis < values.ndim:
        raise RecipeError(f"{who}: an input of {values.ndim} axes has no axis {axis}")
    return axis % values.ndim
