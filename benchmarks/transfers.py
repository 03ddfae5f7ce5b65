"""Time of extending oblivious transfers, a label each, by engine, in nanoseconds of processor time of one thread.

    python benchmarks/transfers.py [--count N] [--rounds N] [--json]

Both parties run in one process, one after the other, through a channel in memory, whose two copies of 16 bytes a
transfer are in the times. Medians over the rounds, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
from garbling import engines, machine, versions

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import Engine, using
from deepreshape.private.crypto.labels import Delta
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.program.relu_config import GC_FULL
from deepreshape.private.transport.memory import memory_pair

SIDES = "receiver", "sender"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=37 * GC_FULL.batch, help="a round; without, a batch of 37-bit shares"
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = [measure(chosen, options.count, options.rounds) for chosen, threads in engines() if threads == 1]
    if options.json:
        print(json.dumps({"rows": rows, "machine": machine(), "versions": versions()}, indent=1))
        return
    for row in rows:
        for side in SIDES:
            low, high = row[f"{side}_spread"]
            print(f"{row['engine']}: {row['engine_about']}; {side}: {row[side]:.1f} ns ({low:.1f}-{high:.1f})")


def measure(chosen: Engine, count: int, rounds: int) -> dict[str, Any]:
    """One row: ``rounds`` extensions by ``count`` transfers."""
    here, there = memory_pair()
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(IKNP.sender, here, b"benchmark", Delta(Randomness()), Randomness())
        receiver = IKNP.receiver(there, b"benchmark", Randomness())
        sender = started.result()
    choices = Randomness().bytes(count) & np.uint8(1)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with using(chosen):
        for _ in range(rounds + 1):
            begin = time.thread_time()
            receiver.chosen(there, choices)
            middle = time.thread_time()
            sender.chosen(here, count)
            for side, seconds in zip(SIDES, (middle - begin, time.thread_time() - middle), strict=True):
                times[side].append(seconds / count * 1e9)
    row: dict[str, Any] = {"engine": chosen.name, "engine_about": chosen.about, "transfers": count, "rounds": rounds}
    for side in SIDES:
        seen = times[side][1:]  # the first round warms up
        row[side] = round(median(seen), 2)
        row[f"{side}_spread"] = [round(min(seen), 2), round(max(seen), 2)]
    return row


if __name__ == "__main__":
    main()
