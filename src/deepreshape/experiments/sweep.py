"""Many removals as one command: networks, methods, budgets, seeds; one row of results each.

A sweep is a folder of results (:mod:`.results`): ``models/`` holds the networks, ``runs/`` the checkpoints of what is
being trained. Started again on the same folder, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepreshape.cost import PROFILES, price_published
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.experiments.run import Point, fitting, measured, train_point
from deepreshape.models import architecture
from deepreshape.models.saved import MANIFEST, Manifest, save
from deepreshape.models.zoo import called, folder_of
from deepreshape.removal import METHODS, Method, Removal, linearize, plan_of
from deepreshape.training import Progress, Recipe, recipe_of, set_options, with_values
from deepreshape.training.runs import Result, work_off

__all__ = ["Run", "Sweep", "configured", "reduce_saved", "sweep"]


@dataclass(frozen=True)
class Sweep:
    """Settings of a sweep, all resolved.

    Attributes:
        data: name of the data set.
        networks: each a name, trained here first, or a saved model (a folder, or ``zoo:NAME``).
        methods: names of methods.
        budgets: ReLU budgets; those above a network's count are left out for it.
        seeds: everything is done once for each.
        recipe: of the networks that are trained here.
        tune: of the fine-tuning after each removal.
        settings: of the methods, as (method, setting, value).
        teacher: a saved model that distils into all; without one, each network into its own reduced forms.
    """

    data: str
    networks: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    tune: Recipe
    settings: tuple[tuple[str, str, str], ...] = ()
    teacher: str | None = None


@dataclass(frozen=True)
class Run:
    """One part of a sweep: a network trained with all its ReLUs (``method`` is None), or one removal."""

    network: str
    seed: int
    method: Method | None = None

    @property
    def id(self) -> str:
        """Name of its folders."""
        done = f"{self.method.name}_{self.method.budget}" if self.method else "all"
        return f"{_short(self.network)}_{done}_s{self.seed}"


def configured(name: str, budget: int, settings: dict[str, Any]) -> Method:
    """A method by its name.

    Raises:
        ValueError: if there is no such method or setting.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    if "budget" in settings:
        raise ValueError(f"budget={settings['budget']} is no setting of a method; --budget or --budgets takes it")
    return with_values(METHODS[name](budget), settings)


def runs(settings: Sweep, data: Dataset) -> Iterator[Run]:
    """Every run, each after the one it needs.

    Raises:
        ValueError: if a name or a setting does not fit.
    """
    for name, key, value in settings.settings:
        if name not in settings.methods:
            raise ValueError(f"{name}.{key}={value} is for a method that is not in this sweep")
    for network in settings.networks:
        if [_short(other) for other in settings.networks].count(_short(network)) > 1:
            raise ValueError(
                f"two of the networks are called {_short(network)!r}, as their results would be; rename one"
            )
    most = max(_relus(network, data) for network in settings.networks)
    for budget in settings.budgets:
        if budget > most:
            raise ValueError(f"a budget of {budget:,} ReLUs is more than any of these networks has: {most:,} at most")
    for seed in settings.seeds:
        for network in settings.networks:
            has = _relus(network, data)
            if not _is_saved(network):
                yield Run(network, seed)
            for budget in sorted(settings.budgets, reverse=True):
                for name in settings.methods:
                    given = {key: value for method, key, value in settings.settings if method == name}
                    chosen = configured(name, budget, given)
                    if budget <= has:
                        yield Run(network, seed, chosen)


def sweep(
    settings: Sweep, data: Dataset, out: Path, report: Callable[[int, int, Run, Progress | None], None]
) -> list[Result]:
    """Do the sweep, or what is left of it.

    Args:
        settings: those of a folder that exists must be the same.
        data: the data set, loaded. Its test split is read once for each row, when its network is final.
        out: the sweep's folder.
        report: as :func:`~deepreshape.training.runs.work_off` calls it.

    Returns:
        The results of all runs.

    Raises:
        ValueError: if the settings do not fit, or differ from those the folder was made with.
    """
    return work_off(
        settings,
        out,
        list(runs(settings, data)),
        lambda run, to, folder, progress: _result(run, settings, data, out / "models", to, folder, progress),
        report,
    )


