"""``private lower``: a model as an integer program in two parts; and the network and inputs that commands take."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import NOTHING_KEPT, out, print_json, stoppable, tell
from deepreshape.cli.convex import GATES, inputs_of, write_gates
from deepreshape.cli.options import DataDir, InputData, Json, ModelArgument
from deepreshape.cli.private.exits import COMPARED, lower_exits
from deepreshape.cli.private.options import MaxLossOption, SamplesOption

if TYPE_CHECKING:
    from deepreshape.cli.models import Inputs, Network
    from deepreshape.private.program.headroom import Headroom
    from deepreshape.private.program.quantize import Lowered
    from deepreshape.private.program.relu_config import ReluConfig
    from deepreshape.private.program.sign_bits import Calibrated

app = typer.Typer()

LOOKED = 256
"""Validation inputs on which `lower` looks at the limits of squares."""


@app.command()
def lower(
    model: ModelArgument,
    to: Annotated[Path, typer.Option("--out", help="Folder for the program's two parts.")],
    exit: Annotated[
        str | None,
        typer.Option(
            "--exit",
            help="Of a network with exits: a stage, up to whose exit; all, for a client that asks them in turn; the "
            "whole without.",
            show_default=False,
        ),
    ] = None,
    samples: SamplesOption = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="JSON with class_names, mean and std for the client, where no saved model has them.",
            show_default=False,
        ),
    ] = None,
    max_loss: MaxLossOption = None,
    relu: Annotated[
        str | None,
        typer.Option(
            help="What --max-loss chooses windows for: gc-stochastic:window (without), or that with neg-pass.",
            show_default=False,
        ),
    ] = None,
    data: InputData = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Turn a model into an integer program: one part with the weights for the server, a public one for the client."""
    from deepreshape.cli.models import compare
    from deepreshape.cli.models import lowered as lowered_of
    from deepreshape.private.program import interpret as plain
    from deepreshape.private.program.encoding import digest
    from deepreshape.private.program.headroom import square_headroom
    from deepreshape.private.program.ops import Relu, Sign
    from deepreshape.private.program.relu_config import ReluConfig
    from deepreshape.private.service.bundle import CLIENT_PROGRAM, FACTS, SERVER_PROGRAM, Bundle, Facts, read_facts
    from deepreshape.private.service.exit_bundle import EXITS

    given = ReluConfig.parse(relu or "gc-stochastic:window")
    if given.protocol != "gc-stochastic" or not given.window:
        raise ValueError(f"--relu {relu} has no windows to choose; gc-stochastic:window has, with neg-pass or without")
    if relu and max_loss is None:
        raise ValueError(f"--relu {relu} is what --max-loss chooses windows for; give that too, or leave both out")
    network, inputs = network_of(model, samples, data, data_dir)
    if exit == "all":
        if facts or max_loss is not None:
            given = f"--facts {facts}" if facts else f"--max-loss {max_loss:g}"
            raise ValueError(f"{given} is for one program, and --exit all writes several; give --exit a stage")
        lower_exits(network, inputs, model, to, as_json=as_json)
        return
    if exit is not None and not exit.isdecimal():
        raise ValueError(f"--exit {exit}: give the stage of an exit, such as 1, or all")
    network = network.at(None if exit is None else int(exit))
    lowered = lowered_of(network, inputs)
    told = read_facts(facts, lowered.program) if facts else Facts(**inputs.facts)
    program, calibrated = lowered.program, None
    if max_loss is not None:
        calibrated = stoppable(lambda: choose_windows(lowered, inputs, max_loss, given), NOTHING_KEPT)
        program = calibrated.program
    tried = inputs.known[:COMPARED]
    outputs = program.decode(plain.run(program, program.encode(tried)))[0]
    beside = compare(network, tried, outputs, inputs.facts.get("upsample"))
    secret = to / SERVER_PROGRAM
    before = secret.read_bytes() if secret.is_file() else None
    Bundle(program, told).write(to)
    if before is not None and before != secret.read_bytes():
        tell(f"{to} held another program, which this one replaced; its clients need the new {CLIENT_PROGRAM}")
    for name in (GATES, EXITS):  # of other programs that were here
        (to / name).unlink(missing_ok=True)
    if network.fitted:
        write_gates(network.fitted, to)
    known = inputs.labels is not None
    windows = {op.name: [op.low, op.high] for op in program.ops if isinstance(op, Relu)}
    windows |= {op.name: [op.low, op.calibrated or op.high] for op in program.ops if isinstance(op, Sign)}
    looked = inputs.validation[:LOOKED] if len(inputs.validation) else tried
    near = square_headroom(program, program.encode(looked)) if program.squares else {}
    if as_json:
        report = {"folder": str(to), "digest": digest(program), "relus": program.relus, "windows": windows}
        report["beside_float"] = beside
        report["headroom"] = {name: asdict(room) for name, room in near.items()}
        if calibrated:
            kept = {"top1_exact": calibrated.exact, "top1_calibrated": calibrated.reached}
            report |= {"images": len(inputs.validation)} | (
                kept if known else {"same_class_percent": calibrated.reached}
            )
        print_json(report)
    else:
        out.print(f"{lowered}", highlight=False)
        print_comparison(beside)
        if near:
            _print_headroom(near, len(looked))
        bits = [high - low for low, high in windows.values()]
        if bits:
            out.print(f"sign tests need {min(bits)} to {max(bits)} bits", highlight=False)
        if calibrated:
            images = f"on {len(inputs.validation):,} validation images, {calibrated.reached:.2f} % with them and "
            text = f"{images}{calibrated.exact:.2f} % with exact signs"
            if not known:
                kept = f"{calibrated.reached:.2f} % of {len(inputs.validation):,} "
                text = f"{kept}samples keep the class of exact signs; no labels were given, and formats are calibrated "
                text += "on these samples too"
                if "upsample" in inputs.facts:
                    text = f"{kept}validation maps' places keep the class of exact signs"
            out.print(f"{text}; {calibrated.tried} settings tried", highlight=False)
        out.print(f"{secret} is the server's secret; the client gets {CLIENT_PROGRAM} and {FACTS}")


