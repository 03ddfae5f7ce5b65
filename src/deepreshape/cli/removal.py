"""Commands that change what is not linear in trained networks: linearize, sweep, substitute."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import (
    NOTHING_KEPT,
    count_bar,
    into,
    new_table,
    out,
    print_json,
    progress_bar,
    run_experiment,
    stoppable,
    thousands,
)
from deepreshape.cli.options import (
    DataDir,
    DataName,
    Json,
    MacsLevels,
    NewModel,
    SavedDataName,
    Seed,
    Settings,
    Threads,
    TrainedArgument,
    new_model,
    read_data,
    read_integers,
    read_pairs,
    read_recipe,
    scaled_names,
    set_threads,
    setting,
)

if TYPE_CHECKING:
    from torch import nn

    from deepreshape.data import Dataset
    from deepreshape.removal import Removal
    from deepreshape.training import Progress as TrainingProgress
    from deepreshape.training import Recipe

app = typer.Typer()


@app.command()
def linearize(
    model: TrainedArgument,
    to: NewModel,
    budget: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How many ReLUs are left; met exactly. Not for dead, which removes all that are free.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="snl, senet, taylor, autorep, descent, spatial, coarse, herpn (squares) or dead (free)."),
    ] = "snl",
    granularity: Annotated[
        str | None,
        typer.Option(help="What is kept as one: pixel, position, channel or layer.", show_default=False),
    ] = None,
    data: SavedDataName = None,
    data_dir: DataDir = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Saved model that distils into it, or a folder of `teach`; MODEL without.", show_default=False
        ),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            help="Price profile that ReLUs are weighed by, such as server-garbler; coarse plans are only priced.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    settings: Annotated[
        list[str] | None,
        setting("A setting of the method or of the fine-tuning's recipe, such as search_epochs=2 or lr=0.1."),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Remove ReLUs from a trained network until exactly so many are left, and fine-tune it."""
    from deepreshape.cli.models import trained_network
    from deepreshape.cost import PROFILES
    from deepreshape.experiments.points import RemovalPoint
    from deepreshape.models import convert
    from deepreshape.models.zoo import folder_of
    from deepreshape.removal import tuning_recipe
    from deepreshape.training import parallel

    dead = method == "dead"
    if dead:
        given = {"--budget": budget, "--granularity": granularity, "--teacher": teacher, "--price": price}
        given["--set"] = settings
        unused = next((name for name, value in given.items() if value is not None), None)
        if unused:
            raise ValueError(f"{unused} does nothing for dead, which removes all free ReLUs and trains nothing")
    elif budget is None:
        raise ValueError(f"--budget is missing: how many ReLUs {method} leaves; only dead goes without")
    if price is not None and price not in PROFILES:
        raise ValueError(f"unknown price profile {price!r}; known are {', '.join(PROFILES)}")
    new_model(to)
    network, dataset = trained_network(model, data, data_dir, threads)
    whole = convert(network.module.eval(), dataset.shape)
    source = folder_of(model) if network.manifest else whole
    if dead:
        small, record = _remove_free(whole, dataset, to)
        _finish(to, whole, small, record, dataset.shape, as_json=as_json)
        return
    pairs = read_pairs(settings, "--set")
    pairs |= {"granularity": granularity} if granularity else {}
    assert budget is not None  # noqa: S101 - only dead goes without
    chosen, recipe = _settings(method, budget, tuning_recipe(whole, dataset), pairs)
    with parallel.process_group(), progress_bar() as bar:
        task = bar.add_task("", total=None)

        def show(phase: str, progress: TrainingProgress) -> None:
            bar.update(task, description=f"{method}: {phase}")
            into(bar, task)(progress)

        point = RemovalPoint("", source, chosen, seed, recipe, folder_of(teacher) if teacher else None, price)
        small, record = stoppable(lambda: point.reduce(dataset, to, to / "run", show))
        if parallel.rank():
            return
    shutil.rmtree(to / "run")
    _finish(to, whole, small, record, dataset.shape, as_json=as_json)


def _remove_free(whole: nn.Module, data: Dataset, to: Path) -> tuple[nn.Module, Removal]:
    """What ``--method dead`` does, and saves."""
    from deepreshape.models.saved import save
    from deepreshape.removal import remove_dead

    with count_bar("images") as show:
        small, record = stoppable(lambda: remove_dead(whole, data, show), NOTHING_KEPT)
    save(small, to)
    return small, record


