"""The two kinds of points that experiments consist of: a network that is trained, and one that loses ReLUs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from deepreshape.cost import PROFILES, price_published, published_seconds
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.models import Staged, architecture_for, build
from deepreshape.models.exits import MultiExitNetwork
from deepreshape.models.saved import Manifest, load, manifest_of, save, weights_digest
from deepreshape.models.zoo import called
from deepreshape.removal import METHODS, CoarsePlan, Linearization, Method, Removal, apply, tuning_recipe
from deepreshape.training import (
    Progress,
    Recipe,
    TrainingRun,
    accuracy,
    is_cache,
    load_cache,
    objective_of,
    parallel,
    recipe_of,
    set_options,
)
from deepreshape.training.checkpoint import METRICS
from deepreshape.training.runs import Result, claim_folder

__all__ = [
    "RemovalPoint",
    "TrainingPoint",
    "load_fitting",
    "load_teacher",
    "measurements",
    "removal_command",
    "see_fits",
    "see_names",
]


@dataclass(frozen=True)
class TrainingPoint:
    """A network that is trained, whole or reduced by a coarse plan.

    Attributes:
        network: its name before removal.
        plan: what is removed.
        budget: that the plan was chosen for; None for all ReLUs.
        seed: of its weights and its training.
        recipe: of the training.
        init: saved model that gives the weights it starts from, if any.
        teacher: folder of a saved model that distils into it, or of its answers (``deepreshape teach``), if any.
        max_macs: multiply-adds that the plan was chosen within, if any.
    """

    network: str
    plan: CoarsePlan
    budget: int | None
    seed: int
    recipe: Recipe
    init: Path | None = None
    teacher: Path | None = None
    max_macs: float | None = None

    @property
    def id(self) -> str:
        """Name of its row and its folders."""
        return f"{self.network}_{self.budget or 'all'}_s{self.seed}"

    @property
    def title(self) -> str:
        """The network and what is removed from it."""
        return f"{self.network}: {self.plan}"

    def result(self, data: Dataset, to: Path, folder: Path, progress: Callable[[Progress], None]) -> Result:
        """Train it, and save it with the metrics of its training."""
        recipe = self.recipe
        teacher = load_teacher(self.teacher, data) if self.teacher else None
        history: list[dict[str, Any]] = []
        if self.init:
            start = load_fitting(self.init, data)
            model, record = apply(self.plan, start, seed=self.seed)
            history = [*manifest_of(start).history, record.to_dict()]
        else:
            model = build(self.plan.architecture, seed=self.seed)
        run = TrainingRun(model, data, recipe, seed=self.seed, teacher=teacher)
        whose = {"network": self.network, "plan": str(self.plan), "seed": self.seed, "data": data.name}
        whose |= {"weights": weights_digest(model), "teacher": teacher and weights_digest(teacher)}
        claim_folder(folder, whose | {"recipe": asdict(recipe)})
        trained = run.complete(folder, progress)
        step = {"method": "train", "recipe": asdict(recipe), "seed": self.seed}
        history.append(step | {"teacher": self.teacher and called(self.teacher)})
        save(model, to, Manifest.of(self.plan.architecture, data, tuple(history)))
        result = Result(
            id=self.id,
            network=self.network,
            plan=str(self.plan),
            budget=self.budget,
            **measurements(model, data),
            top1_validation=trained.top1_validation,
            seed=self.seed,
            epochs=recipe.epochs,
            cpu_minutes=round(trained.seconds / 60, 2),
            command=self._command(data),
        )
        shutil.copyfile(folder / METRICS, to / METRICS)
        return result

    def _command(self, data: Dataset) -> str:
        """The command that trains this point alone, in a folder that holds the models it needs."""
        words = ["deepreshape", "train", self.network, "--data", data.name, "--seed", str(self.seed)]
        words += ["--budget", str(self.budget)] if self.budget else []
        words += ["--max-macs", str(self.max_macs)] if self.max_macs else []
        words += ["--init", called(self.init)] if self.init else []
        words += ["--teacher", called(self.teacher)] if self.teacher else []
        words += set_options(asdict(self.recipe), asdict(recipe_of(data.name)))
        return " ".join([*words, "--out", self.id])


@dataclass(frozen=True)
class RemovalPoint:
    """A trained network whose ReLUs a method removes.

    Attributes:
        network: what results call it.
        source: folder of a saved model, or any torch module.
        method: with its budget.
        seed: of everything random.
        recipe: of the fine-tuning.
        teacher: saved model that distils into it; the source without one.
        profile: name of the published price profile that ReLUs are weighed by.
        word: what the command line calls a module; its class without.
    """

    network: str
    source: Path | nn.Module
    method: Method
    seed: int
    recipe: Recipe
    teacher: Path | None = None
    profile: str | None = None
    word: str = ""

    @property
    def id(self) -> str:
        """Name of its row and its folders."""
        return f"{self.network}_{self.method.name}_{self.method.budget}_s{self.seed}"

    @property
    def title(self) -> str:
        """The network, the method and its budget."""
        return f"{self.network}: {self.method.name} {self.method.budget:,}"

    def reduce(
        self, data: Dataset, to: Path, folder: Path, progress: Callable[[str, Progress], None]
    ) -> tuple[nn.Module, Removal]:
        """Remove the ReLUs, and save the network that is left; under ``torchrun`` the first process saves it.

        Args:
            data: its test split is not touched.
            to: folder for the network.
            folder: for checkpoints; the caller removes it.
            progress: told the phase ("search" or "tune") and where it is, after every step.

        Raises:
            ValueError: if a model or a setting does not fit, or the source would be written over.
        """
        source, teacher = self.source, None
        if isinstance(source, Path):
            if source.resolve() == to.resolve():
                raise ValueError(
                    f"{to} is the model that ReLUs are removed from; choose another folder for what comes out"
                )
            source = load_fitting(source, data)
        if self.teacher:
            teacher = load_teacher(self.teacher, data).to(parallel.device())
        removing = Linearization(
            source.to(parallel.device()),
            self.method,
            data,
            recipe=self.recipe,
            teacher=teacher,
            seed=self.seed,
            price=partial(price_published, profile=PROFILES[self.profile]) if self.profile else None,
        )
        model, record = removing.run(folder, progress)
        if parallel.rank() == 0:
            *before, step = manifest_of(model).history
            step |= {"teacher": self.teacher and called(self.teacher), "profile": self.profile}
            save(model, to, replace(manifest_of(model), history=(*before, step)))
        return model.cpu(), record

    def result(self, data: Dataset, to: Path, folder: Path, progress: Callable[[Progress], None]) -> Result:
        """:meth:`reduce`, and what a row says of it."""
        model, record = self.reduce(data, to, folder, lambda _, at: progress(at))
        tuning = tuning_recipe(model, data)
        return Result(
            id=self.id,
            network=self.network,
            method=record.method,
            plan=f"{record.method} {record.budget:,}",
            granularity=record.granularity,
            budget=record.budget,
            **measurements(model, data),
            top1_validation=record.top1_validation,
            seed=self.seed,
            epochs=record.epochs,
            cpu_minutes=record.minutes,
            command=removal_command(self.source, record, self.teacher, data, self.id, self.word, tuning),
        )


def removal_command(
    source: Path | nn.Module,
    record: Removal,
    teacher: Path | None,
    data: Dataset,
    to: str,
    word: str = "",
    tuning: Recipe | None = None,
) -> str:
    """The command that does one removal alone, in a folder that holds the models it needs.

    Settings are named that differ from ``tuning``, with which the source is fine-tuned where none is given; without it,
    from the recipe of the data set.
    """
    name = called(source) if isinstance(source, Path) else word or type(source).__name__
    words = ["deepreshape", "linearize", name, "--method", record.method, "--budget", str(record.budget)]
    words += [] if isinstance(source, Path) else ["--data", data.name]
    words += ["--teacher", called(teacher)] if teacher else []
    words += ["--seed", str(record.seed)]
    defaults = asdict(METHODS[record.method](record.budget))
    usual = asdict(tuning or recipe_of(data.name)) | {
        name: value for name, value in defaults.items() if value is not None
    }
    # where method and recipe share a setting, the recipe of the record has what was taken
    words += set_options(
        record.recipe | {name: record.settings[name] for name in defaults if name not in record.recipe}, usual
    )
    return " ".join([*words, "--out", to])


def measurements(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """Counts, published prices, and accuracy on the test split, which is read here, of a network that is final."""
    counted = count(model, data.shape)
    return {
        "relus": counted.total.relus,
        "relus_without_stem": counted.relus_without_stem,
        "maxpool_comparisons": counted.total.maxpool_comparisons,
        "signs": counted.total.signs,
        "macs": counted.total.macs,
        "params": counted.total.params,
        "priced_seconds": published_seconds(counted.priced_layers) if not counted.unknown else {},
        "top1": accuracy(model, data, data.test),
        "measures": objective_of(data).measures,
        "split": "test",
        "n": len(data.test),
        "data": data.name,
    }


def load_teacher(folder: Path, data: Dataset) -> nn.Module:
    """What distils into students: a saved model, or the answers of one that were stored before.

    Raises:
        ValueError: if it does not fit the data set.
    """
    return load_cache(folder, data) if is_cache(folder) else load_fitting(folder, data)


def load_fitting(folder: Path, data: Dataset) -> nn.Module:
    """A saved model that takes the data set's images and knows its classes.

    Raises:
        ValueError: if it takes other images or knows other classes, or has exits.
    """
    model = load(folder)
    if isinstance(model, MultiExitNetwork):
        raise ValueError(f"{folder} has exits, and a network without is wanted; `deepreshape exits save` writes one")
    see_fits(model, data, str(folder))
    return model


def see_names(known: tuple[str, ...], data: Dataset, name: str) -> None:
    """Refuse a network whose classes have other names, or another order, than a data set's; numbers are no names."""
    theirs = data.class_names
    if all(names != tuple(map(str, range(len(names)))) for names in (known, theirs)):
        other = [at for at, pair in enumerate(zip(known, theirs, strict=False)) if pair[0] != pair[1]]
        if other:
            raise ValueError(
                f"{name} knows other classes than {data.name} has: {known[other[0]]!r} where that has "
                f"{theirs[other[0]]!r}, as class {other[0]}"
            )


def see_fits(model: nn.Module, data: Dataset, name: str) -> None:
    """Refuse a network for other images, other classes, or classes of other things than the data set's.

    Args:
        model: a network of this package.
        data: the data set.
        name: of the network, for the message.
    """
    manifest = manifest_of(model)
    architecture, known = manifest.architecture, manifest.class_names
    if architecture.input != data.shape or architecture.classes != len(data.class_names):
        raise ValueError(
            f"{name} is for {architecture.classes} classes of {architecture.input}, {data.name} has "
            f"{len(data.class_names)} of {data.shape}"
        )
    see_names(known, data, name)
    if isinstance(architecture, Staged) and architecture.maps != data.maps:
        architecture_for(architecture.name, data)
