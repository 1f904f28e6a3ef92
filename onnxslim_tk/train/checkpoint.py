"""Checkpoints: the state of a training in one file, to go on from."""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.train.objective import Objective
from onnxslim_tk.writing import write_pieces

_FORM: Final = 1


def save_checkpoint(path: Path, run: str, state: dict[str, Any]) -> None:
    """Write the state of a run, named by its ``run``, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"form": _FORM, "run": run, "state": state}, buffer)
    write_pieces([buffer.getbuffer()], path)


def load_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """The state that lies at ``path``, None where there is none.

    Only tensors and plain data are read, nothing that could execute. Raises TrainingError for a
    file of another run, or of none.
    """
    if not path.exists():
        return None
    damaged = f"train: {path.name} is no checkpoint, or a damaged one"
    # What torch wrote before there were such archives could only be pickled.
    if not zipfile.is_zipfile(path):
        raise TrainingError(damaged)
    try:
        found = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise TrainingError(damaged) from error
    if not isinstance(found, dict) or found.get("form") != _FORM:
        raise TrainingError(f"train: {path.name} is no checkpoint of this version")
    if found.get("run") != run:
        raise TrainingError(
            f"train: the checkpoint {path.name} is of a run with another model, other samples or "
            "other settings; name another file, or remove it"
        )
    state: dict[str, Any] = found["state"]
    return state


def run_of(objective: Objective, samples: Samples, *facts: object) -> str:
    """What tells a run apart: student and teachers as they begin, losses, samples, ``facts``.

    Of the samples all labels count, the first and the last feed, and how many there are.
    """
    mark = hashlib.sha256(repr((objective.terms, len(samples), facts)).encode())
    modules: list[nn.Module] = [objective, *objective.teachers]
    for module in modules:
        for parameter in module.parameters():
            mark.update(np.ascontiguousarray(parameter.detach().numpy()).tobytes())
    for place in (0, len(samples) - 1):
        for value in samples.feeds[place].values():
            mark.update(np.ascontiguousarray(value).tobytes())
    if samples.labels is not None:
        mark.update(repr(np.asarray(samples.labels).tolist()).encode())
    return mark.hexdigest()
