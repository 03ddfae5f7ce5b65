"""Scatter charts as SVG: points, error bars, a line for each network, and the front over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

__all__ = ["COLORS", "Chart", "Mark", "Placed", "Tick", "lay_out_chart", "looks"]

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 16, 46

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7f7f7f", "#8c564b")
"""Told apart with the common kinds of colour blindness, on white and on black."""

SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-5,-5h10v10h-10z",
    "M0,-6l6,10h-12z",
    "M0,-6l6,6l-6,6l-6,-6z",
    "M0,6l6,-10h-12z",
    "M-6,-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
    "M-6,0l3,-5h6l3,5l-3,5h-6z",
    "M-5,-5l5,3l5,-3l-3,5l3,5l-5,-3l-5,3l3,-5z",
)


FRONT = ("the most at this cost or less", "#9aa0a6", "M-7,-2h14v4h-14z")
"""Legend of the front."""


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """By series, its colour and shape; no two of the first 64 share both.

    Where networks have series by method ("network, method"), the colour says which network and the shape which method.
    """
    if not any(", " in name for name in names):
        places = [(at % len(COLORS), at % len(COLORS) + at // len(COLORS)) for at in range(len(names))]
    else:
        parts = [name.partition(", ")[::2] for name in names]
        networks, methods = (list(dict.fromkeys(part)) for part in zip(*parts, strict=True))
        places = [(networks.index(network), methods.index(method)) for network, method in parts]
    return {
        name: (COLORS[color % len(COLORS)], SHAPES[shape % len(SHAPES)])
        for name, (color, shape) in zip(names, places, strict=True)
    }


@dataclass(frozen=True)
class Mark:
    """One point: where it lies, how far its error bar reaches to each side, and what a pointer over it tells."""

    series: str
    x: float
    y: float
    error: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Tick:
    """A line of the grid: its place in pixels and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Placed:
    """A mark in pixels."""

    mark: Mark
    x: float
    y: float
    low: float
    high: float
    color: str
    shape: str


@dataclass(frozen=True)
class Chart:
    """A chart laid out in pixels, for the template to draw."""

    title: str
    x_label: str
    marks: tuple[Placed, ...]
    lines: tuple[tuple[str, str], ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    legend: tuple[tuple[str, str, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def lay_out_chart(title: str, x_label: str, marks: Sequence[Mark], best: Sequence[tuple[float, float]]) -> Chart:
    """Place the marks: x on a logarithmic scale, y (percent) on a linear one."""
    low, high = log10(min(mark.x for mark in marks)) - 0.06, log10(max(mark.x for mark in marks)) + 0.06
    bottom = min(mark.y - mark.error for mark in marks)
    top = max(mark.y + mark.error for mark in marks)
    step = _step(top - bottom if top - bottom > 1e-6 else 1.0)
    bottom, top = floor(bottom / step) * step, ceil(top / step) * step
    top = top if top > bottom else bottom + step

    def across(x: float) -> float:
        return round(LEFT + (log10(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    names = list(dict.fromkeys(mark.series for mark in marks))
    look = looks(names)
    placed = tuple(
        Placed(
            mark, across(mark.x), down(mark.y), down(mark.y - mark.error), down(mark.y + mark.error), *look[mark.series]
        )
        for mark in marks
    )
    lines: list[tuple[str, str]] = []
    for name in names:
        places = sorted((mark.x, mark.y) for mark in marks if mark.series == name)
        lines.append((look[name][0], " ".join(f"{across(x)},{down(y)}" for x, y in places)))
    values = [bottom + step * count for count in range(round((top - bottom) / step) + 1)]
    return Chart(
        title,
        x_label,
        placed,
        tuple(lines),
        " ".join(f"{across(x)},{down(y)}" for x, y in _stairs(best)),
        tuple(Tick(across(value), _short(value)) for value in _log_ticks(10**low, 10**high)),
        tuple(Tick(down(value), f"{value:g}") for value in values),
        (*((name, *look[name]) for name in names), FRONT),
    )


def _stairs(best: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the most that can be had at each cost: level up to the next point, then up to it."""
    corners = list(best[:1])
    for x, y in best[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return corners


def _step(span: float) -> float:
    """A round step that divides ``span`` in four to eight."""
    rough = span / 6
    power = 10 ** floor(log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values from ``low`` to ``high``: 1, 2, 5 of each power of ten, or finer ones where those are too few."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), [1 + tenth / 20 for tenth in range(180)]):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        within = [tick for tick in ticks if low <= tick <= high]
        if len(within) >= 3:
            break
    return within


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
