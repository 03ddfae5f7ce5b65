"""What a sign and a ReLU cost between two parties, with and without real shortcuts: declared bytes, which are exact.

    python benchmarks/one_bit.py --out benchmarks/results/one_bit.json
    python benchmarks/one_bit.py --networks react18-m16 --run --out benchmarks/results/one_bit.json
    python benchmarks/one_bit.py --program lowered --protocols gc-stochastic:window ot:window
    python benchmarks/one_bit.py --table benchmarks/results/one_bit.json

Networks have random weights: bytes follow from shapes, from the bits that sign tests are proven to need, and under
``window`` from those that 32 random images took, with the usual margin and none ignored at the lower end. ``--program``
takes what ``deepreshape private lower MODEL --max-loss 0.2`` wrote in their place: windows of a trained network. A
network without shortcuts also loses its RPReLUs to thresholds (``models.react.fuse_thresholds``).

Seconds are predicted, for offline and online, by the package's reference profile (``deepreshape.pricing``) over
loopback and over a WAN of 100 Mbit/s and 50 ms. ``--run`` measures one inference between two processes over loopback,
on a machine where nothing else should run. Rows that are in the file of ``--out`` already stay unless they are made
anew; what was measured stays with them. ``--table`` prints the table of docs/removal.md.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from deepreshape.cost import LINKS, reference
from deepreshape.models import architecture, build
from deepreshape.pricing.calibrate import machine, versions
from deepreshape.pricing.quote import Terms, quote_program
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Integers
from deepreshape.private.program.program import Program, to_fixed
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.base import ReluProtocol
from deepreshape.private.protocols.transfers.relu_ot import OtLayer
from deepreshape.private.service.bundle import Bundle
from deepreshape.private.service.local_run import run_local

NETWORKS = ("react18-m16", "react18-m16-norelus", "react18-m16-noshortcuts", "resnet18-m16")
PROTOCOLS = ("gc-full", "gc-sign", "gc-sign:window", "ot", "ot:window")
SHOWN = {
    "react18-m16-noshortcuts": "signs, and one layer of ReLUs",
    "react18-m16-norelus": "signs behind real shortcuts",
    "react18-m16": "as published: shortcuts and RPReLUs",
    "resnet18-m16": "real: ReLUs",
}
"""What the table has, and what it says of each."""
HEAD = """\
| network | protocol | sign: bits, B | ReLU: bits, B | network, MB | s, predicted | s on a WAN, predicted | s, run |
|---|---|---|---|---|---|---|---|"""


def lowered(name: str) -> tuple[Program, Integers]:
    """The network with random weights, and one input."""
    shape = architecture(name)
    model, generator = build(shape, seed=0), torch.Generator().manual_seed(0)
    x = torch.randn(32, *shape.input, generator=generator)
    with torch.no_grad():
        model.train()(x)
    program = lower(model.eval(), x.numpy()).program
    return program, to_fixed(x[:1].numpy(), program.input_fraction)


def rows_of(name: str, program: Program, protocols: Sequence[str], x: Integers | None) -> Iterator[dict[str, Any]]:
    """One network under each protocol; run on ``x``, if it is given."""
    for word in protocols:
        relu = ReluConfig.parse(word)
        plan = Plan(program.public(), relu)
        declared, row = plan.declared(), {"network": name, "ring": program.modulus.bits, "protocol": word}
        for kind in ("signs", "relus"):
            steps = [step for step in plan.steps if step.declared.counts.get("online", {}).get(kind)]
            steps = [step for step in steps if isinstance(step.protocol, ReluProtocol)]
            if count := sum(step.layer.count for step in steps):
                offline, online = (
                    sum(sum(step.declared.traffic[at]) for step in steps) for at in ("offline", "online")
                )
                row[kind] = {
                    "count": count,
                    "bytes_offline": round(offline / count, 1),
                    "bytes_online": round(online / count, 1),
                    "bits": sorted({_bits(step.layer) for step in steps}),
                }
        online = declared.only(phase="online").bytes
        row["megabytes"] = {"offline": round((declared.bytes - online) / 1e6, 1), "online": round(online / 1e6, 2)}
        quotes = {link: quote_program(program, Terms(word, link=LINKS[link])) for link in ("loopback", "wan")}
        row["predicted_seconds"] = {
            link: {phase: round(quote.report.only(phase=phase).seconds, 2) for phase in ("offline", "online")}
            for link, quote in quotes.items()
        }
        row["profile"] = reference().name
        if x is not None:
            report = run_local(program, x, relu)
            if not (report["agree"] and report["declared_bytes_match"]):
                raise SystemExit(
                    f"{name} under {word}: the parties disagree with the plain program or the declared bytes"
                )
            seconds = {phase: round(report["seconds"][phase], 2) for phase in ("offline", "online")}
            row["measured"] = {"seconds": seconds, "machine": machine()}
        yield row


def _bits(layer: Any) -> int:
    """How many bits of a word a layer's sign test reads; all, where the whole ReLU is garbled."""
    test = layer.relu.sign if isinstance(layer, OtLayer) else layer.sign
    return test.width if test else layer.modulus.bits


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the table in docs/removal.md."""
    lines: list[str] = [HEAD]
    for name, what in SHOWN.items():
        for row in (row for row in rows if row["network"] == name):
            cells = [f"`{name}`, {what}" * (row["protocol"] == PROTOCOLS[0]), f"`{row['protocol']}`"]
            cells += [_cost(row.get(kind)) for kind in ("signs", "relus")]
            cells += [_sum(row["megabytes"]), *map(_sum, row["predicted_seconds"].values())]
            cells.append(_sum(row["measured"]["seconds"]) if "measured" in row else "")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cost(of: dict[str, Any] | None) -> str:
    if of is None:
        return ""
    low, high = of["bits"][0], of["bits"][-1]
    return f"{low if low == high else f'{low} to {high}'}; {of['bytes_offline']:,.0f} + {of['bytes_online']:,.0f}"


def _sum(phases: dict[str, float]) -> str:
    return f"{phases['offline']:.1f} + {phases['online']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument(
        "--program", nargs="*", default=[], type=Path, help="folders of `private lower`, in their place"
    )
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS)
    parser.add_argument("--run", action="store_true", help="measure seconds of one inference between two processes")
    parser.add_argument("--table", type=Path, help="print the table of these rows, and make none")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        print("\n".join(table(json.loads(options.table.read_text())["rows"])))
        return
    there = json.loads(options.out.read_text())["rows"] if options.out and options.out.is_file() else []
    kept = {(row["network"], row["protocol"]): row for row in there}
    for name in options.program or options.networks:
        if options.program:
            program = Bundle.read(name, "server").program
            x = torch.randn(1, *program.input_shape, generator=torch.Generator().manual_seed(0))
            one, name = program.encode(x.clamp(-1, 1).numpy()), name.name
        else:
            program, one = lowered(name)
        for row in rows_of(name, program, options.protocols, one if options.run else None):
            key = row["network"], row["protocol"]
            kept[key] = {"measured": kept[key]["measured"], **row} if "measured" in kept.get(key, {}) else row
            print(json.dumps(row), flush=True)
    if options.out:
        content = {"command": "python benchmarks/one_bit.py", "versions": versions(), "rows": [*kept.values()]}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
