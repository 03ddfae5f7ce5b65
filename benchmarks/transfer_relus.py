"""Bytes and processor time of a ReLU by oblivious transfer, and of the correlated transfers it takes.

    python benchmarks/transfer_relus.py [--quick] [--json]

Rows ``cot``: all processor time of both ends of one session, set-up and checks of nothing included, over its transfers
and the two parties; ``bits_per_cot`` is what one more full round adds. Rows ``ot-chain`` and ``ot-tree``: a batch of
ReLUs over 37 bits with truncation by 12, both parties in one thread on labels drawn beforehand; ``cpu_us`` is the time
of all their steps plus that of their transfers at the ``ns_per_cot`` of this run, ``cpu_online_us`` the online steps
alone. Times are of the threads, not of the wall, and medians over the rounds; compilation is in none. Bytes follow from
the widths of all fields, and the tests hold those against what is sent; ``bytes_silent`` are those of the transfers.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from deepreshape.pricing.calibrate import machine
from deepreshape.private.arith.drelu import Window
from deepreshape.private.arith.ring import Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import engine_name
from deepreshape.private.crypto.labels import Context, Delta, pick
from deepreshape.private.crypto.ot.cot import Cot, CotReceiver, CotSender
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.crypto.ot.lpn import LARGE, Round
from deepreshape.private.crypto.ot.silent import SILENT
from deepreshape.private.crypto.ot.softspoken import BITS, SOFTSPOKEN
from deepreshape.private.protocols.transfers.transfer_relu import ChainRelu, TransferRelu, TreeRelu
from deepreshape.private.transport.memory import MemoryChannel, memory_pair

RING, SHIFT, BATCH = Ring(37), 12, 8192
CASES: list[tuple[str, TransferRelu]] = [
    ("ot-chain", ChainRelu(RING, SHIFT, Window(RING, 6, 14))),
    ("ot-chain", ChainRelu(RING, SHIFT, Window(RING, 0, 14))),
    ("ot-chain", ChainRelu(RING, SHIFT, Window(RING, 0, 37))),
    ("ot-tree", TreeRelu(RING, SHIFT, Window(RING, 0, 14))),
    ("ot-tree", TreeRelu(RING, SHIFT, Window(RING, 0, 37))),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 21, and fewer transfers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    all_rows = rows(options.quick)
    print(json.dumps(all_rows, indent=1) if options.json else table(all_rows))


def rows(quick: bool) -> list[dict[str, Any]]:
    """All rows, those of the transfers first."""
    rounds = 5 if quick else 21
    plan: list[tuple[str, Cot, float, int]] = [
        ("silent", SILENT, marginal_bits(), 2_000_000 if quick else 8_000_000),
        ("softspoken", SOFTSPOKEN, BITS, 100_000 if quick else 1_000_000),
        ("iknp", IKNP, 127.0, 100_000 if quick else 1_000_000),
    ]
    transfer_rows: list[dict[str, Any]] = []
    for name, protocol, bits, count in plan:
        times = [transfer_seconds(protocol, count) for _ in range(2 if quick else 5)]
        ns = [1e9 * seconds / count / 2 for seconds in times[1:] or times]
        row = {"circuit": "cot", "protocol": name, "ns_per_cot": round(median(ns), 1), "bits_per_cot": round(bits, 3)}
        transfer_rows.append(row | {"ns_per_cot_spread": [round(min(ns), 1), round(max(ns), 1)], "count": count})
    silent = transfer_rows[0]["ns_per_cot"]
    relu_rows = [relu_row(name, relu, silent, rounds) for name, relu in CASES]
    return [row | {"engine": engine_name(), "machine": machine()} for row in transfer_rows + relu_rows]


def marginal_bits() -> float:
    """Bits that a transfer costs in a full round of the large size, whose base comes from the round before."""
    full = Round(LARGE, LARGE.trees)
    return 8 * full.nbytes / (full.outputs - full.base)


def transfer_seconds(protocol: Cot, count: int, piece: int = 1 << 17) -> float:
    """Processor time of both ends for ``count`` transfers, from the base transfers to the last label."""
    here, there = memory_pair()
    begin = time.process_time()

    def work(end: CotSender | CotReceiver, channel: MemoryChannel) -> None:
        end.reserve(channel, count)
        for first in range(0, count, piece):
            end.random(channel, min(piece, count - first))

    with ThreadPoolExecutor(2) as pool:
        sender = pool.submit(protocol.sender, here, b"benchmark", Delta(Randomness()), Randomness())
        receiver = pool.submit(protocol.receiver, there, b"benchmark", Randomness())
        ends = [pool.submit(work, sender.result(), here), pool.submit(work, receiver.result(), there)]
        for end in ends:
            end.result()
    return time.process_time() - begin


def relu_row(name: str, relu: TransferRelu, ns_per_cot: float, rounds: int) -> dict[str, Any]:
    """One row: ``BATCH`` ReLUs a round; the first one warms up."""
    times = [relu_seconds(relu, number) for number in range(rounds + 1)][1:]
    offline, online = ([1e6 * seconds[part] / BATCH for seconds in times] for part in (0, 1))
    transfers = relu.transfers + relu.back
    sign = relu.sign
    assert isinstance(sign, Window)
    total = [a + b + 2e-3 * ns_per_cot * transfers for a, b in zip(offline, online, strict=True)]
    messages = relu.messages
    return {
        "circuit": name,
        "bits": RING.bits,
        "window": sign.width,
        "transfers": transfers,
        "bytes_offline": sum(relu.offline_widths) / 8,
        "bytes_online": sum(sum(widths) for _, widths in messages) / 8,
        "bytes_silent": round(transfers * marginal_bits() / 8, 2),
        "bytes_stored": (sum(relu.client_widths) + sum(relu.server_widths)) / 8,
        "rounds_online": len(messages) // 2,
        "cpu_us": round(median(total), 3),
        "cpu_us_spread": [round(min(total), 3), round(max(total), 3)],
        "cpu_online_us": round(median(online), 3),
        "instances": BATCH,
        "rounds": len(times),
    }


def relu_seconds(relu: TransferRelu, number: int) -> tuple[float, float]:
    """Processor time of both parties (offline, online) for a batch, without the transfers."""
    rng, context = Randomness(), Context(b"benchmark", "layer", number)
    there, back = Delta(rng), Delta(rng)
    q, r = labels(relu.transfers, there, rng)
    zero, chosen = labels(relu.back, back, rng)
    client, server, mask = (RING.random(BATCH, rng) for _ in range(3))
    begin = time.thread_time()
    message, client_kept = relu.client_offline(client, mask, r, zero, back, context, rng)
    server_kept = relu.server_offline(message, q, there, chosen, context, rng)
    middle = time.thread_time()
    steps = {"client": relu.client_online(client_kept, BATCH), "server": relu.server_online(server_kept, server)}
    given = {role: next(step) for role, step in steps.items()}
    for sender, _ in relu.messages:
        receiver = "client" if sender == "server" else "server"
        message = given[sender]
        assert message is not None
        given[sender] = next(steps[sender], None)
        try:
            given[receiver] = steps[receiver].send(message)
        except StopIteration:
            break
    return middle - begin, time.thread_time() - middle


def labels(columns: int, delta: Delta, rng: Randomness) -> tuple[Words, Words]:
    """Ideal transfers for a batch: q and r, (columns, BATCH, 2)."""
    q = rng.labels(columns * BATCH)
    q[:, 0] &= ~np.uint64(1 << 63)
    r = pick(q, delta.words, rng.bytes(len(q)) & np.uint8(1))
    return q.reshape(columns, BATCH, 2), r.reshape(columns, BATCH, 2)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a reader."""
    lines = [f"{rows[0]['machine']['cpu']}, load {rows[0]['machine']['load_1min']}; {rows[0]['engine']}"]
    for row in rows:
        shown = {key: value for key, value in row.items() if key not in ("engine", "machine", "circuit")}
        lines.append(f"{row['circuit']:<9} " + "  ".join(f"{key} {value}" for key, value in shown.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
