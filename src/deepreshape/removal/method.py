"""The seam: what every method of removing ReLUs is, and the one call that all of them stand behind."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn

from deepreshape.cost import CostReport, Layer, ReluLayer
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.models import Architecture, Staged, convert
from deepreshape.models.saved import note_step, weights_digest
from deepreshape.nn import MaskedReLU, Nonlinearity, require_finite
from deepreshape.removal.sites import Granularity, Masks, masks_of
from deepreshape.training import (
    METRICS,
    CachedTeacher,
    Objective,
    Progress,
    Recipe,
    Trained,
    accuracy,
    activations,
    check_ranges,
    mismatch_loss,
    objective_of,
    parallel,
    recipe_of,
    train,
)
from deepreshape.training.loop import see_recipe_fits
from deepreshape.training.runs import claim_folder, measured_as

__all__ = [
    "Linearization",
    "Method",
    "Price",
    "Reduced",
    "Removal",
    "Task",
    "linearize",
    "relu_prices",
    "tuning_recipe",
]

FOREIGN_LR = 0.05
"""Peak learning rate of the fine-tuning of networks that were trained elsewhere."""
STEPS = 50
"""About how many steps an epoch of that fine-tuning has: a small data set takes small batches."""
BATCHES = (256, 128, 64, 32)

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
        objective: what the network is trained for.
    """

    data: Dataset
    recipe: Recipe
    teacher: nn.Module
    masks: Masks
    prices: Mapping[str, float]
    seed: int
    folder: Path | None
    progress: Callable[[Progress], None] | None
    objective: Objective


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
        mismatch: weight of the mismatch of activation maps in the fine-tuning (:func:`mismatch_loss`); None leaves it
            to the recipe.
        max_drop: points of validation top-1 that may be lost; a larger loss is warned of in the record and in the log.

    A method whose settings do not fit raises a ``ValueError`` when it is made.
    """

    exact: ClassVar[bool] = True
    """Whether the budget is met, and not only kept within: true of all but restatements of what others published."""

    masked: ClassVar[bool] = True
    """Whether masks stand in the network that comes out, which then takes images of one size."""

    budget: int
    granularity: Granularity = "pixel"
    mismatch: float | None = None
    max_drop: float = 3.0

    def __post_init__(self) -> None:
        if self.mismatch is not None:
            check_ranges(self, mismatch=(0, 1e6))
        check_ranges(self, max_drop=(0, 100))

    @property
    def name(self) -> str:
        """As in results and on the command line."""
        return type(self).__name__.lower()

    def see_fits(  # noqa: B027 - most fit all
        self, network: nn.Module, input: Sequence[int], masks: Masks, teacher: nn.Module
    ) -> None:
        """Refuse a network that cannot be reduced so, before anything is written.

        Args:
            network: that is left as it is.
            input: shape of one input, (channels, height, width).
            masks: where it has ReLUs.
            teacher: that distils into it.

        Raises:
            ValueError: saying why, and what would work.
        """

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
        top1_before, top1_searched, top1_validation: in percent on the validation split: of the network that came, with
            the ReLUs chosen, and after fine-tuning; none where that split was trained on. Of another metric, where
            ``measures`` names it: its word is in place of ``top1`` in :meth:`to_dict`.
        warning: one line if more was lost than the method's ``max_drop``; else empty.
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
    top1_before: float | None
    top1_searched: float | None
    top1_validation: float | None
    warning: str
    epochs: int
    minutes: float
    recipe: dict[str, Any]
    seed: int
    measures: str = "top1"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return measured_as(asdict(self))


def linearize(
    model: nn.Module,
    method: Method,
    data: Dataset,
    *,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> tuple[nn.Module, Removal]:
    """Remove ReLUs from a trained network to a budget, and train what is left.

    Args:
        model: trained, any torch module; it is left as it was. One that is no network of this package is converted
            (:func:`~deepreshape.models.convert`), which checks on a batch that it computes the same. Weights of other
            widths become float32.
        method: what decides which ReLUs stay, with its settings.
        data: its test split is not touched.
        recipe: of the fine-tuning; :func:`tuning_recipe` without one.
        teacher: distils into the network; ``model`` itself without one.
        seed: of everything random.
        folder: for checkpoints; a run that was cut there continues, to the same result.
        progress: told the phase ("search" or "tune") and where it is, after every step.

    Returns:
        The network with ``method.budget`` ReLUs, in evaluation mode, and the record of what was done.

    Raises:
        ValueError: if the budget or a setting does not fit, or the folder holds another run.
    """
    return Linearization(model, method, data, recipe=recipe, teacher=teacher, seed=seed).run(folder, progress)


class Linearization:
    """What :func:`linearize` does, for ReLUs that may have different prices.

    Args:
        model, method, data, recipe, teacher, seed: as :func:`linearize` takes them.
        price: what ReLUs are weighed by; all alike without one.

    Raises:
        ValueError: if the budget or a setting does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        data: Dataset,
        *,
        recipe: Recipe | None = None,
        teacher: nn.Module | None = None,
        seed: int = 0,
        price: Price | None = None,
    ) -> None:
        self.method, self.data, self.seed, self.price = method, data, seed, price
        self.objective = objective_of(data)
        self.model = model = _converted(model, data)
        _see_nothing_is_dropped(model)
        self.masks = masks_of(model, data.shape)
        self.before = count(model, data.shape)
        if not 0 <= method.budget <= self.before.total.relus:
            works = f"0 to {self.before.total.relus:,} works"
            if not self.before.total.relus:
                works = "`deepreshape substitute --activation relu` puts ReLUs in place of other activations"
            raise ValueError(
                f"a budget of {method.budget:,} ReLUs does not fit a network that has {self.before.total.relus:,}; "
                f"{works}"
            )
        self.price_before = price(self.before.priced_layers).seconds if price else None
        recipe = recipe or tuning_recipe(model, data)
        if recipe.epochs and not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                "all weights are frozen, and fine-tuning changes some; call requires_grad_() on those that may change"
            )
        self.recipe = recipe if method.mismatch is None else replace(recipe, mismatch=method.mismatch)
        self.teacher = copy.deepcopy(_teaching(teacher, data) if teacher else model).eval()
        method.see_fits(model, data.shape, self.masks, self.teacher)
        see_recipe_fits(copy.deepcopy(model), data, self.recipe, self.teacher, masked=method.masked)
        if self.recipe.mismatch:
            _see_comparable(self.teacher, self.masks, data)
        self.prices = dict.fromkeys(self.masks, 1.0) | (relu_prices(self.before.layers, price) if price else {})

    def run(
        self, folder: Path | None = None, progress: Callable[[str, Progress], None] | None = None
    ) -> tuple[nn.Module, Removal]:
        """Search and fine-tune; arguments, results and errors as :func:`linearize` has them."""
        if folder:
            claim_folder(folder, self._settings(), writes=parallel.rank() == 0)

        def told(phase: str) -> Callable[[Progress], None]:
            return lambda at: progress(phase, at) if progress else None

        search, tune = (folder / part if folder else None for part in ("search", "tune"))
        reduced = self._search(search, told("search"))
        network = reduced.network
        top1_before, top1_searched = self._top1(self.model), self._top1(network)
        trained = train(
            network,
            self.data,
            self.recipe,
            seed=self.seed,
            teacher=self.teacher,
            folder=tune,
            progress=told("tune"),
            objective=self.objective,
        )
        record = self._record(reduced, trained, top1_before, top1_searched)
        note_step(network, self.data, record.to_dict(), source=self.model)
        return network, record

    def _settings(self) -> dict[str, Any]:
        """Whatever the result depends on, for the folder of checkpoints."""
        return {
            "method": self.method.name,
            **asdict(self.method),
            "seed": self.seed,
            "data": self.data.name,
            "recipe": asdict(self.recipe),
            "network": weights_digest(self.model),
            "teacher": weights_digest(self.teacher),
            "prices": hashlib.sha256(json.dumps(self.prices).encode()).hexdigest()[:16],
        }

    def _search(self, folder: Path | None, progress: Callable[[Progress], None]) -> Reduced:
        """What the method makes of a copy, its number of ReLUs checked."""
        task = Task(
            self.data,
            self.recipe,
            self.teacher,
            self.masks,
            self.prices,
            self.seed,
            folder,
            progress,
            self.objective,
        )
        reduced = self.method.reduce(copy.deepcopy(self.model), task)
        after = count(reduced.network, self.data.shape)
        budget, left = self.method.budget, after.total.relus
        if left > budget or (self.method.exact and left < budget):
            raise RuntimeError(f"{self.method.name} left {left:,} ReLUs in place of {budget:,}")
        if self.price:
            self.price(after.priced_layers)  # one that prices no squares says so before the fine-tuning
        return reduced

    def _top1(self, network: nn.Module) -> float | None:
        if not self.recipe.holdout:
            return None
        return accuracy(network, self.data, self.data.validation, objective=self.objective)

    def _record(
        self, reduced: Reduced, trained: Trained, top1_before: float | None, top1_searched: float | None
    ) -> Removal:
        after, price = count(reduced.network, self.data.shape), self.price
        return Removal(
            method=self.method.name,
            settings=asdict(self.method),
            budget=self.method.budget,
            relus_before=self.before.total.relus,
            relus=after.total.relus,
            granularity=self.method.granularity,
            kept={layer.name: layer.relus for layer in after.layers if isinstance(layer, ReluLayer)},
            price_before=self.price_before,
            price=price(after.priced_layers).seconds if price else None,
            top1_before=top1_before,
            top1_searched=top1_searched,
            top1_validation=trained.top1_validation,
            warning=_warned(
                METRICS[self.objective.measures], top1_before, trained.top1_validation, self.method.max_drop
            ),
            epochs=reduced.epochs + self.recipe.epochs,
            minutes=round((reduced.seconds + trained.seconds) / 60, 2),
            recipe=asdict(self.recipe),
            seed=self.seed,
            measures=self.objective.measures,
        )