def _finish(
    to: Path, whole: nn.Module, small: nn.Module, record: Removal, shape: tuple[int, int, int], *, as_json: bool
) -> None:
    """The picture of the masks, and what there is to say."""
    from deepreshape.counting import count
    from deepreshape.removal import masks_of
    from deepreshape.removal.sites import site_of
    from deepreshape.report import picture_of_masks
    from deepreshape.training import METRICS

    before, after = (
        {site_of(each, path): mask for path, mask in masks_of(each, shape).items()} for each in (whole, small)
    )
    (to / "masks.svg").write_text(picture_of_masks(before, after))
    row = record.to_dict()
    shown = ("budget", "granularity", *(name for name in row if name.startswith(record.measures)), "warning")
    macs_before, macs = (count(each, shape).total.macs for each in (whole, small))
    values = {
        "relus": record.relus,
        "macs_before": macs_before,
        "macs": macs,
        **{name: row[name] for name in shown},
        "record": row,
    }
    if as_json:
        print_json(values)
        return
    out.print(f"{record.relus_before:,} -> {record.relus:,} ReLUs by {record.method}, chosen by {record.granularity}")
    top1 = (record.top1_before, record.top1_searched, record.top1_validation)
    if None not in top1:
        started, searched, ended = top1
        words = f"{searched:.2f} % searched, {ended:.2f} % fine-tuned" if record.epochs else f"{ended:.2f} % after"
        out.print(f"validation {METRICS[record.measures]} {started:.2f} % before, {words}")
    if record.settings.get("columns"):
        out.print(
            f"{macs_before:,} -> {macs:,} multiply-adds in the clear; encrypted products are as many as before, since "
            "a pixel left out saves its ReLUs alone"
        )
    out.print(f"saved in {to}; masks.svg there shows which stayed")
    comparisons = count(small, shape).total.maxpool_comparisons if record.method == "herpn" else 0
    if comparisons:
        out.print(
            f"its max pools stay, {comparisons:,} comparisons; an -avg name or `substitute` makes average pools of them"
        )


