"""Commands that train, and what follows from it: train, teach, eval, run, report, fetch."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from deepreshape.cli.console import (
    bytes_bar,
    into,
    new_table,
    out,
    print_json,
    progress_bar,
    run_experiment,
    stoppable,
    thousands,
)
from deepreshape.cli.costs import Links, read_one_terms
from deepreshape.cli.options import (
    DataDir,
    DataName,
    ExitPoint,
    Json,
    MacsLevels,
    NewModel,
    SavedDataName,
    Seed,
    Settings,
    Threads,
    TrainedArgument,
    new_file,
    new_model,
    read_data,
    read_integers,
    read_recipe,
    scaled_names,
    set_threads,
)

if TYPE_CHECKING:
    from torch import nn

    from deepreshape.data import Dataset
    from deepreshape.pricing.quote import Terms
    from deepreshape.training.runs import Result

app = typer.Typer()


@app.command()
def train(
    network: Annotated[str, typer.Argument(help="A network's name.")],
    to: NewModel,
    data: DataName = "digits",
    data_dir: DataDir = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="ReLU budget; all ReLUs without.", show_default=False)
    ] = None,
    max_macs: Annotated[
        float | None,
        typer.Option(min=1, help="Multiply-adds that the reduced network may have too.", show_default=False),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Saved model that distils into this one, or a folder of `teach`.", show_default=False),
    ] = None,
    init: Annotated[str | None, typer.Option(help="Saved model to take weights from.", show_default=False)] = None,
    seed: Seed = 0,
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Train one network, whole or reduced to a ReLU budget; report its counts, accuracy and price."""
    from deepreshape.experiments.points import TrainingPoint
    from deepreshape.models import architecture_for
    from deepreshape.models.zoo import folder_of
    from deepreshape.removal import plan, plan_of
    from deepreshape.training import METRICS

    new_model(to)
    if ":" in network:
        raise ValueError(
            f"train takes a network's name; {network} is trained by its own code, or in Python by dr.train"
        )
    set_threads(threads, data)
    recipe, dataset = read_recipe(data, settings), read_data(data, data_dir)
    start, taught_by = (folder_of(name) if name else None for name in (init, teacher))
    whole = architecture_for(network, dataset)
    if max_macs is not None and not budget:
        raise ValueError(f"--max-macs {max_macs:g} chooses among the plans within --budget; give both")
    removed = plan(whole, budget, max_macs=max_macs) if budget else plan_of(whole)
    point = TrainingPoint(network, removed, budget, seed, recipe, init=start, teacher=taught_by, max_macs=max_macs)
    with progress_bar() as bar:
        task = bar.add_task(point.title, total=None)
        row = stoppable(lambda: point.result(dataset, to, to / "run", into(bar, task)))
    shutil.rmtree(to / "run")
    if as_json:
        print_json(row.to_row())
        return
    signs = f"{row.signs:,} signs, " if row.signs else ""
    out.print(f"{network}: {row.plan}; {row.relus:,} ReLUs, {signs}{row.macs:,} MACs, {row.params:,} parameters")
    out.print(f"test {METRICS[row.measures]} {row.top1:.2f} %, saved in {to}")


