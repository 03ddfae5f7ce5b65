"""Where a network's ReLUs stayed: by layer, how many, and by position, in what share of the channels."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from deepreshape.report.chart import COLORS
from deepreshape.report.html import environment

__all__ = ["LayerPicture", "picture_of_masks"]

ROW, MAP = 44, 38
"""Height of a layer's row and side of its map, in pixels."""


@dataclass(frozen=True)
class LayerPicture:
    """One layer: its name, how many ReLUs it had and has, and its map as a PNG; no map where none is left."""

    name: str
    had: int
    has: int
    png: str | None


def picture_of_masks(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    """A standalone SVG with a bar and a map for each layer, that follows the reader's light or dark setting.

    Args:
        before: by the path of a site, bool of shape (C, H, W), (C, L) or (C,), true where there was a ReLU.
        after: the same, true where there is one now; a site that is gone may be missing.
    """
    layers: list[LayerPicture] = []
    for name in dict.fromkeys((*before, *after)):
        had, has = (int(masks[name].sum()) if name in masks else 0 for masks in (before, after))
        layers.append(LayerPicture(name, max(had, has), has, _png(after[name].float().mean(0)) if has else None))
    return (
        environment()
        .get_template("masks.svg.j2")
        .render(
            layers=layers,
            most=max((layer.had for layer in layers), default=1),
            had=sum(layer.had for layer in layers),
            has=sum(layer.has for layer in layers),
            row=ROW,
            side=MAP,
            color=COLORS[0],
        )
    )


def _png(shares: Tensor) -> str:
    """Shares from 0 to 1, (H, W), (L,) or one, as a PNG in base64: one color, as opaque as the share is large."""
    shares = shares.reshape((1, -1) if shares.dim() < 2 else shares.shape)
    height, width = shares.shape
    red, green, blue = bytes.fromhex(COLORS[0][1:])
    opaque = (shares * 255).round().byte().tolist()
    lines = b"".join(b"\0" + b"".join(bytes((red, green, blue, alpha)) for alpha in line) for line in opaque)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()
