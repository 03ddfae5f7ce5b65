"""What a network is trained for: the target of an image, the loss, and the number that it is judged by.

:class:`Classification` is the one that everything here uses unless another is given. An objective for label maps moves
the maps with their images (``moves.maps``); one for several heads takes outputs that are a tuple.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from deepreshape.data.augment import Moves
from deepreshape.training.distill import distillation_loss
from deepreshape.training.recipe import Recipe

__all__ = ["Classification", "Objective"]


class Objective(Protocol):
    """Target, loss and metric of a training run."""

    def target(self, labels: Tensor, moves: Moves) -> Tensor:
        """What the outputs for a batch of augmented images are compared with.

        Args:
            labels: of the images, int64, (N,) or (N, H, W).
            moves: what augmentation did to the images.
        """
        ...

    def loss(self, outputs: Any, target: Tensor, teacher: Any, recipe: Recipe) -> Tensor:
        """The loss of a batch, its mean over images.

        Args:
            outputs: what the network gives, maybe in bfloat16.
            target: as :meth:`target` gives it.
            teacher: what the teacher gives, without gradient; None without one.
            recipe: with the settings of smoothing and distillation.
        """
        ...

    def metric(self, batches: Iterable[tuple[Any, Tensor]]) -> float:
        """The number to judge by, higher is better, in percent: from outputs and labels, batch by batch."""
        ...


class Classification:
    """One class for each image: cross entropy with distillation, and top-1 accuracy."""

    def target(self, labels: Tensor, moves: Moves) -> Tensor:
        """The labels, int64 of shape (N,); moves do not change them."""
        return labels

    def loss(self, outputs: Tensor, target: Tensor, teacher: Tensor | None, recipe: Recipe) -> Tensor:
        """:func:`~deepreshape.training.distill.distillation_loss` of logits (N, classes)."""
        return distillation_loss(
            outputs.float(),
            target,
            None if teacher is None else teacher.float(),
            temperature=recipe.temperature,
            weight=recipe.distill,
            smoothing=recipe.smoothing,
        )

    def metric(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Top-1 in percent to three decimals; logits that are not all finite count as wrong."""
        right = total = 0
        for logits, labels in batches:
            finite = torch.isfinite(logits).all(1)
            right += int(((logits.argmax(1) == labels) & finite).sum())
            total += len(labels)
        return round(100 * right / total, 3)
