"""Time of garbling and evaluating a shared ReLU, as a multiple of bulk AES alone in the same round.

    python benchmarks/garbling.py [--quick] [--json] [--out FILE]

Every engine that runs here is measured: NumPy, and if llvmlite is installed the fused one with the widest vectors, with
AES-NI, and with all processors. A round garbles one batch, evaluates it, and encrypts as many blocks with one AES-ECB
object of the ``cryptography`` package, one thread, in pieces of the size that the NumPy engine uses: four blocks an AND
gate against garbling, two against evaluation. Times are processor time of the one thread, so other load on the machine
matters less, but wall time where an engine has several threads. Times and ratios are medians over the rounds, and their
spreads are the smallest and the largest. Compilation is in no round. Not in the times: drawing input labels, oblivious
transfer, the rows behind a sign, the wire. Bytes are what both parties send for one ReLU, as declared (the tests hold
that against the ledger); where only the sign is garbled, with a truncation by 12 bits. ``calibrated`` tests 14 bits.
Rows ``ot-chain``, ``ot-tree`` and ``cot`` are those of ``transfer_relus.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import transfer_relus
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from deepreshape.pricing.calibrate import machine
from deepreshape.private.arith.drelu import Parity, Sign, Window, Wrap
from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, PRIME_32, Field, Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import Engine, UnavailableError, named, using
from deepreshape.private.crypto.gc.halfgates import evaluate, garble, table_shape
from deepreshape.private.crypto.labels import Context, Delta, permute_bits, pick
from deepreshape.private.program.relu_config import GC_FULL, ReluConfig
from deepreshape.private.protocols.garbled.label_transfer import GarbledLayer
from deepreshape.private.protocols.garbled.relu_gc import ReluGc
from deepreshape.private.protocols.garbled.relu_sign import ReluSign

CASES: list[tuple[str, Ring | Field, Sign | None]] = [
    ("gc-full", Ring(16), None),
    ("gc-full", Ring(32), None),
    ("gc-full", Ring(37), None),
    ("gc-full", Field(CIRCA_PRIME), None),
    ("gc-full", Field(PRIME_32), None),
    ("gc-full", Field(DELPHI_PRIME), None),
    ("gc-sign", Ring(37), Window(Ring(37), 0, 37)),
    ("gc-sign", Field(DELPHI_PRIME), Parity(Field(DELPHI_PRIME))),
    ("gc-stochastic", Ring(37), Window(Ring(37), 12, 37)),
    ("gc-stochastic", Field(CIRCA_PRIME), Wrap(Field(CIRCA_PRIME), 12)),
    ("calibrated", Ring(37), Window(Ring(37), 12, 26)),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="7 rounds instead of 41, fewer where 1.5 s are over")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    limits = (7, 1.5) if options.quick else (41, 600.0)
    rows = [measure(chosen, threads, case, *limits) for chosen, threads in engines() for case in CASES]
    without = transfer_relus.rows(options.quick)
    document = json.dumps([*rows, *without], indent=1)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(document + "\n")
    print(document if options.json else f"{table(rows)}\n\n{transfer_relus.table(without)}")


def engines() -> list[tuple[Engine, int]]:
    """What runs here, and its threads."""
    choices: list[tuple[Engine, int]] = [(named("numpy"), 1)]
    try:
        choices.append((named("fused", 1), 1))
    except UnavailableError:
        return choices
    from deepreshape.private.crypto.backend.fused import Fused

    choices.append((Fused(1, 1), 1))
    threads = os.cpu_count() or 1
    return [*choices, (named("fused", threads), threads)] if threads > 1 else choices


def measure(
    chosen: Engine,
    threads: int,
    case: tuple[str, Ring | Field, Sign | None],
    rounds: int,
    limit: float,
    count: int = GC_FULL.batch,
) -> dict[str, Any]:
    """One row: a whole ReLU without truncation or the sign of one, ``count`` instances a round.

    No round but the second begins after ``limit`` seconds of wall time.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    name, modulus, sign = case
    layer = GarbledLayer("benchmark", modulus, 0 if sign is None else 12, count, "server", count, sign)
    circuit = layer.circuit
    offset, rng = Delta(Randomness()), Randomness()
    labels = rng.labels(circuit.width * count).reshape(-1, count, 2)
    active = pick(labels, offset.words, rng.bytes(circuit.width * count).reshape(-1, count) & np.uint8(1))
    room = np.empty(int(np.prod(table_shape(circuit, count))), np.uint64)
    times: dict[str, list[float]] = {"aes_garble": [], "garble": [], "aes_evaluate": [], "evaluate": []}
    begin = time.perf_counter()
    for number in range(rounds + 1):
        if number > 1 and time.perf_counter() - begin > limit:
            break
        context = Context(os.urandom(32), "benchmark", number)
        marks = [clock()]
        aes_alone(2 * circuit.and_gates, 2 * count)
        marks.append(clock())
        with using(chosen):
            tables, outputs = garble(circuit, offset, labels, context, room)
            permute_bits(outputs)
        marks.append(clock())
        aes_alone(2 * circuit.and_gates, count)
        marks.append(clock())
        with using(chosen):
            permute_bits(evaluate(circuit, tables, active, context))
        marks.append(clock())
        if number:  # the first round warms up
            for work, start, stop in zip(times, marks, marks[1:], strict=False):
                times[work].append((stop - start) / count * 1e6)
    protocol = ReluGc(ReluConfig()) if layer.sign is None else ReluSign(ReluConfig("gc-stochastic"))
    there = protocol.declared(layer).traffic
    row: dict[str, Any] = {
        "engine": chosen.name,
        "engine_about": chosen.about,
        "threads": threads,
        "circuit": name,
        "k": getattr(sign, "low", 0),
        "modulus": f"2^{modulus.bits}" if isinstance(modulus, Ring) else str(modulus.order),
        "bits": modulus.bits,
        "and_gates": circuit.and_gates,
    }
    for work in ("garble", "evaluate"):
        ratios = [a / b for a, b in zip(times[work], times[f"aes_{work}"], strict=True)]
        row[f"{work}_us"] = round(median(times[work]), 3)
        row[f"{work}_us_spread"] = [round(min(times[work]), 3), round(max(times[work]), 3)]
        row[f"{work}_over_aes"] = round(median(ratios), 2)
        row[f"{work}_over_aes_spread"] = [round(min(ratios), 2), round(max(ratios), 2)]
        row[f"aes_{work}_us"] = round(median(times[f"aes_{work}"]), 3)
    row |= {f"bytes_{phase}": round(sum(ways) / count, 2) for phase, ways in there.items()}
    return row | {"instances": count, "rounds": len(times["garble"]), "machine": machine(), "versions": versions()}


