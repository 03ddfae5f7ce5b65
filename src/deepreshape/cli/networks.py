"""Commands about networks: count, check, design, criticality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import NOTHING_KEPT, into, new_table, out, print_json, progress_bar, stoppable, thousands
from deepreshape.cli.options import (
    Classes,
    DataDir,
    DataName,
    ExitPoint,
    InputData,
    Json,
    ModelArgument,
    Settings,
    Threads,
    new_file,
    read_data,
    read_integers,
    read_pairs,
    read_recipe,
    read_shape,
    set_threads,
)

if TYPE_CHECKING:
    from torch import nn

    from deepreshape.counting import Count
    from deepreshape.private.program.lowering.trace import Problem

app = typer.Typer()

InputShape = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="Shape of one input: channels x height x width; a saved model's own or 3x32x32 without.",
        show_default=False,
    ),
]


@app.command()
def count(
    model: ModelArgument,
    input: InputShape = None,
    classes: Classes = 100,
    exit: ExitPoint = None,
    data: InputData = None,
    data_dir: DataDir = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="A new .npz: where its ReLUs are (relus/SITE), and which pixels convolutions compute (columns/CONV).",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count ReLUs, max-pool comparisons, MACs and parameters of a network."""
    from deepreshape.cli.models import shown_network
    from deepreshape.counting import count as count_model

    if masks and (masks.suffix != ".npz" or masks.exists()):
        raise ValueError(f"--masks {masks}: " + ("it is there already" if masks.exists() else "give a name with .npz"))
    if masks:
        new_file(masks)
    network, _ = shown_network(model, read_shape(input) if input else None, classes, data, data_dir)
    network = network.at(exit)
    counted = count_model(network.module, network.shape).complete()
    if masks:
        _write_masks(masks, network.module, network.shape)
    if as_json:
        print_json(_count_values(counted))
        return
    table = new_table("stage", "ReLUs", "max-pool comparisons", "MACs", "params")
    for name, stage in counted.by_stage.items():
        numbers = stage.relus, stage.maxpool_comparisons, stage.macs, stage.params
        if name or any(numbers):
            table.add_row(name or "(in no stage)", *map(thousands, numbers))
    total = counted.total
    table.add_section()
    table.add_row("total", *map(thousands, (total.relus, total.maxpool_comparisons, total.macs, total.params)))
    out.print(table)
    if counted.relus_without_stem != total.relus:
        out.print(f"{counted.relus_without_stem:,} ReLUs without the stem's")
    for what, others in (("squares", total.squares), ("signs", total.signs)):
        if others:
            out.print(f"{others:,} {what}")
    for name, elements in counted.unknown.items():
        out.print(f"[yellow]not counted:[/] {name}, {elements:,} elements; it is neither linear nor a ReLU")


def _write_masks(to: Path, module: nn.Module, shape: tuple[int, int, int]) -> None:
    import numpy as np

    from deepreshape.removal import export_masks

    arrays: dict[str, Any] = {**export_masks(module, shape)}
    np.savez_compressed(to, **arrays)


@app.command()
def check(
    model: ModelArgument,
    input: InputShape = None,
    classes: Classes = 100,
    exit: ExitPoint = None,
    data: InputData = None,
    data_dir: DataDir = None,
    link: Annotated[str, typer.Option(help="Links that it is priced on, as `cost` takes them.")] = "lan,wan",
    as_json: Json = False,
) -> None:
    """Say whether a network can run privately, before any training: what is in the way, and what would do instead."""
    from deepreshape.cli.models import shown_network
    from deepreshape.counting import count as count_model
    from deepreshape.private.program.lower import problems

    network, _ = shown_network(model, read_shape(input) if input else None, classes, data, data_dir)
    network = network.at(exit)
    obstacles = problems(network.built(), network.shape)
    try:
        counted = count_model(network.module, network.shape).complete()
    except ValueError:  # what does not run, or hides its work, is a problem already
        if not obstacles:
            raise
        counted = None
    prices = _prices(counted, link.split(",")) if counted and not counted.unknown and not obstacles else []
    if as_json:
        print_json(
            {
                "runs_privately": not obstacles,
                "problems": [asdict(problem) for problem in obstacles],
                "input": list(network.shape),
                "prices": prices,
                **(_count_values(counted) if counted else {}),
            }
        )
    else:
        _print_check(model, network.shape, obstacles, counted, prices)
    if obstacles:
        raise typer.Exit(2)


