"""Rows and the layers that they are for: one decision for all layers that read a weight."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.mapped import release_pages
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.sharing import by_weight
from onnxslim_tk.plan.proposal import AnyPass, Context, Proposal, Refusal

Look = Callable[[AnyPass, Sequence[Layer], bool], tuple[list[Proposal], str]]
"""A tuned method, a weight's readers, whether one of them is left out: rows, and why not."""


def offered(
    method: AnyPass, model: Model, context: Context, look: Look[AnyPass]
) -> Iterator[Proposal | Refusal]:
    """The rows of ``look`` for each weight, or its reason as a refusal for every reader."""
    for sharers in by_weight(layers(model)):
        settings = [context.tuned(method, layer.names) for layer in sharers]
        tuned = next((found for found in settings if found is not None), None)
        if tuned is None:
            continue
        rows, reason = look(tuned, sharers, None in settings)
        yield from rows
        if rows:
            continue
        for layer, found in zip(sharers, settings, strict=True):
            if found is not None:
                yield Refusal(layer.id, method.name, reason)  # type: ignore[attr-defined]


def suited(
    method: AnyPass,
    model: Model,
    context: Context,
    refusal: Callable[[AnyPass, Layer], str],
) -> tuple[list[tuple[AnyPass, Layer]], list[Refusal]]:
    """The layers that ``refusal`` has no reason against, each with its settings; the refusals."""
    found: list[tuple[AnyPass, Layer]] = []
    refusals = []
    for layer in layers(model):
        tuned = context.tuned(method, layer.names)
        if tuned is None:
            continue
        reason = refusal(tuned, layer)
        if reason:
            refusals.append(Refusal(layer.id, method.name, reason))  # type: ignore[attr-defined]
        else:
            found.append((tuned, layer))
        release_pages()
    return found, refusals


def by_layer(
    method: AnyPass,
    model: Model,
    context: Context,
    refusal: Callable[[AnyPass, Layer], str],
    rows: Callable[[AnyPass, Layer], Iterable[Proposal | Refusal]],
) -> Iterator[Proposal | Refusal]:
    """The rows of every layer that is suited, and the refusals of those that aren't."""
    found, refusals = suited(method, model, context, refusal)
    yield from refusals
    step = f"{method.name}: propose"  # type: ignore[attr-defined]
    for each in context.each(step, lambda pair: list(rows(*pair)), found):
        yield from each


def chosen_layers(model: Model, chosen: Sequence[Proposal]) -> Iterator[tuple[Layer, Proposal]]:
    """The layers that rows were chosen for, each with its row, as the model is now.

    What was read of a file for one layer leaves memory before the next.
    """
    rows = {target: row for row in chosen for target in row.targets}
    for layer in [layer for layer in layers(model) if layer.id in rows]:
        yield layer, rows[layer.id]
        release_pages()
