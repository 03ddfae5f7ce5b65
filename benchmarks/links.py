"""Predicted against measured on slower links: the sender waits as a link of that rate and delay would make it.

    python benchmarks/links.py --profile here.json --out benchmarks/results/links.jsonl

The wait is injected into the transport itself (``transport.tls.EmulatedLink``), on this machine. Where network
namespaces can be created, the system's token bucket checks the rate independently; the delay is then still injected:

    unshare -rn sh -c 'ip link set lo up && tc qdisc add dev lo root tbf rate 100mbit burst 256kb latency 400ms &&
        python benchmarks/links.py --shaped 100e6 --profile here.json'

Nothing else should run on the machine. Connecting is not delayed here, as it would be by a real link.

What removing ReLUs saves, with and without garbling: a network with all of them, and with 50,000 at random places.

    python benchmarks/links.py --network resnet18-m16 --relu ot gc-sign --keep 0 50000 --links lan wan \
        --out benchmarks/results/removal-links.jsonl
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch

from deepreshape.cost import Link, Profile, reference
from deepreshape.models import architecture, build
from deepreshape.pricing.calibrate import machine
from deepreshape.pricing.quote import Terms, chosen_relus, quote_program
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Integers
from deepreshape.private.program.program import Program, to_fixed
from deepreshape.private.service.local_run import run_local
from deepreshape.private.transport import tls as wire
from deepreshape.removal.sites import masks_of, put_masks
from deepreshape.training.runs import write_rows

LINKS = {"lan": Link(1e9, 1e9, 0.25e-3), "wan": Link(100e6, 100e6, 25e-3), "far": Link(200e6, 200e6, 75e-3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18-m8")
    parser.add_argument("--relu", nargs="+", default=["gc-full"], help="words for ReLUs; auto chooses for each link")
    parser.add_argument("--keep", nargs="+", type=int, default=[0], help="how many ReLUs; 0 is all of them")
    parser.add_argument("--links", nargs="+", default=list(LINKS), choices=list(LINKS))
    parser.add_argument("--profile", type=Path, help="of this machine; the package's reference without")
    parser.add_argument("--shaped", type=float, help="bits a second that the system already limits the loopback to")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    profile = Profile.read(options.profile) if options.profile else reference()
    rows: list[dict[str, Any]] = []
    for keep in options.keep:
        program, x = lowered(options.network, keep)
        links = {"shaped": Link(options.shaped, options.shaped, 25e-3)} if options.shaped else LINKS
        wanted = [name for name in links if name in (*options.links, "shaped")]
        for name, word in product(wanted, options.relu):
            link = links[name]
            rate = float("inf") if options.shaped else link.up / 8
            terms = Terms(word, link=link, profile=profile)
            relu, _ = chosen_relus(program, terms)
            report = run_local(program, x, relu, link=wire.EmulatedLink(link.latency, rate))
            predicted = quote_program(program, terms).to_dict()
            row = {"network": options.network, "relus": program.relus, "relu": str(relu), "link": name, "as": str(link)}
            row |= {"predicted_seconds": predicted["seconds"], "predicted_relu_share": predicted["relu_share"]}
            row |= {"measured_seconds": report["seconds"], "bytes": report["bytes"], "agree": report["agree"]}
            row |= {"profile": profile.name, "machine": machine()}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        write_rows(options.out, rows)


def lowered(network: str, keep: int) -> tuple[Program, Integers]:
    """The network with random weights and ``keep`` ReLUs at random places, and one input."""
    design = architecture(network)
    model = build(design, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    if keep:
        whole = masks_of(model, design.input)
        chosen = torch.randperm(sum(mask.numel() for mask in whole.values()), generator=generator)[:keep]
        flat = torch.zeros(sum(mask.numel() for mask in whole.values()), dtype=torch.bool)
        flat[chosen] = True
        parts = flat.split([mask.numel() for mask in whole.values()])
        put_masks(model, {path: part.reshape(whole[path].shape) for path, part in zip(whole, parts, strict=True)})
    inputs = torch.randn(8, *design.input, generator=generator).numpy()
    program = lower(model, inputs).program
    return program, to_fixed(inputs[:1], program.input_fraction)


if __name__ == "__main__":
    main()
