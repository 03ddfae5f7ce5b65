"""Exits: their quality by how trunk and heads are trained, and what stopping early saves (Kouris et al., ECCV 2022).

    python benchmarks/exits.py resnet18-m8-seg --data shapes --out runs/shapes          # four minutes of one core
    python benchmarks/exits.py resnet18-m16-seg --data camvid-120x96 --epochs 12 --trunks final,aware --out runs/camvid
    python benchmarks/exits.py --prices                  # half a minute: what exits cost between two parties

Networks are trained from the same weights for as many steps: with exits (aware), without (final), and each exit's plain
network by itself (alone), which exits can be held against. On the first two, kept as they are, heads are trained: by
labels alone (none), or taught by the end where it is right (pfd) or everywhere (kd). An aware network's heads are also
measured as its training left them (joint). Fresh heads go on a final trunk, an aware one's go on from there. Quality is
that of the validation split, on whose shapes some settings were chosen: that every exit is trained at every step, and
the heads' rate, temperature and weight. A run that was cut goes on if it is started again. A row each in
``benchmarks/results/exits.jsonl``; predicted costs of exits, of nothing that was run, in ``exits-prices.jsonl``.
"""

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from deepreshape.cli.exits import exit_costs
from deepreshape.counting import count
from deepreshape.data import Dataset, Split
from deepreshape.design.exits import Costs, Evidence, cheapest_within, gather, lowest_threshold, search_exits
from deepreshape.models import MultiExit, architecture, architecture_for, attach_exits, build
from deepreshape.models.exits import MultiExitNetwork
from deepreshape.models.saved import MANIFEST, load, save
from deepreshape.pricing.calibrate import machine, versions
from deepreshape.pricing.network import price
from deepreshape.training import accuracy, objective_of, recipe_of, train
from deepreshape.training.exits import Distillation, ExitAware, ExitTraining, heads_recipe, train_exits
from deepreshape.training.loop import TrainingRun
from deepreshape.training.runs import append_row, read_rows, write_rows

ROWS = Path(__file__).parent / "results" / "exits.jsonl"
AT = (1, 2, 3)
LOSSES = (0.0, 0.5, 2.0)
"""Points that stopping early may cost, of which the cheapest configuration is noted."""
LINKS = ("loopback", "lan", "wan")
PROTOCOLS = ("gc-full", "ot")


def trunk(name: str, network: str, data: Dataset, given: argparse.Namespace) -> MultiExitNetwork:
    """A network with exits, whose heads are fresh if it was trained for its end alone (final)."""
    to = given.out / (name if name == "final" else f"{name}-{given.heads}")
    how = replace(recipe_of(data.name), epochs=given.epochs)
    if not (to / MANIFEST).is_file():
        start = build(architecture_for(network, data), seed=given.seed)
        whole = attach_exits(start, AT, given.heads, seed=given.seed)
        model = whole.exit(whole.architecture.points[-1])
        if name == "final":
            train(model, data, how, seed=given.seed, folder=to / "run")
        else:
            model, both = whole, ExitAware(objective_of(data))
            TrainingRun(model, data, how, seed=given.seed, objective=both).complete(to / "run", None)
        save(model, to)
    model = load(to)
    return model if isinstance(model, MultiExitNetwork) else attach_exits(model, AT, given.heads, seed=given.seed)


def alone(network: str, data: Dataset, given: argparse.Namespace) -> dict[str, Any]:
    """What each exit's plain network reaches that is trained by itself, for as many epochs as a trunk."""
    start = attach_exits(build(architecture_for(network, data), seed=given.seed), AT, given.heads, seed=given.seed)
    how, exits = replace(recipe_of(data.name), epochs=given.epochs), list[dict[str, Any]]()
    for point in start.architecture.points:
        plain = copy.deepcopy(start.exit(point))
        folder = given.out / f"alone-{given.heads}-{point}"
        train(plain, data, how, seed=given.seed, folder=folder)
        exits.append(measured(point, plain, data, accuracy(plain, data, data.validation)))
    return facts("alone", "joint", start, data, given) | {"exits": exits}


def measured(point: int, plain: nn.Module, data: Dataset, quality: float) -> dict[str, Any]:
    """An exit's row."""
    total = count(plain, data.shape).total
    return {"at": point, "macs": total.macs, "relus": total.relus, "quality": round(quality, 3)}


