"""How few columns of the silent transfers' code hold as many rows as columns: the core that an attacker solves for.

    python benchmarks/lpn_cores.py [--secret-bits 14] [--json]

The code has rows of ten random columns (``crypto/ot/lpn.py``). From all columns, the one that the fewest remaining rows
use is removed, with those rows, as long as as many rows remain as columns. What is left, as a part of all columns,
depends on the ratio of rows to columns and hardly on their number, so it is measured on codes of the same ratio that
are smaller. ``random`` is what a random set of columns needs, by the formula; ``core`` what is found; ``ratio`` the
one by the other, which ``lpn.CORE`` must not exceed.
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import replace

import numpy as np

from deepreshape.private.crypto.backend.numpy import LOCALITY
from deepreshape.private.crypto.ot.lpn import LARGE, SMALL, Size, random_set, security_bits


def core(columns: int, rows: int, seed: int) -> int:
    """Columns that are left of a random code."""
    indices = np.random.default_rng(seed).integers(0, columns, (rows, LOCALITY))
    uses: list[list[int]] = [[] for _ in range(columns)]
    for row, used in enumerate(indices.tolist()):
        for column in set(used):
            uses[column].append(row)
    degrees = [len(rows) for rows in uses]
    queue = [(degree, column) for column, degree in enumerate(degrees)]
    heapq.heapify(queue)
    present, gone, left = [True] * rows, [False] * columns, rows
    distinct = [list(set(used)) for used in indices.tolist()]
    smallest = remaining = columns
    while queue and left:
        degree, column = heapq.heappop(queue)
        if gone[column] or degree != degrees[column]:
            continue
        gone[column] = True
        remaining -= 1
        for row in uses[column]:
            if present[row]:
                present[row] = False
                left -= 1
                for other in distinct[row]:
                    if not gone[other]:
                        degrees[other] -= 1
                        heapq.heappush(queue, (degrees[other], other))
        if left >= remaining:
            smallest = remaining
    return smallest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secret-bits", type=int, default=14, help="columns of the codes, as a power of two")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = []
    for name, size in {"SMALL": SMALL, "LARGE": LARGE, "half of LARGE": replace(LARGE, secret_bits=17)}.items():
        rows.append({"size": name} | measure(size, 1 << options.secret_bits))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def measure(size: Size, columns: int) -> dict[str, float]:
    """One row."""
    core_share = core(columns, round(columns * size.outputs / size.secret), 1) / columns
    expected = random_set(size) / size.secret
    return {
        "columns": columns,
        "random": round(expected, 4),
        "core": round(core_share, 4),
        "ratio": round(core_share / expected, 4),
        "security_bits": round(security_bits(size), 1),
    }


if __name__ == "__main__":
    main()
