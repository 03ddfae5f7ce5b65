"""``private local``: both parties on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import (
    NOTHING_KEPT,
    bytes_bar,
    new_table,
    out,
    print_assigned,
    print_json,
    print_segmented,
    stoppable,
    thousands,
    write_pictures,
)
from deepreshape.cli.convex import predictions, told_by
from deepreshape.cli.exits import read_stop
from deepreshape.cli.options import MODEL, DataDir, ExitWord, InputData, Json, PictureOption, new_file, with_groups
from deepreshape.cli.private.exits import print_exits, run_dynamic
from deepreshape.cli.private.lower import choose_windows, network_of, print_comparison
from deepreshape.cli.private.options import MaxLossOption, Relus, RowOption, SamplesOption, WorkersOption

if TYPE_CHECKING:
    from deepreshape.private.program.relu_config import Assignment, ReluConfig
    from deepreshape.private.service.segmented import SegmentedImage

app = typer.Typer()

MAX_LOSS = 0.2


@app.command()
@with_groups
def local(
    model: Annotated[str, typer.Option(help=MODEL)],
    how: Relus,
    samples: SamplesOption = None,
    row: RowOption = None,
    picture: PictureOption = None,
    images: Annotated[int, typer.Option(min=1, help="How many inputs to run, one after the other.")] = 1,
    exit: ExitWord = None,
    max_loss: MaxLossOption = None,
    workers: WorkersOption = None,
    data: InputData = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run both parties on this machine, in two processes over TLS, and say what each layer cost."""
    import numpy as np

    from deepreshape.cli.models import compare
    from deepreshape.cli.models import lowered as lowered_of
    from deepreshape.pricing.quote import chosen_relus
    from deepreshape.private.program.program import to_fixed
    from deepreshape.private.program.relu_config import ReluConfig
    from deepreshape.private.service.bundle import Facts
    from deepreshape.private.service.local_run import run_local
    from deepreshape.private.service.segmented import SegmentedImage

    terms = how.terms("loopback")
    given = terms.candidates[0]
    calibrates = isinstance(given, ReluConfig) and given.window and given.protocol == "gc-stochastic"
    if picture:
        new_file(picture, ".png")
    if max_loss is not None and not calibrates:
        raise ValueError(f"--max-loss {max_loss:g} is for --relu gc-stochastic:window, not for {how.relu}")
    network, inputs = network_of(model, samples, data, data_dir, images, row)
    stop = read_stop(exit, network, model)
    if stop and stop.static is None:
        if terms.chooses or calibrates or not isinstance(given, ReluConfig):
            raise ValueError(f"--relu {how.relu} is for one program, and --exit {exit} runs several; write gc-sign")
        if picture:
            raise ValueError(f"--picture {picture} is of one program, and --exit {exit} runs several; give a stage")
        with bytes_bar("offline") as show:
            new = inputs.new[:images]
            report = stoppable(lambda: run_dynamic(network, inputs, new, stop, given, show, workers), NOTHING_KEPT)
        if as_json:
            print_json(report)
            return
        print_exits(report)
        _print_run(report, given)
        return
    network = network.at(stop.static) if stop else network
    lowered = lowered_of(network, inputs)
    program, facts = lowered.program, inputs.facts
    if picture and "upsample" not in facts:
        raise ValueError(f"--picture {picture}: {model} gives one class for an image, and there is nothing to paint")
    if isinstance(given, ReluConfig) and calibrates:
        most = MAX_LOSS if max_loss is None else max_loss
        program = stoppable(lambda: choose_windows(lowered, inputs, most, given), NOTHING_KEPT).program
    relu, assigned = chosen_relus(program, terms)
    fixed = to_fixed(inputs.new[:images], program.input_fraction)
    with bytes_bar("offline") as show:
        report = stoppable(lambda: run_local(program, fixed, relu, progress=show, workers=workers), NOTHING_KEPT)
    report |= {"relu": str(relu), "assigned": assigned and assigned.to_dict()}
    logits = program.decode(np.array(report.pop("outputs"), dtype=np.int64))[0]
    report["beside_float"] = compare(network, inputs.new[:images], logits, facts.get("upsample"))
    if network.exits:
        report |= {"exit_shares": {str(network.point): 1.0}, "leaked_bits": 0}
    segmented: list[SegmentedImage] = []
    if "upsample" in facts:
        segmented = [SegmentedImage.of(each, Facts(**facts), seconds={}, bytes={}, agree=None) for each in logits]
        report["answers"] = [dict(each.shares) for each in segmented]
        report["pictures"] = write_pictures(segmented, picture)
    elif names := facts.get("class_names"):
        report["answers"] = [names[place] for place in logits.reshape(images, -1).argmax(1)]
    if network.fitted:
        report["predictions"] = predictions(logits.reshape(images, -1), network.fitted.classes)
    if as_json:
        print_json(report)
        return
    _print_layers(report)
    if assigned:
        print_assigned(assigned)
    out.print(f"formats: {lowered}", highlight=False)
    _print_run(report, relu, segmented)
    if network.fitted:
        out.print(f"predictions: {', '.join(map(str, report['predictions']))}", highlight=False)
        out.print(told_by(network.fitted), highlight=False)


