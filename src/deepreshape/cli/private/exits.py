"""What the commands of two parties do with networks with exits: run them in turn, lower all, say what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepreshape.cli.console import new_table, out, print_json, tell, thousands
from deepreshape.cli.exits import leak_of, with_threshold

if TYPE_CHECKING:
    from deepreshape.cli.models import Images, Inputs, Network
    from deepreshape.cli.private.options import Stages
    from deepreshape.private.program.relu_config import ReluConfig
    from deepreshape.private.service.exits_in_turn import Asked
    from deepreshape.private.service.stop import Stop

COMPARED = 8
"""Inputs on which a program is compared with the network."""


def run_dynamic(
    network: Network,
    inputs: Inputs,
    given: Images,
    stop: Stop,
    relu: ReluConfig,
    progress: Any,
    workers: int | None = None,
) -> dict[str, Any]:
    """Put inputs to exits in turn, each a private query of its own, and report it as of a network.

    Args:
        network: with exits.
        inputs: what formats and the threshold rest on.
        given: inputs to run, (N, C, H, W).
        stop: which exits, and from which confidence on an answer is taken.
        relu: how ReLUs are computed.
        progress: told of bytes.
        workers: of the server.
    """
    import numpy as np

    from deepreshape.cli.models import compare, lowered_exits
    from deepreshape.private.program.program import to_fixed
    from deepreshape.private.service.exits_in_turn import run_in_turn
    from deepreshape.private.service.stop import confidence

    assert network.exits is not None  # noqa: S101 - read_stop says so
    points = stop.points(network.exits.architecture.points)
    threshold, _ = with_threshold(stop, network, inputs)
    lowered = lowered_exits(network, inputs)
    programs = {point: lowered[point].program for point in points}
    done = run_in_turn(
        programs,
        to_fixed(given, programs[points[0]].input_fraction),
        lambda logits: confidence(logits) >= threshold,
        relu,
        progress=progress,
        workers=workers,
    )
    shares = np.bincount(done.ends, minlength=len(points)) / len(given)
    ended = [points[number] for number in done.ends]
    size = inputs.facts.get("upsample")
    beside = [compare(network.at(point), given[i : i + 1], done.logits[i][None], size) for i, point in enumerate(ended)]
    report = done.report(dict(enumerate(map(str, points))))
    report["exit_shares"] = {str(point): float(share) for point, share in zip(points, shares, strict=True)}
    report |= {"leaked_bits": len(points) - 1, "threshold": threshold}
    report["beside_float"] = {
        name: (max if name.startswith("largest") else sum)(each[name] for each in beside) for name in beside[0]
    }
    names = inputs.facts.get("class_names")
    if names and not network.exits.architecture.maps:
        report["answers"] = [names[int(logits.argmax())] for logits in done.logits]
    report["exits"] = [
        {"at": point, "inputs": count, "report": exit_report}
        for point, count, exit_report in zip(points, done.reached, done.reports, strict=True)
    ]
    return report


def print_exits(report: dict[str, Any]) -> None:
    """What every exit was asked and cost, and what was told by it."""
    table = new_table("exit", "inputs asked", "ended there", "ReLUs", "offline, s", "online, s", "MB")
    for row, share in zip(report["exits"], report["exit_shares"].values(), strict=True):
        exit_report, costs = row["report"], ["", "", "", ""]
        if exit_report:
            seconds = [f"{exit_report['seconds'][phase]:.2f}" for phase in ("offline", "online")]
            costs = [thousands(exit_report["relus"]), *seconds, f"{sum(exit_report['bytes'].values()) / 1e6:,.2f}"]
        table.add_row(str(row["at"]), str(row["inputs"]), f"{share:.0%}", *costs)
    out.print(table)
    points = [row["at"] for row in report["exits"]]
    out.print(f"an answer was taken from confidence {report['threshold']:g} on; {leak_of(points)}", highlight=False)
    out.print("of one input in the mean:", highlight=False)


def exits_asked(asked: Sequence[Asked], stages: Stages) -> dict[str, Any]:
    """What a client's query of a network with exits asked, and told; nothing of a program without stages."""
    if 0 in stages.paths:
        return {}
    rows = [
        {"at": one.at, "confidence": one.confidence, "seconds": one.answer.seconds, "bytes": one.answer.bytes}
        for one in asked
    ]
    bits = len(stages.paths) - 1
    return {
        "exit": asked[-1].at,
        "threshold": stages.threshold,
        "asked": rows,
        "exits": list(stages.paths),
        "leaked_bits": bits,
    }


def print_exits_asked(told: dict[str, Any]) -> None:
    """What :func:`exits_asked` says, in words."""
    if told["threshold"] is None:
        out.print(f"exit {told['exit']} answers everything: the server learns nothing of the input", highlight=False)
        return
    steps = ", ".join(f"exit {row['at']} with confidence {row['confidence']:.3g}" for row in told["asked"])
    out.print(f"asked {steps}, where {told['threshold']:g} ends; {leak_of(told['exits'])}", highlight=False)


def lower_exits(network: Network, inputs: Inputs, model: str, to: Path, *, as_json: bool) -> None:
    """Write the programs of all exits, for a server that offers them and a client that asks them in turn.

    Raises:
        ValueError: if the network has no exits.
    """
    from deepreshape.cli.models import compare, lowered_exits
    from deepreshape.private.program import interpret as plain
    from deepreshape.private.program.encoding import digest
    from deepreshape.private.service.bundle import CLIENT_PROGRAM, FACTS, SERVER_PROGRAM, Bundle, Facts
    from deepreshape.private.service.exit_bundle import EXITS, write_exits
    from deepreshape.private.service.stop import Stop

    if network.exits is None:
        raise ValueError(f"--exit all: {model} has no exits; `deepreshape exits train` gives it some")
    lowered, tried, size = lowered_exits(network, inputs), inputs.known[:COMPARED], inputs.facts.get("upsample")
    threshold = None if inputs.labels is None else with_threshold(Stop(), network, inputs)[0]
    facts = Facts(**inputs.facts)
    one = (to / SERVER_PROGRAM).is_file()
    write_exits(to, {point: Bundle(each.program, facts) for point, each in lowered.items()}, threshold)
    if one:
        tell(f"{to} held one program, which those of exits replaced; its clients need the new {CLIENT_PROGRAM}")
    rows: list[dict[str, Any]] = []
    for point, each in lowered.items():
        program = each.program
        beside = compare(network.at(point), tried, program.decode(plain.run(program, program.encode(tried)))[0], size)
        rows.append({"at": point, "digest": digest(program), "relus": program.relus, "beside_float": beside})
    if as_json:
        print_json({"folder": str(to), "threshold": threshold, "exits": rows})
        return
    table = new_table("exit", "ReLUs", f"same class as the network, of {len(tried)} inputs")
    for row in rows:
        table.add_row(str(row["at"]), thousands(row["relus"]), str(row["beside_float"]["same_class"]))
    out.print(table)
    ends = "needs a confidence, as dynamic:0.8" if threshold is None else f"ends from confidence {threshold:g} on"
    out.print(
        f"{SERVER_PROGRAM} in each exit's folder of {to} is the server's secret; the client gets {CLIENT_PROGRAM} and "
        f"{FACTS} of each, and {EXITS}; `query --exit dynamic` {ends}",
        highlight=False,
    )
