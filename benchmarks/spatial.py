"""Accuracy of spatial masks: the best of steps, of validation, and the first map, beside SNL by position.

    python benchmarks/spatial.py --out benchmarks/results/cifar100-columns.jsonl --work runs

A network is trained with all its ReLUs, once for each seed. Then shares of the pixels behind its convolutions are left
out (``columns``), by each choice of the map; SNL by position removes as many ReLUs, anywhere. Each removal has one
epoch of search and one of tuning. The first points decide most; a run that was stopped goes on with the first that
has no row. Networks and checkpoints are below ``--work``.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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


def points(
    network: str, seed: int, data: Dataset, work: Path
) -> Iterator[tuple[dict[str, object], TrainingPoint | RemovalPoint]]:
    """What tells a row from the others, and its point, each after the one it starts from."""
    recipe = replace(recipe_of(data.name), optimizer="muon")
    whole = TrainingPoint(
        network, plan_of(architecture_for(network, data)), None, seed, replace(recipe, lr=0.05, epochs=6, grow=0.6)
    )
    yield {"choice": "all", "sparsity": 0.0}, whole
    for choice, share in ORDER:
        method = method_of(choice, budget_of(work / whole.id, data, share))
        point = RemovalPoint(network, work / whole.id, method, seed, replace(recipe, lr=0.02, epochs=1))
        yield {"choice": choice, "sparsity": share}, point


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18-m16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = Dataset.load(given.data)
    for seed in given.seeds:
        for network in given.networks:
            for what, point in points(network, seed, data, given.work):
                rows = read_rows(given.out) if given.out.is_file() else []
                whose = {"network": network, "seed": seed, **what}
                if any(all(row[name] == value for name, value in whose.items()) for row in rows):
                    continue
                name = f"{point.id}_{what['choice']}"
                to = given.work / (point.id if what["choice"] == "all" else name)
                shutil.rmtree(to, ignore_errors=True)
                result = point.result(data, to, given.work / f"{name}_run", lambda _: None)
                row = result.to_row() | what | {"id": name, "machine": machine(), "versions": versions()}
                append_row(given.out, row)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
