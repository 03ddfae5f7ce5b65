"""What a network is trained for: the target of an image, the loss, and the number that it is judged by.

:func:`objective_of` gives the one of a data set, which everything here uses unless another is given:
:class:`Segmentation` where every pixel has a label, else :class:`Classification`. One for several heads takes outputs
that are a tuple.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from deepreshape.data import Dataset
from deepreshape.data.augment import VOID, Moves
from deepreshape.training.distill import distillation_loss, softened_loss
from deepreshape.training.recipe import Recipe

__all__ = ["METRICS", "Classification", "Objective", "Segmentation", "confusion", "ious", "objective_of"]

METRICS = {"top1": "top-1", "miou": "mIoU"}
"""By the word for a metric in rows, what it is called in text."""


class Objective(Protocol):
    """Target, loss and metric of a training run.

    Attributes:
        measures: the word for its metric in rows, of :data:`METRICS`.
    """

    @property
    def measures(self) -> str: ...

    def target(self, labels: Tensor, moves: Moves) -> Tensor:
        """What the outputs for a batch of augmented images are compared with.

        Args:
            labels: of the images, int64 (N,) or uint8 (N, H, W).
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

    measures = "top1"

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
        """Top-1 in percent to three decimals; logits that are not all finite count as wrong.

        Raises:
            ValueError: if outputs have another shape, with which a comparison to the labels would be broadcast.
        """
        right = total = 0
        for logits, labels in batches:
            if logits.dim() != 2 or len(logits) != len(labels):
                raise ValueError(
                    f"a network gives logits (N, classes), and this one {tuple(logits.shape)} for {len(labels)} "
                    "images; let it end in flatten(1), and keep the first axis for the batch"
                )
            finite = torch.isfinite(logits).all(1)
            right += int(((logits.argmax(1) == labels) & finite).sum())
            total += len(labels)
        return round(100 * right / total, 3)


class Segmentation:
    """A class for each pixel: cross entropy and mIoU over the pixels whose class is known.

    Networks give logits for a coarser map; they are upsampled to the size of the labels, bilinearly.

    Args:
        classes: how many there are.
    """

    measures = "miou"

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def target(self, labels: Tensor, moves: Moves) -> Tensor:
        """The maps moved like their images, uint8 (N, H, W)."""
        return moves.maps(labels)

    def loss(self, outputs: Tensor, target: Tensor, teacher: Tensor | None, recipe: Recipe) -> Tensor:
        """Cross entropy over pixels, and distillation over the places of the coarser map.

        Both are means over images; a pixel whose class is not known adds nothing, and the mean is over all pixels, so
        that parts of a batch add up to the whole.

        Args:
            outputs: (N, classes, h, w).
            target: uint8 (N, H, W).
            teacher: as ``outputs``.
            recipe: with smoothing, temperature and weight of the distillation.
        """
        logits = outputs.float()
        pixels = upsampled(logits, target.shape[1:])
        known = cross_entropy(
            pixels, target.long(), ignore_index=VOID, label_smoothing=recipe.smoothing, reduction="sum"
        )
        hard = known / target.numel()
        if teacher is None:
            return hard
        theirs = upsampled(teacher.float(), logits.shape[2:])
        soft = softened_loss(_places(logits), _places(theirs), recipe.temperature)
        return (1 - recipe.distill) * hard + recipe.distill * soft

    def metric(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """The mIoU in percent to three decimals: the mean of :func:`ious` over the classes that the labels have."""
        return self.mean(ious(confusion(batches, self.classes)))

    @staticmethod
    def mean(by_class: Sequence[float | None]) -> float:
        """The mIoU of :func:`ious`.

        Raises:
            ValueError: if the labels have no class at all.
        """
        present = [value for value in by_class if value is not None]
        if not present:
            raise ValueError("no pixel has a class, so that there is no mIoU")
        return round(sum(present) / len(present), 3)


def objective_of(data: Dataset) -> Objective:
    """What networks are trained for on a data set."""
    return Segmentation(len(data.class_names)) if data.maps else Classification()


def upsampled(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Maps of logits (N, classes, h, w) at another size (height, width), bilinearly between the centres of pixels."""
    if logits.shape[2:] == torch.Size(size):
        return logits
    return interpolate(logits, size=list(size), mode="bilinear", align_corners=False)


def confusion(batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """How many pixels of each class are taken for each: int64 (classes, classes + 1), true classes down.

    The last column counts pixels whose logits are not all finite. Pixels of no known class are left out.

    Args:
        batches: logits (N, classes, h, w), and labels (N, H, W).
        classes: how many there are.
    """
    counts = torch.zeros(classes * (classes + 1), dtype=torch.int64)
    for logits, labels in batches:
        known = labels != VOID
        pixels = upsampled(logits.float(), labels.shape[1:])
        chosen = torch.where(torch.isfinite(pixels).all(1), pixels.argmax(1), classes)
        places = labels[known].long() * (classes + 1) + chosen[known]
        counts += torch.bincount(places, minlength=len(counts)).cpu()
    return counts.view(classes, classes + 1)


def ious(counts: Tensor) -> list[float | None]:
    """By class, intersection over union in percent, from :func:`confusion`.

    None for a class that no label has: it has no part in a mean. Pixels that are wrongly taken for it still count
    against the classes that they are of.
    """
    right, true = counts.diagonal(), counts.sum(1)
    union = true + counts[:, :-1].sum(0) - right
    return [100 * int(r) / int(u) if t else None for r, t, u in zip(right, true, union, strict=True)]


def _places(maps: Tensor) -> Tensor:
    """Maps (N, classes, h, w) as rows (N h w, classes)."""
    return maps.movedim(1, -1).flatten(0, -2)
