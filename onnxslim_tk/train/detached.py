"""Nodes that have no rule: the runtime computes them, and no gradient passes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxslim_tk.errors import SessionError, TrainingError
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.train.program import Step
from onnxslim_tk.train.rules import Value

_Arrays = dict[str, NDArray[Any]]

_NEWEST_IR: Final = 10
_INTEGERS: Final = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


class Detached:
    """Runs single nodes in the runtime and remembers which.

    ``reasons`` says by node, its key and its operator, why it isn't trained through.
    """

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.reasons: dict[str, str] = {}
        self._opsets = opsets
        self._sessions: dict[tuple[Any, ...], Session] = {}

    def run(self, step: Step, inputs: Sequence[Value], reason: str) -> tuple[Value, ...]:
        """The outputs of a node for ``inputs``; raises TrainingError where the runtime can't."""
        self.reasons.setdefault(step.node.key, f"{step.node.kind}: {reason}")
        names = [name for name in step.outputs if name]
        try:
            feed, fixed = _split(step, inputs)
            found = self._session(step, feed, fixed).run(feed, names)
        except SessionError as error:
            raise TrainingError(
                f"train: {step.node.kind} {step.node.key!r} has no rule, "
                f"and the runtime can't run it alone: {error}"
            ) from error
        return tuple(_value(found[name]) if name else None for name in step.outputs)

    def _session(self, step: Step, feed: _Arrays, fixed: _Arrays) -> Session:
        ranks = tuple((name, value.dtype.str, value.ndim) for name, value in feed.items())
        key = (step.node.key, ranks)
        if key not in self._sessions:
            infos = [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim
                )
                for name, value in feed.items()
            ]
            outputs = [onnx.ValueInfoProto(name=name) for name in step.outputs if name]
            held = [numpy_helper.from_array(value, name) for name, value in fixed.items()]
            graph = helper.make_graph([step.proto], "node", infos, outputs, held)
            opsets = [helper.make_opsetid(domain, n) for domain, n in self._opsets.items()]
            model = helper.make_model(graph, opset_imports=opsets, ir_version=_NEWEST_IR)
            self._sessions[key] = Session(model.SerializeToString())
        return self._sessions[key]


def _split(step: Step, inputs: Sequence[Value]) -> tuple[_Arrays, _Arrays]:
    """What is fed to a node, and what is written into its graph: sizes, axes.

    These tell the runtime of shapes before it runs.
    """
    feed: _Arrays = {}
    fixed: _Arrays = {}
    for name, value, element in zip(step.inputs, inputs, step.node.types, strict=True):
        if value is not None:
            (fixed if element in _INTEGERS else feed)[name] = _array(value)
    return feed, fixed


def _array(value: Value) -> NDArray[Any]:
    if not torch.is_tensor(value) and not isinstance(value, np.ndarray):
        raise SessionError("session: a sequence can't be fed to a node alone")
    return np.asarray(value.detach().numpy() if torch.is_tensor(value) else value)


def _value(array: NDArray[Any]) -> Value:
    return torch.from_numpy(np.array(array)) if array.dtype.kind in "iufb" else array
