"""What travels to workers once: a model with its samples, under its content's key."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import CalibrationError, RecipeError
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.graph.weights import Weights
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.validate import silent
from onnxslim_tk.pipeline.attempt import Workshop
from onnxslim_tk.pipeline.cache import digest, key_of
from onnxslim_tk.pipeline.files import parse
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.plan.recipe import Recipe, recipe_data
from onnxslim_tk.version import VERSION


@dataclass(frozen=True, slots=True, eq=False)
class Cargo:
    """A model with its samples and settings, free of files, sessions and this machine's places.

    ``head`` and ``weights`` are those of a :class:`Stored`; ``key`` tells it from any other.
    """

    key: str
    source_sha256: str
    name: str
    head: NDArray[np.uint8]
    weights: Mapping[str, NDArray[np.uint8]]
    feeds: tuple[Feed, ...]
    labels: NDArray[Any] | None
    recipe: Recipe
    options: Options

    @property
    def bytes(self) -> int:
        """Bytes of the original's files."""
        return int(self.head.nbytes) + sum(int(array.nbytes) for array in self.weights.values())

    def opened(self) -> Workshop:
        """The model, opened for compression."""
        weights = Weights()
        for key, array in self.weights.items():
            weights.add(key, np.ascontiguousarray(array))
        data = Stored(self.head.tobytes(), weights)
        samples = Samples(self.feeds, self.labels)
        name = self.name
        return Workshop(Path(name), data, parse(data), (), self.recipe, samples, self.options, name)


def pack_up(shop: Workshop) -> Cargo:
    """What workers need of an opened model; raises CalibrationError without samples."""
    if shop.samples is None:
        raise CalibrationError("search: it needs samples to choose by; give --calibration PATH")
    if shop.foreign:
        raise RecipeError(
            "search: the runtime lacks operators of this model, so no plan can be judged"
        )
    feeds = tuple({n: np.asarray(v) for n, v in feed.items()} for feed in shop.samples.feeds)
    labels = None if shop.samples.labels is None else np.asarray(shop.samples.labels)
    options = replace(shop.options, calibration=None, progress=silent, jobs=1)
    key = key_of(
        VERSION,
        shop.data.sha256,
        digest(feeds),
        None if labels is None else digest([{"labels": labels}]),
        recipe_data(shop.recipe),
        options.budget,
        None if options.metric is None else options.metric.name,
        sorted(options.kinds.items()),
        options.seed,
        options.target,
    )
    return Cargo(
        key,
        shop.data.sha256,
        shop.name,
        np.frombuffer(shop.data.head, np.uint8),
        shop.data.weights.arrays,
        feeds,
        labels,
        shop.recipe,
        options,
    )
