"""Shapes: Network Adjustment from three unbalanced starts, searched cells beside cells at random, equal budgets.

    python benchmarks/shapes.py adjust cells --out benchmarks/results/shapes-digits.jsonl
    python benchmarks/shapes.py levels --out benchmarks/results/shapes.jsonl --work runs
    python benchmarks/shapes.py resources --seeds 0 1 --out benchmarks/results/adjusted.jsonl --work runs

*adjust*: ResNet-20s of one block a stage with one layer far too wide; five iterations at equal multiply-adds, 3 seeds.
Each row has the loss and top-1 on the test split, read once, of the start and of the last network, both trained anew
with the same recipe and seed, and the place of the over-wide layer among the utilisations of iteration 1 (1 is the
smallest). *cells*: for 3 seeds a searched genotype, then it and 5 at random trained alike. Both on the digits.

*levels*: on CIFAR-100, families of shapes at two levels of multiply-adds, each within 15 % by its base width (StCh at
the lower one within 18 %, as widths are whole numbers): trained with all ReLUs for six epochs, then reduced to 50,000
and to 25,000 by Taylor gates, one epoch of search and two of tuning, and by coarse plans, two of tuning. Sphynx, from
which nothing is removed, is trained for nine epochs, and a ResNet-18 of its multiply-adds reduced to its ReLUs by
Taylor gates. Networks and checkpoints are below ``--work``.

*resources*: the widths of ResNet-20 on CIFAR-100, moved in three iterations of one epoch each, at equal multiply-adds,
equal ReLUs, and equal predicted seconds of our runtime on the wan. The start, whose widths are uniform, and the three
networks are then trained alike for each seed, three epochs with growing images. Rows have the utilisations too; the
widths are chosen once, with the first seed, or taken from a row that is there.

Rows that are in the file are not measured again.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from deepreshape.cost import LINKS
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.design.adjust import AdjustedStep, Adjustment, adjust
from deepreshape.design.base_width import multiply_adds
from deepreshape.design.cells import CellSearch, random_genotype, search_cells
from deepreshape.experiments.adjusting import measure_by_training, resource_of
from deepreshape.experiments.points import RemovalPoint, TrainingPoint
from deepreshape.models import CellNet, ResNet, Staged, architecture, architecture_for, build
from deepreshape.pricing.calibrate import machine, versions
from deepreshape.pricing.quote import Terms, quote_layers
from deepreshape.removal import Coarse, Taylor, plan_of
from deepreshape.training import RECIPES, accuracy, recipe_of, train
from deepreshape.training.runs import append_row, read_rows

STARTS = {
    "stem.conv": "resnet20-phi1.1.1-w64.8.8.8.8.8.8",
    "stage2.0.conv1": "resnet20-phi1.1.1-w8.8.8.48.8.8.8",
    "stage3.0.conv2": "resnet20-phi1.1.1-w8.8.8.8.8.8.96",
}
"""By the layer that is too wide."""

SEEDS, RANDOM, EPOCHS, SEARCH_EPOCHS = 3, 5, 10, 10
CELLS = "sphynx-c4-l4-r1.2"
LEVELS = {
    "resnet18-m16": 35,
    "hrn-5x5x3x-m3": 35,
    "hrn-2x5x2x-m9": 35,
    "stch-4x4x4x-m4": 35,
    "resnet18-m22": 66,
    "hrn-5x5x3x-m4": 66,
    "hrn-2x5x2x-m12": 66,
    "stch-4x4x4x-m5": 66,
    "sphynx-c5-l5-r0.1": 195,
    "resnet18-m38": 195,
    "sphynx-c5-l10-r0.5": 283,
    "resnet18-m46": 283,
}
"""Networks by their level of multiply-adds, in millions."""
BUDGETS = (50_000, 25_000)
OF_CELLS = {"resnet18-m38": 25_600, "resnet18-m46": 51_200}
"""The ReLUs of the cells at the same level."""


def trained(network: Staged, data: Dataset, seed: int) -> dict[str, float]:
    """Test loss and top-1 of a network trained from fresh weights by the recipe of the digits."""
    model = build(network, seed=seed)
    train(model, data, replace(RECIPES["digits"], epochs=EPOCHS), seed=seed)
    ((images, labels),) = data.test.batches(len(data.test))
    with torch.no_grad():
        loss = cross_entropy(model.eval()(data.normalize(images)), labels)
    return {"loss": round(float(loss), 4), "top1": accuracy(model, data, data.test)}


def adjusted(data: Dataset, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """One row for each start and seed."""
    recipe = replace(RECIPES["digits"], epochs=EPOCHS)
    for layer, name in STARTS.items():
        start = architecture(name, data.shape, 10)
        assert isinstance(start, ResNet)
        for seed in range(SEEDS):
            if ("adjust", name, seed) in done:
                continue
            measure = measure_by_training(data, recipe, rate=Adjustment().rate, seed=seed)
            first, *_, last = adjust(start, measure, lambda network: float(multiply_adds(network)), Adjustment())
            order = sorted(first.utilisation, key=lambda path: first.utilisation[path])
            end = architecture(last.network, data.shape, 10)
            yield {
                "what": "adjust",
                "network": name,
                "seed": seed,
                "adjusted": last.network,
                "macs": [multiply_adds(start), multiply_adds(end)],
                "relus": [start.relus, end.relus],
                "place_of_the_wide_layer": order.index(layer) + 1,
                "layers": len(order),
                "before": trained(start, data, seed),
                "after": trained(end, data, seed),
            }


def cells(data: Dataset, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """One row for each seed: a searched genotype and some at random."""
    start = architecture(CELLS, data.shape, 10)
    recipe = replace(
        RECIPES["digits"], epochs=SEARCH_EPOCHS, lr=0.025, schedule="cosine", warmup=0.0, weight_decay=3e-4
    )
    for seed in range(SEEDS):
        if ("cells", CELLS, seed) in done:
            continue
        best = search_cells(data, CellSearch(channels=4, cells=4), recipe, seed=seed)
        genotypes = [best, *(random_genotype(10 * seed + number) for number in range(RANDOM))]
        networks = [replace(start, genotype=str(genotype)) for genotype in genotypes]
        searched, *drawn = [trained(network, data, seed) for network in networks]
        yield {
            "what": "cells",
            "network": CELLS,
            "seed": seed,
            "genotype": str(best),
            "relus": [count(build(network, "meta"), data.shape).total.relus for network in networks],
            "macs": [multiply_adds(network) for network in networks],
            "searched": searched,
            "random": drawn,
        }


def levels(networks: list[str], seeds: list[int], work: Path, done: set[str]) -> Iterator[dict[str, Any]]:
    """A row for each network with all its ReLUs and at each budget."""
    data = Dataset.load("cifar100")
    recipe = replace(recipe_of(data.name), optimizer="muon")
    for seed, name in product(seeds, networks):
        network = architecture_for(name, data)
        cells = isinstance(network, CellNet)
        whole = TrainingPoint(name, plan_of(network), None, seed, replace(recipe, lr=0.05, epochs=9 if cells else 6))
        tune = replace(recipe, lr=0.02, epochs=2)
        taylor = partial(Taylor, mismatch=0.0)
        methods = [] if cells else [make(budget) for make in (taylor, Coarse) for budget in BUDGETS]
        if name in OF_CELLS:
            methods = [taylor(OF_CELLS[name])]
        points = [RemovalPoint(name, work / whole.id, method, seed, tune) for method in methods]
        wanted = [point for point in (whole, *points) if point.id not in done]
        if wanted and whole not in wanted and not (work / whole.id).is_dir():
            wanted.insert(0, whole)  # what ReLUs are removed from, again
        for point in wanted:
            shutil.rmtree(work / point.id, ignore_errors=True)
            result = point.result(data, work / point.id, work / f"{point.id}_run", lambda _: None)
            if point.id not in done:
                family = "sphynx" if cells else name.rpartition("-m")[0]
                yield result.to_row() | {"macs_level": LEVELS[name], "family": family}


def resources(seeds: list[int], work: Path, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each seed and network: the start, and what each resource makes of it."""
    before = {row["resource"]: row for row in rows if row.get("what") == "resources"}
    done = {(row["resource"], row["seed"]) for row in rows if row.get("what") == "resources"}
    data = Dataset.load("cifar100")
    recipe = replace(recipe_of(data.name), optimizer="muon", lr=0.05)
    start = architecture_for("resnet20", data)
    assert isinstance(start, ResNet)
    config = Adjustment(iterations=3, repeats=1)
    measure = partial(measure_by_training, data, replace(recipe, epochs=1), rate=config.rate, seed=seeds[0])
    # the start is trained once for all resources, as they differ only in what they ask of it
    whole = cache(lambda: measure(folder=work / "adjusted")(start, 0))
    terms = Terms(link=LINKS["wan"])
    amounts = {name: resource_of(name, terms) for name in ("macs", "seconds", "relus")}
    for kept in ("uniform", *amounts):
        missing = [seed for seed in seeds if (kept, seed) not in done]
        steps = [AdjustedStep(**step) for step in before[kept]["steps"]] if kept in before else []
        if missing and kept not in ("uniform", *before):
            folder = work / f"adjusted-{kept}"
            folder.mkdir(parents=True, exist_ok=True)
            measured = measure(folder=folder / "run")
            steps[:] = adjust(
                start,
                lambda network, iteration, measured=measured: measured(network, iteration) if iteration else whole(),
                amounts[kept],
                config,
                folder=folder,
            )
        network = architecture_for(steps[-1].network, data) if steps else start
        for seed in missing:
            point = TrainingPoint(network.name, plan_of(network), None, seed, replace(recipe, epochs=3, grow=0.6))
            to = work / f"adjusted_{kept}_s{seed}"
            shutil.rmtree(to, ignore_errors=True)
            row = point.result(data, to, to.with_name(f"{to.name}_run"), lambda _: None).to_row()
            price = quote_layers(network.layers(), terms).seconds
            yield row | {
                "what": "resources",
                "resource": kept,
                "wan_seconds": round(price, 3),
                "steps": [asdict(step) for step in steps],
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("adjust", "cells", "levels", "resources"))
    parser.add_argument("--networks", nargs="+", default=list(LEVELS), help="of levels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of levels and resources")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="of levels and resources")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(given.out) if given.out.is_file() else []
    if "levels" in given.what:
        given.what.remove("levels")
        for row in levels(given.networks, given.seeds, given.work, {row["id"] for row in rows if "id" in row}):
            write(row, given.out)
    if "resources" in given.what:
        given.what.remove("resources")
        for row in resources(given.seeds, given.work, rows):
            write(row, given.out)
    done = {(row["what"], row["network"], row["seed"]) for row in rows if "what" in row}
    data = Dataset.load("digits")
    for what in given.what:
        for row in (adjusted if what == "adjust" else cells)(data, done):
            write(row | {"epochs": EPOCHS}, given.out)


def write(row: dict[str, Any], to: Path) -> None:
    """Append a row, with the machine that made it."""
    row = row | {"machine": machine(), "versions": versions()}
    append_row(to, row)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
