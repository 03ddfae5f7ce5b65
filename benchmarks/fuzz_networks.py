"""Random networks of everything that is said to run privately, each beside its integer program.

    python benchmarks/fuzz_networks.py --networks 2000 --seed 0 --out benchmarks/results/fuzz_networks.json

Counts are held against arithmetic on the shapes of calls, and layer records against the plan of the program. The
networks and the check are ``tests/support/random_networks.py``; the suite runs some of them. A network whose program is
beyond its bound, whose counts or layers are others, or that is refused, is listed with its seed. The result is counts,
not times, and is written when all networks are checked. What is checked so far is kept in ``OUT.part``: the same
command goes on there after Ctrl-C, as long as the code is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from support.random_networks import RandomNetwork, check  # noqa: E402

EVERY = 20
"""After so many networks a line says how far it is."""


def main() -> None:
    """Check so many networks; exit 1 if one is wrong or refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # what a program loses is looked at in its fields
    command = f"benchmarks/fuzz_networks.py --networks {given.networks} --seed {given.seed}"
    part = given.out.with_name(f"{given.out.name}.part") if given.out else None
    head = {"command": command, "code": _code()}
    rows = _kept(part, head) if part else []
    try:
        for seed in range(given.seed + len(rows), given.seed + given.networks):
            words = RandomNetwork(seed).words
            problem = check(seed)
            rows.append({"seed": seed, "wrong": problem, "words": words})
            if part:
                with part.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
            if problem:
                print(seed, problem, words, flush=True)
            if len(rows) % EVERY == 0:
                problems = sum(bool(row["wrong"]) for row in rows)
                print(f"{len(rows)} of {given.networks}, {problems} wrong or refused", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        then = "the same command goes on from here" if part else "nothing was kept"
        print(f"stopped after {len(rows)} of {given.networks} networks; {then}", file=sys.stderr)
        sys.exit(130)
    problems = {row["seed"]: row["wrong"] for row in rows if row["wrong"]}
    refused = {seed: problem for seed, problem in problems.items() if problem.startswith("refused")}
    wrong = {seed: problem for seed, problem in problems.items() if seed not in refused}
    print(f"{given.networks} networks, {len(wrong)} wrong, {len(refused)} refused")
    if given.out and part:
        kinds = Counter[str]()
        for row in rows:
            kinds.update({word.split(" (")[0].rstrip("0123456789 ") for word in row["words"]})
        content = {"command": command, "networks": given.networks, "wrong": wrong, "refused": refused}
        content["with"] = dict(sorted(kinds.items()))
        given.out.write_text(json.dumps(content, indent=1) + "\n")
        part.unlink()
    sys.exit(bool(problems))


def _code() -> str:
    """A digest of the code that is checked and that checks."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests" / "support").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _kept(part: Path, head: dict[str, str]) -> list[dict[str, Any]]:
    """What a run of the same command and code has checked; a last line that was cut is left out."""
    lines = part.read_text().splitlines() if part.is_file() else []
    if not lines or lines[0] != json.dumps(head):
        part.write_text(json.dumps(head) + "\n")
        return []
    rows: list[dict[str, Any]] = []
    for line in lines[1:]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    part.write_text("".join(f"{json.dumps(each)}\n" for each in (head, *rows)))
    return rows


if __name__ == "__main__":
    main()
