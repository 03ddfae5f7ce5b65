"""The private answer to an image where every pixel has a class: upsampled by the client, and written as a picture.

The program ends with logits for a coarser map. Upsampling them and taking the largest cost nothing here, and would cost
a comparison a pixel and class between two parties; so the client does both, as the public facts say
(``Facts.upsample``), and learns the logits of every place of the coarser map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.service.answer import PrivateAnswer
from deepreshape.private.service.bundle import Facts

__all__ = ["SegmentedImage", "class_maps", "is_map", "largest_places"]

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class SegmentedImage(PrivateAnswer):
    """The answer to one image, a class for each pixel.

    Attributes:
        classes: numbers of the classes, uint16, (height, width).
        shares: (name, share of the pixels) of every class that some pixel has, the largest first.
        facts: with the names and colours of the classes.
    """

    classes: NDArray[np.uint16]
    shares: tuple[tuple[str, float], ...]
    facts: Facts

    def __str__(self) -> str:
        named = ", ".join(f"{name} {share:.1%}" for name, share in self.shares)
        return f"{named}; {self.took}"

    @classmethod
    def of(cls, logits: NDArray[np.float64], facts: Facts, **rest: Any) -> SegmentedImage:
        """The answer that logits (classes, h, w) mean, at the size that the facts say."""
        height, width = facts.upsample
        classes = class_maps(logits[None], (height, width))[0]
        counts = np.bincount(classes.ravel(), minlength=len(logits))
        order = [int(place) for place in np.argsort(-counts, kind="stable") if counts[place]]
        shares = tuple((facts.name(place), int(counts[place]) / classes.size) for place in order)
        return cls(classes, shares, facts, logits=logits, **rest)

    def legend(self) -> tuple[tuple[str, str, float], ...]:
        """(name, colour as ``#rrggbb``, share of the pixels) of the classes in the picture, the largest first."""
        places = {self.facts.name(place): place for place in range(len(self.logits))}
        return tuple(
            (name, "#{:02x}{:02x}{:02x}".format(*self.facts.colour(places[name])), share) for name, share in self.shares
        )

    def save(self, path: Path | str) -> None:
        """Write a PNG whose values are the classes, up to 256 of them, and whose palette has their colours.

        Raises:
            ValueError: if there are more classes, or no Pillow.
            OSError: if it cannot be written.
        """
        try:
            from PIL import Image
        except ImportError:
            raise ValueError("writing a picture needs Pillow: pip install 'deepreshape[client]'") from None
        if len(self.logits) > 256:
            raise ValueError(f"a picture with a palette has 256 colours, and there are {len(self.logits)} classes")
        picture = Image.fromarray(self.classes.astype(np.uint8))
        picture.putpalette([value for place in range(len(self.logits)) for value in self.facts.colour(place)])
        picture.save(path, format="PNG")


def is_map(shape: Sequence[int]) -> bool:
    """Whether an output of this shape, without the batch axis, has logits (classes, h, w) for several places."""
    return len(shape) == 3 and shape[1] * shape[2] > 1


def largest_places(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """Where the largest output of each input is, (N,); of maps of logits, at each of their places, (N, h, w)."""
    return outputs.argmax(1) if is_map(outputs.shape[1:]) else outputs.reshape(len(outputs), -1).argmax(1)


def class_maps(logits: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint16]:
    """Maps of logits upsampled bilinearly between the centres of pixels; the largest at each: (N, height, width).

    Args:
        logits: (N, classes, h, w).
        size: (height, width) of the result.
    """
    down, across = (_weights(old, new) for old, new in zip(logits.shape[2:], size, strict=True))
    wide = logits @ across.T
    classes = np.empty((len(logits), *size), np.uint16)
    for start in range(0, size[0], ROWS_AT_ONCE):  # the whole at full size may be large
        rows = slice(start, start + ROWS_AT_ONCE)
        classes[:, rows] = np.einsum("rh,nchw->ncrw", down[rows], wide).argmax(1)
    return classes


def _weights(old: int, new: int) -> NDArray[np.float64]:
    """What each of ``old`` places gives to each of ``new``: (new, old)."""
    where = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(where[:, None] - np.arange(old)), 0)
