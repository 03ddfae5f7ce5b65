"""Where images lie: in a tensor, or behind something that reads them when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Chained", "Chosen", "Images", "ReadImages", "moments", "statistics"]

KEPT_BYTES = 4 << 30
"""The most memory that images which were read may take; a larger collection is read again each time."""
STATISTICS_IMAGES = 1000


class Images(Protocol):
    """What a tensor of images can do, wherever the images lie.

    Images are uint8, or float32 where they come normalised, each of shape (C, H, W).
    """

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, place: Any, /) -> Tensor:
        """The image at an int, or those at a slice or an int64 tensor of places, stacked."""
        ...


class ReadImages:
    """Images that are read when they are first asked for, several at once.

    Args:
        count: N.
        read: gives the image at a place, always of one shape and dtype; called from several threads.
        what: names the image at a place in errors.
    """

    def __init__(self, count: int, read: Callable[[int], Tensor], what: Callable[[int], object]) -> None:
        self._read, self._what = read, what
        first = read(0)
        self._dtype, self.shape = first.dtype, (count, *first.shape)
        kept = count * first.nbytes <= KEPT_BYTES
        self._kept = torch.empty(self.shape, dtype=first.dtype) if kept else None
        self._has = torch.zeros(count, dtype=torch.bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: Any) -> Tensor:
        at = torch.arange(len(self))[place]
        places = at.reshape(-1)
        if self._kept is None:
            images = torch.empty(len(places), *self.shape[1:], dtype=self._dtype)
            self._into(images, range(len(places)), places.tolist())
        else:
            missing = places[~self._has[places]].unique().tolist()
            self._into(self._kept, missing, missing)
            self._has[missing] = True
            images = self._kept[places]
        return images if at.dim() else images[0]

    def _into(self, store: Tensor, rows: Sequence[int], places: Sequence[int]) -> None:
        def read(row: int, place: int) -> None:
            image = self._read(place)
            if image.shape != self.shape[1:] or image.dtype != self._dtype:
                raise ValueError(
                    f"{self._what(place)} is {image.dtype} of shape {tuple(image.shape)}, the first image is "
                    f"{self._dtype} of {self.shape[1:]}; folder:PATH:SIDE or a transform makes all alike"
                )
            store[row] = image

        if len(places) < 8:
            for row, place in zip(rows, places, strict=True):
                read(row, place)
            return
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(read, rows, places):
                pass


@dataclass(frozen=True)
class Chosen:
    """Some of the images of a larger collection, in the order of ``places`` (int64)."""

    images: Images
    places: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.places), *self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Tensor:
        at = self.places[place]
        return self.images[at if at.dim() else int(at)]


@dataclass(frozen=True)
class Chained:
    """The images of two collections, one after the other."""

    first: Images
    second: Images

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self.first.shape[1:]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, place: Any) -> Tensor:
        at = torch.arange(len(self))[place]
        places = at.reshape(-1)
        early = places < len(self.first)
        parts = self.first[places[early]], self.second[places[~early] - len(self.first)]
        images = parts[0].new_empty(len(places), *self.shape[1:])
        images[early], images[~early] = parts
        return images if at.dim() else images[0]


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of uint8 images, on the scale 0 to 1, from a thousand spread evenly.

    Both are empty for float images: those come normalised, and nobody knows by what.
    """
    if images[:1].dtype != torch.uint8:
        return (), ()
    count = min(len(images), STATISTICS_IMAGES)
    return moments(images[torch.linspace(0, len(images) - 1, count).long()])


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of uint8 images (N, C, H, W), on the scale 0 to 1, to four decimals.

    From how often each value occurs: as floats, a large data set takes seconds and a gigabyte.
    """
    counts = torch.stack([torch.bincount(each.flatten(), minlength=256) for each in images.transpose(0, 1)]).double()
    values, total = torch.arange(256) / 255.0, counts[0].sum()
    mean = counts @ values.double() / total
    squares = (counts * (values - mean[:, None]) ** 2).sum(1)
    std = (squares / (total - 1).clamp_min(1)).sqrt().clamp_min(1e-3)
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) for value in std.tolist())
