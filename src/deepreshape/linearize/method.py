"""The seam: what every method of removing ReLUs is, and the one call that all of them stand behind."""

from __future__ import annotations

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from deepreshape.cost import CostReport, Layer, ReluLayer
from deepreshape.counting import count
from deepreshape.linearize.sites import Granularity, Masks, masks_of
from deepreshape.training import RECIPES, Dataset, Progress, Recipe, parallel, train

__all__ = ["Method", "Price", "Reduced", "Removal", "Task", "linearize", "relu_prices"]

METHOD = "method.json"
"""In the folder of a run: whose it is."""

Price = Callable[[Sequence[Layer]], CostReport]
"""A price profile: what a network of these layers costs."""


@dataclass(frozen=True)
class Task:
    """What a method is asked to do, beyond its own settings.

    Attributes:
        data: its training split drives the search, its validation split may be looked at.
        recipe: of training; a search takes from it what it does not set itself (batch, augmentation, precision ...).
        teacher: distils into the network, in evaluation mode and without gradient.
        masks: where the network has ReLUs.
        prices: of one ReLU at each site, 1 on average.
        seed: of everything random.
        folder: for checkpoints, or None.
        progress: called after every step.
    """

    data: Dataset
    recipe: Recipe
    teacher: nn.Module
    masks: Masks
    prices: Mapping[str, float]
    seed: int
    folder: Path | None
    progress: Callable[[Progress], None] | None


@dataclass(frozen=True)
class Reduced:
    """A network whose ReLUs have been chosen, and what the choice took."""

    network: nn.Module
    epochs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Method(ABC):
    """A way to remove ReLUs, and its settings.

    Attributes:
        budget: how many ReLUs are left; met exactly.
        granularity: what is kept or removed as one.
        mismatch: weight of the mismatch of activation maps in the fine-tuning (:func:`mismatch_loss`).
    """

    budget: int
    granularity: Granularity = "pixel"
    mismatch: float = 0.0

    @property
    def name(self) -> str:
        """As in results and on the command line."""
        return type(self).__name__.lower()

    @abstractmethod
    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        """A network with exactly ``budget`` ReLUs, made of ``network``, which is a copy and may be used up."""


@dataclass(frozen=True)
class Removal:
    """The record of what :func:`linearize` did.

    Attributes:
        method, settings: the method's name and its config.
        budget: that was asked for.
        relus_before, relus: counts, from traces.
        granularity: of the choice; protocols may price them differently.
        kept: by site, how many ReLUs are left.
        price_before, price: seconds under the price profile, where one was given.
        top1_validation: in percent, after fine-tuning; none where the validation split was trained on.
        epochs: of search and fine-tuning together.
        minutes: processor time of this process, or on a GPU the time that passed.
        recipe: of the fine-tuning.
        seed: of both.
    """

    method: str
    settings: dict[str, Any]
    budget: int
    relus_before: int
    relus: int
    granularity: Granularity
    kept: dict[str, int]
    price_before: float | None
    price: float | None
    top1_validation: float | None
    epochs: int
    minutes: float
    recipe: dict[str, Any]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def linearize(
    model: nn.Module,
    method: Method,
    data: Dataset,
    *,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    folder: Path | None = None,
    price: Price | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> tuple[nn.Module, Removal]:
    """Remove ReLUs from a trained network to a budget, and train what is left.

    Args:
        model: trained; it is left as it was.
        method: what decides which ReLUs stay, with its settings.
        data: its test split is not touched.
        recipe: of the fine-tuning; the data set's own without one.
        teacher: distils into the network; ``model`` itself without one.
        seed: of everything random.
        folder: for checkpoints; a run that was cut there continues, to the same result.
        price: what ReLUs are weighed by; all alike without one.
        progress: told the phase ("search" or "tune") and where it is, after every step.

    Returns:
        The network with ``method.budget`` ReLUs, in evaluation mode, and the record of what was done.

    Raises:
        ValueError: if the budget or a setting does not fit, or the folder holds another run.
    """
    masks = masks_of(model, data.shape)
    before = count(model, data.shape)
    if not 0 <= method.budget <= before.total.relus:
        raise ValueError(
            f"a budget of {method.budget:,} ReLUs does not fit a network that has {before.total.relus:,}; "
            f"0 to {before.total.relus:,} works"
        )
    if folder:
        _claim(folder, {"method": method.name, **asdict(method), "relus_before": before.total.relus, "seed": seed})
    recipe = recipe or RECIPES[data.name]
    recipe = replace(recipe, mismatch=method.mismatch or recipe.mismatch)
    taught_by = copy.deepcopy(teacher or model).eval()

    def told(phase: str) -> Callable[[Progress], None]:
        return lambda at: progress(phase, at) if progress else None

    prices = relu_prices(before.layers, price) if price else dict.fromkeys(masks, 1.0)
    search = folder / "search" if folder else None
    task = Task(data, recipe, taught_by, masks, prices, seed, search, told("search"))
    reduced = method.reduce(copy.deepcopy(model), task)
    network, tune = reduced.network, folder / "tune" if folder else None
    trained = train(network, data, recipe, seed=seed, teacher=taught_by, folder=tune, progress=told("tune"))
    after = count(network, data.shape)
    return network, Removal(
        method=method.name,
        settings=asdict(method),
        budget=method.budget,
        relus_before=before.total.relus,
        relus=after.total.relus,
        granularity=method.granularity,
        kept={layer.name: layer.relus for layer in after.layers if isinstance(layer, ReluLayer)},
        price_before=price(before.priced_layers).seconds if price else None,
        price=price(after.priced_layers).seconds if price else None,
        top1_validation=trained.top1_validation,
        epochs=reduced.epochs + recipe.epochs,
        minutes=round((reduced.seconds + trained.seconds) / 60, 2),
        recipe=asdict(recipe),
        seed=seed,
    )


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder this run's, or see that it is: the training loop's checkpoints do not know of methods."""
    path = folder / METHOD
    if path.is_file():
        theirs = json.loads(path.read_text())
        differing = [name for name in settings | theirs if settings.get(name) != theirs.get(name)]
        if differing:
            shown = "; ".join(f"{name} was {theirs.get(name)}, now {settings.get(name)}" for name in differing)
            raise ValueError(f"{folder} holds a run with other settings ({shown}); use those, or another folder")
    elif parallel.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{METHOD}.part")
        part.write_text(json.dumps(settings))
        os.replace(part, path)


def relu_prices(layers: Sequence[Layer], price: Price) -> dict[str, float]:
    """By site, what one of its ReLUs costs, relative to the network's mean; dearer ones have to be worth more.

    Raises:
        ValueError: if the profile finds no cost in ReLUs.
    """
    whole = price(layers)
    seconds: dict[str, float] = {}
    relus: dict[str, int] = {}
    for layer in layers:
        if isinstance(layer, ReluLayer) and layer.relus:
            seconds[layer.name] = whole.only(layer=layer.name).seconds / layer.relus
            relus[layer.name] = layer.relus
    mean = sum(seconds[name] * n for name, n in relus.items()) / sum(relus.values()) if relus else 0.0
    if not mean:
        raise ValueError("the price profile charges nothing for ReLUs, so they cannot be weighed by it")
    return {name: value / mean for name, value in seconds.items()}
