"""Where the time goes: a bar for every layer, by phase, one panel for each quote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepreshape.cost import Quote
from deepreshape.report.chart import COLORS
from deepreshape.report.html import environment

__all__ = ["Bar", "Panel", "bars"]

ROW, HEAD, LABEL, WIDTH = 18, 44, 190, 760
MOST = 40
"""Layers shown; those that take least are added up in one bar beyond that."""
OFFLINE, ONLINE = COLORS[0], COLORS[1]


@dataclass(frozen=True)
class Bar:
    """One layer, in pixels from the left of the bars."""

    label: str
    y: float
    offline: float
    online: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One quote's bars."""

    title: str
    subtitle: str
    y: float
    bars: tuple[Bar, ...]


def bars(network: str, quotes: Sequence[Quote]) -> str:
    """A standalone SVG that follows the reader's light or dark setting; each panel has a scale of its own."""
    panels: list[Panel] = []
    y = 8.0
    for quote in quotes:
        panels.append(_panel(network, quote, y))
        y += HEAD + ROW * len(panels[-1].bars) + 14
    return (
        environment()
        .get_template("bars.svg.j2")
        .render(panels=panels, width=WIDTH, height=y + 18, label=LABEL, row=ROW, offline=OFFLINE, online=ONLINE)
    )


def _panel(network: str, quote: Quote, y: float) -> Panel:
    rows = [
        (name, costs.seconds - costs.only(phase="online").seconds, costs.only(phase="online").seconds)
        for name in quote.report.layers
        for costs in [quote.report.only(layer=name)]
    ]
    if len(rows) > MOST:
        shown = set(sorted((row[1] + row[2] for row in rows), reverse=True)[: MOST - 1])
        rest = [row for row in rows if row[1] + row[2] not in shown]
        rows = [row for row in rows if row[1] + row[2] in shown]
        rows.append((f"{len(rest)} others", sum(row[1] for row in rest), sum(row[2] for row in rest)))
    scale = (WIDTH - LABEL - 80) / (max(offline + online for _, offline, online in rows) or 1.0)
    return Panel(
        f"{network}: {quote.protocol}, {quote.link}, {quote.seconds:.2f} s",
        quote.advice,
        y,
        tuple(
            Bar(
                name if len(name) <= 30 else f"{name[:29]}…",
                y + HEAD + ROW * at,
                offline * scale,
                online * scale,
                f"{name}: offline {offline:.3f} s, online {online:.3f} s",
            )
            for at, (name, offline, online) in enumerate(rows)
        ),
    )
