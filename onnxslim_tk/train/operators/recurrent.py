"""LSTM, GRU and RNN, step by step: all directions, initial states, lengths, peepholes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from onnxslim_tk.train.rules import Node, Rules, Tensor

RECURRENT = Rules()
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": F.softsign,
    "softplus": F.softplus,
}
_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


@dataclass(frozen=True, slots=True)
class _Cell:
    """One direction: ``step(inputs, states)`` gives the next states, the output first.

    ``inputs`` are the products with the inputs' weights and the biases that may be added before.
    """

    weight: Tensor
    added: Tensor
    step: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _functions(node: Node, direction: int) -> list[Callable[[Tensor], Tensor]]:
    defaults = _DEFAULTS[node.kind]
    names = node.get("activations") or list(defaults) * 2
    names = [name.decode() if isinstance(name, bytes) else name for name in names]
    own = names[direction * len(defaults) : (direction + 1) * len(defaults)]
    missing = [name for name in own if name.lower() not in _FUNCTIONS]
    if missing or node.get("clip") or node.get("activation_alpha"):
        raise node.refuse("a clipped or a rare activation")
    return [_FUNCTIONS[name.lower()] for name in own]


def _lstm(
    node: Node, direction: int, w: Tensor, r: Tensor, b: Tensor, peephole: Tensor | None
) -> _Cell:
    gate, candidate, output = _functions(node, direction)
    coupled = bool(node.get("input_forget", 0))
    turned = r.t()
    looks = [0.0] * 3 if peephole is None else list(peephole.chunk(3))

    def step(inputs: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, cell = states
        i, o, f, c = (inputs + hidden @ turned).chunk(4, -1)
        enter = gate(i + looks[0] * cell if peephole is not None else i)
        forget = f + looks[2] * cell if peephole is not None else f
        keep = 1 - enter if coupled else gate(forget)
        cell = keep * cell + enter * candidate(c)
        leave = gate(o + looks[1] * cell if peephole is not None else o)
        return leave * output(cell), cell

    half = len(b) // 2
    return _Cell(w, b[:half] + b[half:], step)


def _gru(node: Node, direction: int, w: Tensor, r: Tensor, b: Tensor) -> _Cell:
    gate, candidate = _functions(node, direction)
    size = r.shape[1]
    inner, outer = b[: 3 * size], b[3 * size :]
    gates, last = r[: 2 * size].t(), r[2 * size :].t()
    linear = bool(node.get("linear_before_reset", 0))
    zero = torch.zeros_like(outer[2 * size :])
    added = inner + torch.cat([outer[: 2 * size], zero if linear else outer[2 * size :]])

    def step(inputs: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = states
        update, reset = gate(inputs[..., : 2 * size] + hidden @ gates).chunk(2, -1)
        after = hidden @ last + outer[2 * size :] if linear else None
        carried = (reset * hidden) @ last if after is None else reset * after
        new = candidate(inputs[..., 2 * size :] + carried)
        return (new + update * (hidden - new),)

    return _Cell(w, added, step)


def _rnn(node: Node, direction: int, w: Tensor, r: Tensor, b: Tensor) -> _Cell:
    (function,) = _functions(node, direction)
    turned, half = r.t(), len(b) // 2

    def step(inputs: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (function(inputs + states[0] @ turned),)

    return _Cell(w, b[:half] + b[half:], step)


def _run(
    cell: _Cell, x: Tensor, states: tuple[Tensor, ...], lengths: Tensor | None, turned: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs ``(time, batch, hidden)`` and the last states of one direction."""
    inputs = x @ cell.weight.t() + cell.added
    outputs: list[Tensor] = [x] * len(x)
    for time in range(len(x) - 1, -1, -1) if turned else range(len(x)):
        after = cell.step(inputs[time], states)
        if lengths is None:
            states = after
            outputs[time] = after[0]
        else:
            # Beyond its end, a sequence keeps its states and gives zeros.
            alive = (time < lengths)[:, None]
            states = tuple(
                torch.where(alive, new, old) for new, old in zip(after, states, strict=True)
            )
            outputs[time] = torch.where(alive, after[0], torch.zeros_like(after[0]))
    return torch.stack(outputs), states


@RECURRENT.operator("LSTM", "GRU", "RNN")
def _recurrent(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    by_batch = bool(node.get("layout", 0))
    if by_batch:
        x = x.transpose(0, 1)
        hidden = None if hidden is None else hidden.transpose(0, 1)
        cell = None if cell is None else cell.transpose(0, 1)
    size, batch = r.shape[2], x.shape[1]
    if lengths is not None and bool((lengths >= len(x)).all()):
        lengths = None
    count = 2 if node.kind == "LSTM" else 1
    outputs, last = [], []
    for direction in range(w.shape[0]):
        bias = x.new_zeros(2 * w.shape[1]) if b is None else b[direction]
        own = (w[direction], r[direction], bias)
        if node.kind == "LSTM":
            peephole = None if peepholes is None else peepholes[direction]
            unit = _lstm(node, direction, *own, peephole)
        else:
            unit = (_gru if node.kind == "GRU" else _rnn)(node, direction, *own)
        given = (hidden, cell)[:count]
        states = tuple(x.new_zeros(batch, size) if s is None else s[direction] for s in given)
        turned = node.get("direction", "forward") == "reverse" or direction == 1
        found, states = _run(unit, x, states, lengths, turned)
        outputs.append(found)
        last.append(states)
    result = [torch.stack(outputs, 1)]
    result += [torch.stack([states[k] for states in last]) for k in range(count)]
    if by_batch:
        result = [result[0].permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in result[1:])]
    return tuple(result)
