"""Exits of a ResNet-18 on CIFAR-100: their quality by how trunk and heads are trained (Kouris et al., ECCV 2022, MESS).

    deepreshape train resnet18-m16 --data cifar100 --set epochs=6 --set optimizer=muon --set lr=0.05 --out start
    python benchmarks/exits.py start --out runs/exits    # seven minutes of one core; again, to go on
    deepreshape train resnet18-m8-seg --data shapes --set epochs=4 --out shapes
    python benchmarks/exits.py shapes --data shapes --out runs/shapes
    python benchmarks/exits.py --prices                  # half a minute: what exits cost between two parties

From the weights of one trained network two go on, for as many steps on part of its images: with exits (aware) and
without (final). On each, kept as it is, fresh heads are trained in three ways: taught by the end where it is right
(pfd), everywhere (kd), by labels alone (none). Quality is that of the validation split, on which nothing was chosen. A
row each in ``benchmarks/results/exits.jsonl``; predicted costs, of nothing that was run, in ``exits-prices.jsonl``.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepreshape.cli.exits import exit_costs
from deepreshape.counting import count
from deepreshape.data import Dataset, Split
from deepreshape.design.exits import cheapest_within, gather, lowest_threshold, search_exits
from deepreshape.models import MultiExit, architecture, attach_exits, build
from deepreshape.models.exits import MultiExitNetwork
from deepreshape.models.saved import MANIFEST, load, save
from deepreshape.pricing.calibrate import machine, versions
from deepreshape.pricing.network import price
from deepreshape.training import Recipe, accuracy, recipe_of, train
from deepreshape.training.exits import Distillation, ExitTraining, heads_recipe, train_exits
from deepreshape.training.runs import append_row, read_rows, write_rows

ROWS = Path(__file__).parent / "results" / "exits.jsonl"
AT, TRUNK_EPOCHS, HEAD_EPOCHS = (1, 2, 3), 2, 2


def recipe(data: str) -> Recipe:
    """Of the trunks."""
    return replace(recipe_of(data), epochs=TRUNK_EPOCHS, optimizer="muon", lr=0.02, lr_other=5.0)


def trunk(name: str, start: Path, data: Dataset, folder: Path, seed: int) -> nn.Module:
    """The network without exits after training with them (aware) or without (final)."""
    to, how = folder / name, recipe(data.name)
    if not (to / MANIFEST).is_file():
        model = load(start)
        if name == "final":
            train(model, data, how, seed=seed, folder=to / "run")
        else:
            whole = attach_exits(model, AT, seed=seed)
            train_exits(
                whole, data, ExitTraining(how, replace(heads_recipe(data.name), epochs=1)), seed=seed, folder=to / "run"
            )
            model = whole.exit(whole.architecture.points[-1])
        save(model, to)
    return load(to)


def row(
    name: str, model: nn.Module, distillation: Distillation, data: Dataset, folder: Path, seed: int
) -> dict[str, Any]:
    """Train heads on a trunk that stays, and measure every exit."""
    whole = attach_exits(model, AT, seed=seed)
    how = ExitTraining(None, replace(heads_recipe(data.name), epochs=HEAD_EPOCHS), distillation)
    train_exits(whole, data, how, seed=seed, folder=folder / f"{name}-{distillation}")
    exits = list[dict[str, Any]]()
    for point in whole.architecture.points:
        total, plain = count(whole.exit(point), data.shape).total, whole.exit(point)
        quality = accuracy(plain, data, data.validation)
        exits.append({"at": point, "macs": total.macs, "relus": total.relus, "quality": quality})
    save(whole, folder / f"{name}-{distillation}" / "model")
    return {
        "network": whole.architecture.whole.name,
        "data": data.name,
        "trunk": name,
        "distillation": distillation,
        "seed": seed,
        "images": len(data.train),
        "epochs": {"trunk": TRUNK_EPOCHS, "heads": HEAD_EPOCHS},
        "exits": exits,
        "n": len(data.validation),
        "search": searched(whole, data),
        "machine": machine(),
        "versions": versions(),
    }


def searched(network: MultiExitNetwork, data: Dataset) -> dict[str, Any]:
    """What the best configurations save on the validation split, and of the shapes which images end early."""
    began = time.process_time()
    evidence = gather(network, ((data.normalize(x), y) for x, y in data.validation.batches(50)))
    found: dict[str, Any] = {}
    for by, name in (("macs", "macs_ratio"), ("seconds", "private_seconds_ratio")):
        costs = exit_costs(network, by, "lan")
        best = cheapest_within(search_exits(evidence, costs), 0.0)
        found[name] = round(costs.alone[-1] / best.expected_cost, 3)
        found[f"best_by_{by}"] = {"exits": best.exits, "policy": best.policy, "shares": best.shares}
    found["seconds"] = round(time.process_time() - began, 2)
    found |= {"easy_that_end_early": None, "hard_that_end_early": None}
    if data.name == "shapes":  # those at even places are easy
        places = range(len(evidence.points))
        ends, _ = evidence.of(places, lowest_threshold(evidence, evidence.points, 0.5))
        early = ends < places[-1]
        found |= {"easy_that_end_early": float(early[::2].mean()), "hard_that_end_early": float(early[1::2].mean())}
    return found


def prices() -> list[dict[str, Any]]:
    """What the exits of networks cost between two parties by each exit's layers, and which share has to end there.

    Where an exit is a query of its own, a first exit at c_1 before a whole network at c pays if more than c_1 / c of
    the inputs end there. Where trunks were kept, material for the whole would be prepared for every query: at best the
    online phase falls.
    """
    rows = []
    for name in ("resnet18-m16", "resnet18", "hrn-5x5x3x"):
        whole = architecture(name)
        points = range(1, len(whole.phi) + 1)
        network = build(MultiExit(whole, tuple(points[:-1])), "meta")
        assert isinstance(network, MultiExitNetwork)
        for protocol in ("gc-full", "gc-sign", "ot"):
            for link in ("loopback", "lan", "wan"):
                quotes = [price(network.exit(point), whole.input, link=link, protocol=protocol) for point in points]
                seconds = [quote.report.seconds for quote in quotes]
                rows.append(
                    {
                        "network": name,
                        "protocol": protocol,
                        "link": link,
                        "at": list(points),
                        "seconds": [round(each, 3) for each in seconds],
                        "online_seconds": [round(quote.online.seconds, 3) for quote in quotes],
                        "bytes": [quote.report.bytes for quote in quotes],
                        "share_that_has_to_end": [round(each / seconds[-1], 3) for each in seconds[:-1]],
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", action="store_true", help="price exits; train nothing")
    parser.add_argument("start", type=Path, nargs="?", help="folder of the trained network without exits")
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--out", type=Path, default=Path("runs/exits"), help="folder for checkpoints and models")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--images", type=int, default=12_000, help="of the training split")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.prices:
        write_rows(ROWS.with_name("exits-prices.jsonl"), prices())
        return
    if given.start is None:
        parser.error("the folder of the trained network is missing")
    data = Dataset.load(given.data)
    data = replace(data, train=Split(data.train.images[: given.images], data.train.labels[: given.images]))
    done = read_rows(given.rows) if given.rows.is_file() else []
    for name in ("final", "aware"):
        model = trunk(name, given.start, data, given.out, given.seed)
        for distillation in ("pfd", "kd", "none"):
            mine = (data.name, name, distillation, given.seed)
            if mine in {(each["data"], each["trunk"], each["distillation"], each["seed"]) for each in done}:
                continue
            new = row(name, model, distillation, data, given.out, given.seed)
            append_row(given.rows, new)
            print(json.dumps({"trunk": name, "distillation": distillation, "exits": new["exits"]}), flush=True)


if __name__ == "__main__":
    main()
