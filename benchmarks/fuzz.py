"""Mutated inputs for every reader of bytes from outside, as many as are asked for.

    python benchmarks/fuzz.py --cases 20000 --seed 1 --out benchmarks/results/fuzz.json

The table of readers is ``tests/support/fuzz.py``; the suite runs a few hundred cases of each. A fault ends the run with
the input that shows it. The result is counts, not times.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests",)]

from support.fuzz import TARGETS, fuzz  # noqa: E402
from support.fuzz_peers import PEERS  # noqa: E402

HEAVY = {"model's manifest": 20, "model's weights": 20, "queries": 20, "spent": 20}
HEAVY |= dict.fromkeys(PEERS.keys() - {"ciphertext"}, 100)
HEAVY |= dict.fromkeys((name for name in TARGETS if "gated" in name or "own" in name or "splits" in name), 10)
"""How many times fewer cases a reader gets that opens many files for each."""


def main() -> None:
    """Fuzz every reader, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all unless given")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results: dict[str, dict[str, int]] = {}
    for name in given.targets or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = dict(fuzz(name, Path(folder), given.cases // HEAVY.get(name, 1), given.seed))
        print(name, results[name], flush=True)
    if given.out:
        content = {"command": f"benchmarks/fuzz.py --cases {given.cases} --seed {given.seed}", "outcomes": results}
        given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
