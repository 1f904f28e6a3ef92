"""What a run found: the report's data, and the one line that matters."""

from dataclasses import dataclass

from onnxslim_tk.measure.validate import Faithfulness, Validation
from onnxslim_tk.packing import PackedTensor
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.plan import Plan
from onnxslim_tk.report.floats import Floating
from onnxslim_tk.report.integers import LayerRun


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples by their use; ``overlaps`` where there were too few to keep them apart."""

    calibrate: int
    choose: int
    judge: int
    overlaps: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """A state in training as the samples for choosing see it."""

    step: int
    loss: float
    metric: float | None


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of training.

    ``best`` is the step whose state is kept, 0 for the model as it came; ``ended`` why learning
    ended: steps, minutes, patience or diverged. ``before`` is what samples for judging say of the
    model as it came, beside the teachers if there are any.
    """

    looks: tuple[Seen, ...]
    best: int
    ended: str
    before: Faithfulness | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one run, as plain data.

    ``steps_back`` counts how often a milder choice had to be made; ``only_tidied`` says that no
    compressed model held the budget, so that the tidied original is the result. ``integers`` says
    of each layer of the result whether it is written for integers, and why not, ``floats`` what
    runs in float and what that takes by the target's table. ``seconds`` is CPU time of the run.
    ``training`` is None where nothing was trained.
    """

    version: str
    runtime: str
    source_sha256: str
    result_sha256: str
    recipe: str
    seed: int
    samples: Counts | None
    validation: Validation
    checks: tuple[Check, ...]
    plan: Plan
    packed: tuple[PackedTensor, ...]
    integers: tuple[LayerRun, ...]
    floats: tuple[Floating, ...]
    warnings: tuple[str, ...]
    steps_back: int
    only_tidied: bool
    seconds: float
    training: Learned | None = None

    @property
    def holds(self) -> bool:
        """Whether every limit of the budget is kept."""
        return all(check.holds for check in self.checks)
