"""What an operator's rule is: a small function of a node and its input tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor as Tensor

Value = Any
"""A tensor, a list of tensors for a sequence, an array of strings, or None for what is left out."""
Rule = Callable[..., Any]
"""``rule(node, *inputs)`` gives a node's output, or a tuple of its outputs."""


class UnsupportedError(Exception):
    """A rule doesn't cover this setting of its operator; the runtime computes the node instead."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its rule sees it.

    ``kind`` is the operator, with its domain and a colon before it where that isn't ONNX's own.
    ``types`` holds the element types of inputs that are constants, 0 for all others. ``opset`` is
    the version of the operator's domain.
    """

    kind: str
    key: str
    opset: int
    attributes: dict[str, Any]
    outputs: int
    types: tuple[int, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default`` where it isn't set."""
        return self.attributes.get(name, default)

    def ints(self, name: str, given: Tensor | None = None) -> list[int] | None:
        """Integers that are an input in newer operator sets and an attribute in older ones."""
        if given is not None:
            return integers(given)
        found = self.attributes.get(name)
        return None if found is None else [int(value) for value in found]

    def refuse(self, what: str) -> UnsupportedError:
        """The error for a setting that the rule doesn't cover."""
        return UnsupportedError(f"{self.kind} with {what}")


class Rules(dict[str, Rule]):
    """A table of rules by operator."""

    def operator(self, *names: str) -> Callable[[Rule], Rule]:
        """Enter the decorated function as the rule of the operators ``names``."""

        def enter(rule: Rule) -> Rule:
            for name in names:
                self[name] = rule
            return rule

        return enter

    def same(self, **functions: Callable[..., Tensor]) -> None:
        """Enter functions of PyTorch that are operators as they are, without attributes."""
        for name, function in functions.items():
            self[name] = _plain(function)


def _plain(function: Callable[..., Tensor]) -> Rule:
    def rule(node: Node, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    return rule


def integers(values: Tensor) -> list[int]:
    """The values of a tensor as integers, flat."""
    return [int(value) for value in values.reshape(-1).tolist()]


def axis_of(axis: int, rank: int) -> int:
    """``axis`` counted from the front."""
    return axis + rank if axis < 0 else axis


def along(values: Tensor, rank: int, axis: int) -> Tensor:
    """A vector laid along ``axis`` of a tensor of ``rank``; a single value as it is."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[axis_of(axis, rank)] = -1
    return values.reshape(shape)


def flat_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Paddings per axis in the order of ``torch.nn.functional.pad``: the last axis first."""
    return [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
