"""ReLU protocols side by side: time, bytes, rounds, and modelled time on two links.

    python benchmarks/relu.py [--log-counts 16,20] [--rounds 3] [--garbler server] [--out FILE]

Two threads of this process are the parties, joined in memory, so that times are those of the work alone: wall time from
the first message to the last, transfers and rows included, base transfers (once a session) not. Medians and ranges
over the rounds. Links are modelled from the declared bytes and rounds, which the tests hold against what is sent: LAN 1
Gbit/s and 0.5 ms, WAN 100 Mbit/s and 50 ms, a round trip counting as two latencies; measured work is added to them. All
truncate by 12 bits. ``calibrated`` tests 14 of 37 bits, which is what a search leaves of a typical layer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from deepreshape.cost.link import Link
from deepreshape.pricing.calibrate import machine
from deepreshape.private.arith.drelu import Parity, Sign, Window, Wrap
from deepreshape.private.arith.ring import DELPHI_PRIME, Field, Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.arith.truncation import to_nearest
from deepreshape.private.crypto.backend import engine
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols.base import Prepared, Run, side_by_side
from deepreshape.private.protocols.garbled.label_transfer import GarbledLayer
from deepreshape.private.protocols.garbled.relu_garbled import GarbledRelu
from deepreshape.private.protocols.garbled.relu_gc import ReluGc
from deepreshape.private.protocols.garbled.relu_sign import ReluSign
from deepreshape.private.transport.memory import memory_pair

SHIFT = 12
CASES: dict[str, tuple[Ring | Field, Sign | None]] = {
    "gc-full, 41-bit prime": (Field(DELPHI_PRIME), None),
    "gc-full, ring 37": (Ring(37), None),
    "gc-sign, 41-bit prime": (Field(DELPHI_PRIME), Parity(Field(DELPHI_PRIME))),
    "gc-sign, ring 37": (Ring(37), Window(Ring(37), 0, 37)),
    "gc-stochastic k=12, 41-bit prime": (Field(DELPHI_PRIME), Wrap(Field(DELPHI_PRIME), 12)),
    "gc-stochastic k=12, ring 37": (Ring(37), Window(Ring(37), 12, 37)),
    "calibrated 14 bits, ring 37": (Ring(37), Window(Ring(37), 12, 26)),
}
LINKS = {"lan": Link(1e9, 1e9, 0.5e-3), "wan": Link(1e8, 1e8, 50e-3)}
MOST = 1 << 17
"""ReLUs a layer holds; more are several layers, one after the other, whose tables do not all lie in memory."""


def both(one: Callable[[], Any], other: Callable[[], Any]) -> tuple[Any, Any]:
    with ThreadPoolExecutor(2) as threads:
        left, right = threads.submit(one), threads.submit(other)
        return left.result(), right.result()


def once(modulus: Ring | Field, sign: Sign | None, count: int, garbler: Role) -> dict[str, float]:
    """Seconds of one run of ``count`` ReLUs, layer after layer."""
    client, server = memory_pair()
    session = os.urandom(32)
    layers = [
        GarbledLayer(f"part {at}", modulus, SHIFT, min(MOST, count - at), garbler, sign=sign)
        for at in range(0, count, MOST)
    ]
    runs = Run(client, session, "client", Randomness()), Run(server, session, "server", Randomness())
    protocol = protocol_of(layers[0])
    setups = both(lambda: protocol.setup(runs[0], layers), lambda: protocol.setup(runs[1], layers))
    seconds = {"offline": 0.0, "online": 0.0}
    for layer in layers:
        for phase, taken in run(runs, setups, layer).items():
            seconds[phase] += taken
    return seconds


def protocol_of(layer: GarbledLayer) -> GarbledRelu:
    """By which a layer is computed."""
    if layer.sign is None:
        return ReluGc(ReluConfig(garbler=layer.garbler))
    return ReluSign(ReluConfig("gc-stochastic", garbler=layer.garbler))


def run(runs: tuple[Run, Run], setups: tuple[Any, Any], layer: GarbledLayer) -> dict[str, float]:
    """Seconds of one layer; its result is checked."""
    modulus, protocol = layer.modulus, protocol_of(layer)
    x = np.arange(layer.count) - layer.count // 2
    share, mask = (modulus.random(layer.count, Randomness()) for _ in range(2))
    theirs = modulus.sub(modulus.encode(x), share)
    kept: tuple[list[Prepared], list[Prepared]] = ([], [])

    def prepare(at: int, *shares: Any) -> None:
        step = protocol.offline(runs[at], setups[at], layer, *shares)
        side_by_side(runs[at], "offline", [(layer.name, step)], lambda _, prepared: kept[at].append(prepared))

    def answer(at: int, input_share: Any) -> Any:
        step = protocol.online(runs[at], layer, iter(kept[at]), input_share)
        return side_by_side(runs[at], "online", [(layer.name, step)])[0]

    start = time.perf_counter()
    both(lambda: prepare(0, share, mask), lambda: prepare(1, None, None))
    middle = time.perf_counter()
    _, output_share = both(lambda: answer(0, None), lambda: answer(1, theirs))
    end = time.perf_counter()
    off = modulus.decode(modulus.add(output_share, mask)) - to_nearest(np.maximum(x, 0), SHIFT)
    # over the field a few signs are wrong for large values too
    assert np.mean(np.abs(off) > 1) < 1e-3, "ReLUs came out wrong by more than faults and rounding can make them"
    return {"offline": middle - start, "online": end - middle}


def measure(name: str, count: int, rounds: int, garbler: Role) -> dict[str, Any]:
    """One row of the table."""
    modulus, sign = CASES[name]
    layer = GarbledLayer("all", modulus, SHIFT, count, garbler, sign=sign)
    runs = [once(modulus, sign, count, garbler) for _ in range(rounds)]
    declared = protocol_of(layer).declared(layer)
    trips = {"offline": len(declared.offline) - 1, "online": 1}
    row: dict[str, Any] = {
        "protocol": name,
        "relus": count,
        "garbler": garbler,
        "and_gates": layer.circuit.and_gates,
        "transfers": declared.counts["offline"]["transfers"] // count,
        "stored_bytes": dict(zip(("client", "server"), (n / count for n in declared.stored), strict=True)),
        "rounds": trips,
    }
    for phase, (up, down) in declared.traffic.items():
        times = [run[phase] for run in runs]
        middle = statistics.median(times)
        row[phase] = {
            "us": round(1e6 * middle / count, 3),
            "us_range": [round(1e6 * edge / count, 3) for edge in (min(times), max(times))],
            "bytes_up": round(up / count, 2),
            "bytes_down": round(down / count, 2),
            "modelled_seconds": {
                key: round(middle + link.seconds(up, down) + 2 * link.latency * trips[phase], 3)
                for key, link in LINKS.items()
            },
        }
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-counts", default="16,20", help="logarithms of the numbers of ReLUs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--garbler", choices=["server", "client"], default="server")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    counts = [1 << int(word) for word in options.log_counts.split(",")]
    result = {
        "command": f"python benchmarks/relu.py --log-counts {options.log_counts} --rounds {options.rounds} "
        f"--garbler {options.garbler}",
        "machine": machine(),
        "engine": engine().name,
        "versions": {name: version(name) for name in ("deepreshape", "numpy", "cryptography")},
        "n": options.rounds,
        "rows": [measure(name, count, options.rounds, options.garbler) for count in counts for name in CASES],
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