def tuning_recipe(model: nn.Module, data: Dataset) -> Recipe:
    """How a network is fine-tuned by default: a network of the package as its data set's networks are trained.

    One that was trained elsewhere, whose recipe nobody knows, takes smaller steps, as the usual peak rate is for fresh
    weights; no smoothing, as what teaches it is the network itself; and batches so small that an epoch has some fifty
    steps. ``docs/removal.md`` has what each of these gives; frozen batch norms gave less.
    """
    usual = recipe_of(data.name)
    if isinstance(getattr(model, "architecture", None), Staged):
        return usual
    batch = next((size for size in BATCHES if len(data.train) >= STEPS * size), BATCHES[-1])
    return replace(usual, lr=FOREIGN_LR, smoothing=0.0, batch=min(batch, usual.batch))


def _teaching(teacher: nn.Module, data: Dataset) -> nn.Module:
    return teacher if isinstance(teacher, CachedTeacher) else _converted(teacher, data)


def _converted(model: nn.Module, data: Dataset) -> nn.Module:
    require_finite(model)
    device = next(model.parameters()).device
    network = convert(model, data.normalize(data.train.images[:8].to(device)))
    see_classes(network, data)
    if all(parameter.dtype == torch.float32 for parameter in network.parameters()):
        return network
    return copy.deepcopy(network).float()  # images are float32, and searches and training need its range and speed


