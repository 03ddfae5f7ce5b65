"""Whole private inferences between two processes on this machine: seconds, bytes, rounds and memory.

    python benchmarks/private.py resnet20 hrn-2x5x2x-m8 --rounds 3 --out benchmarks/results/private.json

A MODEL is what ``deepreshape private local`` takes: a saved model's folder or a network's name (random weights; run
time does not depend on them). Seconds are wall time over loopback; median and range over the rounds are reported.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("deepreshape", "numpy", "cryptography", "tenseal", "torch")


def run(model: str, garbler: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "deepreshape",
        "private",
        "local",
        "--model",
        model,
        "--garbler",
        garbler,
        "--json",
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(model: str, garbler: str, rounds: int) -> dict[str, Any]:
    reports = [run(model, garbler) for _ in range(rounds)]
    first = reports[0]
    seconds = {phase: [report["seconds"][phase] for report in reports] for phase in ("offline", "online")}
    return {
        "model": Path(model).name,
        "garbler": garbler,
        "agree": all(report["agree"] for report in reports),
        "declared_bytes_match": all(report["declared_bytes_match"] for report in reports),
        "seconds": {
            phase: {
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
            }
            for phase, values in seconds.items()
        },
        "peak_rss_mib": {
            role: round(max(report["peak_rss_mib"][role] for report in reports)) for role in ("client", "server")
        },
        **{name: first[name] for name in ("relus", "bytes", "rounds", "stored_mib")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--garbler", nargs="+", default=["server"], choices=["server", "client"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    words = [Path(model).name for model in options.models] + ["--garbler", *options.garbler]
    result = {
        "command": f"python benchmarks/private.py {' '.join(words)} --rounds {options.rounds}",
        "machine": f"{platform.machine()}, 2 processes on one machine, loopback",
        "versions": {name: version(name) for name in PACKAGES},
        "n": options.rounds,
        "rows": [measure(model, garbler, options.rounds) for model in options.models for garbler in options.garbler],
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