def aes_alone(calls: int, blocks: int) -> None:
    """``calls`` encryptions of ``blocks`` blocks each under one key, from buffer to buffer."""
    source, target = bytes(16 * blocks), bytearray(16 * blocks + 16)
    encrypt = Cipher(algorithms.AES(bytes(16)), modes.ECB()).encryptor().update_into  # noqa: S305
    for _ in range(calls):
        encrypt(source, target)


def versions() -> dict[str, str]:
    """What this runs with."""
    optional = ["llvmlite"] if find_spec("llvmlite") else []
    return {
        "python": platform.python_version(),
        "openssl": backend.openssl_version_text(),
        **{name: version(name) for name in ("deepreshape", "numpy", "cryptography", *optional)},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a reader."""
    head = rows[0]
    lines = [
        f"{head['machine']['cpu']}, {head['machine']['cpus']} CPUs, load {head['machine']['load_1min']}; "
        + ", ".join(f"{name} {number}" for name, number in head["versions"].items()),
        f"{head['instances']} instances a round, medians over "
        f"{min(row['rounds'] for row in rows)} to {max(row['rounds'] for row in rows)} rounds (smallest to largest)",
        f"{'engine':<40} {'circuit':>13} {'k':>2} {'modulus':>14} {'ANDs':>5} {'garble us':>20} {'x AES':>18} "
        f"{'evaluate us':>20} {'x AES':>18} {'offline B':>10} {'online B':>9}",
    ]
    for row in rows:
        cells = [
            f"{row[key]:.2f} ({row[key + '_spread'][0]:.2f}-{row[key + '_spread'][1]:.2f})"
            for key in ("garble_us", "garble_over_aes", "evaluate_us", "evaluate_over_aes")
        ]
        name = f"{row['engine']}: {row['engine_about']}"
        what = f"{row['circuit']:>13} {row['k']:>2} {row['modulus']:>14} {row['and_gates']:>5}"
        lines.append(
            f"{name:<40} {what} {cells[0]:>20} {cells[1]:>18} "
            f"{cells[2]:>20} {cells[3]:>18} {row['bytes_offline']:>10} {row['bytes_online']:>9}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