def see_classes(network: nn.Module, data: Dataset) -> None:
    """Refuse a network, of this package or converted, that gives fewer outputs than a data set has classes."""
    outputs, classes = cast(Architecture, network.architecture).classes, len(data.class_names)
    if outputs < classes:
        raise ValueError(
            f"the network gives {outputs} outputs, and {data.name} has {classes} classes; it needs one for each"
        )


def _see_nothing_is_dropped(model: nn.Module) -> None:
    """Refuse what a mask would take the place of without a word."""
    for path, module in model.named_modules():
        if isinstance(module, Nonlinearity) and module.mask is not None and not isinstance(module, MaskedReLU):
            raise ValueError(
                f"the network has polynomials in place of ReLUs ({module.kind} at {path}), which a mask would replace; "
                "start from what it was made of"
            )


def _warned(metric: str, before: float | None, after: float | None, most: float) -> str:
    if before is None or after is None or before - after <= most:
        return ""
    line = (
        f"validation {metric} fell from {before:.2f} to {after:.2f} %, by more than {most:g} points; a larger budget, "
        "more epochs or another method may keep it"
    )
    logging.getLogger("deepreshape").warning(line)
    return line


@torch.no_grad()
def _see_comparable(teacher: nn.Module, masks: Masks, data: Dataset) -> None:
    """Refuse a teacher whose maps cannot be compared with those at the sites, before the search and not after it."""
    with activations(teacher, masks) as theirs:
        device = next(teacher.parameters()).device  # stored answers, which have no layers, have no parameters either
        teacher(data.normalize(data.train.images[:1].to(device)))
        mismatch_loss({path: mask[None].to(device) for path, mask in masks.items()}, theirs)


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
