"""The command that designs under a cost: search."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepreshape.cli.console import (
    NOTHING_KEPT,
    DataDir,
    DataName,
    Json,
    Settings,
    new_table,
    out,
    print_json,
    read_data,
    read_recipe,
    read_shape,
    run_experiment,
    stoppable,
    thousands,
)
from deepreshape.cli.costs import Garbler, Links, ProfileFile, Protocol, read_protocols, read_terms

if TYPE_CHECKING:
    from deepreshape.data import Dataset
    from deepreshape.design.search import Candidate, Space
    from deepreshape.training import Recipe
    from deepreshape.training.runs import Result

app = typer.Typer()


@app.command()
def search(
    max_seconds: Annotated[
        float | None, typer.Option(help="The most that one inference may take, predicted.", show_default=False)
    ] = None,
    max_bytes: Annotated[
        float | None, typer.Option(help="The most that it may send, both phases.", show_default=False)
    ] = None,
    protocol: Protocol = "gc-full",
    link: Links = None,
    garbler: Garbler = None,
    profile: ProfileFile = None,
    trials: Annotated[int, typer.Option(min=2, help="Designs to price.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    evidence: Annotated[
        list[Path] | None,
        typer.Option(help="Job folders to fit the accuracy proxy to; may be repeated.", show_default=False),
    ] = None,
    input: Annotated[str, typer.Option(help="Shape of one input: channels x height x width.")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 100,
    stages: Annotated[int, typer.Option(min=2, max=5, help="Stages of every network.")] = 4,
    train: Annotated[int, typer.Option(min=0, help="Train as many of the best, in a job of their own.")] = 0,
    to: Annotated[Path | None, typer.Option("--out", help="Folder of that job.", show_default=False)] = None,
    data: DataName = "cifar100",
    data_dir: DataDir = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Find the HybReNets that are likely most accurate within a cost; train the best of them."""
    from deepreshape.design.search import COUNTS, PROXY, Limit, Proxy, Space, undominated
    from deepreshape.design.search import search as search_designs
    from deepreshape.pricing.quote import quote_layers
    from deepreshape.training.runs import RESULTS, read_rows

    if (max_seconds is None) == (max_bytes is None):
        raise ValueError("give one of --max-seconds and --max-bytes")
    most = max_bytes if max_seconds is None else max_seconds
    if most is None or not 0 < most < math.inf:
        raise ValueError(f"the most that one inference may cost is a number above 0, not {most}")
    if to and not train:
        raise ValueError(f"--out {to} is for networks that are trained; --train says how many")
    if train and to is None:
        raise ValueError(f"--train {train} needs --out, the folder to train in")
    limit = Limit("bytes" if max_seconds is None else "seconds", most)
    terms, *more = read_terms(protocol, link, garbler, False, None, profile)
    if any(each.link != terms.link for each in more):
        raise ValueError(f"--link takes one link to search under, not {link!r}")
    proxy = Proxy.fit([row for folder in evidence for row in read_rows(folder / RESULTS)]) if evidence else PROXY
    space = Space(read_shape(input), classes, read_protocols(protocol), stages)
    dataset, recipe = (_fitting_data(data, data_dir, space), read_recipe(data, settings)) if train else (None, None)
    candidates = stoppable(
        lambda: list(
            search_designs(
                space,
                lambda layers, of: quote_layers(layers, replace(terms, protocol=of)),
                limit,
                trials,
                proxy=proxy,
                seed=seed,
            )
        ),
        NOTHING_KEPT,
    )
    if not candidates:
        bounds = ", ".join(f"{low:,} to {high:,} {of}" for (low, high), of in zip(proxy.fitted, COUNTS, strict=True))
        raise ValueError(
            f"no design keeps within {limit.most:g} {limit.unit} and within what the score was fitted on ({bounds}); "
            "allow more, or fit it to jobs of your own with --evidence"
        )
    best = undominated(candidates, limit)
    rows = _train_best(best[:train], dataset, recipe, to) if dataset and recipe and to else []
    if as_json:
        facts = {"rank_correlation": proxy.correlation, "points": proxy.points, "score": proxy.name}
        facts["fitted_on"] = {name: list(bounds) for name, bounds in zip(COUNTS, proxy.fitted, strict=True)}
        print_json(
            {
                "proxy": facts,
                "front": [each.to_dict() for each in best],
                "tried": len(candidates),
                "trained": [row.to_row() for row in rows],
            }
        )
        return
    table = new_table("network: what is removed", "ReLUs", "M MACs", "s", "MB", "behind")
    highest = max(each.score for each in best)
    for each in best[:20]:
        name = f"{each.network}: {each.plan}" + (f", {each.choice.protocol}" if len(space.protocols) > 1 else "")
        numbers = (
            f"{each.macs / 1e6:,.0f}",
            f"{each.seconds:.2f}",
            f"{each.bytes / 1e6:,.1f}",
            f"{highest - each.score:.1f}",
        )
        table.add_row(name, thousands(each.relus), *numbers)
    out.print(table)
    out.print(
        f"behind: how far its score is below the best one's. The score is {proxy.name}; over {proxy.points} trained "
        f"points its rank correlation with accuracy is {proxy.correlation:.2f}, each network scored by a fit "
        "that has not seen it",
        highlight=False,
    )
    for row in rows:
        out.print(f"{row.network}, {row.plan}: test top-1 {row.top1:.2f} %", highlight=False)


def _fitting_data(name: str, data_dir: Path | None, space: Space) -> Dataset:
    data = read_data(name, data_dir)
    if (space.input, space.classes) != (data.shape, len(data.class_names)):
        shape = "x".join(map(str, data.shape))
        raise ValueError(f"{name} needs --input {shape} --classes {len(data.class_names)}")
    return data


def _train_best(best: list[Candidate], data: Dataset, recipe: Recipe, to: Path) -> list[Result]:
    """Each from fresh weights; a folder that was begun goes on."""
    from deepreshape.experiments.designs import Designs

    return run_experiment(Designs(data.name, tuple((each.network, each.plan) for each in best), recipe), data, to)
