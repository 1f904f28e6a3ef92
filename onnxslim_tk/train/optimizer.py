"""One optimizer's state: AdamW, clipped gradients, averaged weights, entries shrunk to zero."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.objective import Objective
from onnxslim_tk.train.rules import Tensor


class Optimizer:
    """What moves the parameters of an objective, and keeps their running average."""

    def __init__(self, objective: Objective, schedule: Schedule) -> None:
        self.parameters: list[nn.Parameter] = [p for p in objective.parameters() if p.requires_grad]
        self._schedule = schedule
        matrices = [p for p in self.parameters if p.dim() > 1]
        vectors = [p for p in self.parameters if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": schedule.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=schedule.rate)
        self._shrunk = shrinkable(objective.student) if schedule.l1 else []
        loose = [weight for weight in objective.student.weights if weight.shadow is not None]
        self._codes: list[Tensor] = [weight.codes for weight in loose]
        self.averages: list[Tensor] = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    def forget(self) -> None:
        """Begin a step without gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def step(self, share: float) -> bool:
        """One step, ``share`` of the way done; False where the gradient isn't finite."""
        rate = self._schedule.rate_at(share)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._schedule.clip)
        if not bool(torch.isfinite(norm)):
            return False
        self._adamw.step()
        with torch.no_grad():
            for parameter in self._shrunk:
                # The proximal step of an absolute value (Tibshirani, 1996): zeros are exact.
                by = rate * self._schedule.l1
                parameter.copy_(torch.nn.functional.softshrink(parameter, by))
            # At first, an average of few steps would mostly be the beginning.
            keep = min(self._schedule.average, (1 + self.steps) / (10 + self.steps))
            if not self._schedule.average:
                keep = 0.0
            for average, parameter in zip(self.averages, self.parameters, strict=True):
                average.mul_(keep).add_(parameter.detach(), alpha=1 - keep)
        self.steps += 1
        return True

    def current(self) -> list[Tensor]:
        """A copy of the parameters, and of codes that change."""
        return [value.detach().clone() for value in (*self.parameters, *self._codes)]

    def averaged(self) -> list[Tensor]:
        """As :meth:`current`, of the averages; what was shrunk to zero by now is zero."""
        shrunk = {id(parameter) for parameter in self._shrunk}
        found = [
            average * (parameter.detach() != 0) if id(parameter) in shrunk else average.clone()
            for average, parameter in zip(self.averages, self.parameters, strict=True)
        ]
        return [*found, *(codes.clone() for codes in self._codes)]

    def put(self, values: Sequence[Tensor]) -> None:
        """Set the parameters."""
        with torch.no_grad():
            for value, place in zip(values, (*self.parameters, *self._codes), strict=True):
                place.copy_(value)

    def absolute(self) -> float:
        """The sum of absolute values of what is shrunk."""
        with torch.no_grad():
            return sum(float(parameter.abs().sum()) for parameter in self._shrunk)

    def state(self) -> dict[str, Any]:
        """All of it as tensors and numbers."""
        return {
            "steps": self.steps,
            "parameters": self.current(),
            "averages": [average.clone() for average in self.averages],
            "adamw": self._adamw.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self.steps = int(state["steps"])
        self.put(state["parameters"])
        self.averages = [average.clone() for average in state["averages"]]
        self._adamw.load_state_dict(state["adamw"])


def shrinkable(student: GraphModule) -> list[nn.Parameter]:
    """The matrices of a student that can get zeros: those stored as plain floats."""
    return list(_shrinkable(student))


def _shrinkable(student: GraphModule) -> Iterator[nn.Parameter]:
    for weight in student.weights:
        value = weight.value
        if value.dim() > 1 and weight.codes is None and weight.ends is None:
            yield value
