"""Private inferences of networks with all layers of torchvision's, at an eighth or a sixteenth of their channels.

    python benchmarks/torchvision_shapes.py --out benchmarks/results/torchvision-shapes.jsonl

The networks are ``tests/support/torchvision_shapes.py``, with random weights and statistics of their own, on images of
32x32. A row each: its ReLUs with those of max pools, multiply-adds, bytes of one inference, and whether the two
processes' result is that of the plain program bit for bit. Counts and bytes only: no time is told. One that does not
run has the reason in its row, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests",)]

from support.lowered import drawn, prepared  # noqa: E402
from support.torchvision_shapes import DEEP  # noqa: E402

from deepreshape.counting import count  # noqa: E402
from deepreshape.private.errors import PrivateError  # noqa: E402
from deepreshape.private.program.lower import lower  # noqa: E402
from deepreshape.private.program.ops import ProgramError  # noqa: E402
from deepreshape.private.program.program import to_fixed  # noqa: E402
from deepreshape.private.program.relu_config import ReluConfig  # noqa: E402
from deepreshape.private.service.local_run import run_local  # noqa: E402
from deepreshape.training.runs import write_rows  # noqa: E402


def row(name: str, relu: str) -> dict[str, Any]:
    """One inference of a network between two processes, and what it took."""
    torch.manual_seed(0)
    make, side = DEEP[name]
    x = drawn(8, 3, side, side)
    model = prepared(make(), x)
    total = count(model, (3, side, side)).total
    known = {"network": name, "input": [3, side, side], "relu": relu, "parameters": total.params, "macs": total.macs}
    try:
        program = lower(model, x).program
        report = run_local(program, to_fixed(x[:1], program.input_fraction), ReluConfig.parse(relu))
    except (ProgramError, PrivateError) as error:
        return known | {"refused": str(error)}
    told = ("relus", "agree", "declared_bytes_match", "max_lsb_difference", "rounds", "bytes")
    return known | {"modulus": str(program.modulus), "layers": len(program.ops)} | {key: report[key] for key in told}


def main() -> None:
    """Run them; exit 1 if one does not run, or gives something else than the plain program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"all of them unless given: {', '.join(DEEP)}")
    parser.add_argument("--relu", default="gc-sign")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # what random weights lose by their formats is not looked at here
    rows: list[dict[str, Any]] = []
    for name in given.networks or DEEP:
        rows.append(row(name, given.relu))
        print(json.dumps(rows[-1]), flush=True)
    if given.out:
        write_rows(given.out, rows)
    sys.exit(not all(one.get("agree") for one in rows))


if __name__ == "__main__":
    main()
