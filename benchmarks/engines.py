"""The same program on our runtime and on SPU, in one run, interleaved; a row for each engine and network.

    python benchmarks/engines.py --spu-python VENV/bin/python --out benchmarks/results/engines.jsonl

A table of the same name with the suffix .md is written beside it.

    python benchmarks/engines.py --spu-python VENV/bin/python --networks resnet20 --relus --peers cheetah \
        --variants gc-sign ot ot:window auto --links loopback lan wan --rounds 1

Parties are processes on this machine, over loopback: ours over TLS 1.3, SPU's over plain TCP. ``--links`` slows that
down by a delay and a rate in each direction, ours in the transport (``transport.tls.EmulatedLink``), SPU's in a relay
(``emulated.py``); ``auto`` chooses for the link of the row. In every round each
engine makes one inference, one after the other, so that all see the same machine. Ours makes keys, base transfers and
all offline material anew in every round; SPU makes its keys and first correlations in ``first_call``, a round of its
own, and is then warm. Networks have random weights, on which run time does not depend; ``--model`` names trained ones.
``max_difference`` is the largest distance of an output from the plain integer program's, in real units;
``expected_difference`` and ``bound`` say how far it should be, and how far it can be at all (``engines/real.py``).

*Shares.* SPU's kernels as the server's log has them: the sign bits and the product with them are ReLU, all else linear.
Ours: the server's seconds by layer, waits included, in the first of the rounds. A ReLU layer's
time includes its truncation, for us; for SPU truncation counts as linear.

Rows with ``kind: relu`` are for a layer of that many ReLUs behind a linear layer of one input, without which SPU would
let the client rectify its own input by itself. In every row ``us_per_relu`` and ``bytes_per_relu`` are the ReLUs' share
divided by their number.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from emulated import Relays
from numpy.typing import NDArray
from torch import nn

from deepreshape.cost import LINKS
from deepreshape.engines.real import bound, expected
from deepreshape.engines.spu.launch import SpuContext, SpuOutput, spu_versions
from deepreshape.engines.spu.party import CLIENT, FRACTION, PARTIES, SERVER
from deepreshape.engines.spu.profile import PartyRun
from deepreshape.models import architecture, build
from deepreshape.models.saved import load, manifest_of
from deepreshape.pricing.calibrate import machine
from deepreshape.pricing.quote import Terms, chosen_relus
from deepreshape.private.arith.ring import Ring
from deepreshape.private.crypto.backend import engine_name
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Linear, Relu, Weights
from deepreshape.private.program.program import Program, from_fixed, to_fixed
from deepreshape.private.service.local_run import run_local
from deepreshape.private.transport.tls import EmulatedLink
from deepreshape.training.runs import write_rows

SHAPE = (3, 32, 32)
COLUMNS = (
    *("network", "ReLUs", "link", "engine", "parties", "seconds", "first call, s", "MB", "rounds (ours), sends (SPU)"),
    *("ReLUs' time", "ReLUs' bytes", "us a ReLU", "B a ReLU", "max difference", "expected"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spu-python", type=Path, required=True, help="interpreter of SPU's environment")
    parser.add_argument("--networks", nargs="*", default=["resnet20", "cnn"])
    parser.add_argument("--model", nargs="*", type=Path, default=[], help="folders of trained models")
    parser.add_argument("--relus", nargs="*", type=int, default=[1 << 16, 1 << 20])
    parser.add_argument("--most", type=int, default=1 << 17, help="largest layer of ReLUs for ours: 3 KB of disk each")
    parser.add_argument("--variants", nargs="*", default=["gc-full", "gc-sign"], help="of our ReLUs")
    parser.add_argument("--peers", nargs="*", default=list(PARTIES), choices=list(PARTIES), help="protocols of SPU")
    parser.add_argument("--links", nargs="*", default=["loopback"], choices=list(LINKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = machine()
    about = {
        "machine": f"{here['cpu']}, {here['cpus']} cores, all parties on one machine, loopback",
        "load_1min": here["load_1min"],
        "versions": {name: version(name) for name in ("deepreshape", "numpy", "cryptography", "tenseal")}
        | {"garbling": engine_name()}
        | {f"spu's {name}": number for name, number in spu_versions(options.spu_python).items()},
        "command": f"python benchmarks/engines.py --spu-python PYTHON --networks {' '.join(options.networks)} --model "
        f"{' '.join(path.name for path in options.model)} --relus {' '.join(map(str, options.relus))} "
        f"--most {options.most} --variants {' '.join(options.variants)} --peers {' '.join(options.peers)} "
        f"--links {' '.join(options.links)} --rounds {options.rounds}",
    }
    cases = [Case("network", name, *network(name)) for name in options.networks]
    cases += [Case("network", path.name, *trained(path)) for path in options.model]
    cases += [Case("relu", f"{count} ReLUs", *relus(count)) for count in options.relus]
    rows: list[dict[str, Any]] = []
    for case, link in ((case, link) for case in cases for link in options.links):
        fits = case.kind == "network" or case.program.relus <= options.most
        ours = options.variants if fits else []
        for row in measure(case, link, options, ours):
            rows.append(row | about)
            print(json.dumps(rows[-1]), flush=True)
            if options.out:
                write_rows(options.out, rows)
                options.out.with_suffix(".md").write_text(table(rows))


@dataclass(frozen=True)
class Case:
    """A program and an input for it, int64 of its input shape."""

    kind: str
    name: str
    program: Program
    x: NDArray[np.int64]


def network(name: str) -> tuple[Program, NDArray[np.int64]]:
    model = cnn() if name == "cnn" else build(architecture(name), seed=0)
    generator = torch.Generator().manual_seed(0)
    return integers(model, *(torch.randn(8, *SHAPE, generator=generator) for _ in range(2)))


def cnn() -> nn.Module:
    """Three convolutions and two pools on 32x32: 40,960 ReLUs."""
    torch.manual_seed(0)
    widths = [(3, 16), (16, 16), (16, 32)]
    first, second, third = [nn.Sequential(nn.Conv2d(*pair, 3, padding=1), nn.ReLU()) for pair in widths]
    return nn.Sequential(first, second, nn.AvgPool2d(2), third, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2048, 10))


def trained(folder: Path) -> tuple[Program, NDArray[np.int64]]:
    from deepreshape.data import Dataset

    model = load(folder)
    manifest = manifest_of(model)
    data = Dataset.load(manifest.dataset, None)
    return integers(model, data.normalize(data.train.images[:256]), data.normalize(data.test.images[:1]))


def integers(model: nn.Module, known: torch.Tensor, new: torch.Tensor) -> tuple[Program, NDArray[np.int64]]:
    lowered = lower(model.eval(), known.contiguous().numpy())
    return lowered.program, to_fixed(new[0].numpy(), lowered.program.input_fraction)


def relus(count: int) -> tuple[Program, NDArray[np.int64]]:
    """A linear layer of one input, and as many ReLUs as outputs."""
    ops = Linear("spread", ("input",), count, 8, 8), Relu("relu", ("spread",), 8)
    weight = np.random.default_rng(0).integers(-255, 256, (count, 1))
    weights = {"spread": Weights(weight, np.zeros(count, np.int64))}
    return Program(Ring(32), (1,), 12, 1 << 20, ops, weights), np.array([1 << 20])


def measure(case: Case, at: str, options: argparse.Namespace, ours: list[str]) -> list[dict[str, Any]]:
    """The rows of one case over one link: all engines take turns in every round."""
    link = None if at == "loopback" else EmulatedLink(LINKS[at].latency, LINKS[at].up / 8)
    fraction = case.program.values[case.program.outputs[0]].fraction
    output = from_fixed(plain.run(case.program, case.x[None])[0], fraction)
    x = from_fixed(case.x, case.program.input_fraction)
    relus = {word: chosen_relus(case.program, Terms(word, link=LINKS[at]))[0] for word in ours}
    reports_of: dict[str, list[dict[str, Any]]] = {word: [] for word in ours}
    with ExitStack() as stack:
        sessions: dict[str, SpuContext] = {}
        for name in options.peers:
            through = {"reach": stack.enter_context(closing(Relays(link))).reach} if link else {}
            sessions[name] = stack.enter_context(SpuContext(case.program, name, options.spu_python, **through))
        answers = {name: [session.infer(x)] for name, session in sessions.items()}
        for _ in range(options.rounds):
            for word, reports in reports_of.items():
                reports.append(run_local(case.program, case.x[None], relus[word], link=link))
            for name, session in sessions.items():
                answers[name].append(session.infer(x))
        logs = {name: session.close() for name, session in sessions.items()}
    about = {"kind": case.kind, "network": case.name, "relus": case.program.relus, "link": at, "n": options.rounds}
    rows = [about | our_row(word, reports_of[word], fraction) | {"relu": str(relus[word])} for word in ours]
    limits = {
        "expected_difference": float(f"{expected(case.program, FRACTION).max():.3g}"),
        "bound": float(f"{bound(case.program, FRACTION).max():.3g}"),
    }
    rows += [about | spu_row(name, answers[name], logs[name], output) | limits for name in sessions]
    return [row | per_relu(row) for row in rows]


def per_relu(row: dict[str, Any]) -> dict[str, float]:
    seconds, size = row["seconds"]["total"]["median"], row["bytes"]["total"]
    return {
        "us_per_relu": round(1e6 * seconds * row["relu_share"]["seconds"] / row["relus"], 2),
        "bytes_per_relu": round(size * row["relu_share"]["bytes"] / row["relus"], 1),
    }


def our_row(word: str, reports: list[dict[str, Any]], fraction: int) -> dict[str, Any]:
    first = reports[0]
    share = relu_seconds(first)
    every = {phase: [report["seconds"][phase] for report in reports] for phase in ("offline", "online")}
    every["total"] = [sum(both) for both in zip(*every.values(), strict=True)]
    return {
        "engine": f"deepreshape {word}",
        "parties": 2,
        "seconds": {phase: spread(seconds) for phase, seconds in every.items()},
        "bytes": first["bytes"] | {"total": sum(first["bytes"].values())},
        "rounds": first["rounds"],
        "relu_share": {"seconds": round(share, 3), "bytes": round(relu_bytes(first), 3)},
        "linear_share": {"seconds": round(1 - share, 3), "bytes": round(1 - relu_bytes(first), 3)},
        "max_difference": max(report["max_lsb_difference"] for report in reports) * 2.0**-fraction,
        "exact": all(report["agree"] for report in reports),
    }


def relu_seconds(report: dict[str, Any]) -> float:
    """What part of the server's seconds in layers goes to layers with ReLUs."""
    took = [(row["relus"] > 0, sum(row["seconds"]["server"].values())) for row in report["layers"]]
    return sum(seconds for is_relu, seconds in took if is_relu) / sum(seconds for _, seconds in took)


