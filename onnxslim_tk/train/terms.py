"""Terms of a loss: what is compared with what, and what it weighs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.losses import COMPARISONS, LABELLED
from onnxslim_tk.train.rules import Tensor

Tensors = Mapping[str, Tensor]


class AnyTerm(Protocol):
    """What a term asks for, and what it makes of it."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the student's tensors that it needs."""
        ...

    @property
    def asks(self) -> tuple[tuple[int, str], ...]:
        """Tensors of teachers that it needs, each with the teacher's number."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether it can't be had without labels."""
        ...

    def __call__(self, student: Tensors, taught: Sequence[Tensors], labels: Any) -> Tensor:
        """Its share of the loss, weighed."""
        ...


@dataclass(frozen=True, slots=True)
class Term:
    """A tensor of the student, compared with one of a teacher.

    Names are those of outputs, or of inner tensors with the path of their body; ``teacher`` is
    ``student`` where it is empty, and ``by`` the number of the teacher, the first being 0. ``kind``
    is ``scores`` for what goes into a Softmax, ``probabilities`` for what comes out of one, both
    compared at ``temperature`` along the last axis; ``logits`` compares scores by their squared
    error, ``chances`` what comes out of a Sigmoid, ``attention`` a Softmax ``(n, heads, length,
    length)``, ``cosine`` directions, and ``features`` anything else. With ``adapter`` a 1x1 layer
    that is learnt too, and left out at the end, comes between (Romero et al., 2015). Raises
    TrainingError for settings out of range.
    """

    student: str
    teacher: str = ""
    kind: str = "features"
    weight: float = 1.0
    temperature: float = 1.0
    by: int = 0
    adapter: bool = False

    def __post_init__(self) -> None:
        if self.kind not in COMPARISONS:
            kinds = ", ".join(COMPARISONS)
            raise TrainingError(f"train: kind must be one of {kinds}, got {self.kind!r}")
        _check_weight(self.weight)
        if not (isfinite(self.temperature) and self.temperature > 0):
            raise TrainingError(f"train: temperature must be above 0, got {self.temperature}")

    @property
    def wanted(self) -> str:
        """The name of the teacher's tensor."""
        return self.teacher or self.student

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the student's tensors that it needs."""
        return (self.student,)

    @property
    def asks(self) -> tuple[tuple[int, str], ...]:
        """Tensors of teachers that it needs, each with the teacher's number."""
        return ((self.by, self.wanted),)

    @property
    def needs_labels(self) -> bool:
        """Whether it can't be had without labels."""
        return False

    def __call__(self, student: Tensors, taught: Sequence[Tensors], labels: Any) -> Tensor:
        """Its share of the loss; raises TrainingError where two tensors differ in shape."""
        found, wanted = student[self.student], taught[self.by][self.wanted]
        if self.kind == "attention":
            fits = found.dim() == 4 and found.shape[2:] == wanted.shape[2:]
        else:
            fits = found.shape == wanted.shape
        if not fits:
            raise TrainingError(
                f"train: {self.student!r} has the shape {tuple(found.shape)}, "
                f"the teacher's {self.wanted!r} has {tuple(wanted.shape)}"
            )
        return self.weight * COMPARISONS[self.kind](found, wanted, self.temperature)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An output of the student, held against labels.

    ``loss`` is one of cross-entropy, mse, bce, ctc. ``form`` says what the output holds:
    ``scores``, ``probabilities`` behind a Softmax, ``chances`` behind a Sigmoid. Of labels with
    several columns, one a task, ``column`` picks one.
    """

    output: str
    loss: str = "cross-entropy"
    weight: float = 1.0
    form: str = "scores"
    column: int | None = None

    def __post_init__(self) -> None:
        if self.loss not in LABELLED:
            raise TrainingError(
                f"train: loss must be one of {', '.join(LABELLED)}, got {self.loss!r}"
            )
        _check_weight(self.weight)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the student's tensors that it needs."""
        return (self.output,)

    @property
    def asks(self) -> tuple[tuple[int, str], ...]:
        """Nothing of a teacher."""
        return ()

    @property
    def needs_labels(self) -> bool:
        """Whether it can't be had without labels."""
        return True

    def __call__(self, student: Tensors, taught: Sequence[Tensors], labels: Any) -> Tensor:
        """Its share of the loss; raises TrainingError for labels that don't fit."""
        if self.column is not None:
            if labels.dim() < 2 or self.column >= labels.shape[1]:
                raise TrainingError(
                    f"train: labels of shape {tuple(labels.shape)} have no column {self.column}"
                )
            labels = labels[:, self.column]
        return self.weight * LABELLED[self.loss](student[self.output], labels, self.form)


@dataclass(frozen=True, slots=True, repr=False)
class Custom:
    """A function of the user's: ``function(outputs, labels, taught)`` gives the loss.

    ``outputs`` are the student's tensors ``names`` by name, ``taught`` a list of such mappings, one
    a teacher with its tensors ``wanted``; labels are None where there are none.
    """

    function: Callable[[Tensors, Any, Sequence[Tensors]], Tensor]
    names: tuple[str, ...]
    wanted: tuple[tuple[int, str], ...] = ()
    weight: float = 1.0
    labelled: bool = False

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __repr__(self) -> str:
        # Without the address, which is another one in every process.
        place = f"{self.function.__module__}:{getattr(self.function, '__qualname__', '')}"
        return f"Custom({place}, {self.names}, {self.wanted}, {self.weight})"

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the student's tensors that it needs."""
        return self.names

    @property
    def asks(self) -> tuple[tuple[int, str], ...]:
        """Tensors of teachers that it needs, each with the teacher's number."""
        return self.wanted

    @property
    def needs_labels(self) -> bool:
        """Whether it can't be had without labels."""
        return self.labelled

    def __call__(self, student: Tensors, taught: Sequence[Tensors], labels: Any) -> Tensor:
        """Its share of the loss; raises TrainingError for what isn't a single number."""
        found = self.function(student, labels, taught)
        if getattr(found, "numel", lambda: 0)() != 1:
            raise TrainingError(
                f"train: a loss must be a tensor of one number, got {type(found).__name__}"
            )
        return self.weight * found.reshape(())


def _check_weight(weight: float) -> None:
    if not (isfinite(weight) and weight > 0):
        raise TrainingError(f"train: weight must be above 0, got {weight}")
