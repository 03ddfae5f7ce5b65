"""Commands for networks of cells: cells search, cells reductions, cells random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import (
    DataDir,
    DataName,
    Json,
    Threads,
    into,
    out,
    print_json,
    progress_bar,
    read_data,
    read_pairs,
    set_threads,
    stoppable,
)

if TYPE_CHECKING:
    from deepreshape.models import CellNet
    from deepreshape.training import Progress, Recipe

app = typer.Typer(no_args_is_help=True, help="Cells with one ReLU layer each (Sphynx): search them, or draw some.")

Epochs = Annotated[int, typer.Option(min=1, help="Passes over half of the training split.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Like = Annotated[str, typer.Option(help="The network of cells that is named with the new ones.")]


@app.command()
def search(
    to: Annotated[Path, typer.Option("--out", help="Folder for genotype.json; a search that was cut there goes on.")],
    data: DataName = "digits",
    data_dir: DataDir = None,
    like: Like = "sphynx-c5-l10-r0.5",
    epochs: Epochs = 10,
    seed: Seed = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the search (channels, cells, order, alpha_lr, alpha_decay, skips, batch) or lr.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Search the operators of a cell by DARTS; ends with the name of the network to train."""
    from deepreshape.design.cells import CellSearch, search_cells

    start = _of_cells(like)
    set_threads(threads, data)
    dataset = read_data(data, data_dir)
    recipe, config = _read_settings(data, epochs, settings, CellSearch())
    genotype = _run(
        "cells",
        to,
        lambda progress: search_cells(dataset, config, recipe, seed=seed, folder=to / "run", progress=progress),
    )
    name = replace(start, genotype=str(genotype)).name
    values = {"genotype": str(genotype), "network": name, "data": dataset.name, "seed": seed, "epochs": epochs}
    _finish(f"cells {genotype}", to / "genotype.json", values, as_json=as_json)


@app.command()
def reductions(
    network: Annotated[str, typer.Argument(help="A network of cells, such as sphynx-c5-l10-r0.5.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for reductions.json; a search that was cut there goes on.")],
    data: DataName = "digits",
    data_dir: DataDir = None,
    epochs: Epochs = 10,
    seed: Seed = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the search (alpha_lr, alpha_decay, batch) or lr.", show_default=False),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Search which two cells halve the map, by Gumbel softmax; ends with the name of the network to train."""
    from deepreshape.design.alpha_steps import AlphaConfig
    from deepreshape.design.reductions import search_reductions

    start = _of_cells(network)
    set_threads(threads, data)
    dataset = read_data(data, data_dir)
    recipe, config = _read_settings(data, epochs, settings, AlphaConfig())
    best = _run(
        "reductions",
        to,
        lambda progress: search_reductions(
            start, dataset, config, recipe, seed=seed, folder=to / "run", progress=progress
        ),
    )
    places = [best.phi[0], best.phi[0] + best.phi[1]]
    values = {"reductions": places, "network": best.name, "data": dataset.name, "seed": seed, "epochs": epochs}
    _finish(f"cells {places[0]} and {places[1]} halve the map", to / "reductions.json", values, as_json=as_json)


@app.command("random")
def draw(
    like: Like = "sphynx-c5-l10-r0.5",
    seed: Annotated[int, typer.Option(min=0, help="Of the cells.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw cells at random: the control that a search has to beat."""
    from deepreshape.design.cells import random_genotype

    genotype = str(random_genotype(seed))
    name = replace(_of_cells(like), genotype=genotype).name
    if as_json:
        print_json({"genotype": genotype, "network": name, "seed": seed})
    else:
        out.print(name, highlight=False, soft_wrap=True)


def _of_cells(name: str) -> CellNet:
    """The network of cells of a name.

    Raises:
        ValueError: if it is none.
    """
    from deepreshape.models import CellNet, architecture

    start = architecture(name)
    if not isinstance(start, CellNet):
        raise ValueError(f"{name} is not a network of cells, as sphynx-c5-l10-r0.5 is")
    return start


def _read_settings(data: str, epochs: int, settings: list[str] | None, usual: Any) -> tuple[Recipe, Any]:
    """The recipe of the weights, with the published rate and schedule, and the search that some settings make."""
    from deepreshape.training import recipe_of, with_values

    pairs = read_pairs(settings, "--set")
    recipe = replace(recipe_of(data), epochs=epochs, lr=0.025, schedule="cosine", warmup=0.0, weight_decay=3e-4)
    recipe = recipe.with_values({"lr": pairs.pop("lr")}) if "lr" in pairs else recipe
    return recipe, with_values(usual, pairs)


def _run(what: str, to: Path, search: Callable[[Callable[[Progress], None]], Any]) -> Any:
    """Do a search with its progress on the screen; its metrics are left in the folder, its checkpoints are not."""
    with progress_bar() as bar:
        task = bar.add_task(what, total=None)
        best = stoppable(lambda: search(into(bar, task)))
    shutil.copyfile(to / "run" / "metrics.jsonl", to / "metrics.jsonl")
    shutil.rmtree(to / "run")
    return best


def _finish(what: str, path: Path, values: dict[str, Any], *, as_json: bool) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")
    if as_json:
        print_json(values)
        return
    out.print(f"{what}, written to {path}; to train:", highlight=False)
    out.print(
        f"deepreshape train {values['network']} --data {values['data']} --out ...", highlight=False, soft_wrap=True
    )