@app.command()
def design(
    phi: Annotated[str, typer.Option(help="Stage compute ratio: blocks in each stage.")] = "2,2,2,2",
    order: Annotated[
        str | None, typer.Option(help="Stages, most critical first; the published 3,2,4,1 without.", show_default=False)
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(help="A multiplier that stays, such as alpha=2; may be repeated.", show_default=False),
    ] = None,
    block: Annotated[str, typer.Option(help="basic or bottleneck.")] = "basic",
    base: Annotated[int, typer.Option(min=1, help="Base channels m.")] = 16,
    input: Annotated[str, typer.Option(help="Shape of one input: channels x height x width.")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 100,
    strides: Annotated[
        str | None, typer.Option(help="Down-sampling of each stage; 1,2,2,... without.", show_default=False)
    ] = None,
    bounds: Annotated[str, typer.Option(help="Smallest and largest multiplier.")] = "2,12",
    as_json: Json = False,
) -> None:
    """Solve ReLU equalization: the stage widths whose ReLU counts follow criticality."""
    from deepreshape.design import equalize
    from deepreshape.models import ResNet, Staged

    blocks = read_integers(phi, "--phi")
    if block not in ("basic", "bottleneck"):
        raise ValueError(f"--block is basic or bottleneck, not {block!r}")
    low, high = read_integers(bounds, "--bounds", 2)
    start = ResNet(
        blocks,
        base,
        (2,) * (len(blocks) - 1),
        read_shape(input),
        classes,
        block=block,
        strides=read_integers(strides, "--strides", len(blocks)) if strides else (),
    )
    pairs = read_pairs(fix, "--fix").items()
    fixed = {name: read_integers(value, f"--fix {name}", 1)[0] for name, value in pairs}
    designs = equalize(start, read_integers(order, "--order") if order else None, fixed=fixed, bounds=(low, high))

    def name(design: Staged) -> str:
        try:
            return design.name
        except ValueError:  # unusual strides have no name
            return "x".join(map(str, design.multipliers)) + "x"

    solutions = [
        {
            "name": name(item.architecture),
            "multipliers": list(item.architecture.multipliers),
            "relus": item.relus,
            "macs": item.macs,
            "params": item.params,
        }
        for item in designs
    ]
    if as_json:
        print_json({"solutions": solutions})
        return
    table = new_table("network", "ReLUs", "MACs", "params")
    for item in solutions:
        table.add_row(item["name"], *map(thousands, (item["relus"], item["macs"], item["params"])))
    out.print(table)


@app.command()
def criticality(
    network: Annotated[str, typer.Argument(help="A network's name.")],
    data: DataName = "digits",
    data_dir: DataDir = None,
    seeds: Annotated[str, typer.Option(help="Seeds, one set of runs each.")] = "0",
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure how much each stage's ReLUs matter (the DeepReDuce score), by training with one stage's ReLUs only."""
    from deepreshape.design import measure_criticality
    from deepreshape.models import Staged, architecture_for, build
    from deepreshape.training import METRICS, objective_of, train

    set_threads(threads, data)
    recipe, dataset = read_recipe(data, settings), read_data(data, data_dir)
    measures = objective_of(dataset).measures
    if not recipe.holdout:
        raise ValueError("holdout=false leaves no validation accuracy, which is what criticality compares")
    whole = architecture_for(network, dataset)
    teachers: dict[int, nn.Module] = {}
    with progress_bar() as bar:
        task = bar.add_task("training", total=None)

        def accuracy(candidate: Staged, seed: int) -> float:
            if seed not in teachers:
                teachers[seed] = build(whole, seed=seed)
                bar.update(task, description=f"{network}, all ReLUs, seed {seed}")
                train(teachers[seed], dataset, recipe, seed=seed, progress=into(bar, task))
            bar.update(task, description=f"{network}, one stage's ReLUs, seed {seed}")
            model = build(candidate, seed=seed)
            done = train(model, dataset, recipe, seed=seed, teacher=teachers[seed], progress=into(bar, task))
            assert done.top1_validation is not None  # noqa: S101 - the split is held out
            return done.top1_validation

        measured = stoppable(
            lambda: measure_criticality(whole, accuracy, read_integers(seeds, "--seeds")), NOTHING_KEPT
        )
    stages = [
        {
            "stage": at + 1,
            "score": measured.mean[at],
            "spread": measured.spread[at],
            "relus": measured.relus[at],
            f"{measures}_validation": [tops[at] for tops in measured.accuracies],
        }
        for at in range(len(measured.relus))
    ]
    if as_json:
        print_json({"order": list(measured.order), "stages": stages})
        return
    table = new_table("stage", "score", "spread", "ReLUs", f"validation {METRICS[measures]}, %")
    for stage in stages:
        tops = ", ".join(f"{top:.1f}" for top in stage[f"{measures}_validation"])
        table.add_row(
            f"S{stage['stage']}", f"{stage['score']:.2f}", f"{stage['spread']:.2f}", thousands(stage["relus"]), tops
        )
    out.print(table)
    out.print("order, most critical first: " + ",".join(map(str, measured.order)))


def _prices(counted: Count, links: list[str]) -> list[dict[str, Any]]:
    """What one inference costs over each link by gc-full, from the layers alone."""
    from deepreshape.cost import read_link
    from deepreshape.pricing.quote import Terms, quote_layers

    quotes = [(name, quote_layers(counted.priced_layers, Terms(link=read_link(name)))) for name in links]
    return [
        {"link": name, "protocol": quote.protocol, "seconds": quote.seconds, "bytes": quote.report.bytes}
        for name, quote in quotes
    ]


def _print_check(
    model: str,
    shape: tuple[int, ...],
    obstacles: Sequence[Problem],
    counted: Count | None,
    prices: list[dict[str, Any]],
) -> None:
    from deepreshape.private.program.lowering.trace import by_kind

    name = f"{model}, input {'x'.join(map(str, shape))}"
    if obstacles:
        out.print(f"{name}, does not run privately as it is:", highlight=False)
        for line in by_kind(obstacles):
            out.print(f"  {line}", highlight=False, markup=False)
    else:
        out.print(f"{name}, runs privately", highlight=False)
    if counted:
        total = counted.total
        kinds = {"ReLUs": total.relus, "max-pool comparisons": total.maxpool_comparisons, "squares": total.squares}
        parts = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number or kind == "ReLUs")
        out.print(f"{parts}; {total.macs:,} multiply-adds, {total.params:,} parameters", highlight=False)
    if counted and counted.unknown and not obstacles:
        names = ", ".join(counted.unknown)
        out.print(f"not priced by its layers alone, which miss {names}; `deepreshape cost` lowers it", highlight=False)
    for price in prices:
        out.print(
            f"about {price['seconds']:,.2f} s and {price['bytes'] / 1e6:,.1f} MB on link {price['link']} by "
            f"{price['protocol']}, from its layers; `deepreshape cost` says more",
            highlight=False,
        )


def _count_values(counted: Count) -> dict[str, Any]:
    total = counted.total
    return {
        "relus": total.relus,
        "relus_without_stem": counted.relus_without_stem,
        "maxpool_comparisons": total.maxpool_comparisons,
        "macs": total.macs,
        "params": total.params,
        "squares": total.squares,
        "signs": total.signs,
        "stages": [
            {
                "name": name,
                "relus": stage.relus,
                "squares": stage.squares,
                "signs": stage.signs,
                "macs": stage.macs,
                "params": stage.params,
            }
            for name, stage in counted.by_stage.items()
        ],
        "unknown": [{"operator": name, "elements": elements} for name, elements in counted.unknown.items()],
    }
