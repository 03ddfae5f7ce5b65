"""Bytes and processor time of a square between two parties, beside those of a ReLU in three ways.

    python benchmarks/squares.py [--quick] [--json] [--spu-python VENV/bin/python]

A row is one layer of one protocol, both parties in two threads of which one works at a time. ``bytes_offline`` and
``bytes_online`` are those declared for a network of 188,416 values (ResNet-20 on 32 x 32), set-up included, over that
many; tests hold what is declared against what is sent. ``cpu_us_offline`` (set-up included, base transfers not) and
``cpu_us_online`` are the seconds of both parties over ``count`` values, medians over the rounds. Bits are those of the
ring: squares at 31 with 7 bits dropped before and 10 after, ReLUs where each is at home.

With SPU's interpreter there is a row for its square under CHEETAH too: the kernels ``mul_aa`` and one of two
``trunc_a`` behind a linear layer of one input, in a warm session, whose correlations it makes as it goes. Its
``wall_us`` is the server's time in them, waits included, over as many values; it tells no processor time, and of
``rounds_online`` how many messages the client sends.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deepreshape.engines.spu.launch import SpuContext, spu_versions
from deepreshape.engines.spu.profile import PartyRun
from deepreshape.pricing.calibrate import machine, party_seconds
from deepreshape.private.arith.ring import Ring
from deepreshape.private.arith.square import Squaring
from deepreshape.private.crypto.backend import engine, engine_name
from deepreshape.private.program.ops import Linear, Relu, Square, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.base import Protocol
from deepreshape.private.protocols.choose import relu_protocol
from deepreshape.private.protocols.square import Constants, Squares, SquaringLayer
from deepreshape.private.protocols.transfers.transfer_ends import COTS

VALUES = 188_416
"""Of a ResNet-20 on 32 x 32 pixels."""
SQUARES = [("silent", 31, 7, 10), ("silent", 32, 8, 10), ("silent", 37, 10, 11), ("iknp", 31, 7, 10)]
RELUS = [("gc-full", 30, 13), ("gc-sign", 30, 13), ("ot", 30, 13), ("ot:tree", 37, 12)]
Case = tuple[str, int, int, Callable[[int], tuple[Protocol[Any, Any], Any]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 11")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--spu-python", type=Path, help="interpreter of SPU's environment (docs/engines.md)")
    options = parser.parse_args()
    engine().prepare()
    rounds = 3 if options.quick else 11
    rows = [row(*case, rounds) | {"engine": engine_name(), "machine": machine()} for case in cases()]
    if options.spu_python:
        rows.append(spu_row(options.spu_python, 1 << 17, 3))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    columns = [name for name in rows[0] if name not in ("engine", "machine", "rounds", "count")]
    print(" ".join(f"{name:>19}" for name in columns))
    for each in rows:
        print(" ".join(f"{each[name] if each[name] is not None else '':>19}" for name in columns))


def cases() -> list[Case]:
    """Name, bits, how many values are timed at once, and what makes a layer of so many."""
    squares: list[Case] = [
        (f"square, {cot}", bits, 1 << 17, partial(square, cot, Squaring(Ring(bits), before, after)))
        for cot, bits, before, after in SQUARES
    ]
    relus: list[Case] = [
        (word, bits, 1 << (14 if word.startswith("gc") else 16), partial(relu, word, Ring(bits), shift))
        for word, bits, shift in RELUS
    ]
    return squares + relus


def square(cot: str, squaring: Squaring, count: int) -> tuple[Protocol[Any, Any], Any]:
    """A layer of squares without constants."""
    nothing = np.zeros(count, np.uint64)
    layer = SquaringLayer("x", squaring, count, 8192, slice(None), count)
    return Squares(COTS[cot], {"x": Constants(nothing, nothing)}), layer


def relu(word: str, modulus: Ring, shift: int, count: int) -> tuple[Protocol[Any, Any], Any]:
    """A layer of ReLUs."""
    protocol = relu_protocol(ReluConfig.parse(word))
    return protocol, protocol.layer(modulus, Relu("x", ("input",), shift), count)


def row(name: str, bits: int, count: int, make: Callable[[int], tuple[Protocol[Any, Any], Any]], rounds: int) -> Any:
    """One row."""
    protocol, layer = make(VALUES)
    declared, setup = protocol.declared(layer), protocol.setup_declared([layer])
    online = [message for segment in declared.online for message in segment]
    senders = [message.sender for message in online] + ["server"]  # what the client waits for next
    waits = sum(pair == ("client", "server") for pair in pairwise(senders))
    took = [party_seconds(*make(count)) for _ in range(rounds + 1)][1:]
    base = min(sum(party_seconds(*make(16))["setup", role] for role in ("client", "server")) for _ in range(rounds))

    def cpu(*phases: str) -> list[float]:
        return [sum(seconds for (phase, _), seconds in one.items() if phase in phases) for one in took]

    offline = [max(seconds - base, 0.0) for seconds in cpu("setup", "offline")]
    return {
        "protocol": name,
        "bits": bits,
        "bytes_offline": round((sum(declared.traffic["offline"]) + sum(one.nbytes for one in setup)) / VALUES, 2),
        "bytes_online": round(sum(declared.traffic["online"]) / VALUES, 2),
        "rounds_online": waits,
        "cpu_us_offline": round(1e6 * median(offline) / count, 3),
        "cpu_us_online": round(1e6 * median(cpu("online")) / count, 4),
        "count": count,
        "rounds": rounds,
    }


def spu_row(python: Path, count: int, rounds: int) -> dict[str, Any]:
    """The row of SPU's square, medians over the inferences behind the first."""
    nothing, rng = np.zeros(count, np.int64), np.random.default_rng(0)
    ops = Linear("spread", ("input",), count, 8, 8), Square("square", ("spread",), 8, 8)
    weights = {"spread": Weights(rng.integers(-255, 256, (count, 1)), nothing), "square": Weights(nothing, nothing)}
    program = Program(Ring(40), (1,), 12, 1 << 13, ops, weights)
    with SpuContext(program, "cheetah", python) as session:
        for _ in range(rounds + 1):
            session.infer(np.array([0.75]))
        warm = [runs[1:] for runs in session.close()]

    def total(run: PartyRun, part: str) -> float:
        kernels = run.kernels["mul_aa"], run.kernels["trunc_a"]
        if kernels[1].calls != 2:
            raise RuntimeError(f"SPU truncated {kernels[1].calls} times, not twice; its compiler has changed")
        return getattr(kernels[0], part) + getattr(kernels[1], part) / 2

    sent = median(sum(total(run, "sent") for run in both) for both in zip(*warm, strict=True))
    return {
        "protocol": "square, spu cheetah",
        "bits": 64,
        "bytes_offline": 0.0,
        "bytes_online": round(sent / count, 2),
        "rounds_online": round(median(total(run, "sends") for run in warm[0])),
        "cpu_us_offline": None,
        "cpu_us_online": None,
        "wall_us": round(1e6 * median(total(run, "seconds") for run in warm[1]) / count, 2),
        "count": count,
        "rounds": rounds,
        "engine": ", ".join(f"{name} {number}" for name, number in spu_versions(python).items()),
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
