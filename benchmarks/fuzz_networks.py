"""Random networks of everything that is said to run privately, each beside its integer program.

    python benchmarks/fuzz_networks.py --networks 2000 --seed 0 --out benchmarks/results/fuzz_networks.json

Counts are held against arithmetic on the shapes of calls, and layer records against the plan of the program. The
networks and the check are ``tests/support/random_networks.py``; the suite runs some of them. A network whose program is
beyond its bound, whose counts or layers are others, or that is refused, is listed with its seed. The result is counts,
not times.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests",)]

from support.random_networks import RandomNetwork, check  # noqa: E402


def main() -> None:
    """Check so many networks; exit 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # what a program loses is looked at in its fields
    wrong: dict[int, str] = {}
    kinds = Counter[str]()
    for seed in range(given.seed, given.seed + given.networks):
        words = RandomNetwork(seed).words
        kinds.update({word.split(" (")[0].rstrip("0123456789 ") for word in words})
        if problem := check(seed):
            wrong[seed] = problem
            print(seed, problem, words, flush=True)
    print(f"{given.networks} networks, {len(wrong)} wrong")
    if given.out:
        command = f"benchmarks/fuzz_networks.py --networks {given.networks} --seed {given.seed}"
        content = {"command": command, "networks": given.networks, "wrong": wrong, "with": dict(sorted(kinds.items()))}
        given.out.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
