"""How long the live page waits for a quote: processor time of ``deepreshape ui``'s answers to moving sliders.

    python benchmarks/live.py --out benchmarks/results/live.json

Every answer is for a network that was not asked for before, so nothing of it is known but what other networks share.
"""

import argparse
import json
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path

from deepreshape.experiments.live import live_quote
from deepreshape.pricing.calibrate import machine

PROTOCOLS = ("gc-full", "gc-sign", "gc-stochastic:drop=12", "server-garbler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quotes", type=int, default=40, help="of each protocol")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)  # noqa: S311 - which sliders are moved is no secret
    rows = []
    for protocol in PROTOCOLS:
        taken: list[float] = []
        for _ in range(options.quotes):
            words = {
                "phi": ",".join(str(draw.randint(1, 3)) for _ in range(4)),
                "base": str(draw.choice([4, 8, 16, 32, 64])),
                **{name: str(draw.randint(2, 6)) for name in ("alpha", "beta", "gamma")},
                "budget": str(draw.choice([5, 10, 25, 50, 75, 100])),
                "input": "3x32x32",
                "wire": draw.choice(["lan", "wan", "20mbit/100mbit/40ms"]),
                "kind": protocol,
            }
            begin = time.process_time()
            live_quote(words)
            taken.append(1000 * (time.process_time() - begin))
        rows.append(
            {
                "protocol": protocol,
                "first_ms": round(taken[0], 1),
                "median_ms": round(statistics.median(taken[1:]), 1),
                "largest_ms": round(max(taken[1:]), 1),
                "n": options.quotes,
            }
        )
        print(json.dumps(rows[-1]))
    report = {
        "command": f"python benchmarks/live.py --quotes {options.quotes} --seed {options.seed}",
        "machine": machine(),
        "versions": {"python": platform.python_version(), "deepreshape": version("deepreshape")},
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
