"""Which points are worth having, and what one network gains over another at an equal ReLU count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import mean, stdev

from deepreshape.training.runs import Result

__all__ = ["Advantage", "Summary", "advantages", "pareto_front", "summarize"]


@dataclass(frozen=True)
class Summary:
    """One network under one plan, over its seeds.

    Attributes:
        network, plan, budget: what was trained; a network that a method has removed ReLUs from is "network, method".
        relus, macs, params: counts.
        priced: seconds by profile.
        top1: test top-1 in percent, one for each seed.
        results: that it sums up.
    """

    network: str
    plan: str
    budget: int | None
    relus: int
    macs: int
    params: int
    priced: Mapping[str, float]
    top1: tuple[float, ...]
    results: tuple[Result, ...]

    @property
    def mean(self) -> float:
        """Of the test top-1."""
        return mean(self.top1)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None with one seed."""
        return stdev(self.top1) if len(self.top1) > 1 else None


@dataclass(frozen=True)
class Advantage:
    """A point against the baseline at the same ReLU count.

    Attributes:
        point: the point.
        baseline: the baseline's top-1 there, on the straight line (over log ReLUs) between its two nearest points.
        spread: standard deviations of the points involved, added in squares; None where any has one seed only.
    """

    point: Summary
    baseline: float
    spread: float | None

    @property
    def gain(self) -> float:
        """In points of top-1."""
        return self.point.mean - self.baseline


def summarize(results: Iterable[Result]) -> tuple[Summary, ...]:
    """Results of the same network and plan together, in the order they first appear."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        series = result.network if result.method == "all" else f"{result.network}, {result.method}"
        groups.setdefault((series, result.plan), []).append(result)
    return tuple(
        Summary(
            network,
            plan,
            group[0].budget,
            group[0].relus,
            group[0].macs,
            group[0].params,
            group[0].priced_seconds,
            tuple(result.top1 for result in group),
            tuple(group),
        )
        for (network, plan), group in groups.items()
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The (cost, accuracy) pairs that no other pair beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda pair: (pair[0], -pair[1])):
        if not best or gain > best[-1][1]:
            best.append((cost, gain))
    return tuple(best)


def advantages(points: Sequence[Summary], baseline: str) -> tuple[Advantage, ...]:
    """Every other network's points that lie between two ReLU counts of the baseline, compared with it there.

    Args:
        points: all of them.
        baseline: a network, with whose points of the same method a point is compared; or one "network, method".
    """
    ahead: list[Advantage] = []
    for point in points:
        _, by, method = point.network.partition(", ")
        peer = f"{baseline}, {method}" if by and ", " not in baseline else baseline
        known = sorted((other for other in points if other.network == peer), key=lambda other: other.relus)
        below = [other for other in known if other.relus <= point.relus]
        above = [other for other in known if other.relus >= point.relus]
        if point.network == peer or not below or not above:
            continue
        low, high = below[-1], above[0]
        share = 0.0 if low is high else log(point.relus / low.relus) / log(high.relus / low.relus)
        spreads = [(point.spread, 1.0), (low.spread, 1 - share), (high.spread, share)]
        spread = None
        if all(value is not None for value, weight in spreads if weight):
            spread = sum((weight * (value or 0.0)) ** 2 for value, weight in spreads) ** 0.5
        ahead.append(Advantage(point, low.mean + share * (high.mean - low.mean), spread))
    return tuple(ahead)
