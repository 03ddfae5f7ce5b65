"""Design under a cost: which HybReNet, reduced how, is likely the most accurate within so many seconds or bytes.

Prices are predicted, and so is accuracy, by a proxy that is fitted to trained points and validated on networks that it
has not seen: top-1 goes about as the logarithms of ReLUs, MACs and parameters. It ranks; it promises no accuracy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, prod
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepreshape.cost import LinearLayer
from deepreshape.design.plan import Plan, candidates
from deepreshape.models import Architecture, name_of
from deepreshape.models.resnet import layers
from deepreshape.pricing.quote import Terms, quote_layers

__all__ = ["PROXY", "Candidate", "Choice", "Limit", "Proxy", "Space", "by_evolution", "by_optuna", "front"]

ELITE = 12
"""Designs that the search goes on from."""

MULTIPLIERS = ("alpha", "beta", "gamma", "delta")
"""By how much each stage is wider than the one before, in order."""


@dataclass(frozen=True)
class Proxy:
    """A score that ranks networks as their accuracy does, in points of top-1 up to a constant.

    Attributes:
        relus, macs, params: points for each unit of the natural logarithm.
        points: trained points that it was fitted to.
        correlation: Spearman's, over all points, each scored by a fit that has not seen its network.
    """

    relus: float
    macs: float
    params: float
    points: int
    correlation: float

    def score(self, relus: int, macs: int, params: int) -> float:
        """Of a network with at least one ReLU."""
        return self.relus * log(relus) + self.macs * log(macs) + self.params * log(params)

    @classmethod
    def fit(cls, rows: Sequence[Mapping[str, Any]]) -> Proxy:
        """Least squares over trained points (rows of ``results.jsonl``), validated network by network.

        Raises:
            ValueError: if there are too few points or networks.
        """
        names = {row["network"] for row in rows}
        if len(names) < 3 or len(rows) < 8:
            raise ValueError(
                f"{len(rows)} points of {len(names)} networks are too few; 8 points of 3 networks are needed"
            )
        features = np.array([[1, *(log(row[key]) for key in ("relus", "macs", "params"))] for row in rows])
        tops = np.array([row["top1"] for row in rows])
        unseen = np.empty(len(rows))
        for name in names:
            own = np.array([row["network"] == name for row in rows])
            unseen[own] = features[own] @ np.linalg.lstsq(features[~own], tops[~own], rcond=None)[0]
        weights = np.linalg.lstsq(features, tops, rcond=None)[0]
        relus, macs, params = (round(float(weight), 3) for weight in weights[1:])
        return cls(relus, macs, params, len(rows), round(_spearman(unseen, tops), 3))


PROXY = Proxy(relus=1.487, macs=3.151, params=1.199, points=26, correlation=0.983)
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
        unit: what is limited: predicted seconds or bytes, offline and online together.
        most: of it.
    """

    unit: Literal["seconds", "bytes"]
    most: float


@dataclass(frozen=True)
class Candidate:
    """A network, what it costs and how it scores."""

    choice: Choice
    network: str
    plan: Plan
    relus: int
    macs: int
    params: int
    seconds: float
    bytes: int
    score: float

    def cost(self, limit: Limit) -> float:
        """In the unit of the limit."""
        return self.seconds if limit.unit == "seconds" else self.bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = {
            key: getattr(self, key) for key in ("network", "relus", "macs", "params", "seconds", "bytes", "score")
        }
        return values | {"plan": str(self.plan), "protocol": self.choice.protocol}


def evaluate(choice: Choice, space: Space, terms: Terms, proxy: Proxy) -> Candidate | None:
    """Price and score a choice; None if its design has no such plan or cannot be priced."""
    whole = Architecture("resnet", choice.phi, choice.base, choice.multipliers, space.input, space.classes)
    plans = list(candidates(whole))
    if choice.plan >= len(plans) or not plans[choice.plan].relus:
        return None
    chosen = plans[choice.plan]
    own = tuple(layers(chosen.architecture))
    linear = [layer for layer in own if isinstance(layer, LinearLayer)]
    # a batch norm behind every convolution, a bias behind the last layer
    params = sum(
        prod(layer.kernel) * layer.in_channels * layer.out_channels + 2 * layer.out_channels for layer in linear
    )
    params -= space.classes
    macs = sum(layer.macs for layer in linear)
    try:
        quote = quote_layers(own, replace(terms, protocol=choice.protocol))
    except ValueError:  # a layer too large for every known set of parameters
        return None
    score = proxy.score(chosen.relus, macs, params)
    return Candidate(
        choice, name_of(whole), chosen, chosen.relus, macs, params, quote.seconds, quote.report.bytes, score
    )


def by_evolution(
    space: Space, terms: Terms, limit: Limit, trials: int, *, proxy: Proxy = PROXY, seed: int = 0
) -> Iterator[Candidate]:
    """Every candidate tried that keeps the limit: the first half at random, then near the best so far."""
    random = Random(seed)  # noqa: S311 - a search, no secret
    best: list[Candidate] = []
    seen: set[Choice] = set()
    for number in range(trials):
        explore = number < trials // 2 or not best
        choice = (
            space.draw(lambda _, low, high: random.randint(low, high))
            if explore
            else space.near(random.choice(best).choice, random)
        )
        if choice in seen:
            continue
        seen.add(choice)
        found = evaluate(choice, space, terms, proxy)
        if found is None or found.cost(limit) > limit.most:
            continue
        best = sorted([*best, found], key=lambda candidate: -candidate.score)[:ELITE]
        yield found


def by_optuna(
    space: Space,
    terms: Terms,
    limit: Limit,
    trials: int,
    storage: str,
    *,
    proxy: Proxy = PROXY,
    seed: int = 0,
) -> Iterator[Candidate]:
    """The same by Optuna's NSGA-II over (cost, score), kept in ``storage``, such as ``sqlite:///search.db``.

    It goes on with what is stored for the same space, terms and limit; several processes may work on it at a time.

    Raises:
        ValueError: if Optuna is not installed.
    """
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("searching with Optuna needs it: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"deepreshape {hashlib.sha256(repr((space, terms, limit)).encode()).hexdigest()}",
        storage=storage,
        load_if_exists=True,
        directions=["minimize", "maximize"],
        sampler=optuna.samplers.NSGAIISampler(seed=seed),
    )

    def objective(trial: Any) -> tuple[float, float]:
        found = evaluate(space.draw(trial.suggest_int), space, terms, proxy)
        if found is None or found.cost(limit) > limit.most:
            raise optuna.TrialPruned
        return found.cost(limit), found.score

    study.optimize(objective, n_trials=max(trials - len(study.trials), 0), catch=())
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.COMPLETE:
            choice = space.draw(lambda name, _low, _high, of=trial: of.params[name])
            found = evaluate(choice, space, terms, proxy)
            if found and found.cost(limit) <= limit.most:
                yield found


def front(found: Sequence[Candidate], limit: Limit) -> list[Candidate]:
    """Candidates that no other beats in both cost and score, best score first."""
    best: list[Candidate] = []
    for candidate in sorted(found, key=lambda candidate: (candidate.cost(limit), -candidate.score)):
        if not best or candidate.score > best[-1].score:
            best.append(candidate)
    return best[::-1]