def reduce_saved(
    source: Path | nn.Module,
    method: Method,
    data: Dataset,
    *,
    to: Path,
    folder: Path,
    recipe: Recipe,
    teacher: Path | None = None,
    seed: int = 0,
    profile: str | None = None,
    device: torch.device | None = None,
    writes: bool = True,
    progress: Callable[[str, Progress], None] | None = None,
) -> tuple[nn.Module, Removal]:
    """Remove ReLUs from a saved model or any torch module, and save what comes out.

    Args:
        source: folder of the model, or a module.
        method: and its budget.
        data: its test split is not touched.
        to: folder for what comes out.
        folder: for checkpoints; the caller removes it.
        recipe: of the fine-tuning.
        teacher: saved model that distils into it; the source without one.
        seed: of everything random.
        profile: name of the published price profile that ReLUs are weighed by.
        device: to work on.
        writes: whether this process saves the model.
        progress: told the phase and where it is, after every step.

    Raises:
        ValueError: if a model or a setting does not fit.
    """
    if isinstance(source, Path) and source.resolve() == to.resolve():
        raise ValueError(f"{to} is the model that ReLUs are removed from; choose another folder for what comes out")
    model, history = source, ()
    if isinstance(source, Path):
        model, saved = fitting(source, data)
        history = saved.history
    assert isinstance(model, nn.Module)  # noqa: S101 - for the type checker
    device = device or torch.device("cpu")
    made, record = linearize(
        model.to(device),
        method,
        data,
        recipe=recipe,
        teacher=fitting(teacher, data)[0].to(device) if teacher else None,
        seed=seed,
        folder=folder,
        price=(lambda layers: price_published(layers, PROFILES[profile])) if profile else None,
        progress=progress,
    )
    manifest = Manifest(
        architecture=made.architecture,  # pyright: ignore[reportArgumentType]
        dataset=data.name,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        history=(*history, record.to_dict() | {"teacher": teacher and called(teacher), "profile": profile}),
    )
    if writes:
        save(made, to, manifest)
    return made, record


def _result(
    run: Run,
    settings: Sweep,
    data: Dataset,
    models: Path,
    to: Path,
    folder: Path,
    progress: Callable[[Progress], None],
) -> Result:
    teacher = folder_of(settings.teacher) if settings.teacher else None
    if run.method is None:
        whole = architecture(run.network, data.shape, len(data.class_names))
        point = Point(run.network, plan_of(whole), None, run.seed)
        trained = train_point(point, data, settings.recipe, to, folder, teacher=teacher, progress=progress)
        return replace(trained, id=run.id)
    source = folder_of(run.network) if _is_saved(run.network) else models / Run(run.network, run.seed).id
    model, record = reduce_saved(
        source,
        run.method,
        data,
        to=to,
        folder=folder,
        recipe=settings.tune,
        teacher=teacher,
        seed=run.seed,
        progress=lambda _, at: progress(at),
    )
    return Result(
        id=run.id,
        network=_short(run.network),
        method=record.method,
        plan=f"{record.method} {record.budget:,}",
        granularity=record.granularity,
        budget=record.budget,
        **measured(model, data),
        top1_validation=record.top1_validation,
        seed=run.seed,
        epochs=record.epochs,
        cpu_minutes=record.minutes,
        command=command_of(source, record, teacher, data, run.id),
    )


def command_of(source: Path, record: Removal, teacher: Path | None, data: Dataset, to: str) -> str:
    """The command that makes one removal alone, in a folder that holds the models it needs."""
    words = ["deepreshape", "linearize", called(source), "--method", record.method, "--budget", str(record.budget)]
    words += ["--teacher", called(teacher)] if teacher else []
    words += ["--seed", str(record.seed)]
    own = asdict(METHODS[record.method](record.budget))
    usual = asdict(recipe_of(data.name)) | {name: value for name, value in own.items() if value is not None}
    # where method and recipe share a setting, the recipe of the record has what was taken
    words += set_options(
        record.recipe | {name: record.settings[name] for name in own if name not in record.recipe}, usual
    )
    return " ".join([*words, "--out", to])


def _short(network: str) -> str:
    """A network's name, of a saved one that of its folder."""
    return network.removeprefix("zoo:").rstrip("/").rpartition("/")[2]


def _is_saved(network: str) -> bool:
    return (folder_of(network) / MANIFEST).is_file()


def _relus(network: str, data: Dataset) -> int:
    if _is_saved(network):
        return count(fitting(folder_of(network), data)[0], data.shape).total.relus
    return plan_of(architecture(network, data.shape, len(data.class_names))).relus