def _print_layers(report: dict[str, Any]) -> None:
    """What each layer of a run cost."""
    counted = [name for name in ("relus", "squares", "signs") if report[name]] or ["relus"]
    counted.append("he_products")
    named = {"relus": "ReLUs", "squares": "squares", "signs": "signs", "he_products": "HE products"}
    table = new_table(
        "layer", *(named[name] for name in counted), "offline, s", "online, s", "offline, KB", "online, KB"
    )
    for layer in report["layers"]:
        took = [f"{layer['seconds']['client'][phase]:.3f}" for phase in ("offline", "online")]
        sizes = [f"{layer['bytes'][phase] / 1000:,.1f}" for phase in ("offline", "online")]
        table.add_row(layer["layer"], *(thousands(layer[name]) for name in counted), *took, *sizes)
    out.print(table)


def _print_run(report: dict[str, Any], relu: ReluConfig | Assignment, segmented: Sequence[SegmentedImage] = ()) -> None:
    """What a run cost, and whether it came out right."""
    seconds, sizes, memory = report["seconds"], report["bytes"], report["peak_rss_mib"]
    out.print(
        f"{_nonlinear(report, relu)}; offline {seconds['offline']:.2f} s and {sizes['offline'] / 1e6:,.2f} MB, online "
        f"{seconds['online']:.2f} s and {sizes['online'] / 1e6:,.2f} MB in {report['rounds']:g} rounds; peak memory "
        f"{memory['client']:.0f} MiB at the client, {memory['server']:.0f} MiB at the server",
        highlight=False,
    )
    same = _yes(report["same_class"])
    if "pixels" in report["beside_float"]:
        same = f"{report['same_places']:,} of {report['places']:,} places"
    out.print(
        f"private equals plain, bit for bit: {_yes(report['agree'])}; same class as the plain program: {same}; "
        f"bytes sent equal bytes declared: {_yes(report['declared_bytes_match'])}"
    )
    print_comparison(report["beside_float"])
    if segmented:
        print_segmented(segmented, report["pictures"])
    elif "answers" in report:
        out.print(f"answers: {', '.join(report['answers'])}", highlight=False, markup=False)


def _nonlinear(report: dict[str, Any], relu: ReluConfig | Assignment) -> str:
    """What is not linear, and how it is computed."""
    from deepreshape.private.program.relu_config import Assignment, takes

    parts: list[str] = []
    configs = relu.configs if isinstance(relu, Assignment) else (relu,)
    garbles = f", the {relu.garbler} garbles" if any(takes(config, "garbler") for config in configs) else ""
    if report["relus"] or not (report["squares"] or report["signs"]):
        parts.append(f"{report['relus']:,.10g} ReLUs by {relu}{garbles}")
    if report["squares"]:
        parts.append(f"{report['squares']:,.10g} squares by {relu.squares.cot} transfers, one round trip a layer")
    if report["signs"]:
        ways = [f"{relu.cot} transfers"] * any(takes(config, "cot") for config in configs)
        ways += [f"garbled circuits{garbles}"] * bool(garbles)
        parts.append(f"{report['signs']:,.10g} signs by {' or '.join(ways)}")
    return ", ".join(parts)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
