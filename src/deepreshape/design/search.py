"""Design under a cost: which HybReNet, reduced how, is likely the most accurate within so many seconds or bytes.

What a candidate costs is a callable's to say. Accuracy is predicted by a proxy that is fitted to trained points and
validated on networks that it has not seen: top-1 goes about as the logarithms of ReLUs, MACs and parameters. It ranks,
and only networks within the counts it was fitted on; it promises no accuracy. The search is an evolution (Real et al.
2019): half of the trials at random, the others near the best so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log, prod
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepreshape.cost import Layer, LinearLayer, Quote
from deepreshape.design.plan import CoarsePlan, coarse_plans
from deepreshape.models import ResNet

__all__ = ["PROXY", "Candidate", "Choice", "Limit", "Price", "Proxy", "Space", "score_choice", "search", "undominated"]

Price = Callable[[Sequence[Layer], str], Quote]
"""What a network of these layers costs under a protocol; a ``ValueError`` says that it cannot be priced."""

COUNTS = ("relus", "macs", "params")

ELITE = 12
"""Designs that the search goes on from."""

DRAWS = 20
"""The most designs that are drawn for each that is priced."""

UNITS = {"seconds": "seconds", "bytes": "bytes", "relus": "ReLUs", "macs": "multiply-adds"}

MULTIPLIERS = ("alpha", "beta", "gamma", "delta")
"""By how much each stage is wider than the one before, in order."""


@dataclass(frozen=True)
class Proxy:
    """A score that ranks networks as their accuracy does, in points of top-1 up to a constant.

    Attributes:
        relus, macs, params: points for each unit of the natural logarithm.
        points: trained points that it was fitted to.
        correlation: Spearman's, over all points, each scored by a fit that has not seen its network.
        fitted: (smallest, largest) ReLUs, MACs and parameters of those points; it says nothing about others.
        data: names of the data sets they were trained on.
    """

    relus: float
    macs: float
    params: float
    points: int
    correlation: float
    fitted: tuple[tuple[int, int], ...]
    data: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the score is."""
        terms = " + ".join(f"{getattr(self, count):g} ln {count}" for count in COUNTS)
        return f"{terms}: points of top-1 on {', '.join(self.data)} up to a constant"

    def knows(self, *counts: int) -> bool:
        """Whether a network of these ReLUs, MACs and parameters lies within what it was fitted on."""
        return all(low <= value <= high for value, (low, high) in zip(counts, self.fitted, strict=True))

    def score(self, relus: int, macs: int, params: int) -> float:
        """Of a network with at least one ReLU."""
        return self.relus * log(relus) + self.macs * log(macs) + self.params * log(params)

    @classmethod
    def fit(cls, rows: Sequence[Mapping[str, Any]]) -> Proxy:
        """Least squares over trained points (rows of ``results.jsonl``), validated network by network.

        Raises:
            ValueError: if there are too few points or networks, or points of another metric.
        """
        if any("top1" not in row for row in rows):
            raise ValueError("the score is of top-1, and some of these points have another metric; leave those out")
        rows = [row for row in rows if row["relus"]]  # it scores networks with at least one ReLU
        names = {row["network"] for row in rows}
        if len(names) < 3 or len(rows) < 8:
            raise ValueError(
                f"{len(rows)} points of {len(names)} networks are too few; 8 points of 3 networks are needed"
            )
        features = np.array([[1, *(log(row[key]) for key in COUNTS)] for row in rows])
        tops = np.array([row["top1"] for row in rows])
        unseen = np.empty(len(rows))
        for name in names:
            of_network = np.array([row["network"] == name for row in rows])
            unseen[of_network] = (
                features[of_network] @ np.linalg.lstsq(features[~of_network], tops[~of_network], rcond=None)[0]
            )
        weights = np.linalg.lstsq(features, tops, rcond=None)[0]
        relus, macs, params = (round(float(weight), 3) for weight in weights[1:])
        fitted = tuple((min(row[key] for row in rows), max(row[key] for row in rows)) for key in COUNTS)
        data = tuple(sorted({str(row["data"]) for row in rows}))
        return cls(relus, macs, params, len(rows), round(_spearman(unseen, tops), 3), fitted, data)


PROXY = Proxy(
    relus=1.487,
    macs=3.151,
    params=1.199,
    points=26,
    correlation=0.983,
    fitted=((5_888, 139_264), (18_758_272, 65_940_016), (448_196, 3_066_624)),
    data=("cifar100",),
)
"""Fitted to benchmarks/results/cifar100-coarse.jsonl; a test fits it anew."""


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    ranks = [[np.mean(np.flatnonzero(np.sort(values) == value)) for value in values] for values in (a, b)]
    return float(np.corrcoef(np.array(ranks)).flat[1])


@dataclass(frozen=True)
class Choice:
    """One point of the space: a design, which of its coarse plans, and under which protocol."""

    phi: tuple[int, ...]
    base: int
    multipliers: tuple[int, ...]
    plan: int
    protocol: str