def network_of(
    model: str, samples: Path | None, data: str | None, data_dir: Path | None, count: int = 1, row: str | None = None
) -> tuple[Network, Inputs]:
    """The network, a gated one too, and inputs of it."""
    from deepreshape.cli.models import find_network, network_and_inputs
    from deepreshape.convex.saved import is_fitted
    from deepreshape.models.zoo import folder_of

    if is_fitted(folder_of(model)):
        if data:
            raise ValueError(f"--data {data} is for networks of images; --samples and --row give rows to {model}")
        gated = find_network(model)
        assert gated.fitted is not None  # noqa: S101 - is_fitted says so
        return gated, inputs_of(gated.fitted, samples, row, count)
    if row is not None:
        raise ValueError(f"--row is for networks that `convex fit` made, which {model} is not")
    return network_and_inputs(model, samples, data, data_dir, count)


def _print_headroom(near: dict[str, Headroom], count: int) -> None:
    name, room = max(near.items(), key=lambda pair: (pair[1].share, pair[1].largest / pair[1].limit))
    out.print(
        f"squares: {room.share:.1%} of {count} validation inputs come above half of the limit of {name}, the nearest "
        f"({room.largest:.3g} of {room.limit:.3g}); beyond a limit an answer is wrong and neither party sees it",
        highlight=False,
    )


def print_comparison(beside: dict[str, Any]) -> None:
    alike = f"the same class for {beside['same_class']} of {beside['inputs']} inputs"
    if "pixels" in beside:
        alike = f"the same class for {beside['same_pixels']:,} of {beside['pixels']:,} pixels"
    out.print(
        f"beside the network in floating point: {alike}, outputs at most {beside['largest_difference']:.2g} apart "
        f"where the largest is {beside['largest_output']:.2g}",
        highlight=False,
    )


def choose_windows(lowered: Lowered, inputs: Inputs, max_loss: float, relu: ReluConfig) -> Calibrated:
    """The program with low bits chosen on validation data; without labels, its own classes take their place."""
    from deepreshape.private.program import interpret as plain
    from deepreshape.private.program.program import to_fixed
    from deepreshape.private.program.sign_bits import calibrate
    from deepreshape.private.protocols.choose import Protocols
    from deepreshape.private.service.segmented import largest_places

    x, labels = to_fixed(inputs.validation, lowered.program.input_fraction), inputs.labels
    if labels is None:
        labels = largest_places(plain.run(lowered.program, x))
    return calibrate(lowered.program, x, labels, protocols=Protocols(relu), max_loss=max_loss)
