"""Predicted against measured: whole private inferences of many networks, both garblers, on this machine.

    python benchmarks/prediction.py --out benchmarks/results/prediction.jsonl
    python benchmarks/prediction.py --quick

First the machine is calibrated (or a profile is read, with ``--profile``), then every network runs between two
processes over loopback for each garbler and way to compute ReLUs, with random weights: run time does not depend on
them. What is measured is the median of several runs, with its spread beside it. A row is written as soon as it is
measured, and rows that are in the file are not measured again. At the end: bytes, and the median and the largest error
of the seconds, by phase. Nothing else should run on the machine.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deepreshape.cost import Profile
from deepreshape.models import architecture, build
from deepreshape.pricing.calibrate import measure as measure_units
from deepreshape.pricing.quote import Terms, quote_program
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import to_fixed
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.service.local_run import run_local
from deepreshape.removal import plan
from deepreshape.training.runs import append_row, read_rows

NETWORKS = (
    # name, ReLU budget (none: all ReLUs)
    ("resnet18-m8", 20_000),
    ("hrn-2x5x2x-m8", 25_000),
    ("resnet18-m16", 33_000),
    ("hrn-5x5x3x-m8", None),
    ("resnet18-m16", None),
    ("wideresnet22-8-m16", None),
    ("resnet20", None),
    ("hrn-5x5x3x", 70_000),
    ("resnet32", None),
    ("resnet18", None),
)
"""From 10,000 to 557,056 ReLUs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the three smallest networks, into a scratch file")
    parser.add_argument("--profile", type=Path, help="a profile of this machine; measured anew without")
    parser.add_argument("--garbler", nargs="+", default=["server", "client"], choices=["server", "client"])
    parser.add_argument("--relu", nargs="+", default=["gc-full", "gc-sign", "gc-stochastic:drop=12"])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--seconds", type=float, default=8, help="after which no further run of the same is begun")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    profile = Profile.read(options.profile) if options.profile else measure_units("benchmark", observe=print)
    out = options.out or Path(tempfile.mkdtemp()) / "prediction.jsonl"
    rows = read_rows(out) if out.exists() else []
    done = {(row["network"], row["budget"], row["relu"], row["garbler"]) for row in rows}
    for network, budget in NETWORKS[: 3 if options.quick else None]:
        runs = [(relu, garbler) for relu in options.relu for garbler in options.garbler]
        todo = [run for run in runs if (network, budget, *run) not in done]
        for row in measure(network, budget, todo, profile, options.rounds, options.seconds):
            rows.append(row)
            append_row(out, row)
            print(
                json.dumps({key: row[key] for key in ("network", "relus", "relu", "garbler", "error", "bytes_exact")})
            )
    for phase in ("offline", "online", "total"):
        errors = [abs(row["error"][phase]) for row in rows]
        print(f"{phase}: median error {statistics.median(errors):.1%}, largest {max(errors):.1%} (n = {len(errors)})")
    print(f"bytes exact in {sum(row['bytes_exact'] for row in rows)} of {len(rows)}; rows in {out}")


def measure(
    network: str, budget: int | None, todo: list[tuple[str, Role]], profile: Profile, rounds: int, most: float
) -> Iterator[dict[str, Any]]:
    """A row for each (ReLU protocol, garbler)."""
    if not todo:
        return
    whole = architecture(network)
    design = plan(whole, budget).architecture if budget else whole
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, *design.input, generator=generator).numpy()
    program = lower(build(design, seed=0).eval(), inputs).program
    for relu, garbler in todo:
        quote = quote_program(program, Terms(relu, garbler, profile=profile))
        predicted = quote.to_dict()
        fixed = to_fixed(inputs[:1], program.input_fraction)
        reports: list[dict[str, Any]] = []
        begin = time.monotonic()
        while not reports or (len(reports) < rounds and time.monotonic() - begin < most):
            reports.append(run_local(program, fixed, replace(ReluConfig.parse(relu), garbler=garbler)))
        report = reports[0]
        runs = [each["seconds"] | {"total": sum(each["seconds"].values())} for each in reports]
        measured = {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]}
        yield {
            "network": network,
            "budget": budget,
            "relus": report["relus"],
            "relu": relu,
            "garbler": garbler,
            "predicted_seconds": predicted["seconds"],
            "measured_seconds": {phase: round(seconds, 4) for phase, seconds in measured.items()},
            "measured_range": {
                phase: [round(pick(run[phase] for run in runs), 4) for pick in (min, max)] for phase in runs[0]
            },
            "n": len(runs),
            "error": {phase: round(predicted["seconds"][phase] / measured[phase] - 1, 4) for phase in measured},
            "bytes": report["bytes"],
            "bytes_exact": all(each["declared_bytes_match"] for each in reports)
            and all(predicted["bytes"][phase] == report["bytes"][phase] for phase in report["bytes"]),
            "rounds": report["rounds"],
            "agree": all(each["agree"] for each in reports),
            "predicted_memory_mib": {role: round(size / 2**20) for role, size in predicted["memory_bytes"].items()},
            "peak_rss_mib": {role: round(mib) for role, mib in report["peak_rss_mib"].items()},
            "relu_share": predicted["relu_share"],
            "linear_share": predicted["linear_share"],
            "machine": dict(profile.machine),
            "versions": dict(profile.versions),
            "date": profile.date,
        }


if __name__ == "__main__":
    main()