def relu_bytes(report: dict[str, Any]) -> float:
    """What part of the bytes goes to layers with ReLUs."""
    sizes = [(row["relus"] > 0, sum(row["bytes"].values())) for row in report["layers"]]
    return sum(size for is_relu, size in sizes if is_relu) / sum(size for _, size in sizes)


def spu_row(
    protocol: str, answers: list[SpuOutput], logs: list[list[PartyRun]], output: NDArray[np.float64]
) -> dict[str, Any]:
    warm = [runs[1:] for runs in logs]
    revealed = 8 * output.size * (len(logs) - 1)  # the others' shares of the output; the log does not count them
    server_runs, all_runs = warm[SERVER], [run for runs in warm for run in runs]
    seconds = sum(run.relu.seconds for run in server_runs) / sum(run.seconds for run in server_runs)
    size = sum(run.relu.sent for run in all_runs) / sum(run.sent for run in all_runs)
    return {
        "engine": f"spu {protocol}",
        "parties": len(logs),
        "seconds": {
            "first_call": round(answers[0].seconds, 3),
            "total": spread([answer.seconds for answer in answers[1:]]),
        },
        "bytes": {
            "first_call": sum(runs[0].sent for runs in logs) + revealed,
            "total": round(median(sum(run.sent for run in runs) for runs in zip(*warm, strict=True))) + revealed,
        },
        "sends": round(median(run.sends for run in warm[CLIENT])),
        "relu_share": {"seconds": round(seconds, 3), "bytes": round(size, 3)},
        "linear_share": {"seconds": round(1 - seconds, 3), "bytes": round(1 - size, 3)},
        "kernels": kernels(warm[SERVER][-1]),
        "max_difference": max(float(np.abs(answer.output - output).max()) for answer in answers),
    }


