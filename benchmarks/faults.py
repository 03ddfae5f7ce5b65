"""Accuracy under the faults of Circa's stochastic ReLU, by the integer interpreter, over a whole test split.

    python benchmarks/faults.py MODEL --data-dir DATA --drops 0-18 --out benchmarks/results/faults.json

MODEL is a saved model's folder. The integer program is that of ``deepreshape private lower``; every image's shares are
drawn anew, as two parties would draw them. A result file that is there is continued: settings in it are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepreshape.data import Dataset
from deepreshape.models.saved import load, manifest_of
from deepreshape.private.arith.drelu import MODES
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Relu
from deepreshape.private.program.program import to_fixed
from deepreshape.private.program.relu_config import GC_FULL, ReluConfig
from deepreshape.private.program.sign_bits import program_accuracy
from deepreshape.private.protocols.choose import Protocols
from deepreshape.training import accuracy as real_accuracy

CALIBRATION_IMAGES = 256


def main() -> None:
    """Measure, setting by setting, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=0, help="of the test split; 0 takes all")
    parser.add_argument("--drops", default="0-18", help="bits to drop, FIRST-LAST")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="settings to run side by side")
    parser.add_argument("--seed", type=int, default=0, help="of the shares")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    network = load(options.model)
    manifest = manifest_of(network)
    data = Dataset.load(manifest.dataset, options.data_dir)
    count = options.images or len(data.test)
    lowered = lower(network, data.normalize(data.train.images[:CALIBRATION_IMAGES]).contiguous().numpy())
    inputs = to_fixed(data.normalize(data.test.images[:count]).contiguous().numpy(), lowered.program.input_fraction)
    labels, seed = data.test.labels[:count].numpy(), options.seed.to_bytes(32, "little")
    first, last = map(int, options.drops.split("-"))
    configs = [GC_FULL, ReluConfig("gc-sign")]
    configs += [ReluConfig("gc-stochastic", drop=k, mode=mode) for k in range(first, last + 1) for mode in MODES]
    relus = [op for op in lowered.program.ops if isinstance(op, Relu)]
    words = [options.model.name, "--images", options.images, "--drops", options.drops, "--seed", options.seed]
    report: dict[str, Any] = {
        "command": f"python benchmarks/faults.py {' '.join(map(str, words))}",
        "network": options.model.name,
        "data": manifest.dataset,
        "split": "test",
        "n": count,
        "modulus": str(lowered.program.modulus),
        "fraction_bits": lowered.program.input_fraction,
        "shifts": [op.shift for op in relus],
        "widths": [op.high for op in relus],
        "top1_float": round(real_accuracy(network, data, data.test), 2) if count == len(data.test) else None,
        "versions": {name: version(name) for name in ("deepreshape", "numpy", "torch")},
        "rows": [],
    }
    if options.out and options.out.exists():
        before = json.loads(options.out.read_text())
        if {**before, "rows": []} != report:
            sys.exit(f"{options.out} holds another run: {before['command']}; choose another file")
        report = before
    done = {row["relu"] for row in report["rows"]}
    left = [relu for relu in configs if str(relu) not in done]
    with ThreadPoolExecutor(options.threads) as threads:
        accuracies = threads.map(
            lambda one: program_accuracy(lowered.program, inputs, labels, protocols=Protocols(one), seed=seed), left
        )
        for relu, top1 in zip(left, accuracies, strict=True):
            report["rows"].append({"relu": str(relu), "top1": round(top1, 2)})
            print(f"{relu!s:32} {top1:6.2f} %", flush=True)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
