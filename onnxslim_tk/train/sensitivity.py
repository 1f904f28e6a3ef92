"""Sensitivities: what the loss of channels would do to the outputs, by gradients."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from onnxslim_tk.graph.groups import Group
from onnxslim_tk.graph.model import Model
from onnxslim_tk.train.matching import form_of
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.processes import threads
from onnxslim_tk.train.rules import Tensor

_MOST: Final = 64
_LEAST: Final = 1e-12


def taylor(
    model: Model, groups: Sequence[Group], feeds: Sequence[Mapping[str, Any]], seed: int
) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """How much each channel of each group counts, ``(channels,)`` by the group's id.

    The squared first-order change of what the outputs say where the makers' weights of a channel go
    to zero, the mean over samples (Molchanov et al., 2019). Without labels that is the logarithm of
    a class drawn from the model's own distribution, which makes it Fisher information (Theis et
    al., 2018), and a random mixture of outputs that are no distribution.
    """
    module = GraphModule(model)
    rng = np.random.default_rng(seed)
    forms = {name: form_of(module, name) for name in module.outputs}
    found = {group.id: np.zeros(group.count) for group in groups}
    count = min(len(feeds), _MOST)
    with threads(1):
        for place in range(count):
            module.zero_grad(set_to_none=True)
            outputs = module(feeds[place])
            said = [
                _said(value, forms[name], rng)
                for name, value in outputs.items()
                if torch.is_tensor(value) and value.requires_grad
            ]
            if not said:
                continue
            torch.stack(said).sum().backward()
            changes = dict(_changes(module))
            for group in groups:
                found[group.id] += _of_group(group, changes) ** 2 / count
    return found


def _said(value: Tensor, form: str, rng: np.random.Generator) -> Tensor:
    """One number that stands for what an output says."""
    if form == "probabilities":
        rows = value.reshape(-1, value.shape[-1])
        shares = rows.detach().to(torch.float64).clamp(min=0).numpy()
        limits = np.cumsum(shares, axis=1)
        drawn = (rng.random((len(rows), 1)) * limits[:, -1:] > limits).sum(1)
        drawn = np.minimum(drawn, rows.shape[1] - 1)
        picked = rows[torch.arange(len(rows)), torch.from_numpy(drawn)]
        return picked.clamp(min=_LEAST).log().sum() / len(rows) ** 0.5
    mixture = torch.from_numpy(rng.standard_normal(value.shape)).to(value.dtype)
    size = value.detach().pow(2).sum().sqrt().clamp(min=_LEAST)
    return (value * mixture).sum() / size


def _changes(module: GraphModule) -> Iterator[tuple[str, NDArray[Any]]]:
    """Gradient times value of each trained tensor, by key."""
    for key, tie in module.ties.items():
        weight = module.weights[tie.weight]
        gradient = weight.value.grad
        if gradient is not None and weight.codes is None and weight.ends is None:
            change = tie.view((weight.value.detach() * gradient).detach())
            yield key, change.numpy().astype(np.float64)


def _of_group(group: Group, changes: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The change of what is said where each channel's makers go to zero."""
    total = np.zeros(group.count)
    for part in group.touched:
        change = changes.get(part.layer.path + part.layer.stored.name)
        if part.role != "produces" or change is None or change.shape != part.layer.weight.shape:
            continue
        on = group.channels_on(part.labels)
        rows = np.moveaxis(change, part.axis, 0).reshape(len(on), -1).sum(1)
        total += np.bincount(on[on >= 0], rows[on >= 0], group.count)
    return total
