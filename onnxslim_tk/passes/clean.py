"""Tidying without loss: nodes that do nothing, values known beforehand, things kept twice."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import (
    bypass,
    drop_unused,
    is_constant,
    output_names,
    producer,
    remove_node,
    replace_uses,
    values_of,
)
from onnxslim_tk.graph.evaluate import FOLDED, constant_bytes, evaluate, node_bytes
from onnxslim_tk.graph.inference import Types, infer_types
from onnxslim_tk.graph.model import Graph, Model, Node, Tensor, bodies, file_bytes
from onnxslim_tk.graph.neutral import unchanged_input
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal

_RANDOM = frozenset(
    ("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomUniform")
) | frozenset(("RandomNormalLike", "RandomUniformLike"))
# Below this many values the packer changes nothing that folding could spoil.
_FEW = 256
# Values along each axis, and in all, that are compared at a time.
_SOME = 16
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Clean:
    """Lossless tidying: the outputs stay the same to the bit.

    Drops nodes that no output needs or that change nothing, merges nested transposes, evaluates
    nodes of constants where the file doesn't grow by it, and merges equal constants and nodes.
    ``notes`` set to ``drop`` also takes the doc strings and metadata of nodes away, such as an
    exporter's stack traces, which no runtime reads.
    """

    name: ClassVar[str] = "clean"
    main: ClassVar[str] = "notes"
    observes: ClassVar[frozenset[Observable]] = frozenset()

    notes: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        if self.notes not in ("keep", "drop"):
            raise RecipeError(f"clean: notes must be keep or drop, got {self.notes!r}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row for the whole model, with what was counted and saved on a copy of it."""
        twin = model.copy()
        before = file_bytes(twin)
        counts = self._tidy(twin)
        if counts:
            saved = before - file_bytes(twin)
            yield Proposal(("model",), self.name, "", dict(sorted(counts.items())), saved)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Tidy the model; the counts of the chosen row are not needed for it."""
        if chosen:
            self._tidy(model)

    def _tidy(self, model: Model) -> Counter[str]:
        counts = _tidy(model)
        if self.notes == "drop":
            counts["notes"] = _drop_notes(model)
        return +counts


def _drop_notes(model: Model) -> int:
    """Take doc strings and metadata off the nodes; on how many there were any."""
    held = [n for n in model.notes.values() if n.doc_string or n.metadata_props]
    for note in held:
        note.ClearField("doc_string")
        note.ClearField("metadata_props")
    return len(held)


def _tidy(model: Model) -> Counter[str]:
    """Tidy in place until nothing is left to do; how often each thing was done."""
    counts: Counter[str] = Counter()
    types = infer_types(model)
    while True:
        done: Counter[str] = Counter(dead=_drop_dead(model))
        for path, graph in list(bodies(model.graph)):
            _pass_through(model, graph, path, types, done)
            _merge_transposes(graph, done)
            _fold(model, graph, path, done)
            _merge_nodes(model, graph, path, done)
        done["constants"] += _merge_constants(model)
        done = +done
        counts += done
        if not done:
            return counts


def _drop_dead(model: Model) -> int:
    before = sum(len(graph.nodes) for _, graph in bodies(model.graph))
    drop_unused(model)
    return before - sum(len(graph.nodes) for _, graph in bodies(model.graph))


def _pass_through(model: Model, graph: Graph, path: str, types: Types, done: Counter[str]) -> None:
    """Take out the nodes that give out what they take in."""
    names = {"Identity": "identities", "Dropout": "dropouts", "Cast": "casts", "Pad": "pads"}
    names |= {"Reshape": "reshapes", "Transpose": "transposes", "Slice": "slices"}
    fixed = output_names(model)
    for node in list(graph.nodes):
        if node.domain not in STANDARD_DOMAINS or not node.inputs or not node.outputs:
            continue
        source = unchanged_input(node, types, model.graph.opset, fixed)
        if source is None:
            continue
        if source is not node.inputs[0]:
            node.inputs[1] = node.inputs[0]
            node.inputs[0] = source
        if bypass(model, node, graph, path):
            done[names.get(node.op, "arithmetic")] += 1


def _merge_transposes(graph: Graph, done: Counter[str]) -> None:
    for node in graph.nodes:
        first = producer(node.inputs[0]) if node.op == "Transpose" and node.inputs else None
        if first is None or first.op != "Transpose":
            continue
        inner, outer = first.attrs.get("perm"), node.attrs.get("perm")
        if inner is None and outer is None:
            continue
        rank = len(inner or outer)
        inner = inner or list(range(rank))[::-1]
        outer = outer or list(range(rank))[::-1]
        node.attrs["perm"] = [inner[k] for k in outer]
        node.inputs[0] = first.inputs[0]
        done["transposes"] += 1


def _fold(model: Model, graph: Graph, path: str, done: Counter[str]) -> None:
    """Put values in the place of nodes of constants, where the file doesn't grow by it."""
    fixed = output_names(model)
    here = {id(node) for node in graph.nodes}
    for node in list(graph.nodes):
        if node.op not in FOLDED or len(node.outputs) != 1:
            continue
        target = node.outputs[0]
        # A body's constant that a body inside it reads would be written into both.
        local = not path or all(id(reader) in here for reader in target.outputs)
        if target.name in fixed or not local or not all(map(_is_known, node.inputs)):
            continue
        value = evaluate(node, model.graph.opset)
        if value is None or _grows(node, value):
            continue
        remove_node(graph, node)
        target.to_constant(value if value.ndim == 0 else np.ascontiguousarray(value))
        if not path:
            model.outer |= {target.name}
        done["folded"] += 1


