"""The training loss: cross entropy, and knowledge distillation from a teacher (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize
from torch.utils.hooks import RemovableHandle

__all__ = ["activations", "distillation_loss", "mismatch_loss", "softened_loss"]


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    *,
    temperature: float = 4.0,
    weight: float = 0.9,
    smoothing: float = 0.0,
) -> Tensor:
    """(1 - w) CE + w T^2 KL(teacher || student), both softened by T; plain cross entropy without a teacher.

    Args:
        logits: float, (N, classes), of the student.
        labels: int64, (N,).
        teacher: float, (N, classes), logits of the teacher, computed without gradient.
        temperature: T.
        weight: w; DeepReDuce and DeepReShape take T = 4, w = 0.9.
        smoothing: of the labels in the cross entropy.
    """
    hard = cross_entropy(logits, labels, label_smoothing=smoothing)
    if teacher is None:
        return hard
    return (1 - weight) * hard + weight * softened_loss(logits, teacher, temperature)


def softened_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (N, classes), both softened by T; its mean over N."""
    return temperature**2 * kl_div(
        log_softmax(logits / temperature, dim=1),
        log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def mismatch_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """PRAM, the mismatch of activation maps (SENet, Kundu et al., ICLR 2023, equation 4; attention transfer).

    Each map is its mean square over channels, scaled to length 1 for each image; the loss is the mean squared
    difference between student and teacher over images and positions, summed over layers.

    Args:
        student: maps by layer, (N, C, H, W).
        teacher: the same of the teacher, without gradient.

    Raises:
        ValueError: if maps of one layer differ in size.
    """
    for name, maps in student.items():
        if maps.shape[2:] != teacher[name].shape[2:]:
            size, other = tuple(maps.shape[2:]), tuple(teacher[name].shape[2:])
            raise ValueError(f"maps of {name} are {size}, the teacher's {other}; mismatch=0 compares none")

    def attention(maps: Tensor) -> Tensor:
        return normalize(maps.float().square().mean(1).reshape(len(maps), -1), dim=1)

    distances = [(attention(maps) - attention(teacher[name])).square().mean() for name, maps in student.items()]
    return torch.stack(distances).sum()


@contextmanager
def activations(network: nn.Module, names: Iterable[str]) -> Generator[dict[str, Tensor]]:
    """By name, what these modules of a network gave in its last forward pass; kept up to date while this lasts.

    Raises:
        ValueError: if the network has no module of one of the names.
    """
    modules = dict(network.named_modules())
    given: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []
    try:
        for name in names:
            if name not in modules:
                raise ValueError(f"the teacher has no layer {name!r} to compare with; mismatch=0 compares none")
            handles.append(modules[name].register_forward_hook(lambda *got, at=name: given.update({at: got[2]})))
        yield given
    finally:
        for handle in handles:
            handle.remove()
