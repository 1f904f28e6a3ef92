"""Recovery after a stage: the model learns from what it was, as a whole or block by block."""

from typing import TYPE_CHECKING, Final

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.recipe import Stage
from onnxslim_tk.plan.recovery import Distill
from onnxslim_tk.plan.training import Losses
from onnxslim_tk.train.blocks import blocks_of, teach_blocks
from onnxslim_tk.train.distillation import Taught, objective_of, terms_of
from onnxslim_tk.train.fit import Look, fit
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.processes import threads
from onnxslim_tk.train.write_back import write_back

if TYPE_CHECKING:
    from onnxslim_tk.pipeline.stages import Setting

_BIG: Final = 300_000_000
"""Bytes of a model's file from which on it is taught block by block."""


def distilled(
    model: Model,
    original: Model,
    stage: Stage,
    learn: Samples,
    choose: Samples,
    setting: "Setting",
) -> Model:
    """``model`` after it learnt from ``original``: the best state on ``choose``.

    Weights keep the form they are stored in. What the runtime loads is never worse than it was, by
    the loss of the outputs on ``choose``.
    """
    recover = stage.recover
    assert recover is not None
    by_blocks = recover.extent == "blocks"
    if recover.extent == "auto":
        by_blocks = original.source_bytes > _BIG
    with threads(1):
        if by_blocks:
            found = blocks_of(model, original)
            if len(found) > 1:
                return teach_blocks(model, original, found, learn, choose, recover, setting.seed)
        return _whole(model, original, recover, learn, choose, setting, stage.name)


def _whole(
    model: Model,
    original: Model,
    recover: Distill,
    learn: Samples,
    choose: Samples,
    setting: "Setting",
    stage: str,
) -> Model:
    """All layers at once."""
    student, teacher = GraphModule(model, scales=True), GraphModule(original)
    pairs = {name: name for name in student.outputs if name in teacher.outputs}
    losses = Losses(temperature=recover.temperature)
    terms = terms_of(losses, student, [Taught(teacher, pairs)], learn)
    objective = objective_of(student, terms, [teacher], learn)
    step = f"{stage}: distill"

    def heard(look: Look, steps: int) -> None:
        setting.progress(f"{step} | loss {look.loss:.4g}", look.step, steps)

    lesson = fit(objective, learn, choose, recover.schedule(setting.seed), heard=heard)
    if lesson.best:
        write_back(student, model)
    return model
