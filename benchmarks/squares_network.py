"""Whole private runs of one network's shape with squares, and with ReLUs by garbled circuits and by transfers.

    python benchmarks/squares_network.py --protocol squares gc-full --link loopback wan
    python benchmarks/squares_network.py --protocol cheetah --link wan --spu-python VENV/bin/python

Two processes over TLS on this machine (``private local``), one image; the wan is 100 Mbit/s and 50 ms, injected. The
network is a ResNet-20 on 32 x 32 with 188,416 ReLUs or squares and fresh weights, its statistics those of one random
batch, on which formats are calibrated too: what is timed does not depend on weights. A row replaces one of the same
protocol and link in ``results/squares-network.jsonl``. CHEETAH is SPU's, the ReLU network's integer program in its ring
of 64 bits, the second inference of a session: it has no offline phase, and makes correlations as it goes. The wan is
in front of its processes (``emulated.py``), as SPU speaks plain TCP.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emulated import Relays

from deepreshape.engines.spu.launch import SpuContext, spu_versions
from deepreshape.models import architecture, build
from deepreshape.pricing.calibrate import machine
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.program import interpret
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import Program, from_fixed
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.service.local_run import run_local
from deepreshape.private.transport.tls import EmulatedLink
from deepreshape.training.runs import read_rows, write_rows

ROWS = Path(__file__).parent / "results" / "squares-network.jsonl"
LINKS = {"loopback": None, "wan": EmulatedLink(25e-3, 100e6 / 8)}
PROTOCOLS = ("squares", "gc-full", "gc-sign", "ot")
SHAPE = (3, 32, 32)


def main() -> None:
    """Run, and write each row as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", nargs="+", default=PROTOCOLS, choices=(*PROTOCOLS, "cheetah"))
    parser.add_argument("--link", nargs="+", default=list(LINKS), choices=list(LINKS))
    parser.add_argument("--spu-python", type=Path, help="interpreter of SPU's environment, for cheetah")
    options = parser.parse_args()
    if "cheetah" in options.protocol and not options.spu_python:
        parser.error("cheetah needs --spu-python; docs/engines.md says how to make SPU's environment")
    for protocol in options.protocol:
        program, x = network("resnet20-herpn" if protocol == "squares" else "resnet20")
        config = ReluConfig() if protocol in ("squares", "cheetah") else ReluConfig.parse(protocol)
        for link in options.link:
            if protocol == "cheetah":
                keep(cheetah(program, x[0], link, options.spu_python))
                continue
            report = run_local(program, program.encode(x[:1]), config, link=LINKS[link])
            kept = ("agree", "declared_bytes_match", "relus", "squares", "rounds", "seconds", "bytes", "stored_mib")
            row = {"protocol": protocol, "link": link, "bits": program.modulus.bits}
            keep(row | {name: report[name] for name in kept} | {"machine": machine()})


def cheetah(program: Program, x: np.ndarray, link: str, python: Path) -> dict[str, Any]:
    """The row of SPU's CHEETAH."""
    emulated = LINKS[link]
    relays = Relays(emulated or EmulatedLink())
    reach = {"reach": relays.reach} if emulated else {}
    with closing(relays), SpuContext(program, "cheetah", python, **reach) as session:
        first, second = session.infer(x), session.infer(x)
        runs = [each[1] for each in session.close()]
    plain = from_fixed(interpret.run(program, program.encode(x[None]))[0], program.values[program.outputs[0]].fraction)
    return {
        "protocol": "cheetah",
        "link": link,
        "bits": 64,
        "max_difference": float(f"{np.abs(second.output - plain).max():.3g}"),
        "relus": program.relus,
        "squares": program.squares,
        "sends": sum(run.sends for run in runs),
        "seconds": {"offline": 0.0, "online": second.seconds, "first_call": first.seconds},
        "bytes": {"offline": 0, "online": sum(run.sent for run in runs)},
        "versions": spu_versions(python),
        "machine": machine(),
    }


@cache
def network(name: str, modulus: Ring | Field | None = None) -> tuple[Program, np.ndarray]:
    """The integer program of a network with the statistics of a random batch, and the batch."""
    model = build(architecture(name, SHAPE), seed=0).train()
    x = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(70):
            model(x)
    return lower(model, x.numpy(), modulus=modulus).program, x.numpy()


def keep(row: dict[str, Any]) -> None:
    """Write a row in place of an older one."""
    same = ("protocol", "link")
    known = read_rows(ROWS) if ROWS.exists() else []
    others = [old for old in known if [old[name] for name in same] != [row[name] for name in same]]
    write_rows(ROWS, [*others, row])
    print(json.dumps(row))


if __name__ == "__main__":
    main()
