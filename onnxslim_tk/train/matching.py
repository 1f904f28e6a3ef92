"""Matching: which tensors of a student are to be like which of its teacher's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.kinds import guess_kind
from onnxslim_tk.train.adapters import channel_axis
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.parameters import MATRICES
from onnxslim_tk.train.rules import Tensor
from onnxslim_tk.train.terms import Term

_MOST: Final = 8
"""Pairs of tensors that a loss compares, spread over the depth."""
_NORMALS: Final = (
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "RMSNormalization",
    "com.microsoft:SkipLayerNormalization",
)
_CARRIERS: Final = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Flatten")
_FORMS: Final = {"Softmax": "probabilities", "Sigmoid": "chances", "HardSigmoid": "chances"}
_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tensor of the outermost graph as one sample shows it."""

    name: str
    operator: str
    shape: tuple[int, ...]


def output_terms(
    student: GraphModule,
    teacher: GraphModule,
    feeds: Sequence[Mapping[str, Any]],
    *,
    temperature: float = 1.0,
    weight: float = 1.0,
    kind: str = "",
    names: Mapping[str, str] | None = None,
    by: int = 0,
) -> list[Term]:
    """A term for each output of the student that the teacher has too, the weight shared.

    ``names`` says which output of the teacher belongs to one of the student where the names
    differ. Distributions are compared softly, maps of chances by their divergence, anything else by
    its squared error, unless ``kind`` settles it. Raises TrainingError where nothing matches.
    """
    pairs = dict(names or {})
    if not pairs:
        pairs = {name: name for name in student.outputs if name in teacher.outputs}
    if not pairs and len(student.outputs) == len(teacher.outputs) == 1:
        pairs = {student.outputs[0]: teacher.outputs[0]}
    if not pairs:
        raise TrainingError(
            f"train: no output of the teacher ({', '.join(teacher.outputs)}) has the name of one "
            f"of the student's ({', '.join(student.outputs)}); say which belong together"
        )
    for name, wanted in pairs.items():
        if name not in student.outputs or wanted not in teacher.outputs:
            raise TrainingError(f"train: {name!r} and {wanted!r} are no outputs of these models")
    made = []
    with torch.no_grad():
        said = [teacher(teacher.named(feed)) for feed in feeds]
    for name, wanted in pairs.items():
        values = [found[wanted] for found in said]
        if not all(torch.is_tensor(value) and value.is_floating_point() for value in values):
            continue
        chosen = kind or _kind(teacher, wanted, values)
        made.append(Term(name, wanted, chosen, weight, temperature, by))
    if not made:
        raise TrainingError("train: the outputs hold no floats, so that there is nothing to learn")
    return [replace(term, weight=term.weight / len(made)) for term in made]


def form_of(module: GraphModule, output: str) -> str:
    """What an output holds by what makes it: scores, probabilities or chances."""
    step = module.program.makers.get(output)
    while step is not None and step.node.kind in _CARRIERS:
        step = module.program.makers.get(step.keys[0])
    return "scores" if step is None else _FORMS.get(step.node.kind, "scores")


def _kind(teacher: GraphModule, name: str, values: Sequence[Tensor]) -> str:
    form = form_of(teacher, name)
    if form == "chances":
        return form
    if form == "probabilities":
        # Along another axis they would be compared with what they have nothing to do with.
        sums = [value.sum(-1) for value in values if value.dim()]
        whole = all(bool(torch.allclose(s, torch.ones_like(s), atol=_TOLERANCE)) for s in sums)
        return form if whole else "features"
    guessed = guess_kind(name, [np.asarray(value) for value in values])
    return "scores" if guessed in ("classes", "sequence") else "features"


def by_name(
    student: GraphModule,
    teacher: GraphModule,
    feed: Mapping[str, Any],
    weight: float = 1.0,
    most: int = _MOST,
    by: int = 0,
) -> list[Term]:
    """Terms for what layers put out under the same name in both, the weight shared.

    Where the numbers of channels differ an adapter comes between. At most ``most``, spread over
    the depth.
    """
    theirs = {seen.name: seen for seen in _layers(teacher, feed)}
    pairs = []
    for mine in _layers(student, feed):
        other = theirs.get(mine.name)
        if other is not None and _fit(mine, other):
            pairs.append((mine, other))
    return _terms(_spread(pairs, most), "features", weight, by)


def by_position(
    student: GraphModule,
    teacher: GraphModule,
    feed: Mapping[str, Any],
    weight: float = 1.0,
    most: int = _MOST,
    by: int = 0,
) -> list[Term]:
    """Terms for what layers put out at the same relative depth, through adapters.

    Only what has the same places (all axes but the channels') is compared, and of each number of
    places the last layers agree. At most ``most``, spread over the depth (Romero et al., 2015).
    """
    mine, theirs = _by_places(_layers(student, feed)), _by_places(_layers(teacher, feed))
    pairs = []
    for places, some in mine.items():
        others = theirs.get(places, [])
        if others:
            pairs += _aligned(some, others)
    pairs = [pair for pair in pairs if _fit(*pair)]
    # The outputs of later layers first: of one depth, the deepest says most.
    return _terms(_spread(pairs, most), "features", weight, by)


