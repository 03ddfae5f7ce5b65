"""The main job: a baseline, its HybReNets, a ladder of ReLU budgets, each point trained, counted and priced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deepreshape.data import Dataset
from deepreshape.design import equalize
from deepreshape.experiments.experiment import Experiment
from deepreshape.experiments.points import TrainingPoint
from deepreshape.models import ResNet, Staged, architecture_for
from deepreshape.removal import plan, plan_of
from deepreshape.training import Recipe

__all__ = ["Job", "default_budgets", "hybrenets"]


@dataclass(frozen=True)
class Job(Experiment):
    """Settings of a job, all resolved.

    Attributes:
        baseline: name of the network that is redesigned.
        networks: names of the networks compared, the baseline first.
        budgets: ReLU budgets, for each of which each network gets the coarse plan that keeps the most.
        seeds: each point is trained once for each.
        recipe: of the networks with all their ReLUs, which start from fresh weights.
        reduced_epochs: of each reduced network, which starts from the next larger one.
        teacher: name of a network that is trained first and distils into every other; without one, each network with
            all its ReLUs teaches its reduced forms.
    """

    baseline: str
    networks: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    reduced_epochs: int
    teacher: str | None = None

    def points(self, data: Dataset, models: Path) -> Iterator[TrainingPoint]:
        """Every point, each after the ones it needs.

        Raises:
            ValueError: if a name or a budget does not fit.
        """
        most = architecture_for(self.baseline, data).relus
        for budget in self.budgets:
            if budget > most:
                raise ValueError(
                    f"a budget of {budget:,} ReLUs is larger than the baseline {self.baseline}, which has {most:,}"
                )
        taught_by = None
        if self.teacher:
            teacher = self._whole(self.teacher, self.seeds[0], data)
            taught_by = models / teacher.id
            yield teacher
        for seed in self.seeds:
            for network in self.networks:
                whole = self._whole(network, seed, data, taught_by)
                if models / whole.id != taught_by:
                    yield whole
                yield from self._ladder(whole, data, models)

    def _whole(self, network: str, seed: int, data: Dataset, teacher: Path | None = None) -> TrainingPoint:
        plan = plan_of(architecture_for(network, data))
        return TrainingPoint(network, plan, None, seed, self.recipe, teacher=teacher)

    def _ladder(self, whole: TrainingPoint, data: Dataset, models: Path) -> Iterator[TrainingPoint]:
        """Its reduced forms, each from the next larger one."""
        recipe, before = replace(self.recipe, epochs=self.reduced_epochs), whole
        for budget in sorted(self.budgets, reverse=True):
            if budget >= whole.plan.relus:
                continue
            chosen = plan(architecture_for(whole.network, data), budget)
            if chosen.relus == before.plan.relus:
                continue
            before = TrainingPoint(
                whole.network,
                chosen,
                budget,
                whole.seed,
                recipe,
                init=models / before.id,
                teacher=whole.teacher or models / whole.id,
            )
            yield before


def hybrenets(baseline: Staged) -> tuple[str, ...]:
    """The relatives a four-stage ResNet is compared with, at the papers' ratio of base channels.

    The smallest ReLU-equalized one (m a quarter of the baseline's), the two smallest with alpha = 2 (half), and the
    ReLU-balanced StCh net (a quarter).

    Raises:
        ValueError: if the baseline is of another family or has another number of stages.
    """
    if not isinstance(baseline, ResNet) or len(baseline.phi) != 4:
        raise ValueError(
            f"HybReNets are made from ResNets of four stages, not from {baseline.name}; name the networks yourself"
        )
    quarter, half = (
        replace(baseline, base=max(1, baseline.base // 4)),
        replace(baseline, base=max(1, baseline.base // 2)),
    )
    equalized = [equalize(quarter)[0], *equalize(half, fixed={"alpha": 2})[:2]]
    return (*(design.architecture.name for design in equalized), replace(quarter, multipliers=(4, 4, 4)).name)


def default_budgets(baseline: Staged) -> tuple[int, ...]:
    """A quarter, an eighth and a sixteenth of the baseline's ReLUs."""
    return tuple(baseline.relus // part for part in (4, 8, 16))
