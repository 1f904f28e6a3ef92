"""Constants made plain: chains that only decode constants become dense initializers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import onnx
from onnx import TensorProto, helper

from onnxslim_tk.graph.weights import LARGEST, Weights, is_apart, place
from onnxslim_tk.packing.constants import delete_nodes, store_constants
from onnxslim_tk.packing.decode import evaluate
from onnxslim_tk.packing.inspect import inspect
from onnxslim_tk.packing.operators import LIMIT, Array, UndecodableError
from onnxslim_tk.packing.scopes import Key, Scope, opset_version, scopes
from onnxslim_tk.packing.steps import (
    Step,
    Steps,
    Stored,
    end_steps,
    find_steps,
    keys_of,
    scaled_steps,
    stored_constants,
)

_PLAIN_KINDS = "iufb"
_FEW = 256
_ROWS = (2, 4, 8)

# What decoding may come to, so that a small file can't fill a computer: a bit may become a float,
# twice over, and a chain's way there may be this much longer than its end.
_FREE_BYTES = 16 << 20
_BYTES_PER_ELEMENT = 64
_BYTES_UNDERWAY = 16
_STEPS_PER_NODE = 64
_SHARED_BYTES = 16 << 20
_SHARED_VALUE = 16 << 10


@dataclass
class _Budget:
    """What is left to spend: bytes of decoded tensors, and steps; ``underway`` bytes at a time.

    ``shared`` holds small values, tables above all, that many chains read.
    """

    bytes: int
    steps: int
    underway: int
    shared: dict[Key, Array] = field(default_factory=dict)
    shared_bytes: int = 0

    def spend(self, steps: int = 0, nbytes: int = 0) -> None:
        self.steps -= steps
        self.bytes -= nbytes
        if self.steps < 0 or self.bytes < 0:
            raise _SpentError

    def share(self, key: Key, value: Array) -> None:
        if value.nbytes <= _SHARED_VALUE and self.shared_bytes + value.nbytes <= _SHARED_BYTES:
            self.shared[key] = value
            self.shared_bytes += value.nbytes


def unpack(model: onnx.ModelProto, weights: Weights | None = None) -> int:
    """Make the constants of ``model`` plain initializers, in place; return how many it made.

    Constant nodes become initializers, and every value that storage operators compute from
    constants alone becomes one under its own name, in all bodies, whoever wrote the chain. Values
    and scale stay apart: DequantizeLinear is never evaluated, nor is a multiplication that scales
    small integers or the few values of a codebook; only what feeds it is decoded. Left alone are
    graph outputs, other domains, outputs above 1 GiB, models of IR version 3 and below, and what
    is left when decoding has come to 64 bytes for each element that the file stores, or to 64
    steps for each of its nodes. ``weights`` holds values outside the message, and takes up the big
    ones that are made; what only names or reshapes a weight shares its array.
    """
    weights = Weights(LARGEST) if weights is None else weights
    if model.ir_version < 4:
        return 0
    found = scopes(model)
    made = sum(store_constants(scope) for scope in found)
    opset = opset_version(model)
    if opset < 7:
        return made
    blocked: set[Key] = set()
    touched: set[Key] = set()
    budget = _budget(found, stored_constants(found, weights))
    while True:
        stored = stored_constants(found, weights)
        steps = find_steps(found, stored, blocked)
        scaled = scaled_steps(steps, stored)
        if scaled:
            blocked |= scaled
            continue
        failed: set[Key] = set()
        decoded: list[tuple[Step, TensorProto]] = []
        try:
            budget.spend(steps=len(steps))
            for step in end_steps(found, steps):
                try:
                    value = _decode(step, steps, stored, budget, weights)
                    decoded.append((step, _tensor(step, value, weights)))
                except _StuckError as stuck:
                    failed.add(stuck.key)
        except _SpentError:
            failed |= steps.keys() - {step.key for step, _ in decoded}
        _keep(decoded, touched)
        made += len(decoded)
        if not failed:
            _prune(found, blocked, touched, weights)
            return made
        blocked |= failed


class _StuckError(Exception):
    """The step that makes ``key`` can't be evaluated, or mustn't be."""

    def __init__(self, key: Key) -> None:
        super().__init__(key[1])
        self.key = key


class _SpentError(Exception):
    """The budget for decoding is spent; what isn't decoded by now stays as it is."""


def _budget(found: list[Scope], stored: Stored) -> _Budget:
    # Any number of tensors may lie at one place of a data file.
    apart = {place(tensor): prod(tensor.dims) for tensor in stored.values() if is_apart(tensor)}
    elements = sum(prod(tensor.dims) for tensor in stored.values() if not is_apart(tensor))
    elements += sum(apart.values())
    nodes = sum(len(scope.graph.node) for scope in found)
    total = _FREE_BYTES + _BYTES_PER_ELEMENT * elements
    return _Budget(total, _STEPS_PER_NODE * (nodes + 1), _BYTES_UNDERWAY * total)


