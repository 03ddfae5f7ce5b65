"""Training the designs that a search ranked best, each from fresh weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepreshape.data import Dataset
from deepreshape.experiments.experiment import Experiment
from deepreshape.experiments.points import TrainingPoint
from deepreshape.removal import CoarsePlan
from deepreshape.training import Recipe

__all__ = ["Designs"]


@dataclass(frozen=True)
class Designs(Experiment):
    """The designs to train, and how.

    Attributes:
        plans: by the name of each network, what is removed from it.
        recipe: of the training.
    """

    plans: tuple[tuple[str, CoarsePlan], ...]
    recipe: Recipe

    def points(self, data: Dataset, models: Path) -> Iterator[TrainingPoint]:
        """One for each design."""
        for network, plan in self.plans:
            yield TrainingPoint(network, plan, plan.relus, 0, self.recipe)

    def to_config(self) -> dict[str, Any]:
        """With each design in words."""
        designs = [f"{network}: {plan}" for network, plan in self.plans]
        return {"data": self.data, "designs": designs, "recipe": asdict(self.recipe)}
