"""A training step with the wide convolutions of small maps as matrix products, against torch's own convolutions.

    python benchmarks/convolution.py --out benchmarks/results/convolution.json

One core, bfloat16 autocast, Muon, batches of 256; steps of the two kinds alternate, so that both see the same machine.
The ratio is that of the medians; where a processor has no matrix units (AMX) the two are the same. Nothing else should
run on the machine.
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from deepreshape.models import architecture, build
from deepreshape.pricing.calibrate import machine
from deepreshape.training.convolution import MatrixConvolutions
from deepreshape.training.muon import Muon

NETWORKS = ("resnet18-m16", "hrn-5x5x3x-m4", "hrn-5x5x3x-m8", "resnet9-m48-strided")
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, options.rounds) for name in NETWORKS]
    result = {
        "command": f"python benchmarks/convolution.py --rounds {options.rounds}",
        "machine": machine(),
        "amx": bool(torch.cpu.get_capabilities().get("amx_bf16")),
        "versions": {name: version(name) for name in ("deepreshape", "torch")},
        "rows": rows,
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step, by kind."""
    design = architecture(name)
    network = build(design, seed=0).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, *design.input, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(design.classes, (BATCH,), generator=generator)
    weights = list(network.parameters())
    groups = [{"params": [w], "lr": 1e-3, "orthogonal": w.dim() == 4} for w in weights]
    optimizer = Muon(groups)

    def step() -> float:
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - begin

    kinds = {"products": MatrixConvolutions, "convolutions": nullcontext}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for at in range(rounds + 1):
        for kind, context in kinds.items():
            with context():
                took = step()
            if at:  # the first of each warms up
                seconds[kind].append(took)
    median = {kind: statistics.median(times) for kind, times in seconds.items()}
    return {
        "network": name,
        "seconds": {
            kind: {"median": round(median[kind], 4), "min": round(min(times), 4), "max": round(max(times), 4)}
            for kind, times in seconds.items()
        },
        "times_faster": round(median["convolutions"] / median["products"], 2),
        "n": rounds,
    }


if __name__ == "__main__":
    main()
