"""The command line: the only place that prints, shows progress, or exits."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from torch import nn

    from deepreshape.counting import Count
    from deepreshape.job import Point
    from deepreshape.training import Progress as TrainingProgress
    from deepreshape.training import Recipe

# idle threads that spin take the time of those that work; has to be set before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Redesign convolutional networks for private inference: count, design, train, remove ReLUs, price.",
)
out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the data sets; else DEEPRESHAPE_DATA, else ./data.", show_default=False)
]
Threads = Annotated[int, typer.Option(min=0, help="Threads for training; 0 leaves it to torch.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the recipe, such as lr=0.1; may be repeated.", show_default=False),
]


def main() -> None:
    """Run the command line; bad input ends with one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        err.print(f"[bold red]error:[/] {_escape(' '.join(str(error).split()))}", highlight=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def count(
    model: Annotated[str, typer.Argument(help="A network's name, a saved model's folder, or package.module:callable.")],
    input: Annotated[str, typer.Option(help="Shape of one input: channels x height x width.")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=1, help="Number of classes, where the name does not fix it.")] = 100,
    as_json: Json = False,
) -> None:
    """Count ReLUs, max-pool comparisons, MACs and parameters of a network."""
    from deepreshape.counting import count as count_model

    shape = _shape(input)
    counted = count_model(_network(model, shape, classes), shape)
    if as_json:
        _print_json(_count_values(counted))
        return
    table = _table("stage", "ReLUs", "max-pool comparisons", "MACs", "params")
    for name, stage in counted.by_stage.items():
        table.add_row(
            name or "(network)", *map(_number, (stage.relus, stage.maxpool_comparisons, stage.macs, stage.params))
        )
    total = counted.total
    table.add_section()
    table.add_row("total", *map(_number, (total.relus, total.maxpool_comparisons, total.macs, total.params)))
    out.print(table)
    out.print(f"{counted.relus_without_stem:,} ReLUs without the stem's")
    for name, elements in counted.unknown.items():
        out.print(f"[yellow]not counted:[/] {name}, {elements:,} elements; it is neither linear nor a ReLU")


