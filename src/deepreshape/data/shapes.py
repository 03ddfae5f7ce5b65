"""Circles, squares and triangles on noise with a class for each pixel, drawn from a seed: nothing is downloaded.

Every second image is hard. An easy one has one to three large shapes that stand out from faint noise; a hard one has
two to five small and middling ones, close to the ground's own brightness, under strong noise. Where shapes overlap, the
later one covers the earlier one, and a rim of one pixel between shape and ground is void, as annotators leave it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepreshape.data.augment import VOID
from deepreshape.data.dataset import Dataset, Split
from deepreshape.data.images import statistics

__all__ = ["draw_shapes", "shapes"]

SIDE = 48
CLASSES = ("ground", "circle", "square", "triangle")
COLOURS = ((40, 40, 40), (214, 69, 65), (65, 131, 215), (244, 179, 80))
SIZES = {"train": 800, "validation": 200, "test": 400}


@cache
def shapes() -> Dataset:
    """800, 200 and 400 images of 48x48 grey pixels; the hard ones are those at odd places."""
    splits: dict[str, Split] = {}
    for number, (name, count) in enumerate(SIZES.items()):
        images, maps = draw_shapes(count, np.random.default_rng(number))
        splits[name] = Split(images, maps)
    mean, std = statistics(splits["train"].images)
    return Dataset("shapes", **splits, class_names=CLASSES, mean=mean, std=std, colours=COLOURS)


def draw_shapes(count: int, random: np.random.Generator, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Images, uint8 (count, 1, side, side), and maps of classes, uint8 (count, side, side); those at odd places hard.

    Args:
        count: how many.
        random: decides all of it.
        side: pixels; sizes of shapes are shares of it.
    """
    drawn = [_image(random, side, hard=bool(number % 2)) for number in range(count)]
    pixels, maps = (np.stack(parts) for parts in zip(*drawn, strict=True))
    return torch.from_numpy(pixels[:, None]), torch.from_numpy(maps)


def _image(random: np.random.Generator, side: int, *, hard: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    ground = random.uniform(90, 165)
    pixels, classes = np.full((side, side), ground), np.zeros((side, side), np.uint8)
    for _ in range(random.integers(2, 6) if hard else random.integers(1, 4)):
        radius = side * (random.uniform(0.08, 0.18) if hard else random.uniform(0.18, 0.30))
        contrast = random.uniform(25, 45) if hard else random.uniform(60, 85)
        kind = int(random.integers(1, len(CLASSES)))
        distance = _distance(kind, random.uniform(radius / 2, side - radius / 2, size=2), radius, side)
        pixels[distance < 0] = ground + contrast * random.choice((-1, 1))
        classes[distance < 0] = kind
        classes[np.abs(distance) < 0.5] = VOID
    pixels += random.normal(0, 22 if hard else 8, pixels.shape)
    return pixels.round().clip(0, 255).astype(np.uint8), classes


def _distance(kind: int, centre: NDArray[np.float64], radius: float, side: int) -> NDArray[np.float64]:
    """About how many pixels each pixel lies outside of a shape, negative inside: float64 (side, side)."""
    down, right = (np.arange(side) - centre[0])[:, None], (np.arange(side) - centre[1])[None, :]
    if CLASSES[kind] == "circle":
        return np.hypot(down, right) - radius
    if CLASSES[kind] == "square":
        return np.maximum(np.abs(down), np.abs(right)) - 0.85 * radius
    slope = 3**0.5 / 2  # an equilateral triangle that stands on its base
    return np.maximum(down - radius / 2, slope * np.abs(right) - down / 2 - radius / 2)