def _is_known(tensor: Tensor) -> bool:
    return bool(tensor.is_empty()) or is_constant(tensor)


def _grows(node: Node, value: np.ndarray[Any, Any]) -> bool:
    """Whether ``value`` takes more bytes than the node and the constants that only it reads."""
    dying = {
        id(tensor): tensor
        for tensor in node.inputs
        if not tensor.is_empty() and all(reader is node for reader in tensor.outputs)
    }
    gone = node_bytes(node)
    plain = gone + sum(constant_bytes(t.name, values_of(t)) for t in dying.values())
    if constant_bytes(node.outputs[0].name, value) > plain:
        return True
    if value.size <= _FEW:
        return False
    # Few values behind a scale, or all-equal ones, pack far better apart than multiplied out.
    return packed_bytes(value) > gone + sum(packed_bytes(values_of(t)) for t in dying.values())


def _merge_nodes(model: Model, graph: Graph, path: str, done: Counter[str]) -> None:
    """Let one of several nodes that compute the same serve the readers of all."""
    fixed = output_names(model)
    first: dict[Any, Node] = {}
    for node in list(graph.nodes):
        key = _meaning(node)
        if key is None:
            continue
        twin = first.setdefault(key, node)
        if twin is node:
            continue
        if any(tensor.name in fixed for tensor in node.outputs):
            if any(tensor.name in fixed for tensor in twin.outputs):
                continue
            first[key], node, twin = node, twin, node
        for own, kept in zip(node.outputs, twin.outputs, strict=True):
            replace_uses(own, kept)
        old, new = path + node.outputs[0].name, path + twin.outputs[0].name
        names = (*model.origins.get(new, (new,)), *model.origins.pop(old, ()))
        model.origins[new] = tuple(dict.fromkeys(names))
        remove_node(graph, node)
        done["nodes"] += 1


def _meaning(node: Node) -> Any:
    """What ``node`` computes, as a key; None where two of its kind may differ."""
    if node.domain not in STANDARD_DOMAINS or node.op in _RANDOM or not node.outputs:
        return None
    if node.outputs[0].is_empty():
        return None
    attrs: list[tuple[str, str, Any]] = []
    for name, value in sorted(node.attrs.items()):
        if hasattr(value, "nodes"):
            return None
        if hasattr(value, "outputs"):
            content = _content(value)
            if content is None:
                return None
            attrs.append((name, "", content))
        else:
            attrs.append((name, type(value).__name__, repr(value)))
    inputs = tuple("" if t.is_empty() else id(t) for t in node.inputs)
    return node.op, tuple(attrs), inputs, tuple(t.is_empty() for t in node.outputs)


@dataclass(frozen=True, slots=True, eq=False)
class _Content:
    """What a constant holds, as a key; of a big one only some is read as long as that differs."""

    look: tuple[str, tuple[int, ...], bytes]
    values: np.ndarray[Any, Any]

    def __hash__(self) -> int:
        return hash(self.look)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Content) or self.look != other.look:
            return False
        mine, theirs = (np.ascontiguousarray(c.values).reshape(-1) for c in (self, other))
        return all(
            mine[k : k + _BLOCK].tobytes() == theirs[k : k + _BLOCK].tobytes()
            for k in range(0, mine.size, _BLOCK)
        )


def _content(tensor: Tensor) -> _Content | None:
    if not is_constant(tensor):
        return None
    values = values_of(tensor)
    if values.dtype.hasobject:
        return None
    some = values[tuple(slice(_SOME) for _ in values.shape)].tobytes()
    return _Content((str(values.dtype), values.shape, some), values)


def _merge_constants(model: Model) -> int:
    """Let the readers of equal constants of a graph share the one of the shortest name."""
    fixed = output_names(model)
    groups: dict[Any, list[Tensor]] = {}
    seen: set[int] = set()
    for path, graph in bodies(model.graph):
        for node in graph.nodes:
            for tensor in node.inputs:
                if id(tensor) in seen or not is_constant(tensor):
                    continue
                seen.add(id(tensor))
                scope = "" if tensor.name in model.outer else path
                # Reading all big weights at once would cost memory: equal ones agree in size.
                groups.setdefault((scope, str(tensor.dtype), tuple(tensor.shape)), []).append(
                    tensor
                )
    merged = 0
    for same in groups.values():
        first: dict[Any, Tensor] = {}
        if len(same) < 2:
            continue
        for tensor in sorted(same, key=lambda t: (t.name not in fixed, len(t.name), t.name)):
            kept = first.setdefault(_content(tensor) or id(tensor), tensor)
            if kept is not tensor and tensor.name not in fixed:
                replace_uses(tensor, kept)
                merged += 1
    return merged
