"""Accuracy of spatial masks: the best of steps, of validation, and the first map, beside SNL by position.

    python benchmarks/spatial.py --out benchmarks/results/cifar100-columns.jsonl --work runs

A network is trained with all its ReLUs, once for each seed. Then shares of the pixels behind its convolutions are left
out (``columns``), by each choice of the map; SNL by position removes as many ReLUs, anywhere. Each removal has one
epoch of search and one of tuning. The first points decide most; a run that was stopped goes on with the first that
has no row, and trains again what that starts from where ``--work``, below which networks and checkpoints are, has it
no more.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from deepreshape.data import Dataset
from deepreshape.experiments.points import RemovalPoint, TrainingPoint
from deepreshape.models import architecture_for
from deepreshape.models.saved import load
from deepreshape.pricing.calibrate import machine, versions
from deepreshape.removal import SNL, Method, Spatial, masks_of, plan_of
from deepreshape.removal.sites import behind_convolutions
from deepreshape.training import recipe_of
from deepreshape.training.runs import append_row, read_rows

SHARES = (0.3, 0.1, 0.5, 0.2)
CHOICES = ("best", "first", "snl", "validation")
ORDER = sorted(((choice, share) for choice in CHOICES for share in SHARES), key=lambda pair: SHARES.index(pair[1]))
"""Every choice at 30 % first, then at 10 %, and so on."""

Done = set[tuple[str, int, str, float]]
"""Network, seed, choice and share of the rows that are there."""


def budget_of(whole: Path, data: Dataset, share: float) -> int:
    """The ReLUs that are left when a share of those behind convolutions is not."""
    network = load(whole)
    masks = masks_of(network, data.shape)
    behind = sum(masks[path].numel() for path in behind_convolutions(network, data.shape, masks))
    return sum(mask.numel() for mask in masks.values()) - round(share * behind)


def method_of(choice: str, budget: int) -> Method:
    """Masks of one map, or SNL's by position with the rate of this data set's other rows."""
    if choice == "snl":
        return SNL(budget, granularity="position", search_lr=0.0003)
    return Spatial(budget, choice=choice, columns=True)  # pyright: ignore[reportArgumentType]


def rows_of(
    network: str, seed: int, wanted: list[tuple[str, float]], data: Dataset, work: Path, done: Done
) -> Iterator[dict[str, Any]]:
    """The rows that are not there, each after that of the network it starts from."""
    recipe = replace(recipe_of(data.name), optimizer="muon")
    whole = TrainingPoint(
        network, plan_of(architecture_for(network, data)), None, seed, replace(recipe, lr=0.05, epochs=6, grow=0.6)
    )
    wanted = [pair for pair in wanted if (network, seed, *pair) not in done]
    first = (network, seed, "all", 0.0) in done
    if not first or (wanted and not (work / whole.id).is_dir()):
        row = row_of(whole, "all", 0.0, data, work / whole.id)
        if not first:
            yield row
    for choice, share in wanted:
        method = method_of(choice, budget_of(work / whole.id, data, share))
        point = RemovalPoint(network, work / whole.id, method, seed, replace(recipe, lr=0.02, epochs=1))
        yield row_of(point, choice, share, data, work / f"{point.id}_{choice}")


def row_of(point: TrainingPoint | RemovalPoint, choice: str, share: float, data: Dataset, to: Path) -> dict[str, Any]:
    """The row of a point, which is trained."""
    shutil.rmtree(to, ignore_errors=True)
    name = f"{point.id}_{choice}"
    row = point.result(data, to, to.with_name(f"{name}_run"), lambda _: None).to_row()
    return row | {"choice": choice, "sparsity": share, "id": name, "machine": machine(), "versions": versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18-m16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--shares", nargs="+", type=float, choices=SHARES, default=list(SHARES))
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = Dataset.load(given.data)
    rows = read_rows(given.out) if given.out.is_file() else []
    done = {(row["network"], row["seed"], row["choice"], row["sparsity"]) for row in rows}
    wanted = [(choice, share) for choice, share in ORDER if choice in given.choices and share in given.shares]
    for seed, network in product(given.seeds, given.networks):
        for row in rows_of(network, seed, wanted, data, given.work, done):
            append_row(given.out, row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
