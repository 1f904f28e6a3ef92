"""An ONNX graph as a PyTorch module whose parameters are the tensors of the file."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.train.detached import Detached
from onnxslim_tk.train.execution import Run
from onnxslim_tk.train.holders import holders
from onnxslim_tk.train.operators.elementwise import ELEMENT_TYPES
from onnxslim_tk.train.parameters import trained
from onnxslim_tk.train.program import CONTROL, Program, compiled, to_value
from onnxslim_tk.train.rules import Tensor, Value
from onnxslim_tk.train.scale import Scale
from onnxslim_tk.train.ties import Tie, tied
from onnxslim_tk.train.weight import Weight


class GraphModule(nn.Module):
    """``model`` as a differentiable module.

    Called with a mapping of inputs by name, arrays or tensors, it gives the outputs by name.
    Parameters are the tensors of the file that :func:`onnxslim_tk.train.parameters.trained` finds;
    ``ties`` says by key, the path of a body and a name, which of ``weights`` holds it, and
    tensors that are one share one. 16-bit floats are calculated in 32 bits. With ``scales`` those
    of quantized numbers are parameters too. ``joins`` tells whether samples may be laid together
    along their first axis, ``detached`` which nodes ran in onnxruntime so far, because no rule is
    known: no gradient passes them. The model itself changes only by
    :func:`onnxslim_tk.train.write_back.write_back`. Raises TrainingError for sparse initializers.
    """

    def __init__(self, model: Model, scales: bool = False) -> None:
        super().__init__()
        self._program = program = compiled(model)
        roles = trained(program, scales)
        held = {key: id(holder) for key, holder in holders(model, roles)}
        # Constants of local functions belong to all of their calls, and stay as they are.
        roles = {key: role for key, role in roles.items() if key in held}
        self.ties: dict[str, Tie] = tied({key: program.constants[key] for key in roles}, held)
        self.weights = nn.ModuleList()
        for key, tie in self.ties.items():
            if tie.weight == len(self.weights):
                role, constant = roles[key], program.constants[key]
                if role.is_scale:
                    self.weights.append(Scale(constant.values))
                else:
                    self.weights.append(Weight(constant, role.is_matrix, role.unit, role.zero))
        for key, tie in self.ties.items():
            names = roles[key].factors or (roles[key].scale,)
            followed = [self.weights[self.ties[n].weight] for n in names if n in self.ties]
            if followed:
                self.weights[tie.weight].follow(*followed)
        self._fixed: dict[str, Value] = {}
        self._buffer_names: dict[str, str] = {}
        for number, (key, constant) in enumerate(program.constants.items()):
            if key in self.ties:
                continue
            value = to_value(constant)
            if torch.is_tensor(value):
                self._buffer_names[key] = name = f"constant{number}"
                self.register_buffer(name, value, persistent=False)
            else:
                self._fixed[key] = value
        self._runtime = Detached(program.opsets)
        self.inputs = tuple(n for n in program.inputs if n not in program.constants)
        self.outputs = tuple(program.outputs)
        self.joins = program.joins

    @property
    def program(self) -> Program:
        """The steps that the module runs."""
        return self._program

    @property
    def detached(self) -> tuple[str, ...]:
        """Nodes that ran without gradient so far, each with its operator and the reason."""
        return tuple(f"{key}: {why}" for key, why in self._runtime.reasons.items())

    @property
    def without_rule(self) -> frozenset[str]:
        """Operators of the graph that have no rule at all."""
        return frozenset(
            step.node.kind
            for step in self._program.makers.values()
            if step.rule is None and step.node.kind not in CONTROL
        )

    def named(self, feed: Mapping[str, Any]) -> Mapping[str, Any]:
        """``feed`` by the names of the inputs; a single one may have another name."""
        if len(self.inputs) == 1 and len(feed) == 1:
            return {self.inputs[0]: next(iter(feed.values()))}
        return feed

    def parameter(self, key: str) -> nn.Parameter:
        """The parameter of a tensor; raises TrainingError where that isn't trained."""
        if key not in self.ties:
            raise TrainingError(f"train: the tensor {key!r} isn't one that is trained")
        found: nn.Parameter = self.weights[self.ties[key].weight].value
        return found

    def forward(
        self, feed: Mapping[str, Any], names: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """The outputs for ``feed``, or the tensors ``names``, inner ones by path and name.

        Raises TrainingError for an input that is missing, a name that isn't there or whose branch
        doesn't run, and a step that fails.
        """
        missing = [name for name in self.inputs if name not in feed]
        if missing:
            raise TrainingError(f"train: the graph needs the input {missing[0]!r}")
        wanted = list(self.outputs if names is None else names)
        run = Run(self._constants(), self._runtime, frozenset(wanted) - {*self.outputs})
        given = {name: _fed(value) for name, value in feed.items()}
        found = {**run.body(self._program.top, {}, given), **run.kept}
        lost = [name for name in wanted if name not in found]
        if lost:
            raise TrainingError(f"train: no tensor {lost[0]!r} came by in this run")
        return {name: self._typed(name, found[name]) for name in wanted}

    def _typed(self, name: str, value: Value) -> Value:
        """Codes that are carried as floats leave the graph as the integers they are."""
        dtype = ELEMENT_TYPES.get(self._program.outputs.get(name, 0))
        if dtype is None or dtype.is_floating_point or not torch.is_tensor(value):
            return value
        return value.to(dtype)

    def _constants(self) -> Any:
        """A function that gives a tensor of the file by key; each is made once for a run."""
        made: dict[int, Tensor] = {}

        def constant(key: str) -> Value:
            tie = self.ties.get(key)
            if tie is None:
                name = self._buffer_names.get(key)
                return self._fixed[key] if name is None else self._buffers[name]
            if tie.weight not in made:
                made[tie.weight] = self.weights[tie.weight].dense()
            return tie.view(made[tie.weight])

        return constant


def _fed(value: Any) -> Value:
    """An input as a run carries it."""
    if not torch.is_tensor(value):
        array = np.asarray(value)
        if array.dtype.kind not in "iufb":
            return array
        value = torch.from_numpy(array if array.flags.writeable else array.copy())
    return value.to(torch.float32) if value.dtype in (torch.float16, torch.bfloat16) else value
