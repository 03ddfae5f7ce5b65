"""Counting beside fvcore and ptflops: the numbers, and the time as a ratio to one forward pass of the same input.

    python -m pip install fvcore ptflops
    python benchmarks/counting.py --out benchmarks/results/counting.json

A ratio is taken inside one round (forward pass and counters one after the other); the median and the range over the
rounds are reported. Batch of one, CPU, weights in memory.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import torch
from fvcore.nn import FlopCountAnalysis  # pyright: ignore[reportMissingImports]
from ptflops import get_model_complexity_info  # pyright: ignore[reportMissingImports]
from torch import nn

from deepreshape import architecture, build, count
from deepreshape.pricing.calibrate import machine

NETWORKS = ("resnet20", "resnet18", "hrn-5x5x3x", "wideresnet22-8", "wideresnet28-10", "vgg16")


def ours(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    total = count(model, x).total
    return {"macs": total.macs, "params": total.params, "relus": total.relus}


def fvcore(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return {"macs": int(analysis.total()), "params": sum(parameter.numel() for parameter in model.parameters())}


def ptflops(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    with redirect_stdout(StringIO()):
        macs, params = get_model_complexity_info(
            model, tuple(x.shape[1:]), as_strings=False, print_per_layer_stat=False
        )
    return {"macs": int(macs or 0), "params": int(params or 0)}


def timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def measure(name: str, rounds: int) -> dict[str, object]:
    shape = (3, 32, 32)
    model, x = build(architecture(name, shape), seed=0).eval(), torch.randn(1, *shape)
    counters = {"deepreshape": ours, "fvcore": fvcore, "ptflops": ptflops}
    ratios: dict[str, list[float]] = {counter: [] for counter in counters}
    forward: list[float] = []
    counts: dict[str, object] = {}
    with torch.no_grad():
        for _ in range(3):
            model(x)
        for work in counters.values():  # the first call in a process imports what it needs, for a second or two
            work(model, x)
        for _ in range(rounds):
            base, _ = timed(lambda: model(x))
            forward.append(base)
            for counter, work in counters.items():
                seconds, counts[counter] = timed(lambda work=work: work(model, x))
                ratios[counter].append(seconds / base)
    return {
        "network": name,
        "forward_ms": round(1000 * statistics.median(forward), 2),
        "counts": counts,
        "time_over_forward": {
            counter: {
                "median": round(statistics.median(values), 2),
                "min": round(min(values), 2),
                "max": round(max(values), 2),
            }
            for counter, values in ratios.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    result = {
        "command": f"python benchmarks/counting.py --rounds {options.rounds}",
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("deepreshape", "torch", "fvcore", "ptflops")},
        "n": options.rounds,
        "rows": [measure(name, options.rounds) for name in NETWORKS],
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
