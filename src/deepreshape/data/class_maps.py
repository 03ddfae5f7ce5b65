"""A class for each pixel, from the pictures that annotators keep it in: one channel, whose values are the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deepreshape.data.augment import VOID

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["as_class_map"]


def as_class_map(picture: Picture, where: object, size: tuple[int, int], classes: int, void: int = VOID) -> Tensor:
    """A picture of one channel or with a palette as a map, uint8 (H, W), of classes and :data:`VOID`.

    Args:
        picture: whose values, or places in its palette, are the classes.
        where: names it in errors.
        size: (width, height) of the image it belongs to.
        classes: how many there are.
        void: the value of pixels that count for nothing.

    Raises:
        ValueError: if it is a picture in colours, of another size, or has a class beyond the last.
    """
    if picture.mode not in ("L", "P", "1"):
        raise ValueError(
            f"{where} is a picture of mode {picture.mode}; a map has one channel, whose values are the classes, "
            f"and {VOID} where none is known"
        )
    if picture.size != size:
        (width, height), (wide, high) = picture.size, size
        raise ValueError(f"{where} is a map of {width}x{height} pixels, and its image has {wide}x{high}")
    values = np.array(picture, np.uint8)
    values[values == void] = VOID
    known = values[values != VOID]
    if known.size and known.max() >= classes:
        raise ValueError(
            f"{where} has class {known.max()}, and there are {classes} classes, 0 to {classes - 1}; pixels of no class "
            f"are {void}"
        )
    return torch.from_numpy(values)
