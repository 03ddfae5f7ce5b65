"""The main job: a baseline, its HybReNets, a ladder of ReLU budgets, each point trained, counted and priced.

A job is a folder of results (:mod:`.results`), with the points' weights in ``models/`` and the checkpoints of the point
that is being trained in ``runs/``. Started again on the same folder, a job goes on with the first point that has no
row.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from deepreshape.cost import published_seconds
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.design import equalize
from deepreshape.models import ResNet, Staged, architecture, build
from deepreshape.models.saved import Manifest, fingerprint, load, save
from deepreshape.models.zoo import called
from deepreshape.removal import Plan, apply, plan, plan_of
from deepreshape.training import Progress, Recipe, accuracy, recipe_of, set_options, train
from deepreshape.training.checkpoint import METRICS
from deepreshape.training.runs import Result, claim, work_off

__all__ = ["Job", "Point", "default_budgets", "fitting", "hybrenets", "measured", "run", "train_point"]


@dataclass(frozen=True)
class Job:
    """Settings of a job, all resolved.

    Attributes:
        data: name of the data set.
        baseline: name of the network that is redesigned.
        networks: names of the networks compared, the baseline first.
        budgets: ReLU budgets, for each of which each network gets the coarse plan that keeps the most.
        seeds: each point is trained once for each.
        recipe: of the networks with all their ReLUs, which start from fresh weights.
        reduced_epochs: of each reduced network, which starts from the next larger one.
        teacher: name of a network that is trained first and distils into every other; without one, each network with
            all its ReLUs teaches its own reduced forms.
    """

    data: str
    baseline: str
    networks: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    reduced_epochs: int
    teacher: str | None = None


@dataclass(frozen=True)
class Point:
    """One network to train.

    Attributes:
        network: its name before removal.
        plan: what is removed.
        budget: that the plan was made for; None for all ReLUs.
        seed: of its weights and its training.
        init: id of the point it starts from, if any.
        teacher: id of the point that teaches it, if any.
    """

    network: str
    plan: Plan
    budget: int | None
    seed: int
    init: str | None = None
    teacher: str | None = None

    @property
    def id(self) -> str:
        """Name of its folders."""
        return f"{self.network}_{self.budget or 'all'}_s{self.seed}"


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
    found = [equalize(quarter)[0], *equalize(half, fixed={"alpha": 2})[:2]]
    return (*(design.architecture.name for design in found), replace(quarter, multipliers=(4, 4, 4)).name)


def default_budgets(baseline: Staged) -> tuple[int, ...]:
    """A quarter, an eighth and a sixteenth of the baseline's ReLUs."""
    return tuple(baseline.relus // part for part in (4, 8, 16))


def points(job: Job, data: Dataset) -> Iterator[Point]:
    """Every point of the job, each after the ones it needs.

    Raises:
        ValueError: if a name or a budget does not fit.
    """

    def named(name: str) -> Staged:
        return architecture(name, data.shape, len(data.class_names))

    most = named(job.baseline).relus
    for budget in job.budgets:
        if budget > most:
            raise ValueError(
                f"a budget of {budget:,} ReLUs is larger than the baseline {job.baseline}, which has {most:,}"
            )
    taught = None
    if job.teacher:
        teacher = Point(job.teacher, plan_of(named(job.teacher)), None, job.seeds[0])
        taught = teacher.id
        yield teacher
    for seed in job.seeds:
        for network in job.networks:
            whole = Point(network, plan_of(named(network)), None, seed, teacher=taught)
            if whole.id != taught:
                yield whole
            before = whole
            for budget in sorted(job.budgets, reverse=True):
                if budget >= whole.plan.relus:
                    continue
                chosen = plan(named(network), budget)
                if chosen.relus == before.plan.relus:
                    continue
                before = Point(network, chosen, budget, seed, init=before.id, teacher=taught or whole.id)
                yield before


def run(job: Job, data: Dataset, out: Path, report: Callable[[int, int, Point, Progress | None], None]) -> list[Result]:
    """Do the job, or what is left of it.

    Args:
        job: the settings; those of a folder that exists must be the same.
        data: its data set, loaded.
        out: the job's folder.
        report: as :func:`~deepreshape.training.runs.work_off` calls it.

    Returns:
        The results of all points.

    Raises:
        ValueError: if the settings do not fit, or differ from those the folder was made with.
    """

    def result_of(point: Point, to: Path, folder: Path, progress: Callable[[Progress], None]) -> Result:
        recipe = job.recipe if point.budget is None else replace(job.recipe, epochs=job.reduced_epochs)
        init, teacher = (out / "models" / name if name else None for name in (point.init, point.teacher))
        return train_point(point, data, recipe, to, folder, init=init, teacher=teacher, progress=progress)

    return work_off(job, out, list(points(job, data)), result_of, report)


def train_point(
    point: Point,
    data: Dataset,
    recipe: Recipe,
    to: Path,
    folder: Path,
    *,
    init: Path | None = None,
    teacher: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Train one point and save its model. The test split is read here, once.

    Args:
        point: what to train.
        data: on what.
        recipe: how.
        to: folder for the model.
        folder: for checkpoints and metrics; the caller removes it when the row is safe.
        init: saved model that gives the weights it starts from.
        teacher: saved model that distils into it.
        progress: called after every step.

    Returns:
        Its result.

    Raises:
        ValueError: if a saved model does not fit, or the folder for checkpoints is another run's.
    """
    taught_by = fitting(teacher, data)[0] if teacher else None
    history: list[dict[str, Any]] = []
    if init:
        start, before = fitting(init, data)
        model, record = apply(point.plan, start, seed=point.seed)
        history = [*before.history, record.to_dict()]
    else:
        model = build(point.plan.architecture, seed=point.seed)
    whose = {"network": point.network, "plan": str(point.plan), "seed": point.seed, "data": data.name}
    whose |= {"weights": fingerprint(model), "teacher": taught_by and fingerprint(taught_by)}
    claim(folder, whose | {"recipe": asdict(recipe)})
    trained = train(model, data, recipe, seed=point.seed, teacher=taught_by, folder=folder, progress=progress)
    history.append(
        {"method": "train", "recipe": asdict(recipe), "seed": point.seed, "teacher": teacher and called(teacher)}
    )
    manifest = Manifest(
        architecture=point.plan.architecture,
        dataset=data.name,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        history=tuple(history),
    )
    save(model, to, manifest)
    result = Result(
        id=point.id,
        network=point.network,
        plan=str(point.plan),
        budget=point.budget,
        **measured(model, data),
        top1_validation=trained.top1_validation,
        seed=point.seed,
        epochs=recipe.epochs,
        cpu_minutes=round(trained.seconds / 60, 2),
        command=_command(point, data, recipe, init, teacher),
    )
    shutil.copyfile(folder / METRICS, to / METRICS)
    return result


def measured(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """What a row of results says of a network that is final: counts, prices, and accuracy on the test split, read here.

    Args:
        model: the network.
        data: whose test split is read.
    """
    counted = count(model, data.shape)
    return {
        "relus": counted.total.relus,
        "relus_without_stem": counted.relus_without_stem,
        "maxpool_comparisons": counted.total.maxpool_comparisons,
        "macs": counted.total.macs,
        "params": counted.total.params,
        "priced_seconds": published_seconds(counted.priced_layers),
        "top1": accuracy(model, data, data.test),
        "split": "test",
        "n": len(data.test),
        "data": data.name,
    }


def fitting(folder: Path, data: Dataset) -> tuple[nn.Module, Manifest]:
    """A saved model that takes the data set's images and knows its classes, and its manifest.

    Raises:
        ValueError: if it takes other images or knows other classes.
    """
    model, manifest = load(folder)
    made_for = manifest.architecture
    if made_for.input != data.shape or made_for.classes != len(data.class_names):
        raise ValueError(
            f"{folder} is for {made_for.classes} classes of {made_for.input}, {data.name} has "
            f"{len(data.class_names)} of {data.shape}"
        )
    return model, manifest


def _command(point: Point, data: Dataset, recipe: Recipe, init: Path | None, teacher: Path | None) -> str:
    """The command that trains this point alone, in a folder that holds the models it needs."""
    words = ["deepreshape", "train", point.network, "--data", data.name, "--seed", str(point.seed)]
    words += ["--budget", str(point.budget)] if point.budget else []
    words += ["--init", called(init)] if init else []
    words += ["--teacher", called(teacher)] if teacher else []
    words += set_options(asdict(recipe), asdict(recipe_of(data.name)))
    return " ".join([*words, "--out", point.id])
