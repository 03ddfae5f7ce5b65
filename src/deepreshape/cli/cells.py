"""Commands for networks of cells: cells search, cells reductions, cells random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import into, out, print_json, progress_bar, stoppable
from deepreshape.cli.options import (
    DataDir,
    DataName,
    Json,
    Seed,
    Threads,
    new_model,
    read_data,
    read_pairs,
    set_threads,
    setting,
    with_groups,
)

if TYPE_CHECKING:
    from deepreshape.models import CellNet
    from deepreshape.training import Recipe

app = typer.Typer(no_args_is_help=True, help="Cells with one ReLU layer each (Sphynx): search them, or draw some.")

Like = Annotated[str, typer.Option(help="The network of cells that is named with the new ones.")]


@dataclass(frozen=True)
class Search:
    """What both searches are given."""

    to: Annotated[Path, typer.Option("--out", help="Folder for what is found; a search that was cut there goes on.")]
    data: DataName = "digits"
    data_dir: DataDir = None
    epochs: Annotated[int, typer.Option(min=1, help="Passes over half of the training split.")] = 10
    seed: Seed = 0
    threads: Threads = 0
    as_json: Json = False

    def run(
        self,
        what: str,
        settings: list[str] | None,
        usual: Any,
        search: Callable[..., Any],
        told: Callable[[Any], tuple[str, dict[str, Any]]],
    ) -> None:
        """Do a search, write what it found, and say how to train that.

        Its metrics are left in the folder, its checkpoints are not.

        Args:
            what: is searched; the name of the file, too.
            settings: changes of ``usual`` and of the rate.
            usual: configuration of the search.
            search: takes the data set, configuration, recipe, seed, folder and progress, and gives the best.
            told: of that, a line and what is written, with the name of the ``network``.
        """
        new_model(self.to)
        set_threads(self.threads, self.data)
        dataset = read_data(self.data, self.data_dir)
        recipe, config = _read_settings(self.data, self.epochs, settings, usual)
        folder = self.to / "run"
        with progress_bar() as bar:
            show = into(bar, bar.add_task(what, total=None))
            best = stoppable(lambda: search(dataset, config, recipe, seed=self.seed, folder=folder, progress=show))
        shutil.copyfile(folder / "metrics.jsonl", self.to / "metrics.jsonl")
        shutil.rmtree(folder)
        line, values = told(best)
        values |= {"data": dataset.name, "seed": self.seed, "epochs": self.epochs}
        path = self.to / f"{what}.json"
        path.write_text(json.dumps(values, indent=1) + "\n")
        if self.as_json:
            print_json(values)
            return
        out.print(f"{line}, written to {path}; to train:", highlight=False)
        out.print(
            f"deepreshape train {values['network']} --data {dataset.name} --out ...", highlight=False, soft_wrap=True
        )


@app.command()
@with_groups
def search(
    options: Search,
    like: Like = "sphynx-c5-l10-r0.5",
    settings: Annotated[
        list[str] | None,
        setting("A setting of the search (channels, cells, order, alpha_lr, alpha_decay, skips, batch) or lr."),
    ] = None,
) -> None:
    """Search the operators of a cell by DARTS; ends with the name of the network to train."""
    from deepreshape.design.cells import CellSearch, search_cells

    start = _of_cells(like)

    def told(genotype: Any) -> tuple[str, dict[str, Any]]:
        named = replace(start, genotype=str(genotype)).name
        return f"cells {genotype}", {"genotype": str(genotype), "network": named}

    options.run("genotype", settings, CellSearch(), search_cells, told)


@app.command()
@with_groups
def reductions(
    network: Annotated[str, typer.Argument(help="A network of cells, such as sphynx-c5-l10-r0.5.")],
    options: Search,
    settings: Annotated[
        list[str] | None, setting("A setting of the search (alpha_lr, alpha_decay, batch) or lr.")
    ] = None,
) -> None:
    """Search which two cells halve the map, by Gumbel softmax; ends with the name of the network to train."""
    from deepreshape.design.alpha_steps import AlphaConfig
    from deepreshape.design.reductions import search_reductions

    start = _of_cells(network)

    def told(best: CellNet) -> tuple[str, dict[str, Any]]:
        places = [best.phi[0], best.phi[0] + best.phi[1]]
        return f"cells {places[0]} and {places[1]} halve the map", {"reductions": places, "network": best.name}

    options.run("reductions", settings, AlphaConfig(), partial(search_reductions, start), told)


@app.command("random")
def draw(
    like: Like = "sphynx-c5-l10-r0.5",
    seed: Seed = 0,
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
