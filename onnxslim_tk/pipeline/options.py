"""What a run may be told beside the model and the recipe."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxslim_tk.measure.images import ImageOptions
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.metrics import Metric
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.validate import Progress, silent
from onnxslim_tk.pipeline.cache import Cache
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU, Target

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Options:
    """What a run may be told beside the model and the recipe.

    ``calibration`` is a path to samples, or samples; ``limit`` the most of them that are used;
    ``kinds`` settles the kind of outputs by name; ``budget`` None takes the recipe's;
    ``jobs`` is the number of threads, -1 for all processors: results don't depend on it,
    nor on ``cache``, which keeps what was found for other runs;
    ``in_place`` lets the result take the place of the source.
    """

    calibration: PathLike | Samples | None = None
    limit: int | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
    metric: Metric | None = None
    kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    budget: Budget | None = None
    seed: int = 0
    target: Target = ONNXRUNTIME_CPU
    progress: Progress = silent
    jobs: int = 1
    cache: Cache | None = None
    in_place: bool = False