def kernels(run: PartyRun) -> dict[str, Any]:
    """The kernels above a hundredth of a run's time."""
    slowest_first = sorted(run.kernels.items(), key=lambda item: -item[1].seconds)
    return {name: kernel._asdict() for name, kernel in slowest_first if kernel.seconds > 0.01 * run.seconds}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a reader."""
    made_with = ", ".join(f"{name} {number}" for name, number in rows[0]["versions"].items())
    lines = [
        f"# Engines side by side\n\n`{rows[0]['command']}`\n",
        f"{rows[0]['machine']}, load {rows[0]['load_1min']} at the start; {made_with}. "
        f"Medians of {rows[0]['n']}, smallest and largest in brackets. Ours: offline + online.\n",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in rows:
        took = row["seconds"]
        whole = f"{took['total']['median']} ({took['total']['min']} to {took['total']['max']})"
        if "online" in took:
            whole += f" = {took['offline']['median']} + {took['online']['median']}"
        share = row["relu_share"]
        cells = [row["network"], f"{row['relus']:,}", row.get("link", "loopback"), row["engine"], row["parties"]]
        cells += [whole, took.get("first_call", "")]
        cells += [f"{row['bytes']['total'] / 1e6:,.1f}", row.get("rounds", row.get("sends"))]
        cells += [f"{share['seconds']:.0%}", f"{share['bytes']:.0%}", row["us_per_relu"], row["bytes_per_relu"]]
        cells += [f"{row['max_difference']:.1e}", row.get("expected_difference", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
