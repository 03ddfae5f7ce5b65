"""Whole private inferences between two processes on this machine: seconds, bytes, rounds and memory.

    python benchmarks/private.py resnet20 hrn-2x5x2x-m8 --rounds 3 --out private.json
    python benchmarks/private.py resnet20 hrn-5x5x3x-m16 resnet18@3x64x64 --rounds 1 --workers 1 2

A MODEL is a saved model's folder, or a network's name (random weights; run time does not depend on them), perhaps with
an input shape; a shape of 64x64 has the 200 classes of TinyImageNet. Seconds are wall time over loopback; median and
range over the rounds are reported. Memory is resident, of a party with its workers, sampled every 50 ms, and at least
what the party's own process says of its peak. ResNet-18 at 64x64 takes 7 GB of disk while it runs.

``bytes_by_part`` are keys of homomorphic layers, their ciphertexts up and down, base transfers, ReLUs, and shares of
the input and output. ``--window BITS`` has sign tests look at so many bits of each ReLU, whatever accuracy says of it:
for bytes and seconds, not for answers.
"""

import argparse
import json
import os
import statistics
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deepreshape.models import architecture, build
from deepreshape.models.saved import load, manifest_of
from deepreshape.pricing.calibrate import machine
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Integers, Relu
from deepreshape.private.program.program import Program, to_fixed
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.service.local_run import run_local

PACKAGES = ("deepreshape", "numpy", "cryptography", "tenseal", "torch")


def lowered(model: str, window: int | None) -> tuple[Program, Integers]:
    """The integer program, calibrated on noise, with windows of so many bits if given, and one input."""
    if Path(model).is_dir():
        network = load(Path(model))
        manifest = manifest_of(network)
        shape = manifest.architecture.input
    else:
        name, _, size = model.partition("@")
        channels, height, width = map(int, (size or "3x32x32").split("x"))
        shape = channels, height, width
        network = build(architecture(name, shape, 200 if shape[-1] == 64 else 100), seed=0).eval()
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)).numpy()
    program = lower(network, x).program
    if window:
        narrowed = (
            replace(op, low=max((op.high or program.modulus.bits) - window, 0)) if isinstance(op, Relu) else op
            for op in program.ops
        )
        program = replace(program, ops=tuple(narrowed))
    return program, to_fixed(x[:1], program.input_fraction)


class Memory:
    """The largest resident memory of each party's processes, in MiB, while inside ``with``. Linux only."""

    def __init__(self) -> None:
        self.peak = {"client": 0.0, "server": 0.0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for role in self.peak:
                self.peak[role] = max(self.peak[role], sum(resident_mib(pid) for pid in family(role)))


def family(role: str) -> Iterator[int]:
    """The party's process, which this one started, and its workers."""
    for pid in children(os.getpid()):
        if f"deepreshape.private.service.local_run\0{role}\0" in read(f"/proc/{pid}/cmdline"):
            yield pid
            yield from children(pid)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    texts = [read(f"{task}/children") for task in tasks.iterdir()] if tasks.exists() else []
    return [int(child) for text in texts for child in text.split()]


def resident_mib(pid: int) -> float:
    lines = [line for line in read(f"/proc/{pid}/status").splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def read(path: str) -> str:
    """A file of a process, empty if that has ended."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def run(program: Program, inputs: Integers, relu: ReluConfig, workers: int) -> dict[str, Any]:
    with Memory() as memory:
        report = run_local(program, inputs, relu, workers=workers)
    reported_peaks = report["peak_rss_mib"]
    return report | {"peak_rss_mib": {role: max(reported_peaks[role], memory.peak[role]) for role in reported_peaks}}


def by_part(program: Program, relu: ReluConfig) -> dict[str, int]:
    """Bytes of one inference as its plan declares them, which is what was sent where ``declared_bytes_match``."""
    parts: dict[str, int] = dict.fromkeys(
        ("keys", "ciphertexts_up", "ciphertexts_down", "base_transfers", "relus", "shares"), 0
    )
    names = {"keys": "keys", "transfers": "base_transfers", "shares": "shares"}
    for row in Plan(program.public(), relu).declared().rows:
        if row.kind == "he":
            parts["ciphertexts_up"] += row.bytes_up
            parts["ciphertexts_down"] += row.bytes_down
        else:
            parts[names.get(row.kind, "relus")] += row.bytes_up + row.bytes_down
    return parts


def measure(model: str, relu: ReluConfig, workers: int, rounds: int, window: int | None) -> dict[str, Any]:
    program, inputs = lowered(model, window)
    reports = [run(program, inputs, relu, workers) for _ in range(rounds)]
    first = reports[0]
    seconds = {phase: [report["seconds"][phase] for report in reports] for phase in ("offline", "online")}
    return {
        "model": Path(model).name,
        "relu": str(replace(relu, garbler="server")),
        "garbler": relu.garbler,
        "workers": workers,
        "window": window,
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
        "bytes_by_part": by_part(program, relu),
        **{name: first[name] for name in ("relus", "bytes", "rounds", "stored_mib")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--garbler", nargs="+", default=["server"], choices=["server", "client"])
    parser.add_argument("--relu", nargs="+", type=ReluConfig.parse, default=[ReluConfig()], help="such as gc-sign")
    parser.add_argument("--workers", nargs="+", type=int, default=[os.cpu_count()])
    parser.add_argument("--window", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    words = [Path(model).name for model in options.models] + ["--garbler", *options.garbler]
    words += ["--relu", *map(str, options.relu), "--workers", *map(str, options.workers)]
    words += ["--window", str(options.window)] * (options.window is not None)
    result = {
        "command": f"python benchmarks/private.py {' '.join(words)} --rounds {options.rounds}",
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "n": options.rounds,
        "rows": [
            measure(model, replace(relu, garbler=garbler), workers, options.rounds, options.window)
            for model in options.models
            for garbler in options.garbler
            for relu in options.relu
            for workers in options.workers
        ],
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
