"""What a student is to learn from a teacher: scores, soft labels, inner tensors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

import torch

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.rules import Tensor

_LEAST: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a loss: a tensor of the student, compared with one of the teacher.

    Names are those of outputs, or of inner tensors with the path of their body; ``teacher`` is
    ``student`` where it is empty. ``kind`` is ``scores`` for what goes into a Softmax,
    ``probabilities`` for what comes out of one, both compared at ``temperature`` along the last
    axis, or ``features`` for anything else. Raises TrainingError for settings out of range.
    """

    student: str
    teacher: str = ""
    kind: str = "features"
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            kinds = ", ".join(_KINDS)
            raise TrainingError(f"train: kind must be one of {kinds}, got {self.kind!r}")
        if not (isfinite(self.weight) and self.weight > 0):
            raise TrainingError(f"train: weight must be above 0, got {self.weight}")
        if not (isfinite(self.temperature) and self.temperature > 0):
            raise TrainingError(f"train: temperature must be above 0, got {self.temperature}")

    @property
    def wanted(self) -> str:
        """The name of the teacher's tensor."""
        return self.teacher or self.student


def soft_labels(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of softened distributions, of scores along the last axis (Hinton et al., 2015).

    Its gradient has the same size at every temperature. The mean over all other axes.
    """
    expected = torch.log_softmax(teacher / temperature, -1)
    found = torch.log_softmax(student / temperature, -1)
    divergence = (expected.exp() * (expected - found)).sum(-1)
    return divergence.mean() * temperature**2


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error in shares of the teacher's squares: 1 for a student that says nothing."""
    return ((student - teacher) ** 2).mean() / (teacher**2).mean().clamp(min=_LEAST)


def _of_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    # The logarithm of a probability is a score, but for a sum that is the same for all classes.
    scores = [value.clamp(min=_LEAST).log() for value in (student, teacher)]
    return soft_labels(scores[0], scores[1], temperature)


def _of_features(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return relative_error(student, teacher)


_KINDS: Final[Mapping[str, Callable[[Tensor, Tensor, float], Tensor]]] = {
    "scores": soft_labels,
    "probabilities": _of_probabilities,
    "features": _of_features,
}


def loss_of(
    terms: Sequence[Term], student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
) -> Tensor:
    """The weighted sum of ``terms``; raises TrainingError where two tensors differ in shape."""
    total = torch.zeros(())
    for term in terms:
        found, wanted = student[term.student], teacher[term.wanted]
        if found.shape != wanted.shape:
            raise TrainingError(
                f"train: {term.student!r} has the shape {tuple(found.shape)}, "
                f"the teacher's {term.wanted!r} has {tuple(wanted.shape)}"
            )
        total = total + term.weight * _KINDS[term.kind](found, wanted, term.temperature)
    return total


def by_name(student: Iterable[str], teacher: Iterable[str], weight: float = 1.0) -> list[Term]:
    """Terms for all tensors of a name that both have, the weight shared among them."""
    known = set(teacher)
    names = [name for name in student if name in known]
    return [Term(name, weight=weight / len(names)) for name in names]
