"""Predicted against measured on slower links: the sender waits as a link of that rate and delay would make it.

    python benchmarks/links.py --profile here.json --out benchmarks/results/links.jsonl

The wait is injected into the transport itself (``transport.tls.EmulatedLink``), on this machine. Where network
namespaces can be created, the system's token bucket checks the rate independently; the delay is then still injected:

    unshare -rn sh -c 'ip link set lo up && tc qdisc add dev lo root tbf rate 100mbit burst 256kb latency 400ms &&
        python benchmarks/links.py --shaped 100e6 --profile here.json'

Nothing else should run on the machine. Connecting is not delayed here, as it would be by a real link.
"""

import argparse
import json
from pathlib import Path

import torch

from deepreshape.cost import Link, Profile, reference
from deepreshape.models import architecture, build
from deepreshape.pricing.quote import Terms, quote_program
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import to_fixed
from deepreshape.private.service.local_run import run_local
from deepreshape.private.transport import tls as wire

LINKS = {"lan": Link(1e9, 1e9, 0.25e-3), "wan": Link(100e6, 100e6, 25e-3), "far": Link(200e6, 200e6, 75e-3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18-m8")
    parser.add_argument("--profile", type=Path, help="of this machine; the package's reference without")
    parser.add_argument("--shaped", type=float, help="bits a second that the system already limits the loopback to")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    profile = Profile.read(options.profile) if options.profile else reference()
    made = architecture(options.network)
    inputs = torch.randn(8, *made.input, generator=torch.Generator().manual_seed(0)).numpy()
    program = lower(build(made, seed=0).eval(), inputs).program
    links = {"shaped": Link(options.shaped, options.shaped, 25e-3)} if options.shaped else LINKS
    lines = []
    for name, link in links.items():
        rate = float("inf") if options.shaped else link.up / 8
        report = run_local(
            program, to_fixed(inputs[:1], program.input_fraction), link=wire.EmulatedLink(link.latency, rate)
        )
        predicted = quote_program(program, Terms(link=link, profile=profile)).to_dict()["seconds"]
        row = {"network": options.network, "link": name, "as": str(link), "predicted_seconds": predicted}
        row |= {"measured_seconds": report["seconds"], "profile": profile.name, "machine": dict(profile.machine)}
        lines.append(json.dumps(row))
        print(lines[-1])
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