@app.command()
def teach(
    model: Annotated[str, typer.Argument(help="A saved model's folder, or zoo:NAME: the teacher.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for its answers; one that was cut goes on.")],
    views: Annotated[int, typer.Option(min=1, max=1000, help="Windows of every image that it answers.")] = 4,
    keep: Annotated[int, typer.Option(min=1, help="Largest logits of an answer that are stored.")] = 16,
    data: SavedDataName = None,
    data_dir: DataDir = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Store a network's answers to every training image once; `--teacher` of train and linearize takes the folder."""
    from deepreshape.experiments.points import load_fitting
    from deepreshape.models.saved import manifest, weights_digest
    from deepreshape.models.zoo import called, folder_of
    from deepreshape.training import recipe_of
    from deepreshape.training import teach as store

    folder = folder_of(model)
    name = data or manifest(folder).dataset
    set_threads(threads, name)
    dataset = read_data(name, data_dir)
    network = load_fitting(folder, dataset)
    crop, whose = recipe_of(name).crop, f"{called(folder)} {weights_digest(network)}"
    with progress_bar() as bar:
        task = bar.add_task(f"{views} views", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        stoppable(lambda: store(network, dataset, to, views=views, crop=crop, keep=keep, teacher=whose, progress=show))
    kept = min(keep, len(dataset.class_names))
    size = sum(path.stat().st_size for path in to.iterdir())
    values = {"out": str(to), "views": views, "images": len(dataset.whole), "keep": kept, "bytes": size}
    if as_json:
        print_json(values)
    else:
        out.print(f"{views} answers to each of {len(dataset.whole):,} images in {to}, {size / 1e6:.1f} MB")


@app.command("eval")
def evaluate(
    model: TrainedArgument,
    data: SavedDataName = None,
    exit: ExitPoint = None,
    data_dir: DataDir = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Accuracy of a trained network on a data set's test split; mIoU where every pixel has a class."""
    import numpy as np

    from deepreshape.cli.models import trained_network
    from deepreshape.counting import count as count_model
    from deepreshape.training import accuracy

    network, dataset = trained_network(model, data, data_dir, threads)
    network = network.at(exit)
    total = count_model(network.module, dataset.shape).total
    first = network.run(dataset.normalize(dataset.test.images[:16]).contiguous().numpy())
    if not np.isfinite(first).any():
        raise ValueError(f"{model} gives no finite number for the first {len(first)} test images; look at its weights")
    counts = {"relus": total.relus, "n": len(dataset.test)} | ({"signs": total.signs} if total.signs else {})
    values: dict[str, Any]
    if dataset.maps:
        values = _judge_maps(network.judged(), dataset)
        text = f"test mIoU {values['miou']:.2f} %, {values['pixel_accuracy']:.2f} % of pixels"
    else:
        values = {"top1": accuracy(network.judged(), dataset, dataset.test)}
        text = f"test top-1 {values['top1']:.2f} %"
    if as_json:
        print_json(values | counts)
        return
    signs = f", {total.signs:,} signs" if total.signs else ""
    out.print(f"{text} on {len(dataset.test):,} images, {total.relus:,} ReLUs{signs}")
    if dataset.maps:
        table = new_table("class", "IoU, %")
        for name, value in values["iou"].items():
            table.add_row(name, "not in the test split" if value is None else f"{value:.2f}")
        out.print(table)


def _judge_maps(network: nn.Module, data: Dataset) -> dict[str, Any]:
    """MIoU, share of pixels that are right, and IoU by class on the test split, from one confusion matrix."""
    from deepreshape.training import Segmentation, confusion, ious, judge

    classes = len(data.class_names)
    counts = judge(network, data, data.test, lambda batches: confusion(batches, classes))
    by_class = ious(counts)
    return {
        "miou": Segmentation.mean(by_class),
        "pixel_accuracy": round(100 * int(counts.diagonal().sum()) / int(counts.sum()), 3),
        "iou": {name: value and round(value, 3) for name, value in zip(data.class_names, by_class, strict=True)},
    }


@app.command()
def run(
    to: Annotated[Path, typer.Option("--out", help="The job's folder; a job that was cut there goes on.")],
    data: DataName = "digits",
    data_dir: DataDir = None,
    baseline: Annotated[str, typer.Option(help="The network that is redesigned.")] = "resnet18-m16",
    networks: Annotated[
        str | None,
        typer.Option(help="Networks to compare; the baseline and its HybReNets without.", show_default=False),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="ReLU budgets; a quarter, eighth and sixteenth without.", show_default=False)
    ] = None,
    macs: MacsLevels = None,
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
    private: Annotated[
        int,
        typer.Option(min=0, help="At the end, let the best reduced network answer so many images privately."),
    ] = 0,
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """The main job: redesign a network, reduce to a ladder of ReLU budgets, train, price, and write a report."""
    from deepreshape.experiments.answers import answer_privately
    from deepreshape.experiments.run import Job, default_budgets, hybrenets
    from deepreshape.models import architecture_for

    set_threads(threads, data)
    recipe, dataset = read_recipe(data, settings), read_data(data, data_dir)
    if epochs:
        recipe = recipe.with_values({"epochs": epochs})
    start = architecture_for(baseline, dataset)
    names = tuple(networks.split(",")) if networks else (baseline, *hybrenets(start))
    if macs:
        names = scaled_names(names, macs, dataset)
        baseline = names[0]
    job = Job(
        data,
        baseline,
        names,
        read_integers(budgets, "--budgets") if budgets else default_budgets(start),
        read_integers(seeds, "--seeds"),
        recipe,
        reduced_epochs or max(1, recipe.epochs * 4 // 5),
        teacher,
    )
    rows = run_experiment(job, dataset, to)
    answers = None
    if private:
        with bytes_bar("answering privately") as shown:
            answers = stoppable(lambda: answer_privately(rows, dataset, to, private, shown))
    written = _write_report([to], rows, to / "report.html")
    if as_json:
        values = {"report": str(written), "results": str(to / "results.jsonl"), "points": len(rows)}
        print_json(values | ({"private": asdict(answers)} if answers else {}))
    else:
        _print_results(rows, baseline)
        if answers:
            out.print(str(answers), highlight=False)
        out.print(f"{len(rows)} points; the report is {written}", soft_wrap=True)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of jobs or sweeps; several are put in one report.")],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="The HTML file; report.html in the first folder without.", show_default=False),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(help="Also write accuracy against ReLUs as a picture.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Compare at equal predicted seconds under this protocol, as `cost` names them; a published system's "
            "without.",
            show_default=False,
        ),
    ] = None,
    link: Links = None,
    as_json: Json = False,
) -> None:
    """Write the report of one or more jobs or sweeps from their results: who wins at equal ReLUs, multiply-adds, both
    and predicted seconds.
    """
    from deepreshape.report import picture
    from deepreshape.training import METRICS
    from deepreshape.training.runs import finished

    if svg:
        new_file(svg, ".svg")
    if link and not protocol:
        raise ValueError(f"--link {link} goes with --protocol, which says what is predicted over it")
    rows = [row for folder in folders for row in finished(folder)]
    if not rows:
        raise ValueError(
            f"no point is finished yet in {', '.join(map(str, folders))}; `deepreshape run` goes on with it"
        )
    if len({row.measures for row in rows}) > 1:
        metrics = [f"{folder} has {METRICS[row.measures]}" for folder in folders for row in finished(folder)[:1]]
        raise ValueError(f"one report is of one metric: {', '.join(metrics)}; write a report for each")
    terms = read_one_terms(protocol, link) if protocol else None
    drawn = picture(rows) if svg else ""
    written = _write_report(folders, rows, to or folders[0] / "report.html", terms)
    if svg:
        svg.write_text(drawn)
    if as_json:
        print_json({"report": str(written), "points": len(rows)})
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
    from deepreshape.data import data_folder
    from deepreshape.data.fetch import fetch as fetch_data

    with progress_bar() as bar:
        task = bar.add_task(f"{data}, MB", total=None)
        folder = stoppable(
            lambda: fetch_data(
                data,
                data_folder(data_dir),
                mirror=mirror,
                progress=lambda done, total: bar.update(task, completed=done // 2**20, total=total // 2**20),
            )
        )
    if as_json:
        print_json({"folder": str(folder)})
    else:
        out.print(f"{data} is in {folder}", soft_wrap=True)


def _print_results(rows: list[Result], baseline: str) -> None:
    from deepreshape.report import advantages, profiles_of, scope, summarize, verdict

    points = summarize(rows)
    profiles, metric = profiles_of(points)[:1], points[0].metric
    table = Table("network", "what was removed", box=SIMPLE, pad_edge=False)
    for name in ("ReLUs", "M MACs", f"{metric}, %", *("priced, s" for _ in profiles)):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        prices = (f"{point.priced[name]:,.1f}" for name in profiles)
        numbers = (f"{point.macs / 1e6:,.1f}", f"{point.mean:.2f}", *prices)
        table.add_row(point.network, point.plan, thousands(point.relus), *numbers)
    out.print(table)
    priced = f"priced by {profiles[0]}, a published system" if profiles else "no published system prices all of these"
    out.print(f"Test {metric}; {priced}.", highlight=False)
    out.print(verdict(advantages(points, baseline), baseline), highlight=False)
    if said := scope(rows):
        out.print(said, highlight=False)


def _write_report(folders: list[Path], rows: list[Result], path: Path, terms: Terms | None = None) -> Path:
    import yaml

    from deepreshape.experiments.answers import read_answers
    from deepreshape.experiments.live import explore, predicted_seconds
    from deepreshape.report import render, seconds_basis, summarize
    from deepreshape.report.explore import embedded

    texts = [(folder / "config.yaml").read_text() for folder in folders]
    configs = [yaml.safe_load(text) for text in texts]
    command = "\n".join(_command_of(config, folder) for config, folder in zip(configs, folders, strict=True))
    points = summarize(rows)
    data, seconds = explore(points, folders), None
    if terms:
        over = f", {terms.link}" if terms.link else ""
        seconds = seconds_basis(f"{terms.protocol}{over}", predicted_seconds(points, folders, terms))
    answers = next(filter(None, map(read_answers, folders)), None)
    page = render(
        rows,
        baseline=_baseline_of(configs[0]),
        settings="\n".join(texts),
        command=command,
        data=embedded(data) if data["points"] else None,
        answers=answers,
        seconds=seconds,
    )
    path.write_text(page)
    return path


def _baseline_of(config: dict[str, Any]) -> str:
    """What the others are compared with: a job's baseline, a search's best, a sweep's first network or first method."""
    from deepreshape.experiments.sweep import short_name

    if "designs" in config:
        return config["designs"][0].partition(":")[0]
    if "baseline" in config:
        return config["baseline"]
    first = short_name(config["networks"][0])
    return first if len(config["networks"]) > 1 else f"{first}, {config['methods'][0]}"


def _command_of(config: dict[str, Any], folder: Path) -> str:
    """The command that makes a job or a sweep of these settings, or those that train the designs of a search."""
    from deepreshape.training import recipe_of, set_options
    from deepreshape.training.runs import finished

    if "designs" in config:
        return "\n".join(row.command for row in finished(folder))
    swept = "methods" in config
    words = [f"deepreshape {'sweep' if swept else 'run'}", f"--data {config['data']}"]
    words += [] if swept else [f"--baseline {config['baseline']}"]
    for name in ("networks", "methods", "budgets", "seeds"):
        words += [f"--{name} " + ",".join(map(str, config[name]))] if name in config else []
    words += [f"--teacher {config['teacher']}"] if config["teacher"] else []
    usual = vars(recipe_of(config["data"]))
    words += set_options(config["recipe"], usual, "whole." if swept else "")
    if swept:
        words += set_options(config["tune"], usual, "tune.")
        words += [f"--set {method}.{name}={value}" for method, name, value in config["settings"]]
    else:
        words.append(f"--reduced-epochs {config['reduced_epochs']}")
    return " ".join([*words, f"--out {folder.name}"])
