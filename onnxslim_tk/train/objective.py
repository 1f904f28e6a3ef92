"""What a student is to learn: the weighted sum of terms, with their teachers and adapters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.adapters import adapter_for
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.rules import Tensor
from onnxslim_tk.train.terms import AnyTerm, Tensors, Term

Part = tuple[Mapping[str, Any], Sequence[Tensors], Any, float]
"""A feed, what teachers say to it, labels or None, and its share of the batch."""


class Objective(nn.Module):
    """A student with what it is to learn, and from whom.

    Called with parts of a batch, each a feed, what :meth:`taught` gave for it, labels or None, and
    its share, it gives their loss. Its parameters are the student's and those of adapters.
    ``some`` are feeds that adapters begin with. Raises TrainingError where there is nothing to
    learn, a teacher is missing or two tensors don't fit.
    """

    def __init__(
        self,
        student: GraphModule,
        terms: Sequence[AnyTerm],
        teachers: Sequence[GraphModule],
        some: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        if not terms:
            raise TrainingError("train: there is nothing to learn: at least one loss is needed")
        self.student = student
        self.terms = tuple(terms)
        # In a list of its own: teachers don't learn, so they are no part of this module.
        self._teachers = (tuple(teachers),)
        asked = [pair for term in terms for pair in term.asks]
        for number, _ in asked:
            if not 0 <= number < len(teachers):
                raise TrainingError(f"train: there is no teacher number {number + 1}")
        self._asked = [
            tuple(dict.fromkeys(name for k, name in asked if k == number))
            for number in range(len(teachers))
        ]
        self._read = tuple(dict.fromkeys(name for term in terms for name in term.reads))
        self.adapters = nn.ModuleDict()
        if any(isinstance(term, Term) and term.adapter for term in terms):
            self._adapt(some)

    @property
    def teachers(self) -> tuple[GraphModule, ...]:
        """Those that teach, in order."""
        return self._teachers[0]

    @property
    def needs_labels(self) -> bool:
        """Whether a term needs labels."""
        return any(term.needs_labels for term in self.terms)

    @property
    def joins(self) -> bool:
        """Whether the student and all teachers let samples be laid together."""
        return all(module.joins for module in (self.student, *self.teachers))

    def taught(self, feed: Mapping[str, Any]) -> list[Tensors]:
        """What the teachers say to ``feed``, one mapping by name each."""
        with torch.no_grad():
            return [
                teacher(teacher.named(feed), names) if names else {}
                for teacher, names in zip(self.teachers, self._asked, strict=True)
            ]

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """The loss of all parts, weighed by their shares."""
        losses = [self.loss(feed, told, labels)[0] * share for feed, told, labels, share in parts]
        return torch.stack(losses).sum()

    def loss(
        self, feed: Mapping[str, Any], taught: Sequence[Tensors], labels: Any = None
    ) -> tuple[Tensor, Tensors]:
        """The loss, and the student's outputs without gradient."""
        names = dict.fromkeys((*self._read, *self.student.outputs))
        found = self.student(self.student.named(feed), names)
        total = torch.zeros(())
        for number, term in enumerate(self.terms):
            seen = found
            if str(number) in self.adapters:
                (name,) = term.reads
                seen = {**found, name: self.adapters[str(number)](found[name])}
            total = total + term(seen, taught, labels)
        return total, {name: _at_rest(found[name]) for name in self.student.outputs}

    def _adapt(self, some: Sequence[Mapping[str, Any]]) -> None:
        """Adapters for the terms that ask for one and whose channels differ."""
        taught = [self.taught(feed) for feed in some]
        with torch.no_grad():
            found = [self.student(self.student.named(feed), self._read) for feed in some]
        for number, term in enumerate(self.terms):
            if isinstance(term, Term) and term.adapter:
                pairs = [
                    (mine[term.student], told[term.by][term.wanted])
                    for mine, told in zip(found, taught, strict=True)
                ]
                made = adapter_for(pairs, (term.student, term.wanted))
                if made is not None:
                    self.adapters[str(number)] = made


def _at_rest(value: Any) -> Any:
    return value.detach() if torch.is_tensor(value) else value
