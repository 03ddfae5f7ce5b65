"""Which points are worth having, and what one network gains over another at an equal cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import mean, stdev

from deepreshape.training import METRICS
from deepreshape.training.runs import Result

__all__ = [
    "BOTH",
    "MACS",
    "RELUS",
    "Advantage",
    "Basis",
    "Summary",
    "advantages",
    "pareto_front",
    "profiles_of",
    "seconds_basis",
    "summarize",
]

ALIKE = 0.15
"""How far apart multiply-adds that count as equal may be, as a share: base widths are whole numbers."""


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
    def metric(self) -> str:
        """What the accuracy is called: top-1 or mIoU."""
        return METRICS[self.results[0].measures]

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
    """A point against the baseline at an equal amount, such as the same ReLU count.

    Attributes:
        point: the point.
        baseline: the baseline's top-1 there, on the straight line (over the amount's log) between its nearest points.
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


def profiles_of(points: Sequence[Summary]) -> list[str]:
    """The published profiles that price all points; none prices squares or signs."""
    return [name for name in points[0].priced if all(name in point.priced for point in points)]


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The (cost, accuracy) pairs that no other pair beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda pair: (pair[0], -pair[1])):
        if not best or gain > best[-1][1]:
            best.append((cost, gain))
    return tuple(best)


@dataclass(frozen=True)
class Basis:
    """At an equal amount of what two networks are compared.

    Attributes:
        name: of the amount.
        amount: of a point; one of which it is 0 is compared with its like alone.
        widths: whether the baseline's relatives of other base widths stand for it too.
        comparable: whether a point of the baseline's may be compared with a point.
    """

    name: str
    amount: Callable[[Summary], float]
    widths: bool
    comparable: Callable[[Summary, Summary], bool]


def _alike(point: Summary, other: Summary) -> bool:
    return abs(other.macs - point.macs) <= ALIKE * point.macs


RELUS = Basis("ReLU count", lambda point: point.relus, False, lambda *_: True)
MACS = Basis(
    "multiply-adds", lambda _: 1.0, True, lambda point, other: point.budget == other.budget and _alike(point, other)
)
"""Where as many ReLUs were asked for: whole networks with whole ones, reduced ones with those of the same budget."""
BOTH = Basis("ReLU count and multiply-adds", lambda point: point.relus, True, _alike)


def seconds_basis(terms: str, seconds: Mapping[tuple[str, str], float]) -> Basis:
    """Predicted seconds of an inference.

    Args:
        terms: of the prediction, such as "gc-full, wan".
        seconds: by network and plan of a point; points that are not among them are not compared.
    """

    def amount(point: Summary) -> float:
        return seconds.get((point.network, point.plan), 0.0)

    return Basis(
        f"predicted seconds ({terms})", amount, True, lambda point, other: amount(point) > 0 and amount(other) > 0
    )


def advantages(points: Sequence[Summary], baseline: str, basis: Basis = RELUS) -> tuple[Advantage, ...]:
    """Every other network's points that lie between two of the baseline's by ``basis``, compared with it there.

    Args:
        points: all of them.
        baseline: a network, with whose points of the same method a point is compared; or one "network, method". By a
            basis that has ``widths``, also its relatives of another base width, and of all of them those that no
            other beats in both amount and accuracy.
        basis: what is equal.
    """
    ahead: list[Advantage] = []
    for point in points:
        _, by, method = point.network.partition(", ")
        peer = f"{baseline}, {method}" if by and ", " not in baseline else baseline
        known = [other for other in points if _stands_for(other, peer, basis.widths) and basis.comparable(point, other)]
        amount = basis.amount(point)
        known = [other for other in known if bool(basis.amount(other)) == bool(amount)]  # no logarithm reaches 0
        if _stands_for(point, peer, basis.widths) or not _around(amount, map(basis.amount, known)):
            continue
        if basis.widths:
            best = set(pareto_front([(basis.amount(other), other.mean) for other in known]))
            known = [other for other in known if (basis.amount(other), other.mean) in best]
        known.sort(key=basis.amount)
        below = [other for other in known if basis.amount(other) <= amount]
        above = [other for other in known if basis.amount(other) >= amount] or below[-1:]
        low, high = below[-1], above[0]
        share = 0.0
        if low is not high and basis.amount(high) > basis.amount(low):
            share = log(amount / basis.amount(low)) / log(basis.amount(high) / basis.amount(low))
        spreads = [(point.spread, 1.0), (low.spread, 1 - share), (high.spread, share)]
        spread = None
        if all(value is not None for value, weight in spreads if weight):
            spread = sum((weight * (value or 0.0)) ** 2 for value, weight in spreads) ** 0.5
        ahead.append(Advantage(point, low.mean + share * (high.mean - low.mean), spread))
    return tuple(ahead)


def _around(amount: float, others: Iterable[float]) -> bool:
    """Whether an amount lies between two of the others."""
    amounts = list(others)
    return bool(amounts) and min(amounts) <= amount <= max(amounts)


def _stands_for(point: Summary, baseline: str, widths: bool) -> bool:
    if not widths:
        return point.network == baseline
    return _without_width(point.network) == _without_width(baseline)


def _without_width(network: str) -> str:
    """A network's name, or "name, method", without its base width."""
    return re.sub(r"-m\d+(?=-|,|$)", "", network)
