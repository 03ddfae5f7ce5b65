"""Whole private runs of one network's shape with squares, and with ReLUs by garbled circuits and by transfers.

    python benchmarks/squares_network.py --protocol squares gc-full --link loopback wan

Two processes over TLS on this machine (``private local``), one image; the wan is 100 Mbit/s and 50 ms, injected. The
network is a ResNet-20 on 32 x 32 with 188,416 ReLUs or squares and fresh weights, its statistics those of one random
batch, on which formats are calibrated too: what is timed does not depend on weights. A row replaces one of the same
protocol and link in ``results/squares-network.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepreshape.models import architecture, build
from deepreshape.pricing.calibrate import machine
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import Program
from deepreshape.private.program.quantize import Modulus
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.service.local_run import run_local
from deepreshape.private.transport.tls import EmulatedLink

ROWS = Path(__file__).parent / "results" / "squares-network.jsonl"
LINKS = {"loopback": None, "wan": EmulatedLink(25e-3, 100e6 / 8)}
PROTOCOLS = ("squares", "gc-full", "gc-sign", "ot")
SHAPE = (3, 32, 32)


def main() -> None:
    """Run, and write each row as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", nargs="+", default=PROTOCOLS, choices=PROTOCOLS)
    parser.add_argument("--link", nargs="+", default=list(LINKS), choices=list(LINKS))
    options = parser.parse_args()
    for protocol in options.protocol:
        program, x = network("resnet20-herpn" if protocol == "squares" else "resnet20")
        config = ReluConfig() if protocol == "squares" else ReluConfig.parse(protocol)
        for link in options.link:
            report = run_local(program, program.encode(x[:1]), config, link=LINKS[link])
            kept = ("agree", "declared_bytes_match", "relus", "squares", "rounds", "seconds", "bytes", "stored_mib")
            row = {"protocol": protocol, "link": link, "bits": program.modulus.bits}
            keep(row | {name: report[name] for name in kept} | {"machine": machine()})


def network(name: str, modulus: Modulus | None = None) -> tuple[Program, np.ndarray]:
    """The integer program of a network with the statistics of a random batch, and the batch."""
    model = build(architecture(name, SHAPE), seed=0).train()
    x = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(70):
            model(x)
    return lower(model, x.numpy(), modulus=modulus).program, x.numpy()


def rows() -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def keep(row: dict[str, Any]) -> None:
    """Write a row in place of an older one."""
    same = ("protocol", "link")
    others = [old for old in rows() if [old[name] for name in same] != [row[name] for name in same]]
    ROWS.write_text("".join(json.dumps(each) + "\n" for each in [*others, row]))
    print(json.dumps(row))


if __name__ == "__main__":
    main()
