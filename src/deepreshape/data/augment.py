"""Random windows, mirror images and blanked squares, drawn once and taken alike by images and by maps of labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

__all__ = ["Moves", "augment", "draw_moves", "smaller"]

VOID = 255
"""The label of a pixel that counts for nothing."""


@dataclass(frozen=True)
class Moves:
    """Where the pixels of a batch of N images come from.

    Attributes:
        rows, columns: int64, (N, H) and (N, W), of the image with its border.
        border: pixels of it, reflected.
        blank: bool, (N, H, W), where nothing is left; None for nowhere.
    """

    rows: Tensor
    columns: Tensor
    border: int
    blank: Tensor | None

    def images(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) moved, 0 where they are blank; any dtype, left as they are."""
        if self.border:
            images = pad(images.float(), (self.border,) * 4, mode="reflect").to(images.dtype)
        out = self._gather(images.permute(0, 2, 3, 1))
        if self.blank is not None:
            out = out.masked_fill(self.blank[..., None].to(images.device), 0)
        return out.permute(0, 3, 1, 2)

    def maps(self, labels: Tensor) -> Tensor:
        """Maps of labels (N, H, W) moved like their images, :data:`VOID` where they are blank."""
        if self.border:
            labels = pad(labels[:, None].float(), (self.border,) * 4, mode="reflect")[:, 0].to(labels.dtype)
        out = self._gather(labels)
        return out if self.blank is None else out.masked_fill(self.blank.to(labels.device), VOID)

    def _gather(self, pixels: Tensor) -> Tensor:
        device = pixels.device
        batch = torch.arange(len(pixels), device=device).view(-1, 1, 1)
        return pixels[batch, self.rows.to(device)[:, :, None], self.columns.to(device)[:, None, :]]


def draw_moves(
    shape: tuple[int, int, int],
    generator: torch.Generator,
    *,
    crop: int,
    flip: bool,
    cutout: int,
    offsets: Tensor | None = None,
) -> Moves:
    """Draw the moves of a batch.

    Args:
        shape: (N, H, W).
        generator: a CPU generator, which alone decides what comes out.
        crop: pixels of border from which a window is cut.
        flip: whether to mirror half of them.
        cutout: side of the blanked square, 0 for none.
        offsets: int64, (N, 2), row and column of each window, from 0 to 2 ``crop``; drawn without.
    """
    n, height, width = shape
    rows = torch.arange(height).expand(n, -1)
    columns = torch.arange(width).expand(n, -1)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    if crop:
        if offsets is None:
            offsets = torch.stack([torch.randint(0, 2 * crop + 1, (n,), generator=generator) for _ in range(2)], dim=1)
        rows, columns = rows + offsets[:, :1], columns + offsets[:, 1:]
    blank = None
    if cutout:
        top = torch.randint(0, height, (n, 1), generator=generator) - cutout // 2
        left = torch.randint(0, width, (n, 1), generator=generator) - cutout // 2
        in_rows = (torch.arange(height) >= top) & (torch.arange(height) < top + cutout)
        in_columns = (torch.arange(width) >= left) & (torch.arange(width) < left + cutout)
        blank = in_rows[:, :, None] & in_columns[:, None, :]
    return Moves(rows, columns, crop, blank)


def augment(images: Tensor, generator: torch.Generator, *, crop: int, flip: bool, cutout: int) -> Tensor:
    """Images (N, C, H, W) under moves drawn for them; see :func:`draw_moves`."""
    shape = len(images), images.shape[2], images.shape[3]
    return draw_moves(shape, generator, crop=crop, flip=flip, cutout=cutout).images(images)


def smaller(images: Tensor, grow: float, done: float) -> Tensor:
    """Normalised images at the size of this share of a run (``Recipe.grow``)."""
    if done >= grow:
        return images
    quarters = 2 if done < grow / 2 else 3
    size = [max(1, side * quarters // 4) for side in images.shape[2:]]
    return interpolate(images, size, mode="bilinear", antialias=True).contiguous(memory_format=torch.channels_last)
