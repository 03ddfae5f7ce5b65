"""Many removals as one command: networks, methods, budgets, seeds; one row of results each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.experiments.experiment import Experiment, Point
from deepreshape.experiments.points import RemovalPoint, TrainingPoint, load_fitting
from deepreshape.models import architecture_for
from deepreshape.models.saved import MANIFEST
from deepreshape.models.zoo import folder_of
from deepreshape.removal import METHODS, Method, plan_of
from deepreshape.training import Recipe, with_values

__all__ = ["Sweep", "configured", "short_name"]


@dataclass(frozen=True)
class Sweep(Experiment):
    """Settings of a sweep, all resolved.

    Attributes:
        networks: each a name, trained here first, a saved model (a folder, or ``zoo:NAME``), or a word of ``modules``.
        methods: names of methods.
        budgets: ReLU budgets; those above a network's count are left out for it.
        seeds: everything is done once for each.
        recipe: of the networks that are trained here.
        tune: of the fine-tuning after each removal.
        settings: of the methods, as (method, setting, value).
        teacher: a saved model that distils into all; without one, each network into its own reduced forms.
        modules: trained networks by the words that stand for them; ``config.yaml`` has the words alone.
    """

    networks: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    tune: Recipe
    settings: tuple[tuple[str, str, str], ...] = ()
    teacher: str | None = None
    modules: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module], compare=False)

    def to_config(self) -> dict[str, Any]:
        config = super().to_config() if not self.modules else replace(self, modules={}).to_config()
        return {name: value for name, value in config.items() if name != "modules"}

    def points(self, data: Dataset, models: Path) -> Iterator[Point]:
        """Every point, each after the one it needs.

        Raises:
            ValueError: if a name or a setting does not fit.
        """
        self._check(data)
        teacher = folder_of(self.teacher) if self.teacher else None
        for seed in self.seeds:
            for network in self.networks:
                relus = self._relus(network, data)
                source = self.modules.get(network) or folder_of(network)
                if network not in self.modules and not _is_saved(network):
                    whole = plan_of(architecture_for(network, data))
                    trained = TrainingPoint(network, whole, None, seed, self.recipe, teacher=teacher)
                    source = models / trained.id
                    yield trained
                for budget in sorted(self.budgets, reverse=True):
                    for name in self.methods:
                        given = {key: value for method, key, value in self.settings if method == name}
                        chosen = configured(name, budget, given)
                        if budget <= relus:
                            yield RemovalPoint(
                                short_name(network), source, chosen, seed, self.tune, teacher, word=network
                            )

    def _check(self, data: Dataset) -> None:
        for name, key, value in self.settings:
            if name not in self.methods:
                raise ValueError(f"{name}.{key}={value} is for a method that is not in this sweep")
        short = [short_name(network) for network in self.networks]
        for name in short:
            if short.count(name) > 1:
                raise ValueError(f"two of the networks are called {name!r}, as their results would be; rename one")
        most = max(self._relus(network, data) for network in self.networks)
        for budget in self.budgets:
            if budget > most:
                raise ValueError(
                    f"a budget of {budget:,} ReLUs is more than any of these networks has: {most:,} at most"
                )

    def _relus(self, network: str, data: Dataset) -> int:
        if network in self.modules:
            return count(self.modules[network], data.shape).total.relus
        if _is_saved(network):
            return count(load_fitting(folder_of(network), data), data.shape).total.relus
        return plan_of(architecture_for(network, data)).relus


def configured(name: str, budget: int, settings: dict[str, Any]) -> Method:
    """A method by its name.

    Raises:
        ValueError: if there is no such method or setting.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    if "budget" in settings:
        raise ValueError(f"budget={settings['budget']} is not a setting of a method; --budget or --budgets takes it")
    return with_values(METHODS[name](budget), settings)


def short_name(network: str) -> str:
    """A network's name, of a saved one that of its folder, of code that of the callable."""
    return network.removeprefix("zoo:").rstrip("/").rpartition("/")[2].rpartition(":")[2]


def _is_saved(network: str) -> bool:
    return (folder_of(network) / MANIFEST).is_file()
