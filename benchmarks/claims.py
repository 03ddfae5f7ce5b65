"""The paper's claims about run time, without training: WRN-22-8 against HybReNets at 180,000 ReLUs.

    python benchmarks/claims.py --out benchmarks/results/claims.jsonl
    python benchmarks/claims.py --run 1 --out benchmarks/results/claims-measured.jsonl

DeepReShape (abstract) reports 5.2 and 8.7 times less run time than the state of the art at about equal accuracy; run
time does not depend on weights, so it can be priced. The wide network keeps 180,000 ReLUs spread over its layers, as a
pixel-wise method (SNL) leaves them, and all its multiply-adds; each HybReNet is brought below the same budget by coarse
steps. Offline work is charged. Published profiles are those of the ASPLOS'23 study; gc-full and the like are our
runtime, predicted from a measured profile on a LAN for lowered programs. The last column is the wide network's time
over the row's.

With ``--run`` nothing is predicted: the networks run between two processes on this machine, over loopback, with random
weights and the same ReLUs removed. Nothing else should run on the machine; a row is written as soon as it is measured,
and rows that are in the file are not measured again.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepreshape.cost import LINKS, Layer, Profile, ReluLayer
from deepreshape.counting import count
from deepreshape.models import Architecture, Staged, architecture, build
from deepreshape.pricing.calibrate import machine, versions
from deepreshape.pricing.quote import OURS, PROTOCOLS, Terms, quote_layers, quote_program
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import Program, to_fixed
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.service.local_run import run_local
from deepreshape.removal import plan
from deepreshape.removal.sites import masks_of, put_masks
from deepreshape.training.runs import append_row, read_rows, write_rows

BUDGET = 180_000
WIDE = "wideresnet22-8"
HYBRID = ("hrn-5x5x3x", "hrn-5x7x2x", "hrn-6x6x2x", "hrn-7x5x2x", "hrn-2x5x3x-m32", "hrn-2x5x2x-m32", "resnet18")
DATA = {"CIFAR-100": ((3, 32, 32), 100), "TinyImageNet": ((3, 64, 64), 200)}
RUN = {
    "CIFAR-100": (WIDE, "hrn-5x5x3x", "hrn-2x5x3x-m32", "hrn-2x5x2x-m32", "resnet18"),
    "TinyImageNet": (WIDE, "hrn-5x5x3x", "hrn-2x5x2x-m32"),
}
"""What our runtime is priced for, by lowered programs, and what ``--run`` runs."""
MEASURED = ("gc-full", "gc-sign")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="for our runtime; the package's reference without")
    parser.add_argument("--run", type=int, metavar="N", help="measure instead, N times each")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.run:
        known = read_rows(options.out) if options.out and options.out.exists() else []
        for row in measured(options.run, known):
            show(row)
            if options.out:
                append_row(options.out, row)
        return
    profile = Profile.read(options.profile) if options.profile else None
    rows = []
    for data, (shape, classes) in DATA.items():
        wide = spread(layers(architecture(WIDE, shape, classes)))
        networks: dict[str, tuple[str, Sequence[Layer]]] = {WIDE: ("spread over all layers", wide)}
        for name in HYBRID:
            coarse_plan = plan(architecture(name, shape, classes), BUDGET)
            networks[name] = (str(coarse_plan), layers(coarse_plan.architecture))
        programs = {name: lowered(architecture(name, shape, classes))[1] for name in RUN[data]}
        for protocol in PROTOCOLS:
            ours = protocol in OURS
            terms = Terms(protocol, link=LINKS["lan"] if ours else None, profile=profile)
            quotes = {
                name: quote_program(programs[name], terms) if ours else quote_layers(networks[name][1], terms)
                for name in (programs if ours else networks)
            }
            for name, quote in quotes.items():
                row = {
                    "data": data,
                    "network": name,
                    "removed": networks[name][0],
                    "protocol": protocol,
                    "relus": quote.relus,
                    "macs": sum(row.macs for row in quote.report.rows),
                    "seconds": quote.to_dict()["seconds"],
                    "bytes": quote.report.bytes,
                    "exact": quote.exact,
                    "relu_share": round(quote.relu_share, 3),
                    "times_faster": round(quotes[WIDE].seconds / quote.seconds, 2),
                    "profile": quote.profile,
                }
                rows.append(row)
                show(row)
    if options.out:
        write_rows(options.out, rows)


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    print(
        f"{row['data']:12} {row['protocol']:24} {row['network']:15} {row['relus']:>8,} ReLUs "
        f"{row['seconds']['total']:>9,.1f} s {row['times_faster']:>6.2f}x",
        flush=True,
    )


def measured(runs: int, known: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of whole runs on this machine that are not ``known`` yet; the wide network comes first."""
    torch.set_num_threads(1)
    totals_of = {(row["data"], row["network"], row["protocol"]): row["seconds"]["total"] for row in known}
    for data, names in RUN.items():
        shape, classes = DATA[data]
        for name in names:
            todo = [protocol for protocol in MEASURED if (data, name, protocol) not in totals_of]
            if not todo:
                continue
            removed, program, x = lowered(architecture(name, shape, classes))
            fixed = to_fixed(x[:1], program.input_fraction)
            for protocol in todo:
                reports = [run_local(program, fixed, ReluConfig.parse(protocol)) for _ in range(runs)]
                totals = [sum(report["seconds"].values()) for report in reports]
                seconds = {
                    phase: round(statistics.median(report["seconds"][phase] for report in reports), 3)
                    for phase in ("offline", "online")
                }
                total = totals_of[data, name, protocol] = statistics.median(totals)
                yield {
                    "data": data,
                    "network": name,
                    "removed": removed,
                    "protocol": protocol,
                    "relus": reports[0]["relus"],
                    "seconds": seconds | {"total": round(total, 3)},
                    "range": [round(min(totals), 3), round(max(totals), 3)],
                    "n": runs,
                    "bytes": sum(reports[0]["bytes"].values()),
                    "agree": all(report["agree"] for report in reports),
                    "times_faster": round(totals_of[data, WIDE, protocol] / total, 2),
                    "machine": machine(),
                    "versions": versions(),
                }


