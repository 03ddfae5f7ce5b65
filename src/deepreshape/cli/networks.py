"""Commands about networks: count, design, criticality."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import (
    DataDir,
    Json,
    Settings,
    Threads,
    into,
    new_table,
    out,
    print_json,
    progress_bar,
    read_integers,
    read_pair,
    read_recipe,
    read_shape,
    set_threads,
    thousands,
)

if TYPE_CHECKING:
    from torch import nn

    from deepreshape.counting import Count

app = typer.Typer()


@app.command()
def count(
    model: Annotated[
        str, typer.Argument(help="A network's name, a saved model's folder, zoo:NAME, or package.module:callable.")
    ],
    input: Annotated[
        str | None,
        typer.Option(
            help="Shape of one input: channels x height x width; a saved model's own or 3x32x32 without.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes, where the name does not fix it.")] = 100,
    as_json: Json = False,
) -> None:
    """Count ReLUs, max-pool comparisons, MACs and parameters of a network."""
    from deepreshape.counting import count as count_model

    counted = count_model(*_network(model, read_shape(input) if input else None, classes))
    if as_json:
        print_json(_count_values(counted))
        return
    table = new_table("stage", "ReLUs", "max-pool comparisons", "MACs", "params")
    for name, stage in counted.by_stage.items():
        table.add_row(
            name or "(network)", *map(thousands, (stage.relus, stage.maxpool_comparisons, stage.macs, stage.params))
        )
    total = counted.total
    table.add_section()
    table.add_row("total", *map(thousands, (total.relus, total.maxpool_comparisons, total.macs, total.params)))
    out.print(table)
    out.print(f"{counted.relus_without_stem:,} ReLUs without the stem's")
    for name, elements in counted.unknown.items():
        out.print(f"[yellow]not counted:[/] {name}, {elements:,} elements; it is neither linear nor a ReLU")


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
    from deepreshape.models import Architecture, name_of

    blocks = read_integers(phi, "--phi")
    if block not in ("basic", "bottleneck"):
        raise ValueError(f"--block is basic or bottleneck, not {block!r}")
    low, high = read_integers(bounds, "--bounds", 2)
    start = Architecture(
        "resnet",
        blocks,
        base,
        (2,) * (len(blocks) - 1),
        read_shape(input),
        classes,
        block,
        strides=read_integers(strides, "--strides", len(blocks)) if strides else (),
    )
    pairs = dict(read_pair(text, "--fix") for text in fix or [])
    fixed = {name: read_integers(value, f"--fix {name}", 1)[0] for name, value in pairs.items()}
    found = equalize(start, read_integers(order, "--order") if order else None, fixed=fixed, bounds=(low, high))

    def name(design: Architecture) -> str:
        try:
            return name_of(design)
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
        for item in found
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
    data: Annotated[str, typer.Option(help="Data set to train on.")] = "digits",
    data_dir: DataDir = None,
    seeds: Annotated[str, typer.Option(help="Seeds, one set of runs each.")] = "0",
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure how much each stage's ReLUs matter (the DeepReDuce score), by training with one stage's ReLUs only."""
    from deepreshape.design import measure
    from deepreshape.models import Architecture, architecture, build
    from deepreshape.training import load_data, train

    set_threads(threads, data)
    recipe, dataset = read_recipe(data, settings), load_data(data, data_dir)
    whole = architecture(network, dataset.shape, len(dataset.class_names))
    teachers: dict[int, nn.Module] = {}
    with progress_bar() as bar:
        task = bar.add_task("training", total=None)

        def accuracy(candidate: Architecture, seed: int) -> float:
            if seed not in teachers:
                teachers[seed] = build(whole, seed=seed)
                bar.update(task, description=f"{network}, all ReLUs, seed {seed}")
                train(teachers[seed], dataset, recipe, seed=seed, progress=into(bar, task))
            bar.update(task, description=f"{network}, one stage's ReLUs, seed {seed}")
            model = build(candidate, seed=seed)
            return train(
                model, dataset, recipe, seed=seed, teacher=teachers[seed], progress=into(bar, task)
            ).top1_validation

        found = measure(whole, accuracy, read_integers(seeds, "--seeds"))
    stages = [
        {
            "stage": at + 1,
            "score": found.mean[at],
            "spread": found.spread[at],
            "relus": found.relus[at],
            "top1_validation": [tops[at] for tops in found.accuracies],
        }
        for at in range(len(found.relus))
    ]
    if as_json:
        print_json({"order": list(found.order), "stages": stages})
        return
    table = new_table("stage", "score", "spread", "ReLUs", "validation top-1, %")
    for stage in stages:
        tops = ", ".join(f"{top:.1f}" for top in stage["top1_validation"])
        table.add_row(
            f"S{stage['stage']}", f"{stage['score']:.2f}", f"{stage['spread']:.2f}", thousands(stage["relus"]), tops
        )
    out.print(table)
    out.print("order, most critical first: " + ",".join(map(str, found.order)))


def _network(model: str, shape: tuple[int, int, int] | None, classes: int) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network meant by a name, a folder, or package.module:callable, and the shape of its input."""
    from torch import nn

    from deepreshape.models import architecture, build
    from deepreshape.models.saved import load
    from deepreshape.zoo import folder_of

    folder = folder_of(model)
    if folder.is_dir():
        saved, manifest = load(folder)
        return saved, shape or manifest.architecture.input
    if ":" in model:
        where, _, name = model.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            made = getattr(importlib.import_module(where), name)()
        except (ImportError, AttributeError, TypeError) as error:
            raise ValueError(f"{model!r} does not give a network: {error}") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"{model!r} gives a {type(made).__name__}, not a torch module")
        return made, shape or (3, 32, 32)
    named = architecture(model, shape or (3, 32, 32), classes)
    return build(named, "meta"), named.input


def _count_values(counted: Count) -> dict[str, Any]:
    total = counted.total
    return {
        "relus": total.relus,
        "relus_without_stem": counted.relus_without_stem,
        "maxpool_comparisons": total.maxpool_comparisons,
        "macs": total.macs,
        "params": total.params,
        "stages": [
            {"name": name, "relus": stage.relus, "macs": stage.macs, "params": stage.params}
            for name, stage in counted.by_stage.items()
        ],
        "unknown": [{"operator": name, "elements": elements} for name, elements in counted.unknown.items()],
    }