def row(name: str, whole: MultiExitNetwork, way: str, data: Dataset, given: argparse.Namespace) -> dict[str, Any]:
    """Train heads on a trunk that stays, unless they stay as the trunk's training left them (joint); measure exits."""
    to, began = given.out / f"{name}-{given.heads}-{way}", time.process_time()
    if way != "joint":
        recipe = replace(heads_recipe(data.name), epochs=given.head_epochs)
        how = ExitTraining(None, recipe, cast(Distillation, way))
        train_exits(whole, data, how, seed=given.seed, folder=to / "run")
    seconds = time.process_time() - began
    save(whole, to)
    evidence = gather(whole, ((data.normalize(x), y) for x, y in data.validation.batches(50)))
    exits = [
        measured(point, whole.exit(point), data, evidence.of([place], 0.0)[1])
        for place, point in enumerate(whole.architecture.points)
    ]
    return facts(name, way, whole, data, given) | {
        "heads_seconds": round(seconds, 1),
        "exits": exits,
        "search": searched(whole, evidence, data),
    }


def facts(name: str, way: str, whole: MultiExitNetwork, data: Dataset, given: argparse.Namespace) -> dict[str, Any]:
    """What a row is of, and where it was made."""
    return {
        "network": whole.architecture.whole.name,
        "data": data.name,
        "trunk": name,
        "heads": given.heads,
        "distillation": way,
        "seed": given.seed,
        "images": len(data.train),
        "epochs": {"trunk": given.epochs, "heads": 0 if way == "joint" else given.head_epochs},
        "n": len(data.validation),
        "machine": machine(),
        "versions": versions(),
    }


def searched(network: MultiExitNetwork, evidence: Evidence, data: Dataset) -> dict[str, Any]:
    """By what is spent, how much the best configurations save on the validation split; of the shapes, who ends early.

    Costs are multiply-adds, where what the trunk gave is kept, and predicted seconds between two parties, where every
    exit is a query of its own.
    """
    began = time.process_time()
    search: dict[str, Any] = {"macs": best(evidence, exit_costs(network, "macs", ""))}
    for protocol in PROTOCOLS:
        search[protocol] = {link: best(evidence, exit_costs(network, "seconds", link, protocol)) for link in LINKS}
    search["seconds"] = round(time.process_time() - began, 2)
    if data.name == "shapes":  # those at even places are easy
        places = range(len(evidence.points))
        ends, _ = evidence.of(places, lowest_threshold(evidence, evidence.points, 0.5))
        early = ends < places[-1]
        search |= {"easy_that_end_early": float(early[::2].mean()), "hard_that_end_early": float(early[1::2].mean())}
    return search


def best(evidence: Evidence, costs: Costs) -> list[dict[str, Any]]:
    """For each of :data:`LOSSES`, the cheapest configuration, and the whole network's cost over its expected one."""
    tried = search_exits(evidence, costs)
    rows = list[dict[str, Any]]()
    for loss in LOSSES:
        one = cheapest_within(tried, loss)
        ratio = round(costs.alone[-1] / one.expected_cost, 3)
        rows.append({"loss": loss, "times_less": ratio, "word": one.word, "quality": one.quality, "shares": one.shares})
    return rows


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
    parser.add_argument("network", nargs="?", help="name of the network without exits")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--out", type=Path, default=Path("runs/exits"), help="folder for checkpoints and models")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--epochs", type=int, default=6, help="of the trunks")
    parser.add_argument("--head-epochs", type=int, default=2)
    parser.add_argument("--heads", default="light", help="kind of the heads")
    parser.add_argument("--ways", default="joint,none,pfd,kd", help="how heads are taught, with commas")
    parser.add_argument("--trunks", default="alone,final,aware", help="with commas")
    parser.add_argument("--images", type=int, default=12_000, help="of the training split, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.prices:
        write_rows(ROWS.with_name("exits-prices.jsonl"), prices())
        return
    if given.network is None:
        parser.error("the network's name is missing")
    data = Dataset.load(given.data)
    data = replace(data, train=Split(data.train.images[: given.images], data.train.labels[: given.images]))
    keys = ("data", "trunk", "heads", "distillation", "seed")
    done = {tuple(each.get(key) for key in keys) for each in (read_rows(given.rows) if given.rows.is_file() else [])}
    for name in given.trunks.split(","):
        for way in given.ways.split(","):
            row_key = (data.name, name, given.heads, way, given.seed)
            if row_key in done or (name != "aware" and (name == "alone") != (way == "joint")):
                continue
            if name == "alone":
                new = alone(given.network, data, given)
            else:
                new = row(name, trunk(name, given.network, data, given), way, data, given)
            append_row(given.rows, new)
            print(json.dumps({"trunk": name, "taught": way, "exits": new["exits"]}), flush=True)


if __name__ == "__main__":
    main()
