"""The training loss: cross entropy, and knowledge distillation from a teacher (Hinton et al. 2015)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

__all__ = ["distillation_loss"]


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
    soft = kl_div(
        log_softmax(logits / temperature, dim=1),
        log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * hard + weight * temperature**2 * soft
