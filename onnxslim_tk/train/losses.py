"""Losses: how far a tensor of a student is from a teacher's, or from labels."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch.nn import functional

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.rules import Tensor

_LEAST: Final = 1e-12
_PADDING: Final = -1
"""What fills up labels of sequences."""


def soft_labels(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of softened distributions, of scores along the last axis (Hinton et al., 2015).

    Its gradient has the same size at every temperature. The mean over all other axes.
    """
    expected = torch.log_softmax(teacher / temperature, -1)
    found = torch.log_softmax(student / temperature, -1)
    divergence = (expected.exp() * (expected - found)).sum(-1)
    return divergence.mean() * temperature**2


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error in shares of the teacher's squares: 1 for a student that says nothing."""
    return ((student - teacher) ** 2).mean() / (teacher**2).mean().clamp(min=_LEAST)


def _of_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    # The logarithm of a probability is a score, but for a sum that is the same for all classes.
    return soft_labels(_log(student), _log(teacher), temperature)


def _of_logits(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Relative error of scores, whose mean over classes says nothing (Ba and Caruana, 2014)."""
    centred = [value - value.mean(-1, keepdim=True) for value in (student, teacher)]
    return relative_error(centred[0], centred[1])


def _of_chances(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of independent chances, each the probability of one thing (a map's, say)."""
    found, expected = (value.clamp(_LEAST, 1 - 1e-7) for value in (student, teacher))
    certain = functional.binary_cross_entropy(expected, expected)
    return functional.binary_cross_entropy(found, expected) - certain


def _of_features(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return relative_error(student, teacher)


def _of_attention(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of attention, the mean over heads (Wang et al., 2020)."""
    return _of_probabilities(student.mean(1), teacher.mean(1), 1.0)


def _of_directions(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()


Comparison = Callable[[Tensor, Tensor, float], Tensor]
COMPARISONS: Final[Mapping[str, Comparison]] = {
    "scores": soft_labels,
    "probabilities": _of_probabilities,
    "logits": _of_logits,
    "chances": _of_chances,
    "features": _of_features,
    "attention": _of_attention,
    "cosine": _of_directions,
}
"""Losses of a student's tensor, a teacher's and a temperature, by name."""


def _cross_entropy(output: Tensor, labels: Tensor, form: str) -> Tensor:
    """Of classes along the last axis, or along the second where labels lie as pictures do."""
    if output.dim() > 2 and tuple(labels.shape) == (output.shape[0], *output.shape[2:]):
        output = output.movedim(1, -1)
    if tuple(labels.shape) == (*output.shape[:-1], 1):
        labels = labels.squeeze(-1)
    _same_shape("cross-entropy", tuple(output.shape[:-1]), labels)
    if labels.is_floating_point():
        labels = labels.round()
    scores = _log(output) if form == "probabilities" else output
    flat = scores.reshape(-1, scores.shape[-1])
    _check_classes(labels, 0, flat.shape[-1])
    wanted = labels.reshape(-1).long()
    if bool((wanted == _PADDING).all()):
        # The mean over no labels would be no number.
        return 0 * flat.clamp(-1, 1).sum()
    return functional.cross_entropy(flat, wanted, ignore_index=_PADDING)


def _mse(output: Tensor, labels: Tensor, form: str) -> Tensor:
    labels = _laid("mse", output, labels)
    if not bool(torch.isfinite(labels).all()):
        raise TrainingError("train: mse needs labels that are finite")
    return functional.mse_loss(output, labels.to(output.dtype))


def _bce(output: Tensor, labels: Tensor, form: str) -> Tensor:
    labels = _laid("bce", output, labels).to(output.dtype)
    if not bool(((labels >= 0) & (labels <= 1)).all()):
        raise TrainingError("train: bce needs labels in [0, 1]")
    if form == "chances":
        return functional.binary_cross_entropy(output.clamp(_LEAST, 1 - 1e-7), labels)
    return functional.binary_cross_entropy_with_logits(output, labels)


def _ctc(output: Tensor, labels: Tensor, form: str) -> Tensor:
    """Of sequences ``(n, steps, classes)``: blank 0, padding -1 (Graves et al., 2006)."""
    if output.dim() != 3 or labels.dim() != 2 or len(labels) != len(output):
        raise TrainingError(
            f"train: ctc needs an output (n, steps, classes) and labels (n, length), got "
            f"{tuple(output.shape)} and {tuple(labels.shape)}"
        )
    _check_classes(labels, 1, output.shape[-1])
    there = labels != _PADDING
    if bool((there[:, 1:] & ~there[:, :-1]).any()):
        raise TrainingError("train: ctc needs its padding, -1, at the end of labels")
    scores = _log(output) if form == "probabilities" else torch.log_softmax(output, -1)
    lengths = there.sum(1)
    steps = torch.full((len(output),), output.shape[1], dtype=torch.int64)
    return functional.ctc_loss(
        scores.transpose(0, 1), labels.clamp(min=0).long(), steps, lengths, zero_infinity=True
    )


LABELLED: Final[Mapping[str, Callable[[Tensor, Tensor, str], Tensor]]] = {
    "cross-entropy": _cross_entropy,
    "mse": _mse,
    "bce": _bce,
    "ctc": _ctc,
}
"""Losses of an output, labels and the output's form (scores, probabilities, chances), by name."""


def _check_classes(labels: Tensor, least: int, count: int) -> None:
    """Raise TrainingError for labels that are neither classes nor padding."""
    fits = ((labels >= least) & (labels < count)) | (labels == _PADDING)
    if not bool(fits.all()):
        raise TrainingError(
            f"train: labels must be {least} or more and below {count}, the classes of the output, "
            f"or -1 as padding; got {float(labels[~fits][0]):g}"
        )


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=_LEAST).log()


def _laid(who: str, output: Tensor, labels: Tensor) -> Tensor:
    """Labels in the shape of the output, where they differ by axes of 1 alone."""
    left, right = ([n for n in value.shape if n != 1] for value in (output, labels))
    if left != right:
        _same_shape(who, tuple(output.shape), labels)
    return labels.reshape(output.shape)


def _same_shape(who: str, shape: tuple[int, ...], labels: Tensor) -> None:
    if tuple(labels.shape) != shape:
        raise TrainingError(
            f"train: {who} needs labels of the shape {shape} for this output, "
            f"got {tuple(labels.shape)}"
        )
