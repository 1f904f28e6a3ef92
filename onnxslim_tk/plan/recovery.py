"""What may follow a stage to win back what it lost, beyond the closed form of its methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.plan.schedule import Schedule

Extent = Literal["auto", "blocks", "whole"]
_EXTENTS: Final = ("auto", "blocks", "whole")
_LOOKS: Final = 10


@dataclass(frozen=True, slots=True)
class Distill:
    """Distillation from the model before the stage: needs samples, and the extra ``train``.

    ``steps`` of ``batch`` samples at the highest ``rate``. ``extent`` is ``whole`` for all layers
    at once, ``blocks`` for one part of the model after the other, which takes no more memory than
    such a part, and ``auto`` blocks for big models alone.
    """

    name: ClassVar[str] = "distill"
    main: ClassVar[str] = "steps"

    steps: int = 300
    batch: int = 16
    rate: float = 3e-4
    temperature: float = 1.0
    extent: Extent = "auto"

    def __post_init__(self) -> None:
        if self.extent not in _EXTENTS:
            known = ", ".join(_EXTENTS)
            raise RecipeError(f"distill: extent must be one of {known}, got {self.extent!r}")
        if not 0 < self.temperature < float("inf"):
            raise RecipeError(f"distill: temperature must be above 0, got {self.temperature}")
        self.schedule(0)

    def schedule(self, seed: int, parts: int = 1) -> Schedule:
        """The schedule of one of so many parts."""
        steps = max(1, self.steps // parts)
        every = max(1, steps // _LOOKS)
        return Schedule(steps=steps, batch=self.batch, rate=self.rate, every=every, seed=seed)


RECOVERIES: Final[Mapping[str, type[Any]]] = {"distill": Distill}
"""The recoveries by name."""
