"""Commands for networks of cells: cells search, cells random."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

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

app = typer.Typer(no_args_is_help=True, help="Cells with one ReLU layer each (Sphynx): search them, or draw some.")

Like = Annotated[str, typer.Option(help="The network of cells that is named with the new ones.")]


@app.command()
def search(
    to: Annotated[Path, typer.Option("--out", help="Folder for genotype.json; a search that was cut there goes on.")],
    data: DataName = "digits",
    data_dir: DataDir = None,
    like: Like = "sphynx-c5-l10-r0.5",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over half of the training split.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
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
    from deepreshape.training import recipe_of, with_values

    network = _with_genotype(like)
    set_threads(threads, data)
    dataset = read_data(data, data_dir)
    pairs = read_pairs(settings, "--set")
    # the published rate and schedule of the weights
    recipe = replace(recipe_of(data), epochs=epochs, lr=0.025, schedule="cosine", warmup=0.0, weight_decay=3e-4)
    recipe = recipe.with_values({"lr": pairs.pop("lr")}) if "lr" in pairs else recipe
    config = with_values(CellSearch(), pairs)
    with progress_bar() as bar:
        task = bar.add_task("cells", total=None)
        genotype = stoppable(
            lambda: search_cells(dataset, config, recipe, seed=seed, folder=to / "run", progress=into(bar, task))
        )
    name = network(str(genotype))
    values = {"genotype": str(genotype), "network": name, "data": dataset.name, "seed": seed, "epochs": epochs}
    (to / "genotype.json").write_text(json.dumps(values, indent=1) + "\n")
    shutil.copyfile(to / "run" / "metrics.jsonl", to / "metrics.jsonl")
    shutil.rmtree(to / "run")
    if as_json:
        print_json(values)
    else:
        out.print(f"cells {genotype}, written to {to / 'genotype.json'}; to train:", highlight=False)
        out.print(f"deepreshape train {name} --data {dataset.name} --out ...", highlight=False, soft_wrap=True)


@app.command("random")
def draw(
    like: Like = "sphynx-c5-l10-r0.5",
    seed: Annotated[int, typer.Option(min=0, help="Of the cells.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw cells at random: the control that a search has to beat."""
    from deepreshape.design.cells import random_genotype

    genotype = str(random_genotype(seed))
    name = _with_genotype(like)(genotype)
    if as_json:
        print_json({"genotype": genotype, "network": name, "seed": seed})
    else:
        out.print(name, highlight=False, soft_wrap=True)


def _with_genotype(like: str):
    """What names a network of cells after it gets other cells.

    Raises:
        ValueError: if ``like`` is none.
    """
    from deepreshape.models import CellNet, architecture

    start = architecture(like)
    if not isinstance(start, CellNet):
        raise ValueError(f"{like} is not a network of cells, as sphynx-c5-l10-r0.5 is")
    return lambda genotype: replace(start, genotype=genotype).name
