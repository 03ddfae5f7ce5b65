"""The paper's claims about run time, without training: WRN-22-8 against HybReNets at 180,000 ReLUs.

    python benchmarks/claims.py --out benchmarks/results/claims.jsonl

DeepReShape (abstract) reports 5.2 and 8.7 times less run time than the state of the art at about equal accuracy; run
time does not depend on weights, so it can be priced. The wide network keeps 180,000 ReLUs spread over its layers, as a
pixel-wise method (SNL) leaves them, and all its multiply-adds; each HybReNet is brought below the same budget by coarse
steps. Offline work is charged. Published profiles are those of the ASPLOS'23 study; gc-full is our runtime, predicted
from a measured profile on a LAN, by layers. The last column is the wide network's time over the row's.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deepreshape.cost import LINKS, Layer, Profile, ReluLayer
from deepreshape.counting import count
from deepreshape.linearize import plan
from deepreshape.models import architecture, build
from deepreshape.pricing import OURS, PROTOCOLS, Terms, quote_layers

BUDGET = 180_000
WIDE = "wideresnet22-8"
HYBRID = ("hrn-5x5x3x", "hrn-5x7x2x", "hrn-6x6x2x", "hrn-7x5x2x", "hrn-2x5x3x-m32", "hrn-2x5x2x-m32", "resnet18")
DATA = {"CIFAR-100": ((3, 32, 32), 100), "TinyImageNet": ((3, 64, 64), 200)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="for our runtime; the package's reference without")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    profile = Profile.read(options.profile) if options.profile else None
    rows = []
    for data, (shape, classes) in DATA.items():
        networks = {WIDE: ("spread over all layers", spread(layers(architecture(WIDE, shape, classes))))}
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


def layers(made: object) -> tuple[Layer, ...]:
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
