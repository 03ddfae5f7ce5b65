"""The paper's claims about run time, without training: WRN-22-8 against HybReNets at 180,000 ReLUs.

    python benchmarks/claims.py --out benchmarks/results/claims.jsonl
    python benchmarks/claims.py --run 2 --out benchmarks/results/claims-measured.jsonl

DeepReShape (abstract) reports 5.2 and 8.7 times less run time than the state of the art at about equal accuracy; run
time does not depend on weights, so it can be priced. The wide network keeps 180,000 ReLUs spread over its layers, as a
pixel-wise method (SNL) leaves them, and all its multiply-adds; each HybReNet is brought below the same budget by coarse
steps. Offline work is charged. Published profiles are those of the ASPLOS'23 study; gc-full is our runtime, predicted
from a measured profile on a LAN, by layers. The last column is the wide network's time over the row's.

With ``--run`` nothing is predicted: the networks run between two processes on this machine, over loopback, with random
weights and the same ReLUs removed. Nothing else should run on the machine; a row is written as soon as it is measured.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deepreshape.cost import LINKS, Layer, Profile, ReluLayer
from deepreshape.counting import count
from deepreshape.linearize import plan
from deepreshape.linearize.sites import masks_of, put_masks
from deepreshape.models import Architecture, architecture, build
from deepreshape.pricing import OURS, PROTOCOLS, Terms, quote_layers
from deepreshape.private.fixed import to_fixed
from deepreshape.private.local import run_local
from deepreshape.private.lower import lower
from deepreshape.private.units import machine, versions
from deepreshape.private.variant import Variant

BUDGET = 180_000
WIDE = "wideresnet22-8"
HYBRID = ("hrn-5x5x3x", "hrn-5x7x2x", "hrn-6x6x2x", "hrn-7x5x2x", "hrn-2x5x3x-m32", "hrn-2x5x2x-m32", "resnet18")
DATA = {"CIFAR-100": ((3, 32, 32), 100), "TinyImageNet": ((3, 64, 64), 200)}
RUN = {
    "CIFAR-100": (WIDE, "hrn-5x5x3x", "hrn-2x5x3x-m32", "hrn-2x5x2x-m32", "resnet18"),
    "TinyImageNet": (WIDE, "hrn-5x5x3x"),
}
"""What ``--run`` runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="for our runtime; the package's reference without")
    parser.add_argument("--run", type=int, metavar="N", help="measure instead, N times each")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.run:
        for row in measured(options.run):
            print(
                f"{row['data']:12} {row['protocol']:24} {row['network']:15} {row['relus']:>8,} ReLUs "
                f"{row['seconds']['total']:>9,.1f} s {row['times_faster']:>6.2f}x",
                flush=True,
            )
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        return
    profile = Profile.read(options.profile) if options.profile else None
    rows = []
    for data, (shape, classes) in DATA.items():
        wide = spread(layers(architecture(WIDE, shape, classes)))
        networks: dict[str, tuple[str, Sequence[Layer]]] = {WIDE: ("spread over all layers", wide)}
        for name in HYBRID:
            found = plan(architecture(name, shape, classes), BUDGET)
            networks[name] = (str(found), layers(found.architecture))
        for protocol in PROTOCOLS:
            terms = Terms(protocol, link=LINKS["lan"] if protocol in OURS else None, profile=profile)
            base = quote_layers(networks[WIDE][1], terms)
            for name, (removed, own) in networks.items():
                quote = quote_layers(own, terms)
                row = {
                    "data": data,
                    "network": name,
                    "removed": removed,
                    "protocol": protocol,
                    "relus": quote.relus,
                    "macs": sum(row.macs for row in quote.report.rows),
                    "seconds": quote.to_dict()["seconds"],
                    "bytes": quote.report.bytes,
                    "relu_share": round(quote.relu_share, 3),
                    "times_faster": round(base.seconds / quote.seconds, 2),
                    "profile": quote.profile,
                }
                rows.append(row)
                print(
                    f"{data:12} {protocol:24} {name:15} {quote.relus:>8,} ReLUs {row['macs'] / 1e6:>8,.0f} M MACs "
                    f"{quote.seconds:>9,.1f} s, ReLUs {quote.relu_share:4.0%} {row['times_faster']:>6.2f}x"
                )
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measured(runs: int) -> Iterator[dict[str, Any]]:
    """Rows of whole runs on this machine, of two of our protocols; the wide network comes first."""
    torch.set_num_threads(1)
    for data, names in RUN.items():
        shape, classes = DATA[data]
        wide: dict[str, float] = {}
        for name in names:
            removed, network = reduced(architecture(name, shape, classes))
            x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).numpy()
            program = lower(network, x).program
            fixed = to_fixed(x[:1], program.input_fraction)
            for protocol in ("gc-full", "gc-sign"):
                reports = [run_local(program, fixed, "server", variant=Variant.parse(protocol)) for _ in range(runs)]
                totals = [sum(report["seconds"].values()) for report in reports]
                seconds = {
                    phase: round(statistics.median(report["seconds"][phase] for report in reports), 3)
                    for phase in ("offline", "online")
                }
                total = statistics.median(totals)
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
                    "times_faster": round(wide.setdefault(protocol, total) / total, 2),
                    "machine": machine(),
                    "versions": versions(),
                }


def reduced(made: Architecture) -> tuple[str, torch.nn.Module]:
    """What was removed to reach the budget, and the network; the wide one loses the same share of every layer."""
    if made.family == "wide_resnet":
        network = build(made, seed=0).eval()
        whole = masks_of(network, made.input)
        kept = BUDGET / sum(mask.numel() for mask in whole.values())
        generator = torch.Generator().manual_seed(0)
        put_masks(network, {path: torch.rand(mask.shape, generator=generator) < kept for path, mask in whole.items()})
        return "spread over all layers", network
    found = plan(made, BUDGET)
    return str(found), build(found.architecture, seed=0).eval()


def layers(made: Architecture) -> Sequence[Layer]:
    """Of an architecture."""
    return count(build(made, "meta"), made.input).layers


def spread(whole: Sequence[Layer]) -> list[Layer]:
    """The same layers with :data:`BUDGET` ReLUs, each layer keeping the same share."""
    total = sum(layer.relus for layer in whole if isinstance(layer, ReluLayer))
    return [
        replace(layer, relus=layer.relus * BUDGET // total) if isinstance(layer, ReluLayer) else layer
        for layer in whole
    ]


if __name__ == "__main__":
    main()
