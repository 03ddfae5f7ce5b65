"""The zoo's networks on CIFAR-100: test accuracy, and whole private runs under each protocol.

    python benchmarks/zoo.py --out benchmarks/results/zoo.jsonl

A row for each network, protocol and link: two processes over TLS on this machine (``private local``), one test image,
the wan (100 Mbit/s, 50 ms) injected. Test top-1 is that of the network in floating point on all 10,000 test images.
Beside the measured seconds stand those predicted, under the reference profile and under one that is measured here first
(a minute). The networks' rows in ``results/cifar100.jsonl`` gain what was measured. Nothing else should run on the
machine.
"""

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from deepreshape.cost import LINKS as PRICED
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.models.saved import load
from deepreshape.models.zoo import folder_of, names
from deepreshape.pricing.calibrate import machine, measure, versions
from deepreshape.pricing.quote import Terms, quote_program
from deepreshape.private.program.lower import lower
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.service.local_run import run_local
from deepreshape.private.transport.tls import EmulatedLink
from deepreshape.training import accuracy
from deepreshape.training.runs import read_rows, write_rows

LINKS = {"loopback": None, "wan": EmulatedLink(25e-3, 100e6 / 8)}
PROTOCOLS = ("gc-full", "gc-sign", "ot")
ACCURACY = Path(__file__).parent / "results" / "cifar100.jsonl"
KEPT = ("agree", "declared_bytes_match", "same_class", "relus", "rounds", "seconds", "bytes", "stored_mib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    data = Dataset.load("cifar100")
    profiles = {"reference": None, "calibrated": measure("zoo")}
    rows: list[dict[str, Any]] = []
    for name in (name for name in names() if name.startswith("cifar100") and not name.endswith("herpn")):
        model = load(folder_of(f"zoo:{name}"))
        facts = {"network": f"zoo:{name}", "macs": count(model, data.shape).total.macs}
        facts |= {"top1": accuracy(model, data, data.test), "n": len(data.test)}
        program = lower(model, data).program
        inputs = program.encode(data.normalize(data.test.images[:1]).numpy())
        for protocol, link in product(PROTOCOLS, LINKS):
            report = run_local(program, inputs, ReluConfig.parse(protocol), link=LINKS[link])
            row = facts | {"protocol": protocol, "link": link} | {key: report[key] for key in KEPT}
            terms = Terms(protocol, link=PRICED.get(link))
            row["predicted_seconds"] = {
                name: quote_program(program, replace(terms, profile=profile)).to_dict()["seconds"]
                for name, profile in profiles.items()
            }
            rows.append(row | {"machine": machine(), "versions": versions()})
            print(json.dumps(rows[-1]), flush=True)
    write_rows(given.out, rows)
    write_rows(ACCURACY, with_private_costs(read_rows(ACCURACY), rows))


def with_private_costs(rows: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by a network's id, those of measured networks with their seconds and bytes by protocol."""
    gained: dict[str, dict[str, Any]] = {}
    for run in measured:
        costs = gained.setdefault(run["network"].removeprefix("zoo:"), {"private_seconds": {}, "private_bytes": {}})
        seconds = {phase: round(taken, 3) for phase, taken in run["seconds"].items()}
        costs["private_seconds"][f"{run['protocol']}, {run['link']}"] = seconds
        costs["private_bytes"][run["protocol"]] = run["bytes"]
    return [row | gained.get(row["id"], {}) for row in rows]


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
