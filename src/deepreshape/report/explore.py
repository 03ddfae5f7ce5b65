"""The data of the report's explorable chart: points, what each costs under every protocol and link, and its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from deepreshape.cost import Quote
from deepreshape.report.chart import looks
from deepreshape.report.html import environment
from deepreshape.report.pareto import Summary

__all__ = ["Priced", "embedded", "explorable", "page"]


@dataclass(frozen=True)
class Priced:
    """What is known of one point beside its results.

    Attributes:
        quotes: by "protocol, link".
        sites: (name, ReLUs kept, ReLUs of the unreduced network) of every ReLU site.
        settings: to be shown.
    """

    quotes: Mapping[str, Quote]
    sites: tuple[tuple[str, int, int], ...]
    settings: Mapping[str, Any]


def explorable(points: Sequence[Summary], priced: Sequence[Priced]) -> dict[str, Any]:
    """Plain JSON values for the page's script; one entry of ``priced`` for each point."""
    networks = list(dict.fromkeys(point.network for point in points))
    return {
        "metric": points[0].metric if points else "top-1",
        "terms": list(priced[0].quotes) if priced else [],
        "looks": {name: {"color": color, "shape": shape} for name, (color, shape) in looks(networks).items()},
        "points": [
            {
                "network": point.network,
                "plan": point.plan,
                "relus": point.relus,
                "macs": point.macs,
                "params": point.params,
                "top1": point.mean,
                "spread": point.spread,
                "seeds": len(point.top1),
                "commands": [result.command for result in point.results],
                **described(shown),
            }
            for point, shown in zip(points, priced, strict=True)
        ],
    }


def described(priced: Priced) -> dict[str, Any]:
    """A point's prices, sites and settings."""
    return {
        "priced": {name: _price(quote) for name, quote in priced.quotes.items()},
        "sites": [list(site) for site in priced.sites],
        "settings": dict(priced.settings),
    }


def embedded(data: Mapping[str, Any]) -> Markup:
    """JSON for a script element: nothing in it can end the element or open a comment."""
    return Markup(json.dumps(data).replace("<", "\\u003c"))  # noqa: S704 - no < is left


def page(title: str, data: Mapping[str, Any]) -> str:
    """A page of its own with the live sliders; ``data`` as :func:`explorable` gives it, with ``live`` beside."""
    return environment().get_template("live.html.j2").render(title=title, data=embedded(data))


def _price(quote: Quote) -> dict[str, Any]:
    facts = quote.to_dict()
    return {
        "seconds": facts["seconds"],
        "bytes": facts["bytes"],
        "rounds": facts["rounds"],
        "stored": facts["stored_bytes"],
        "relu_share": facts["relu_share"],
        "advice": facts["advice"],
        "layers": [
            [row["layer"], round(row["seconds"]["offline"], 5), round(row["seconds"]["online"], 5)]
            for row in facts["layers"]
        ],
    }