@app.command()
def design(
    phi: Annotated[str, typer.Option(help="Stage compute ratio: blocks in each stage.")] = "2,2,2,2",
    order: Annotated[
        str | None, typer.Option(help="Stages, most critical first; the published 3,2,4,1 without.", show_default=False)
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(help="A multiplier that stays, such as alpha=2; may be repeated.", show_default=False),
    ] = None,
    block: Annotated[str, typer.Option(help="basic or bottleneck.")] = "basic",
    base: Annotated[int, typer.Option(min=1, help="Base channels m.")] = 16,
    input: Annotated[str, typer.Option(help="Shape of one input: channels x height x width.")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 100,
    strides: Annotated[
        str | None, typer.Option(help="Down-sampling of each stage; 1,2,2,... without.", show_default=False)
    ] = None,
    bounds: Annotated[str, typer.Option(help="Smallest and largest multiplier.")] = "2,12",
    as_json: Json = False,
) -> None:
    """Solve ReLU equalization: the stage widths whose ReLU counts follow criticality."""
    from deepreshape.design import equalize
    from deepreshape.models import Architecture, name_of

    blocks = _integers(phi, "--phi")
    if block not in ("basic", "bottleneck"):
        raise ValueError(f"--block is basic or bottleneck, not {block!r}")
    low, high = _integers(bounds, "--bounds", 2)
    start = Architecture(
        "resnet",
        blocks,
        base,
        (2,) * (len(blocks) - 1),
        _shape(input),
        classes,
        block,
        strides=_integers(strides, "--strides", len(blocks)) if strides else (),
    )
    pairs = dict(_pair(text, "--fix") for text in fix or [])
    fixed = {name: _integers(value, f"--fix {name}", 1)[0] for name, value in pairs.items()}
    found = equalize(start, _integers(order, "--order") if order else None, fixed=fixed, bounds=(low, high))

    def name(design: Architecture) -> str:
        try:
            return name_of(design)
        except ValueError:  # unusual strides have no name
            return "x".join(map(str, design.multipliers)) + "x"

    solutions = [
        {
            "name": name(item.architecture),
            "multipliers": list(item.architecture.multipliers),
            "relus": item.relus,
            "macs": item.macs,
            "params": item.params,
        }
        for item in found
    ]
    if as_json:
        _print_json({"solutions": solutions})
        return
    table = _table("network", "ReLUs", "MACs", "params")
    for item in solutions:
        table.add_row(item["name"], *map(_number, (item["relus"], item["macs"], item["params"])))
    out.print(table)


@app.command()
def criticality(
    network: Annotated[str, typer.Argument(help="A network's name.")],
    data: Annotated[str, typer.Option(help="Data set to train on.")] = "digits",
    data_dir: DataDir = None,
    seeds: Annotated[str, typer.Option(help="Seeds, one set of runs each.")] = "0",
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure how much each stage's ReLUs matter (the DeepReDuce score), by training with one stage's ReLUs only."""
    from deepreshape.design import measure
    from deepreshape.models import Architecture, architecture, build
    from deepreshape.training import load_data, train

    _use_threads(threads)
    recipe, dataset = _recipe(data, settings), load_data(data, data_dir)
    whole = architecture(network, dataset.shape, len(dataset.class_names))
    teachers: dict[int, nn.Module] = {}
    with _bar() as bar:
        task = bar.add_task("training", total=None)

        def accuracy(candidate: Architecture, seed: int) -> float:
            if seed not in teachers:
                teachers[seed] = build(whole, seed=seed)
                bar.update(task, description=f"{network}, all ReLUs, seed {seed}")
                train(teachers[seed], dataset, recipe, seed=seed, progress=_into(bar, task))
            bar.update(task, description=f"{network}, one stage's ReLUs, seed {seed}")
            model = build(candidate, seed=seed)
            return train(
                model, dataset, recipe, seed=seed, teacher=teachers[seed], progress=_into(bar, task)
            ).top1_validation

        found = measure(whole, accuracy, _integers(seeds, "--seeds"))
    stages = [
        {
            "stage": at + 1,
            "score": found.mean[at],
            "spread": found.spread[at],
            "relus": found.relus[at],
            "top1_validation": [tops[at] for tops in found.accuracies],
        }
        for at in range(len(found.relus))
    ]
    if as_json:
        _print_json({"order": list(found.order), "stages": stages})
        return
    table = _table("stage", "score", "spread", "ReLUs", "validation top-1, %")
    for stage in stages:
        tops = ", ".join(f"{top:.1f}" for top in stage["top1_validation"])
        table.add_row(
            f"S{stage['stage']}", f"{stage['score']:.2f}", f"{stage['spread']:.2f}", _number(stage["relus"]), tops
        )
    out.print(table)
    out.print("order, most critical first: " + ",".join(map(str, found.order)))


@app.command()
def train(
    network: Annotated[str, typer.Argument(help="A network's name.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for the model; a run that was cut there goes on.")],
    data: Annotated[str, typer.Option(help="Data set to train on.")] = "digits",
    data_dir: DataDir = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="ReLU budget; all ReLUs without.", show_default=False)
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Saved model that distils into this one.", show_default=False)
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Saved model to take weights from.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and training.")] = 0,
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Train one network, whole or reduced to a ReLU budget; report its counts, accuracy and price."""
    from deepreshape.job import Point, train_point
    from deepreshape.linearize import plan, plan_of
    from deepreshape.models import architecture
    from deepreshape.training import load_data

    _use_threads(threads)
    recipe, dataset = _recipe(data, settings), load_data(data, data_dir)
    whole = architecture(network, dataset.shape, len(dataset.class_names))
    point = Point(network, plan(whole, budget) if budget else plan_of(whole), budget, seed)
    with _bar() as bar:
        task = bar.add_task(f"{network}: {point.plan}", total=None)
        row = _stoppable(
            lambda: train_point(
                point, dataset, recipe, to, to / "run", init=init, teacher=teacher, progress=_into(bar, task)
            )
        )
    if as_json:
        _print_json(row)
        return
    out.print(f"{network}: {row['plan']}; {row['relus']:,} ReLUs, {row['macs']:,} MACs, {row['params']:,} parameters")
    out.print(f"test top-1 {row['top1']:.2f} %, saved in {to}")


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A saved model's folder.")],
    data: Annotated[
        str | None, typer.Option(help="Data set; the one it was trained on without.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Accuracy of a saved model on a data set's test split."""
    from deepreshape.counting import count as count_model
    from deepreshape.models.saved import load
    from deepreshape.training import accuracy, load_data

    _use_threads(threads)
    loaded, manifest = load(model)
    dataset = load_data(data or manifest.dataset, data_dir)
    if dataset.shape != manifest.architecture.input:
        raise ValueError(f"{model} takes inputs of {manifest.architecture.input}, {dataset.name} has {dataset.shape}")
    values = {
        "top1": round(accuracy(loaded, dataset, dataset.test), 3),
        "relus": count_model(loaded, dataset.shape).total.relus,
        "n": len(dataset.test),
    }
    if as_json:
        _print_json(values)
    else:
        out.print(f"test top-1 {values['top1']:.2f} % on {values['n']:,} images, {values['relus']:,} ReLUs")


@app.command()
def run(
    to: Annotated[Path, typer.Option("--out", help="The job's folder; a job that was cut there goes on.")],
    data: Annotated[str, typer.Option(help="Data set.")] = "digits",
    data_dir: DataDir = None,
    baseline: Annotated[str, typer.Option(help="The network that is redesigned.")] = "resnet18-m16",
    networks: Annotated[
        str | None,
        typer.Option(help="Networks to compare; the baseline and its HybReNets without.", show_default=False),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="ReLU budgets; a quarter, eighth and sixteenth without.", show_default=False)
    ] = None,
    seeds: Annotated[str, typer.Option(help="Each point is trained once for each.")] = "0",
    teacher: Annotated[
        str | None, typer.Option(help="A network to train first, which distils into all.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="For networks with all their ReLUs.", show_default=False)
    ] = None,
    reduced_epochs: Annotated[
        int | None, typer.Option(min=1, help="For each reduced network.", show_default=False)
    ] = None,
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """The main job: redesign a network, reduce to a ladder of ReLU budgets, train, price, and write a report."""
    from deepreshape.job import Job, default_budgets, hybrenets
    from deepreshape.job import run as run_job
    from deepreshape.models import architecture
    from deepreshape.training import load_data

    _use_threads(threads)
    recipe, dataset = _recipe(data, settings), load_data(data, data_dir)
    if epochs:
        recipe = recipe.with_values({"epochs": epochs})
    start = architecture(baseline, dataset.shape, len(dataset.class_names))
    job = Job(
        data,
        baseline,
        tuple(networks.split(",")) if networks else (baseline, *hybrenets(start)),
        _integers(budgets, "--budgets") if budgets else default_budgets(start),
        _integers(seeds, "--seeds"),
        recipe,
        reduced_epochs or max(1, recipe.epochs * 4 // 5),
        teacher,
    )
    with _bar() as bar:
        points = bar.add_task("points", total=None)
        task = bar.add_task("", total=None)

        def show(number: int, total: int, point: Point, progress: TrainingProgress | None) -> None:
            bar.update(points, completed=number - (progress is not None), total=total)
            if progress:
                bar.update(
                    task, description=f"{point.network}: {point.plan}", completed=progress.step, total=progress.steps
                )
            else:
                err.print(f"{number}/{total} {point.id}: {point.plan}", highlight=False)

        rows = _stoppable(lambda: run_job(job, dataset, to, show))
    written = _write_report([to], rows, to / "report.html")
    if as_json:
        _print_json({"report": str(written), "results": str(to / "results.jsonl"), "points": len(rows)})
    else:
        _print_results(rows, baseline)
        out.print(f"{len(rows)} points; the report is {written}", soft_wrap=True)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Job folders; several are put in one report.")],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="The HTML file; report.html in the first folder without.", show_default=False),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(help="Also write accuracy against ReLUs as a picture.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report of one or more jobs from their results."""
    from deepreshape.job import finished
    from deepreshape.report import picture

    rows = [row for folder in folders for row in finished(folder)]
    if not rows:
        raise ValueError(
            f"no point is finished yet in {', '.join(map(str, folders))}; `deepreshape run` goes on with it"
        )
    written = _write_report(folders, rows, to or folders[0] / "report.html")
    if svg:
        svg.write_text(picture(rows))
    if as_json:
        _print_json({"report": str(written), "points": len(rows)})
    else:
        out.print(f"{len(rows)} points; the report is {written}", soft_wrap=True)


@app.command()
def fetch(
    data: Annotated[str, typer.Argument(help="cifar10, cifar100 or tinyimagenet.")],
    data_dir: DataDir = None,
    mirror: Annotated[str | None, typer.Option(help="An address to try first.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Download a data set, check its SHA-256 and unpack it; a download that was cut goes on."""
    from deepreshape.training.data import data_folder
    from deepreshape.training.fetch import fetch as fetch_data

    with _bar() as bar:
        task = bar.add_task(f"{data}, MB", total=None)
        folder = _stoppable(
            lambda: fetch_data(
                data,
                data_folder(data_dir),
                mirror=mirror,
                progress=lambda done, total: bar.update(task, completed=done // 2**20, total=total // 2**20),
            )
        )
    if as_json:
        _print_json({"folder": str(folder)})
    else:
        out.print(f"{data} is in {folder}", soft_wrap=True)


def _network(model: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network meant by a name, a folder, or package.module:callable."""
    from torch import nn

    from deepreshape.models import architecture, build
    from deepreshape.models.saved import load

    if ":" in model:
        where, _, name = model.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            made = getattr(importlib.import_module(where), name)()
        except (ImportError, AttributeError, TypeError) as error:
            raise ValueError(f"{model!r} does not give a network: {error}") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"{model!r} gives a {type(made).__name__}, not a torch module")
        return made
    if Path(model).is_dir():
        return load(Path(model))[0]
    return build(architecture(model, shape, classes), "meta")


def _count_values(counted: Count) -> dict[str, Any]:
    total = counted.total
    return {
        "relus": total.relus,
        "relus_without_stem": counted.relus_without_stem,
        "maxpool_comparisons": total.maxpool_comparisons,
        "macs": total.macs,
        "params": total.params,
        "stages": [
            {"name": name, "relus": stage.relus, "macs": stage.macs, "params": stage.params}
            for name, stage in counted.by_stage.items()
        ],
        "unknown": [{"operator": name, "elements": elements} for name, elements in counted.unknown.items()],
    }


def _print_results(rows: list[dict[str, Any]], baseline: str) -> None:
    from deepreshape.report import advantages, summarize, verdict

    points = summarize(rows)
    profile = next(iter(points[0].priced))
    table = Table("network", "what was removed")
    for name in ("ReLUs", "MACs", "test top-1, %", f"priced, s ({profile})"):
        table.add_column(name, justify="right")
    for point in points:
        numbers = (_number(point.relus), _number(point.macs), f"{point.mean:.2f}", f"{point.priced[profile]:,.1f}")
        table.add_row(point.network, point.plan, *numbers)
    out.print(table)
    out.print(verdict(advantages(points, baseline), baseline), highlight=False)


def _write_report(folders: list[Path], rows: list[dict[str, Any]], path: Path) -> Path:
    import yaml

    from deepreshape.report import render

    texts = [(folder / "config.yaml").read_text() for folder in folders]
    baseline = yaml.safe_load(texts[0])["baseline"]
    command = "\n".join(_command_of(yaml.safe_load(text), folder) for text, folder in zip(texts, folders, strict=True))
    path.write_text(render(rows, baseline=baseline, settings="\n".join(texts), command=command))
    return path


def _command_of(config: dict[str, Any], folder: Path) -> str:
    """The command that makes a job of these settings."""
    from deepreshape.training import RECIPES

    defaults = vars(RECIPES[config["data"]])
    words = ["deepreshape run", f"--data {config['data']}", f"--baseline {config['baseline']}"]
    words.append("--networks " + ",".join(config["networks"]))
    words.append("--budgets " + ",".join(map(str, config["budgets"])))
    words.append("--seeds " + ",".join(map(str, config["seeds"])))
    words += [f"--teacher {config['teacher']}"] if config["teacher"] else []
    words += [f"--set {name}={value}" for name, value in config["recipe"].items() if value != defaults[name]]
    return " ".join([*words, f"--reduced-epochs {config['reduced_epochs']}", f"--out {folder.name}"])


def _recipe(data: str, settings: list[str] | None) -> Recipe:
    from deepreshape.training import RECIPES

    if data not in RECIPES:
        raise ValueError(f"unknown data set {data!r}; known are {', '.join(RECIPES)}")
    return RECIPES[data].with_values(dict(_pair(text, "--set") for text in settings or []))


def _use_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def _stoppable(work: Any) -> Any:
    try:
        return work()
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _into(bar: Progress, task: Any) -> Any:
    return lambda progress: bar.update(task, completed=progress.step, total=progress.steps)


def _table(*names: str) -> Table:
    table = Table(names[0])
    for name in names[1:]:
        table.add_column(name, justify="right")
    return table


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def _number(value: int) -> str:
    return f"{value:,}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ValueError(f"{option} takes name=value, not {text!r}")
    return name, value


def _integers(text: str, option: str, length: int | None = None) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        kind = "an integer" if length == 1 else "integers with commas between"
        raise ValueError(f"{option} takes {kind}, not {text!r}") from None
    if length is not None and len(values) != length:
        raise ValueError(f"{option} takes {length} integers, not {text!r}")
    return values


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"--input takes channels x height x width, such as 3x32x32, not {text!r}")
    channels, height, width = map(int, parts)
    return channels, height, width