def lowered(design: Architecture) -> tuple[str, Program, NDArray[np.float32]]:
    """What was removed to reach the budget, the program with random weights, and inputs."""
    removed, network = reduced(design)
    x = torch.randn(4, *design.input, generator=torch.Generator().manual_seed(0)).numpy()
    return removed, lower(network, x).program, x


def reduced(design: Architecture) -> tuple[str, torch.nn.Module]:
    """What was removed to reach the budget, and the network; the wide one loses the same share of every layer."""
    if design.family == "wide_resnet":
        network = build(design, seed=0).eval()
        whole = masks_of(network, design.input)
        kept = BUDGET / sum(mask.numel() for mask in whole.values())
        generator = torch.Generator().manual_seed(0)
        put_masks(network, {path: torch.rand(mask.shape, generator=generator) < kept for path, mask in whole.items()})
        return "spread over all layers", network
    assert isinstance(design, Staged)
    coarse_plan = plan(design, BUDGET)
    return str(coarse_plan), build(coarse_plan.architecture, seed=0).eval()


def layers(design: Architecture) -> Sequence[Layer]:
    """Of an architecture."""
    return count(build(design, "meta"), design.input).layers


def spread(whole: Sequence[Layer]) -> list[Layer]:
    """The same layers with :data:`BUDGET` ReLUs, each layer keeping the same share."""
    total = sum(layer.relus for layer in whole if isinstance(layer, ReluLayer))
    return [
        replace(layer, relus=layer.relus * BUDGET // total) if isinstance(layer, ReluLayer) else layer
        for layer in whole
    ]


if __name__ == "__main__":
    main()
