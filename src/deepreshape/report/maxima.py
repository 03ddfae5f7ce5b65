"""Inputs that maximize a unit, side by side, as one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from deepreshape.explain.maximize import Maximum
from deepreshape.report.answers import png_of
from deepreshape.report.html import environment

__all__ = ["page_of_maxima"]


@dataclass(frozen=True)
class _Ascent:
    """One way of ascent: its pictures with their values, and how it went."""

    mode: str
    moved: int
    mean: float
    best: float
    pictures: tuple[tuple[str, float], ...]


def page_of_maxima(title: str, maxima: Mapping[str, Maximum], pixels: Mapping[str, Tensor], command: str) -> str:
    """The page.

    Args:
        title: of the network and its unit.
        maxima: by mode.
        pixels: the same inputs as images, uint8 of shape (N, 1 or 3, H, W).
        command: that makes the page again.
    """
    ascents = [
        _Ascent(
            mode,
            images.moved,
            float(images.values.mean()),
            float(images.values.max()),
            tuple(
                (png_of(image.permute(1, 2, 0).tolist()), float(value))
                for image, value in zip(pixels[mode], images.values, strict=True)
            ),
        )
        for mode, images in maxima.items()
    ]
    return environment().get_template("maxima.html.j2").render(title=title, ascents=ascents, command=command)