def attention(
    student: GraphModule,
    teacher: GraphModule,
    feed: Mapping[str, Any],
    weight: float = 1.0,
    most: int = _MOST,
    by: int = 0,
) -> list[Term]:
    """Terms for attention, a Softmax ``(n, heads, length, length)``, by relative depth."""
    found = [
        [seen for seen in _seen(module, feed, ("Softmax",)) if _attends(seen)]
        for module in (student, teacher)
    ]
    if not all(found):
        raise TrainingError("train: student and teacher need attention, one of them has none")
    return _terms(_spread(_aligned(found[0], found[1]), most), "attention", weight, by)


def hidden(
    student: GraphModule,
    teacher: GraphModule,
    feed: Mapping[str, Any],
    weight: float = 1.0,
    most: int = _MOST,
    by: int = 0,
) -> list[Term]:
    """Terms for hidden states, what normalizations ``(n, length, width)`` put out, by depth."""
    found = [
        [seen for seen in _normals(module, feed) if len(seen.shape) == 3]
        for module in (student, teacher)
    ]
    if not all(found):
        raise TrainingError("train: student and teacher need hidden states, one of them has none")
    pairs = [pair for pair in _aligned(found[0], found[1]) if _fit(*pair)]
    return _terms(_spread(pairs, most), "features", weight, by)


def _normals(module: GraphModule, feed: Mapping[str, Any]) -> list[_Seen]:
    """Outputs of normalizations; of those spelled out, the last Add behind a Sqrt."""
    found = _seen(module, feed, _NORMALS)
    if found:
        return found
    behind, names = False, []
    for step in module.program.top.steps:
        if step.node.kind == "Sqrt":
            behind = True
        elif step.node.kind == "Add" and behind:
            # The Add of an epsilon comes before the root, that of the shift after it.
            names.append(step.outputs[0])
            behind = False
    return _shown(module, feed, {name: "Add" for name in names})


def _layers(module: GraphModule, feed: Mapping[str, Any]) -> list[_Seen]:
    """What layers with weights put out, in the order of the graph."""
    constants = module.program.constants
    names = {
        step.outputs[0]: step.node.kind
        for step in module.program.top.steps
        # What is looked up is no more than the weight itself.
        if step.node.kind != "Gather"
        and step.outputs[0] not in module.outputs
        and any(
            slot < len(step.keys) and _leads(module, step.keys[slot], constants)
            for slot in MATRICES.get(step.node.kind, ())
        )
    }
    return [seen for seen in _shown(module, feed, names) if len(seen.shape) > 1]


def _leads(module: GraphModule, key: str, constants: Mapping[str, Any]) -> bool:
    """Whether a tensor is a constant, or decoded from constants."""
    while key not in constants:
        step = module.program.makers.get(key)
        if step is None or step.node.kind not in (*_CARRIERS, "DequantizeLinear", "Transpose"):
            return False
        key = step.keys[0]
    return True


def _seen(module: GraphModule, feed: Mapping[str, Any], kinds: Sequence[str]) -> list[_Seen]:
    names = {s.outputs[0]: s.node.kind for s in module.program.top.steps if s.node.kind in kinds}
    return _shown(module, feed, names)


def _shown(module: GraphModule, feed: Mapping[str, Any], names: Mapping[str, str]) -> list[_Seen]:
    with torch.no_grad():
        values = module(module.named(feed), names) if names else {}
    return [
        _Seen(name, names[name], tuple(value.shape))
        for name, value in values.items()
        if torch.is_tensor(value) and value.is_floating_point()
    ]


def _attends(seen: _Seen) -> bool:
    return len(seen.shape) == 4 and seen.shape[2] == seen.shape[3]


def _fit(mine: _Seen, other: _Seen) -> bool:
    return mine.shape == other.shape or channel_axis(mine.shape, other.shape) is not None


def _by_places(found: Sequence[_Seen]) -> dict[tuple[int, ...], list[_Seen]]:
    """Tensors by their shape without channels."""
    groups: dict[tuple[int, ...], list[_Seen]] = {}
    for seen in found:
        pictures = seen.operator in ("Conv", "ConvTranspose", "QLinearConv")
        axis = 1 if pictures else len(seen.shape) - 1
        places = (axis, *seen.shape[:axis], *seen.shape[axis + 1 :])
        groups.setdefault(places, []).append(seen)
    return groups


def _aligned(mine: Sequence[_Seen], theirs: Sequence[_Seen]) -> list[tuple[_Seen, _Seen]]:
    """Pairs at the same relative depth, the last with the last."""
    if len(mine) > len(theirs):
        return [(a, b) for b, a in _aligned(theirs, mine)]
    step = len(theirs) / len(mine)
    return [(seen, theirs[round((k + 1) * step) - 1]) for k, seen in enumerate(mine)]


def _spread(pairs: Sequence[tuple[_Seen, _Seen]], most: int) -> list[tuple[_Seen, _Seen]]:
    if len(pairs) <= most:
        return list(pairs)
    step = len(pairs) / most
    return [pairs[round((k + 1) * step) - 1] for k in range(most)]


def _terms(pairs: Sequence[tuple[_Seen, _Seen]], kind: str, weight: float, by: int) -> list[Term]:
    return [
        Term(
            mine.name,
            other.name,
            kind,
            weight / len(pairs),
            by=by,
            adapter=kind == "features" and mine.shape != other.shape,
        )
        for mine, other in pairs
    ]
