"""Widths of a network's layers over the iterations of an adjustment, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["picture_of_widths"]

BAR, GAP, ROW, LEFT = 18, 4, 46, 90
LESS, MORE = "#0072b2", "#d55e00"


def picture_of_widths(layers: Sequence[str], iterations: Sequence[Sequence[int]]) -> str:
    """A row of bars an iteration, a bar a layer, as high as its width; the color says whether it lost or gained.

    Args:
        layers: names, front to back.
        iterations: widths by layer, the first row being what the others are compared with.
    """
    most = max(max(widths) for widths in iterations)
    width, height = LEFT + len(layers) * (BAR + GAP), len(iterations) * (ROW + 16) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11">'
    ]
    for row, widths in enumerate(iterations):
        base = row * (ROW + 16) + ROW + 6
        parts.append(f'<text x="4" y="{base}" fill="currentColor">iteration {row}</text>')
        for place, (layer, now, start) in enumerate(zip(layers, widths, iterations[0], strict=True)):
            tall = max(1, round(ROW * now / most))
            color = "#7f7f7f" if now == start else (MORE if now > start else LESS)
            at = LEFT + place * (BAR + GAP)
            parts.append(
                f'<rect x="{at}" y="{base - tall}" width="{BAR}" height="{tall}" fill="{color}">'
                f"<title>{escape(layer)}: {now} channels, {start} at first</title></rect>"
                f'<text x="{at + BAR / 2}" y="{base + 11}" text-anchor="middle" font-size="9" '
                f'fill="currentColor">{now}</text>'
            )
    return "".join([*parts, "</svg>\n"])