def _decode(end: Step, steps: Steps, stored: Stored, budget: _Budget, weights: Weights) -> Array:
    values: dict[Key, Array] = {}
    underway = budget.underway
    for key in _needed(end, steps, budget):
        if key in budget.shared:
            values[key] = budget.shared[key]
            continue
        step = steps[key]
        for source in step.inputs:
            if source not in values:
                values[source] = weights.values(stored[source])
        inputs = [values[source] for source in step.inputs]
        try:
            values[key] = evaluate(step.node, inputs, min(LIMIT, underway))
        except UndecodableError as error:
            raise _StuckError(key) from error
        underway -= values[key].nbytes
        if step.node.op_type == "Mul" and _scales_codebook(inputs, values[key]):
            raise _StuckError(key)
        budget.share(key, values[key])
    value = values[end.key]
    if value.dtype.kind not in _PLAIN_KINDS and value.dtype.name != "bfloat16":
        raise _StuckError(end.key)
    budget.spend(nbytes=value.nbytes)
    return value


def _tensor(end: Step, value: Array, weights: Weights) -> TensorProto:
    """The initializer that takes the place of a chain."""
    element: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor = TensorProto(name=end.key[1], data_type=element, dims=value.shape)
    # Only the outermost graph's initializers may lie outside.
    keeper = weights if end.scope.parent is None else Weights(LARGEST)
    keeper.put(tensor, value)
    return tensor


def _needed(end: Step, steps: Steps, budget: _Budget) -> Iterator[Key]:
    """Yield the steps that ``end`` takes, itself the last, each after those that it reads."""
    done: set[Key] = set()
    waiting = [end.key]
    while waiting:
        key = waiting[-1]
        if key not in budget.shared and key not in done:
            missing = [s for s in steps[key].inputs if s in steps and s not in done]
            if missing:
                waiting.extend(missing)
                continue
        waiting.pop()
        if key not in done:
            done.add(key)
            budget.spend(steps=1)
            yield key


def _scales_codebook(inputs: list[Array], product: Array) -> bool:
    """Return whether ``product`` has lost the few values that its larger factor had."""
    values = max(inputs, key=lambda value: value.size)
    if product.dtype.kind != "f" or product.size <= _FEW:
        return False
    return _has_codebook(values) and not _has_codebook(product)


def _has_codebook(values: Array) -> bool:
    """Return whether there are at most 256 distinct values, or rows of a few values."""

    def few(count: int, _: int) -> bool:
        return count <= _FEW

    facts = inspect(values)
    if facts.alphabet is not None and len(facts.alphabet.entries) <= _FEW:
        return True
    return any(facts.rows(width, few) is not None for width in _ROWS)


def _keep(decoded: list[tuple[Step, TensorProto]], touched: set[Key]) -> None:
    """Put decoded tensors in the place of the nodes that made them."""
    gone: dict[Scope, set[str]] = {}
    for step, tensor in decoded:
        step.scope.graph.initializer.append(tensor)
        gone.setdefault(step.scope, set()).add(tensor.name)
        touched.update(step.inputs)
    for scope, names in gone.items():
        delete_nodes(scope, names)


def _prune(found: list[Scope], blocked: set[Key], touched: set[Key], weights: Weights) -> None:
    """Take away the steps and the initializers that only served what is decoded now."""
    steps = find_steps(found, stored_constants(found, weights), blocked)
    uses: Counter[Key | None] = Counter()
    for scope in found:
        uses.update(keys_of(scope, [v.name for v in scope.graph.output]))
        for node in scope.graph.node:
            uses.update(keys_of(scope, node.input))
    gone: dict[Scope, set[str]] = {}
    for key, step in reversed(steps.items()):
        if not uses[key]:
            uses.subtract(step.inputs)
            touched.update(step.inputs)
            gone.setdefault(step.scope, set()).add(key[1])
    for scope in found:
        dead = gone.get(scope, set())
        delete_nodes(scope, dead)
        inputs = {v.name for v in scope.graph.input}
        for index in reversed(range(len(scope.graph.initializer))):
            name = scope.graph.initializer[index].name
            if (scope, name) in touched and not uses[scope, name] and name not in inputs:
                del scope.graph.initializer[index]
                dead.add(name)
        for index in reversed(range(len(scope.graph.value_info))):
            if scope.graph.value_info[index].name in dead:
                del scope.graph.value_info[index]