@dataclass(frozen=True)
class Space:
    """What is searched: ResNets between these bounds.

    Attributes:
        input, classes: of the networks.
        protocols: to choose from.
        stages: of every network, 2 to 5.
        blocks, bases, multipliers: (smallest, largest); a base is a multiple of 4.
        plans: how many coarse plans there are, gentlest first.
    """

    input: tuple[int, int, int] = (3, 32, 32)
    classes: int = 100
    protocols: tuple[str, ...] = ("gc-full",)
    stages: int = 4
    blocks: tuple[int, int] = (1, 4)
    bases: tuple[int, int] = (1, 16)
    multipliers: tuple[int, int] = (1, 7)
    plans: int = 8

    def draw(self, pick: Callable[[str, int, int], int]) -> Choice:
        """A choice made of integers that ``pick`` gives by (name, smallest, largest)."""
        return Choice(
            tuple(pick(f"phi{stage}", *self.blocks) for stage in range(self.stages)),
            4 * pick("base", *self.bases),
            tuple(pick(name, *self.multipliers) for name in MULTIPLIERS[: self.stages - 1]),
            pick("plan", 0, self.plans - 1),
            self.protocols[pick("protocol", 0, len(self.protocols) - 1)],
        )

    def near(self, choice: Choice, random: Random) -> Choice:
        """A choice that differs from ``choice`` in one or two places."""
        old: dict[str, int] = {f"phi{stage}": blocks for stage, blocks in enumerate(choice.phi)}
        old |= dict(zip(MULTIPLIERS, choice.multipliers, strict=False))
        old |= {"base": choice.base // 4, "plan": choice.plan, "protocol": self.protocols.index(choice.protocol)}
        moved = set(random.sample(sorted(old), random.randint(1, 2)))
        return self.draw(lambda name, low, high: random.randint(low, high) if name in moved else old[name])


@dataclass(frozen=True)
class Limit:
    """The most that a network may cost.

    Attributes:
        unit: what is limited: predicted seconds or bytes, offline and online together, ReLUs or multiply-adds.
        most: of it.
    """

    unit: Literal["seconds", "bytes", "relus", "macs"]
    most: float

    def __str__(self) -> str:
        return f"{self.most:g} {UNITS[self.unit]}"


@dataclass(frozen=True)
class Candidate:
    """A network, what it costs and how it scores."""

    choice: Choice
    network: str
    plan: CoarsePlan
    relus: int
    macs: int
    params: int
    seconds: float
    bytes: int
    score: float

    def cost(self, limit: Limit) -> float:
        """In the unit of the limit."""
        return getattr(self, limit.unit)

    def keeps(self, limits: Sequence[Limit]) -> bool:
        """Whether it costs no more than any of them allows."""
        return all(self.cost(limit) <= limit.most for limit in limits)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = {
            key: getattr(self, key) for key in ("network", "relus", "macs", "params", "seconds", "bytes", "score")
        }
        return values | {"plan": str(self.plan), "protocol": self.choice.protocol}


def score_choice(choice: Choice, space: Space, price: Price, proxy: Proxy) -> Candidate | None:
    """Price and score a choice; None if its design has no such plan, is unknown to the proxy or cannot be priced."""
    whole = ResNet(choice.phi, choice.base, choice.multipliers, space.input, space.classes)
    plans = list(coarse_plans(whole))
    if choice.plan >= len(plans) or not plans[choice.plan].relus:
        return None
    chosen = plans[choice.plan]
    layers = chosen.architecture.layers()
    linear = [layer for layer in layers if isinstance(layer, LinearLayer)]
    # a batch norm behind every convolution, a bias behind the last layer
    params = sum(
        prod(layer.kernel) * layer.in_channels * layer.out_channels + 2 * layer.out_channels for layer in linear
    )
    params -= space.classes
    macs = sum(layer.macs for layer in linear)
    if not proxy.knows(chosen.relus, macs, params):
        return None
    try:
        quote = price(layers, choice.protocol)
    except ValueError:  # a layer too large for every known set of parameters
        return None
    score = proxy.score(chosen.relus, macs, params)
    return Candidate(choice, whole.name, chosen, chosen.relus, macs, params, quote.seconds, quote.report.bytes, score)


def search(
    space: Space, price: Price, limits: Sequence[Limit], trials: int, *, proxy: Proxy = PROXY, seed: int = 0
) -> Iterator[Candidate]:
    """Every candidate tried that keeps the limits: the first half at random, then near the best so far.

    Args:
        space: what is searched; designs that the proxy was not fitted on are passed over and cost no trial.
        price: what a candidate costs.
        limits: the most that it may cost, at least one.
        trials: candidates that are priced.
        proxy: scores them.
        seed: of the search.
    """
    random = Random(seed)  # noqa: S311 - a search, no secret
    best: list[Candidate] = []
    seen: set[Choice] = set()
    priced = 0
    for _ in range(DRAWS * trials):
        if priced == trials:
            return
        explore = priced < trials // 2 or not best
        choice = (
            space.draw(lambda _, low, high: random.randint(low, high))
            if explore
            else space.near(random.choice(best).choice, random)
        )
        if choice in seen:
            continue
        seen.add(choice)
        candidate = score_choice(choice, space, price, proxy)
        if candidate is None:
            continue
        priced += 1
        if candidate.keeps(limits):
            best = sorted([*best, candidate], key=lambda candidate: -candidate.score)[:ELITE]
            yield candidate


def undominated(candidates: Sequence[Candidate], limit: Limit) -> list[Candidate]:
    """Candidates that no other beats in both cost, in the limit's unit, and score, best score first."""
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: (candidate.cost(limit), -candidate.score)):
        if not best or candidate.score > best[-1].score:
            best.append(candidate)
    return best[::-1]
