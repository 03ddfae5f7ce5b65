"""A training step with the C library's memory in huge pages that are kept, against its own way.

    python benchmarks/huge_pages.py --out benchmarks/results/huge_pages.json

Processes of the two kinds alternate, each with one core, bfloat16 autocast, batches of 256; a process reports its
fastest of five steps. The ratio is that of the medians. Nothing else should run on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from deepreshape.models import architecture, build
from deepreshape.pricing.calibrate import machine, versions

BATCH = 256
NETWORKS = ("resnet18-m16", "resnet9-m32-strided")
TUNABLES = "glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=8000000000:glibc.malloc.hugetlb=1"
"""Large blocks come from the heap, the heap is not given back, and is in huge pages."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=NETWORKS, help="time steps of this network here and print the seconds")
    given = parser.parse_args()
    if given.step:
        print(seconds_of_step(given.step))
        return
    result = {
        "command": f"python benchmarks/huge_pages.py --rounds {given.rounds}",
        "machine": machine(),
        "versions": versions(),
        "huge_pages": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
        "tunables": TUNABLES,
        "rows": [compared(network, given.rounds) for network in NETWORKS],
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


def compared(network: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step, by kind."""
    seconds: dict[str, list[float]] = {"usual": [], "huge": []}
    for _ in range(rounds):
        for kind, tunables in (("usual", {}), ("huge", {"GLIBC_TUNABLES": TUNABLES})):
            command = [sys.executable, __file__, "--step", network]
            run = subprocess.run(command, env=os.environ | tunables, capture_output=True, text=True, check=True)
            seconds[kind].append(round(float(run.stdout), 4))
    medians = {kind: statistics.median(each) for kind, each in seconds.items()}
    return {"network": network, "seconds": seconds, "ratio": round(medians["usual"] / medians["huge"], 3)}


def seconds_of_step(name: str) -> float:
    """The fastest of five steps, after two that are not counted."""
    torch.set_num_threads(1)
    design = architecture(name)
    network = build(design, seed=0).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randn(BATCH, *design.input).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(design.classes, (BATCH,))
    taken: list[float] = []
    for _ in range(7):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(network(images).float(), labels)
        loss.backward()
        taken.append(time.perf_counter() - began)
    return min(taken[2:])


if __name__ == "__main__":
    main()
