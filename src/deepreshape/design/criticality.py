"""How much each stage's ReLUs matter for accuracy, measured as in DeepReDuce (Jha et al., ICML 2021, section 3).

Train the network with one stage's ReLUs only, for each stage; score the accuracy gained over the weakest stage by the
number of ReLUs it took: C_k = (A_k - min A) / R_k^0.07. The stem's ReLU belongs to the first stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

from deepreshape.models import Reduction, Staged

__all__ = ["Criticality", "measure_criticality", "only_stage"]

WEIGHT = 0.07
"""Exponent of the ReLU count in the score, as published."""


@dataclass(frozen=True)
class Criticality:
    """Scores by stage, over seeds.

    Attributes:
        accuracies: for each seed, top-1 in percent of the network with one stage's ReLUs only, by stage.
        relus: ReLUs of each stage.
    """

    accuracies: tuple[tuple[float, ...], ...]
    relus: tuple[int, ...]

    def scores(self, seed: int) -> tuple[float, ...]:
        """C_k of each stage in one seed's runs."""
        tops = self.accuracies[seed]
        return tuple((top - min(tops)) / relus**WEIGHT for top, relus in zip(tops, self.relus, strict=True))

    @property
    def mean(self) -> tuple[float, ...]:
        """C_k of each stage, mean over seeds."""
        return tuple(mean(scores) for scores in zip(*map(self.scores, range(len(self.accuracies))), strict=True))

    @property
    def spread(self) -> tuple[float, ...]:
        """Standard deviation of C_k over seeds; 0 with one seed."""
        if len(self.accuracies) == 1:
            return (0.0,) * len(self.relus)
        return tuple(stdev(scores) for scores in zip(*map(self.scores, range(len(self.accuracies))), strict=True))

    @property
    def order(self) -> tuple[int, ...]:
        """Stages, 1 and up, most critical first."""
        means = self.mean
        return tuple(sorted(range(1, len(means) + 1), key=lambda stage: -means[stage - 1]))


def only_stage(architecture: Staged, stage: int) -> Staged:
    """The network with the ReLUs of ``stage`` only."""
    gone = frozenset(site.name for site in architecture.sites() if max(site.stage, 1) != stage)
    return replace(architecture, reduction=Reduction(removed=gone))


def measure_criticality(
    architecture: Staged, accuracy: Callable[[Staged, int], float], seeds: Sequence[int] = (0,)
) -> Criticality:
    """Criticality of every stage.

    Args:
        architecture: the unreduced network.
        accuracy: trains a network with a seed and returns its validation top-1 in percent.
        seeds: one full set of runs each.
    """
    stages = range(1, len(architecture.phi) + 1)
    tops = tuple(tuple(accuracy(only_stage(architecture, stage), seed) for stage in stages) for seed in seeds)
    counted = tuple(sum(site.relus for site in architecture.sites() if max(site.stage, 1) == stage) for stage in stages)
    return Criticality(tops, counted)
