"""One run of a program: steps in order, bodies of If, Loop and Scan, and what has no rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.detached import Detached
from onnxslim_tk.train.program import Body, Step
from onnxslim_tk.train.rules import Tensor, UnsupportedError, Value, axis_of

Values = dict[str, Value]
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError)


@dataclass(slots=True)
class Run:
    """The state of one run: ``constant`` gives a tensor of the file by key.

    ``wanted`` are the keys of inner tensors that are kept in ``kept`` as they come by.
    """

    constant: Callable[[str], Value]
    detached: Detached
    wanted: frozenset[str] = frozenset()
    kept: Values = field(default_factory=dict)

    def body(self, body: Body, around: Mapping[str, Value], given: Mapping[str, Value]) -> Values:
        """Run a body and give all that is left then: its outputs, its constants, its inputs."""
        values: Values = {name: around[name] for name in body.captured}
        for name, key in body.constants.items():
            values[name] = self.constant(key)
        values.update(given)
        for step in body.steps:
            inputs = [values[name] if name else None for name in step.inputs]
            outputs = self._step(step, inputs, values)
            for name, value in zip(step.outputs, outputs, strict=False):
                values[name] = value
            if self.wanted:
                self._keep(body.path, step, values)
            for name in step.free:
                values.pop(name, None)
        return values

    def _keep(self, path: str, step: Step, values: Values) -> None:
        for name in step.outputs:
            if path + name in self.wanted:
                self.kept[path + name] = values[name]

    def _step(self, step: Step, inputs: list[Value], values: Values) -> Sequence[Value]:
        if step.node.kind in _CONTROL:
            return _CONTROL[step.node.kind](self, step, inputs, values)
        if step.rule is None:
            return self.detached.run(step, inputs, "no rule is known for it")
        try:
            found = step.rule(step.node, *inputs)
        except UnsupportedError as error:
            return self.detached.run(step, inputs, f"no rule is known for {error}")
        except _FAILURES as error:
            message = " ".join(str(error).split())
            raise TrainingError(f"train: {step.node.kind} {step.node.key!r}: {message}") from error
        return found if isinstance(found, tuple) else (found,)

    def inner(self, body: Body, around: Values, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a body that is called with ``inputs``."""
        found = self.body(body, around, dict(zip(body.inputs, inputs, strict=True)))
        return [found[name] for name in body.outputs]


def _is_true(value: Tensor) -> bool:
    return bool(value.reshape(-1)[0])


def _if(run: Run, step: Step, inputs: list[Value], values: Values) -> list[Value]:
    branch = "then_branch" if _is_true(inputs[0]) else "else_branch"
    return run.inner(step.bodies[branch], values, ())


def _loop(run: Run, step: Step, inputs: list[Value], values: Values) -> list[Value]:
    body = step.bodies["body"]
    most, condition, *carried = (*inputs, None) if len(inputs) == 1 else inputs
    count = len(carried)
    scanned: list[list[Tensor]] = [[] for _ in body.outputs[1 + count :]]
    go = condition is None or _is_true(condition)
    turn = 0
    while go and (most is None or turn < int(most)):
        number, alive = torch.tensor(turn, dtype=torch.int64), torch.tensor(True)
        found = run.inner(body, values, (number, alive, *carried))
        go, carried = _is_true(found[0]), found[1 : 1 + count]
        for rows, row in zip(scanned, found[1 + count :], strict=True):
            rows.append(row)
        turn += 1
    return [*carried, *(torch.stack(rows) if rows else torch.zeros(0) for rows in scanned)]


def _scan(run: Run, step: Step, inputs: list[Value], values: Values) -> list[Value]:
    if step.node.opset < 9:
        raise TrainingError("train: Scan before operator set 9 can't be trained")
    body, get = step.bodies["body"], step.node.get
    width = int(get("num_scan_inputs"))
    count = len(inputs) - width
    carried, sources = inputs[:count], inputs[count:]
    axes = get("scan_input_axes", [0] * width)
    backward = get("scan_input_directions", [0] * width)
    length = sources[0].shape[axes[0]]
    rows: list[list[Tensor]] = [[] for _ in body.outputs[count:]]
    for turn in range(length):
        slices = [
            source.select(axis, length - 1 - turn if turned else turn)
            for source, axis, turned in zip(sources, axes, backward, strict=True)
        ]
        found = run.inner(body, values, (*carried, *slices))
        carried = found[:count]
        for kept, row in zip(rows, found[count:], strict=True):
            kept.append(row)
    out_axes = get("scan_output_axes", [0] * len(rows))
    turned = get("scan_output_directions", [0] * len(rows))
    joined = [
        torch.stack(kept[::-1] if back else kept, axis_of(axis, kept[0].dim() + 1))
        for kept, axis, back in zip(rows, out_axes, turned, strict=True)
    ]
    return [*carried, *joined]


_CONTROL: dict[str, Callable[[Run, Step, list[Value], Values], list[Any]]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
}
