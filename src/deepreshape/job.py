"""The main job: a baseline, its HybReNets, a ladder of ReLU budgets, each point trained, counted and priced.

A job is a folder. ``config.yaml`` holds its settings as resolved, ``results.jsonl`` one row for each finished point,
``models/`` their weights, ``runs/`` the checkpoints of the point that is being trained. Started again on the same
folder, a job goes on with the first point that has no row.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from deepreshape.cost import PROFILES, price
from deepreshape.counting import count
from deepreshape.design import equalize
from deepreshape.linearize import Plan, apply, plan, plan_of
from deepreshape.models import Architecture, architecture, build, name_of, relus
from deepreshape.models.saved import Manifest, load, save
from deepreshape.training import METRICS, RECIPES, Dataset, Progress, Recipe, accuracy, train

__all__ = ["Job", "Point", "default_budgets", "finished", "hybrenets", "run", "train_point"]

CONFIG, RESULTS = "config.yaml", "results.jsonl"


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


def hybrenets(baseline: Architecture) -> tuple[str, ...]:
    """The relatives a four-stage ResNet is compared with, at the papers' ratio of base channels.

    The smallest ReLU-equalized one (m a quarter of the baseline's), the two smallest with alpha = 2 (half), and the
    ReLU-balanced StCh net (a quarter).

    Raises:
        ValueError: if the baseline is of another family or has another number of stages.
    """
    if baseline.family != "resnet" or len(baseline.phi) != 4:
        raise ValueError(
            f"HybReNets are made from ResNets of four stages, not from {name_of(baseline)}; name the networks yourself"
        )
    quarter, half = (
        replace(baseline, base=max(1, baseline.base // 4)),
        replace(baseline, base=max(1, baseline.base // 2)),
    )
    found = [equalize(quarter)[0], *equalize(half, fixed={"alpha": 2})[:2]]
    return (*(name_of(design.architecture) for design in found), name_of(replace(quarter, multipliers=(4, 4, 4))))


def default_budgets(baseline: Architecture) -> tuple[int, ...]:
    """A quarter, an eighth and a sixteenth of the baseline's ReLUs."""
    return tuple(relus(baseline) // part for part in (4, 8, 16))


def points(job: Job, data: Dataset) -> Iterator[Point]:
    """Every point of the job, each after the ones it needs.

    Raises:
        ValueError: if a name or a budget does not fit.
    """

    def named(name: str) -> Architecture:
        return architecture(name, data.shape, len(data.class_names))

    most = relus(named(job.baseline))
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


def finished(folder: Path) -> list[dict[str, Any]]:
    """The rows of a job's finished points; a last line that was cut off is left out.

    Raises:
        ValueError: if the folder holds no results, or a line in the middle is broken.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no results: there is no {RESULTS} in it; `deepreshape run --out {folder}` makes it"
        )
    rows: list[dict[str, Any]] = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"line {number} of {path} is not a result: {line[:60]!r}") from None
    return rows


def run(
    job: Job, data: Dataset, out: Path, report: Callable[[int, int, Point, Progress | None], None]
) -> list[dict[str, Any]]:
    """Do the job, or what is left of it.

    Args:
        job: the settings; those of a folder that exists must be the same.
        data: its data set, loaded.
        out: the job's folder.
        report: told (number of the point, number of points, point, progress in it); None for the progress when done.

    Returns:
        The rows of all points.

    Raises:
        ValueError: if the settings do not fit, or differ from those the folder was made with.
    """
    todo = list(points(job, data))
    _open(job, out)
    rows = finished(out) if (out / RESULTS).is_file() else []
    _rewrite(out / RESULTS, rows)
    done = {row["id"] for row in rows}
    for number, point in enumerate(todo, start=1):
        if point.id not in done:
            recipe = job.recipe if point.budget is None else replace(job.recipe, epochs=job.reduced_epochs)
            row = train_point(
                point,
                data,
                recipe,
                out / "models" / point.id,
                out / "runs" / point.id,
                init=out / "models" / point.init if point.init else None,
                teacher=out / "models" / point.teacher if point.teacher else None,
                progress=lambda progress, at=number, of=point: report(at, len(todo), of, progress),
            )
            with (out / RESULTS).open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            rows.append(row)
        shutil.rmtree(out / "runs" / point.id, ignore_errors=True)
        report(number, len(todo), point, None)
    return rows


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
) -> dict[str, Any]:
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
        Its row of results.

    Raises:
        ValueError: if a saved model does not fit.
    """
    taught_by = _fitting(teacher, data)[0] if teacher else None
    history: list[dict[str, Any]] = []
    if init:
        start, before = _fitting(init, data)
        model, record = apply(point.plan, start, seed=point.seed)
        history = [*before.history, record.to_dict()]
    else:
        model = build(point.plan.architecture, seed=point.seed)
    trained = train(model, data, recipe, seed=point.seed, teacher=taught_by, folder=folder, progress=progress)
    history.append(
        {"method": "train", "recipe": asdict(recipe), "seed": point.seed, "teacher": teacher.name if teacher else None}
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
    counted = count(model, data.shape)
    row = {
        "id": point.id,
        "network": point.network,
        "plan": str(point.plan),
        "budget": point.budget,
        "relus": counted.total.relus,
        "relus_without_stem": counted.relus_without_stem,
        "maxpool_comparisons": counted.total.maxpool_comparisons,
        "macs": counted.total.macs,
        "params": counted.total.params,
        "top1": round(accuracy(model, data, data.test), 3),
        "top1_validation": round(trained.top1_validation, 3),
        "split": "test",
        "n": len(data.test),
        "seed": point.seed,
        "data": data.name,
        "epochs": recipe.epochs,
        "cpu_minutes": round(trained.cpu_seconds / 60, 2),
        "priced_seconds": {
            name: round(price(counted.layers, profile).seconds, 3) for name, profile in PROFILES.items()
        },
        "command": _command(point, data, recipe, init, teacher),
    }
    shutil.copyfile(folder / METRICS, to / METRICS)
    return row


def _fitting(folder: Path, data: Dataset) -> tuple[nn.Module, Manifest]:
    """A saved model that takes the data set's images and knows its classes."""
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
    words += ["--init", init.name] if init else []
    words += ["--teacher", teacher.name] if teacher else []
    usual = asdict(RECIPES[data.name])
    for name, value in asdict(recipe).items():
        words += ["--set", f"{name}={value}"] if value != usual[name] else []
    return " ".join([*words, "--out", point.id])


def _open(job: Job, out: Path) -> None:
    """Make the folder, or see that it belongs to this very job."""
    settings = json.loads(json.dumps(asdict(job)))
    path = out / CONFIG
    if path.is_file():
        theirs = yaml.safe_load(path.read_text()) or {}
        differing = [field.name for field in fields(Job) if theirs.get(field.name) != settings[field.name]]
        if differing:
            shown = "; ".join(f"{name} was {theirs.get(name)}, now {settings[name]}" for name in differing)
            raise ValueError(f"{out} holds another job ({shown}); choose another folder or the same settings")
        return
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no job; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    _write(path, yaml.safe_dump(settings, sort_keys=False))


def _rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    """Leave exactly these rows, without the rest of a line that was cut off."""
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