@app.command()
def sweep(
    networks: Annotated[
        str, typer.Option(help="Names of networks, which are trained first, saved models, or file.py:callable.")
    ],
    budgets: Annotated[str, typer.Option(help="ReLU budgets.")],
    to: Annotated[Path, typer.Option("--out", help="The sweep's folder; a sweep that was cut there goes on.")],
    macs: MacsLevels = None,
    methods: Annotated[str, typer.Option(help="Methods of removal.")] = "coarse,snl",
    seeds: Annotated[str, typer.Option(help="Everything is done once for each.")] = "0",
    data: DataName = "digits",
    data_dir: DataDir = None,
    teacher: Annotated[
        str | None, typer.Option(help="Saved model that distils into all, or a folder of `teach`.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        setting("tune.NAME=VALUE for the fine-tuning, whole.NAME=VALUE for networks trained here, METHOD.NAME=VALUE."),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Remove ReLUs from many networks, by many methods, to many budgets; one row of results each."""
    from deepreshape.cli.models import trained_network
    from deepreshape.experiments.sweep import Sweep
    from deepreshape.models import convert
    from deepreshape.training import METRICS, with_values
    from deepreshape.training.runs import RESULTS

    set_threads(threads, data)
    base = read_recipe(data, None)
    given: dict[str, dict[str, str]] = {"whole": {}, "tune": {}}
    for name, value in read_pairs(settings, "--set").items():
        of, dot, key = name.partition(".")
        if not dot:
            raise ValueError(f"--set takes whole.{name}={value}, tune.{name}={value} or METHOD.{name}={value}")
        given.setdefault(of, {})[key] = value
    dataset, words = read_data(data, data_dir), tuple(networks.split(","))
    words = scaled_names(words, macs, dataset) if macs else words
    modules = {
        word: convert(trained_network(word, data, data_dir, threads)[0].module.eval(), dataset.shape)
        for word in words
        if ":" in word and not word.startswith("zoo:")
    }
    plan = Sweep(
        data,
        words,
        tuple(methods.split(",")),
        read_integers(budgets, "--budgets"),
        read_integers(seeds, "--seeds"),
        with_values(base, given.pop("whole")),
        with_values(_usual_tuning(words, modules, dataset), given.pop("tune")),
        tuple((method, key, value) for method, pairs in given.items() for key, value in pairs.items()),
        teacher,
        modules,
    )
    rows = run_experiment(plan, dataset, to)
    if as_json:
        print_json({"results": str(to / RESULTS), "runs": len(rows)})
        return
    table = new_table("run", "ReLUs", "MACs", f"test {METRICS[rows[0].measures]}, %")
    for row in rows:
        table.add_row(row.id, thousands(row.relus), thousands(row.macs), f"{row.top1:.2f}")
    out.print(table)


@app.command()
def substitute(
    model: TrainedArgument,
    to: NewModel,
    activation: Annotated[
        str | None,
        typer.Option(
            help="What takes the place of every other activation: relu; or hard, hard sigmoids, hard swishes and hard "
            "tanhs in place of the smooth ones, and ReLUs where there is none.",
            show_default=False,
        ),
    ] = None,
    max_pool: Annotated[
        str | None, typer.Option(help="What takes the place of max pools: avg.", show_default=False)
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="What takes the place of group and instance norms: batch.", show_default=False)
    ] = None,
    data: SavedDataName = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Put other activations, pools and norms in place of what does not run privately, and fine-tune the network."""
    from deepreshape.cli.models import trained_network
    from deepreshape.models import convert
    from deepreshape.models.saved import save
    from deepreshape.removal import substitute as substitute_layers
    from deepreshape.removal import tuning_recipe
    from deepreshape.removal.substitute import ACTIVATIONS, HARD, NORMS, POOLS, SMOOTH
    from deepreshape.training import METRICS

    new_model(to)
    known = {"--activation": ("relu", "hard"), "--max-pool": ("avg",), "--norm": ("batch",)}
    asked = dict(zip(known, (activation, max_pool, norm), strict=True))
    if not any(asked.values()) or any(word not in (None, *known[option]) for option, word in asked.items()):
        words = " ".join(f"{option} {word}" for option, word in asked.items() if word) or "nothing to replace"
        raise ValueError(f"{words}: give --activation relu or hard, --max-pool avg, --norm batch, or several of them")
    network, dataset = trained_network(model, data, data_dir, threads)
    whole = convert(network.module.eval(), dataset.shape)
    recipe = tuning_recipe(whole, dataset).with_values(dict(read_pairs(settings, "--set")))
    layers: dict[str, str] = {**dict.fromkeys(ACTIVATIONS, "ReLU")} if activation == "relu" else {}
    layers |= {**dict.fromkeys(SMOOTH, "ReLU"), **HARD} if activation == "hard" else {}
    layers |= {**dict.fromkeys(POOLS, "avg")} if max_pool else {}
    layers |= {**dict.fromkeys(NORMS, "batch")} if norm else {}
    with progress_bar() as bar:
        show = into(bar, bar.add_task("fine-tuning", total=None))
        changed, record = stoppable(
            lambda: substitute_layers(
                whole, layers, dataset, recipe=recipe, seed=seed, folder=to / "run", progress=show
            )
        )
    save(changed, to)
    shutil.rmtree(to / "run")
    if as_json:
        print_json(record.to_dict())
        return
    for path, (before, after) in record.replaced.items():
        out.print(f"{path}: {after} in place of {before}", highlight=False)
    if record.top1_before is not None:
        steps = (record.top1_before, record.top1_substituted, record.top1_after)
        words = "validation {} {:.2f} % before, {:.2f} % substituted, {:.2f} % fine-tuned"
        out.print(words.format(METRICS[record.measures], *steps))
    out.print(f"saved in {to}")


def _usual_tuning(words: tuple[str, ...], modules: dict[str, nn.Module], data: Dataset) -> Recipe:
    """How the networks of a sweep are fine-tuned by default, which is to be the same for all of them."""
    from deepreshape.models import Foreign
    from deepreshape.models.saved import MANIFEST, load
    from deepreshape.models.zoo import folder_of
    from deepreshape.removal import tuning_recipe

    saved = [folder_of(word) for word in words if word not in modules and (folder_of(word) / MANIFEST).is_file()]
    theirs = [*modules.values(), *map(load, saved)]
    foreign = [model for model in theirs if isinstance(model.architecture, Foreign)]
    if not foreign:
        return read_recipe(data.name, None)
    if len(foreign) < len(words):
        raise ValueError(
            f"--networks {','.join(words)}: networks of your own and those of this package are fine-tuned in other "
            "ways; sweep them one after the other"
        )
    return tuning_recipe(foreign[0], data)


def _settings(method: str, budget: int, usual: Recipe, pairs: dict[str, str]) -> tuple[Any, Any]:
    """The method and the recipe that some settings make, each of which belongs to one of them."""
    from dataclasses import fields

    from deepreshape.experiments.sweep import configured
    from deepreshape.training import Recipe

    of_method = {field.name for field in fields(configured(method, budget, {}))}
    of_recipe = {field.name for field in fields(Recipe)}
    unknown = next((name for name in pairs if name not in of_method | of_recipe), None)
    if unknown:
        raise ValueError(
            f"unknown setting {unknown!r}; {method} has {', '.join(sorted(of_method))}; see also the recipe's"
        )
    chosen = configured(method, budget, {name: value for name, value in pairs.items() if name in of_method})
    return chosen, usual.with_values({name: value for name, value in pairs.items() if name not in of_method})
