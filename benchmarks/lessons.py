"""Ways to train that ``training.py`` compares: each takes the nets of a seed and gives figures."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from onnx import helper, numpy_helper

from benchmarks.school import SLANTS, School, Trial, macs
from onnxslim_tk.graph.model import from_proto, to_parts
from onnxslim_tk.graph.stored import joined
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.pipeline.files import load, save
from onnxslim_tk.plan.augmentation import Shift
from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.train.distillation import distill, finetune
from onnxslim_tk.train.matching import by_position
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.terms import AnyTerm, Labelled, Term
from onnxslim_tk.train.write_back import write_back

_BATCH: Final = 32
_SMALL: Final = 800
"""Steps of the tiny student."""
_LARGE: Final = 250
"""Steps of the net that is compressed, at its whole size."""
_TIDY: Final = "clean: [clean], fuse: [fuse]"
_VARIED: Final = (Shift(2),)


def _schedule(school: School, steps: int, rate: float = 1e-3, **more: Any) -> Schedule:
    return Schedule(
        steps=steps, batch=_BATCH, rate=rate, every=100, patience=100, seed=school.seed, **more
    )


def _tuned(
    school: School,
    source: Path,
    name: str,
    steps: int,
    rate: float = 1e-3,
    keep: Literal["best", "last"] = "best",
    **more: Any,
) -> Path:
    """``source``, trained on labels, as a file."""
    path = school.folder / f"{name}.onnx"
    model = load(source)
    module = GraphModule(model, scales=True)
    learn, choose, _ = school.parts
    finetune(
        module,
        [Labelled(module.outputs[0])],
        learn.samples(0),
        choose.samples(0),
        _schedule(school, steps, rate, **more),
        augment=_VARIED,
        keep=keep,
    )
    write_back(module, model)
    save(model, path)
    return path


# A student with and without a teacher

_FEW: Final = 300
"""Images that students have: a customer's, where the teacher saw a vendor's."""


def _own(school: School) -> tuple[Samples, Samples]:
    learn, choose, _ = school.parts
    return learn.samples(0).take(range(_FEW)), choose.samples(0)


def _taught(school: School, soft: float, layers: float, hard: float) -> dict[str, float]:
    model, teacher = load(school.student(10)), GraphModule(load(school.teacher()))
    student = GraphModule(model)
    terms: list[AnyTerm] = []
    if hard:
        terms.append(Labelled("y0", weight=hard))
    if soft:
        terms.append(Term("y0", "y", "scores", soft, temperature=3.0))
    if layers:
        terms += by_position(student, teacher, {"x": school.parts[0].images[:2]}, layers)
    schedule = _schedule(school, _SMALL, 3e-3)
    distill(student, teacher, terms, *_own(school), schedule, augment=_VARIED)
    return _figures(school, student, model)


def _figures(school: School, module: GraphModule, model: Any) -> dict[str, float]:
    write_back(module, model)
    path = school.folder / "result.onnx"
    save(model, path)
    return {"accuracy": school.accuracy(path)}


def _teacher(school: School) -> dict[str, float]:
    return {"accuracy": school.accuracy(school.teacher())}


# Two teachers


def _two_heads(school: School, columns: Sequence[int]) -> dict[str, float]:
    """A head for each of ``columns``, each with a teacher of its own."""
    classes = (10, SLANTS)
    model = load(school.student(*(classes[column] for column in columns)))
    student = GraphModule(model)
    teachers = [GraphModule(load(school.teacher(column))) for column in columns]
    terms = [Term(f"y{k}", "y", "scores", temperature=3.0, by=k) for k in range(len(columns))]
    schedule = _schedule(school, _SMALL, 3e-3)
    distill(student, teachers, terms, *_own(school), schedule, augment=_VARIED)
    write_back(student, model)
    path = school.folder / "result.onnx"
    save(model, path)
    names = ("digits", "slants")
    return {names[c]: school.accuracy(path, c, k) for k, c in enumerate(columns)}


def _both_teachers(school: School) -> dict[str, float]:
    return {
        "digits": school.accuracy(school.teacher(0), 0),
        "slants": school.accuracy(school.teacher(1), 1),
    }


# Zeros

_L1: Final = 0.5


def _sparse(school: School, source: Path, name: str) -> Path:
    # Plain magnitudes, all layers alike, without a refit: what training alone makes of them.
    way = "{sparsity: 0.8, mask: magnitude, scope: layer, recover: false}"
    return school.compressed(source, name, f"{{{_TIDY}, sparsity: [{{sparsify: {way}}}]}}")


def _magnitude(school: School) -> dict[str, float]:
    pruned = _sparse(school, school.teacher(), "magnitude")
    return {
        "before": school.accuracy(pruned),
        **_of_zeros(school, _tuned(school, pruned, "magnitude-tuned", _LARGE)),
    }


def _induced(school: School) -> dict[str, float]:
    """Half of the steps shrink weights to zero, the other half trains what is left."""
    tidy = school.compressed(school.teacher(), "tidy", f"{{{_TIDY}}}")
    shrunk = _tuned(school, tidy, "shrunk", _LARGE // 2, keep="last", average=0.0, l1=_L1)
    pruned = _sparse(school, shrunk, "induced")
    return {
        "shrunk": _zeros(shrunk),
        "before": school.accuracy(pruned),
        **_of_zeros(school, _tuned(school, pruned, "induced-tuned", _LARGE // 2)),
    }


def _of_zeros(school: School, path: Path) -> dict[str, float]:
    return {"accuracy": school.accuracy(path), "zeros": _zeros(path)}


def _zeros(path: Path) -> float:
    """The share of zeros in matrices."""
    proto = joined(*to_parts(load(path)))
    arrays = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    weights = [array for array in arrays if array.ndim > 1]
    return float(sum((w == 0).sum() for w in weights) / sum(w.size for w in weights))


# Channels

_STAY: Final = 0.6


def _cut(school: School, source: Path, name: str, share: float) -> Path:
    way = f"{{keep: 0.1, macs: {share}}}"
    return school.compressed(source, name, f"{{{_TIDY}, structure: [{{channels: {way}}}]}}")


def _channels(school: School, rounds: int) -> dict[str, float]:
    """Cut to six tenths of the MACs in so many rounds; all rounds train for the same time.

    Time is counted in multiply-accumulates of training, so that no clock decides.
    """
    whole = macs(GraphModule(load(school.teacher())))
    source, figures = school.teacher(), dict[str, float]()
    for number in range(1, rounds + 1):
        now = macs(GraphModule(load(source)))
        wanted = whole * _STAY ** (number / rounds)
        source = _cut(school, source, f"cut{rounds}-{number}", wanted / now)
        left = macs(GraphModule(load(source)))
        figures["before"] = school.accuracy(source)
        steps = max(1, round(_LARGE * _STAY * whole / left / rounds))
        source = _tuned(school, source, f"cut{rounds}-{number}-tuned", steps)
        figures["steps"] = figures.get("steps", 0) + steps
    figures["macs"] = left / whole
    return {"accuracy": school.accuracy(source), **figures}


# Few bits


def _grid(school: School, bits: int) -> Path:
    """The fused net with weights on a grid per channel, to the nearest, the least square error."""
    path = school.folder / f"grid{bits}.onnx"
    tidy = school.compressed(school.teacher(), "tidy", f"{{{_TIDY}}}")
    proto = joined(*to_parts(load(tidy)))
    graph, most = proto.graph, 2 ** (bits - 1) - 1
    made = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        name = node.input[1]
        tensor = next(t for t in graph.initializer if t.name == name)
        weight = numpy_helper.to_array(tensor)
        scale = _scales(weight.reshape(len(weight), -1), most).astype(np.float32)
        laid = scale.reshape(-1, *[1] * (weight.ndim - 1))
        codes = np.clip(np.rint(weight / laid), -most, most).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(codes, f"{name}.codes"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        inputs = [f"{name}.codes", f"{name}.scale"]
        made.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.real"], axis=0))
        node.input[1] = f"{name}.real"
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)

    save(from_proto(proto, proto.SerializeToString()), path)
    return path


def _scales(rows: Any, most: int) -> Any:
    """The scale of each row that rounding to it errs least by, of a hundred."""
    widest = np.abs(rows).max(1, keepdims=True) / most
    tried = np.linspace(0.2, 1.0, 81)
    errors = [
        ((np.clip(np.rint(rows / (widest * t)), -most, most) * widest * t - rows) ** 2).sum(1)
        for t in tried
    ]
    return widest[:, 0] * tried[np.argmin(errors, 0)]


def _few_bits(school: School, bits: int, steps: int) -> dict[str, float]:
    path = _grid(school, bits)
    if steps:
        path = _tuned(school, path, f"grid{bits}-tuned", steps, 3e-4)
    return {"accuracy": school.accuracy(path)}


def _shared(school: School, bits: int, steps: int) -> dict[str, float]:
    """A codebook a layer, made with the samples; trained, its entries move and codes stay."""
    stages = f"{{{_TIDY}, share: [{{share: {2**bits}}}]}}"
    path = school.compressed(school.teacher(), f"book{bits}", stages)
    if steps:
        path = _tuned(school, path, f"book{bits}-tuned", steps, 3e-4)
    return {"accuracy": school.accuracy(path)}


EXPERIMENTS: Final[Mapping[str, Mapping[str, Trial]]] = {
    "teacher": {
        "the teacher": _teacher,
        "hard labels": partial(_taught, soft=0.0, layers=0.0, hard=1.0),
        "soft labels": partial(_taught, soft=0.5, layers=0.0, hard=0.5),
        "layers": partial(_taught, soft=0.0, layers=0.1, hard=0.5),
        "soft labels and layers": partial(_taught, soft=0.5, layers=0.1, hard=0.5),
    },
    "heads": {
        "the teachers": _both_teachers,
        "digits alone": partial(_two_heads, columns=(0,)),
        "slants alone": partial(_two_heads, columns=(1,)),
        "two heads": partial(_two_heads, columns=(0, 1)),
    },
    "zeros": {"dense": _teacher, "magnitude": _magnitude, "L1, then magnitude": _induced},
    "channels": {
        "whole": _teacher,
        "one shot": partial(_channels, rounds=1),
        "three rounds": partial(_channels, rounds=3),
    },
    "bits": {
        "float": _teacher,
        **{
            f"{bits} bits, {kind}, {how}": partial(function, bits=bits, steps=steps)
            for bits in (4, 3)
            for kind, function in (("grid", _few_bits), ("codebook", _shared))
            for how, steps in (("post-training", 0), ("trained", _LARGE))
        },
    },
}
"""Ways to train by experiment and name."""

torch.set_num_threads(1)
