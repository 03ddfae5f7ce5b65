"""The commands that design under a cost: search, adjust."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from deepreshape.cli.console import (
    NOTHING_KEPT,
    into,
    new_table,
    out,
    print_json,
    progress_bar,
    run_experiment,
    stoppable,
    thousands,
)
from deepreshape.cli.costs import Garbler, Links, Protocol, read_one_terms, read_protocols, read_terms
from deepreshape.cli.options import (
    DataDir,
    DataName,
    Json,
    ProfileFile,
    Seed,
    Settings,
    read_data,
    read_pairs,
    read_recipe,
    read_shape,
    setting,
)

if TYPE_CHECKING:
    from deepreshape.data import Dataset
    from deepreshape.design.search import Candidate, Limit, Space
    from deepreshape.models import ResNet
    from deepreshape.training import Recipe
    from deepreshape.training.runs import Result

app = typer.Typer()


@app.command()
def search(
    max_seconds: Annotated[
        float | None, typer.Option(help="The most that one inference may take, predicted.", show_default=False)
    ] = None,
    max_bytes: Annotated[
        float | None, typer.Option(help="The most that it may send, both phases.", show_default=False)
    ] = None,
    max_relus: Annotated[float | None, typer.Option(help="The most ReLUs.", show_default=False)] = None,
    max_macs: Annotated[float | None, typer.Option(help="The most multiply-adds.", show_default=False)] = None,
    protocol: Protocol = "gc-full",
    link: Links = None,
    garbler: Garbler = None,
    profile: ProfileFile = None,
    trials: Annotated[int, typer.Option(min=2, help="Designs to price.")] = 400,
    seed: Seed = 0,
    evidence: Annotated[
        list[Path] | None,
        typer.Option(help="Job folders to fit the accuracy proxy to; may be repeated.", show_default=False),
    ] = None,
    input: Annotated[str, typer.Option(help="Shape of one input: channels x height x width.")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 100,
    stages: Annotated[int, typer.Option(min=2, max=5, help="Stages of every network.")] = 4,
    train: Annotated[int, typer.Option(min=0, help="Train as many of the best, in a job of their own.")] = 0,
    to: Annotated[Path | None, typer.Option("--out", help="Folder of that job.", show_default=False)] = None,
    data: DataName = "cifar100",
    data_dir: DataDir = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Find the HybReNets that are likely most accurate within one cost or several; train the best of them."""
    from deepreshape.design.search import COUNTS, PROXY, Proxy, Space, undominated
    from deepreshape.design.search import search as search_designs
    from deepreshape.pricing.quote import quote_layers
    from deepreshape.training import METRICS
    from deepreshape.training.runs import rows_in

    limits = _limits(seconds=max_seconds, bytes=max_bytes, relus=max_relus, macs=max_macs)
    if to and not train:
        raise ValueError(f"--out {to} is for networks that are trained; --train says how many")
    if train and to is None:
        raise ValueError(f"--train {train} needs --out, the folder to train in")
    terms, *more = read_terms(protocol, link, garbler, False, None, profile)
    if any(each.link != terms.link for each in more):
        raise ValueError(f"--link takes one link to search under, not {link!r}")
    proxy = Proxy.fit([row for folder in evidence for row in rows_in(folder)]) if evidence else PROXY
    space = Space(read_shape(input), classes, read_protocols(protocol), stages)
    dataset, recipe = (_fitting_data(data, data_dir, space), read_recipe(data, settings)) if train else (None, None)
    candidates = stoppable(
        lambda: list(
            search_designs(
                space,
                lambda layers, of: quote_layers(layers, replace(terms, protocol=of)),
                limits,
                trials,
                proxy=proxy,
                seed=seed,
            )
        ),
        NOTHING_KEPT,
    )
    if not candidates:
        bounds = ", ".join(f"{low:,} to {high:,} {of}" for (low, high), of in zip(proxy.fitted, COUNTS, strict=True))
        raise ValueError(
            f"no design keeps within {' and '.join(map(str, limits))} and within what the score was fitted on "
            f"({bounds}); allow more, or fit it to jobs of your own with --evidence"
        )
    best = undominated(candidates, limits[0])
    rows = _train_best(best[:train], dataset, recipe, to) if dataset and recipe and to else []
    if as_json:
        facts = {"rank_correlation": proxy.correlation, "points": proxy.points, "score": proxy.name}
        facts["fitted_on"] = {name: list(bounds) for name, bounds in zip(COUNTS, proxy.fitted, strict=True)}
        print_json(
            {
                "proxy": facts,
                "front": [each.to_dict() for each in best],
                "tried": len(candidates),
                "trained": [row.to_row() for row in rows],
            }
        )
        return
    table = new_table("network: what is removed", "ReLUs", "M MACs", "s", "MB", "behind")
    highest = max(each.score for each in best)
    for each in best[:20]:
        name = f"{each.network}: {each.plan}" + (f", {each.choice.protocol}" if len(space.protocols) > 1 else "")
        numbers = (
            f"{each.macs / 1e6:,.0f}",
            f"{each.seconds:.2f}",
            f"{each.bytes / 1e6:,.1f}",
            f"{highest - each.score:.1f}",
        )
        table.add_row(name, thousands(each.relus), *numbers)
    out.print(table)
    out.print(
        f"behind: how far its score is below the best one's. The score is {proxy.name}; over {proxy.points} trained "
        f"points its rank correlation with accuracy is {proxy.correlation:.2f}, each network scored by a fit "
        "that has not seen it",
        highlight=False,
    )
    for row in rows:
        out.print(f"{row.network}, {row.plan}: test {METRICS[row.measures]} {row.top1:.2f} %", highlight=False)


def _limits(**most: float | None) -> list[Limit]:
    """The options that were given, in their order: the first is what the front is drawn over."""
    from deepreshape.design.search import Limit

    limits = [Limit(cast("Any", unit), value) for unit, value in most.items() if value is not None]
    if not limits:
        raise ValueError("give at least one of --max-seconds, --max-bytes, --max-relus and --max-macs")
    for limit in limits:
        if not 0 < limit.most < math.inf:
            raise ValueError(f"--max-{limit.unit} is a number above 0, not {limit.most}")
    return limits


def _fitting_data(name: str, data_dir: Path | None, space: Space) -> Dataset:
    data = read_data(name, data_dir)
    if (space.input, space.classes) != (data.shape, len(data.class_names)):
        shape = "x".join(map(str, data.shape))
        raise ValueError(f"{name} needs --input {shape} --classes {len(data.class_names)}")
    return data


def _train_best(best: list[Candidate], data: Dataset, recipe: Recipe, to: Path) -> list[Result]:
    """Each from fresh weights; a folder that was begun goes on."""
    from deepreshape.experiments.designs import Designs

    return run_experiment(Designs(data.name, tuple((each.network, each.plan) for each in best), recipe), data, to)


@app.command()
def adjust(
    network: Annotated[str, typer.Argument(help="A ResNet's name, or a saved one's folder, whose widths are changed.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for its steps; an adjustment that was cut there goes on.")],
    data: DataName = "digits",
    data_dir: DataDir = None,
    resource: Annotated[str, typer.Option(help="What is kept: macs, params, relus, seconds or bytes.")] = "macs",
    link: Links = None,
    protocol: Protocol = "gc-full",
    iterations: Annotated[int, typer.Option(min=1, help="How often widths are changed.")] = 5,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="No iteration begins later than this.", show_default=False)
    ] = None,
    seed: Seed = 0,
    settings: Annotated[
        list[str] | None,
        setting("A setting of the adjustment (gain, moves, rate, repeats, floor ...) or of each training's recipe."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Move channels between a network's layers by measurement, at the same cost (Network Adjustment)."""
    from dataclasses import fields

    from deepreshape.counting import count
    from deepreshape.design.adjust import Adjustment, layer_paths, layer_widths
    from deepreshape.design.adjust import adjust as adjust_widths
    from deepreshape.experiments.adjusting import measure_by_training, resource_of
    from deepreshape.models import architecture_for, build
    from deepreshape.report.widths import picture_of_widths
    from deepreshape.training import recipe_of, with_values

    dataset = read_data(data, data_dir)
    start = _adjustable(network, dataset)
    pairs = read_pairs(settings, "--set")
    known = {field.name for field in fields(Adjustment)}
    chosen = with_values(Adjustment(iterations), {name: pairs.pop(name) for name in known & set(pairs)})
    recipe = recipe_of(data).with_values(pairs)
    if resource not in ("seconds", "bytes") and (link or protocol != "gc-full"):
        raise ValueError(f"--resource {resource} is not priced; --link and --protocol go with seconds and bytes")
    amount = resource_of(resource, read_one_terms(protocol, link))
    with progress_bar() as bar:
        task = bar.add_task("iteration 0", total=None)
        measure = measure_by_training(
            dataset, recipe, rate=chosen.rate, seed=seed, folder=to / "run", progress=into(bar, task)
        )
        steps = stoppable(
            lambda: adjust_widths(
                start,
                measure,
                amount,
                chosen,
                folder=to,
                max_seconds=60 * max_minutes if max_minutes is not None else math.inf,
                report=lambda step: bar.update(task, description=f"iteration {step.iteration + 1}"),
            )
        )
    networks = [cast("ResNet", architecture_for(step.network, dataset)) for step in steps]
    totals = [count(build(each, "meta"), dataset.shape).total for each in networks]
    (to / "widths.svg").write_text(picture_of_widths(layer_paths(start), [layer_widths(each) for each in networks]))
    rows = [
        {**asdict(step), "macs": total.macs, "relus": total.relus} for step, total in zip(steps, totals, strict=True)
    ]
    if as_json:
        print_json({"steps": rows, "resource": resource})
        return
    table = new_table("iteration", resource, "M MACs", "ReLUs", "validation loss", "most used", "least used")
    for step, total in zip(steps, totals, strict=True):
        order = sorted(step.utilisation, key=lambda path: -step.utilisation[path])
        ends = [f"{path} {step.utilisation[path]:+.3f}" for path in (order[:1] + order[-1:])] if order else ["", ""]
        numbers = f"{step.resource:,.4g}", f"{total.macs / 1e6:,.2f}", thousands(total.relus), f"{step.loss:.3f}"
        table.add_row(str(step.iteration), *numbers, *ends)
    out.print(table)
    if flat := steps[0].flat:
        out.print(f"flat, where a channel more costs no {resource}: {', '.join(flat)}", highlight=False)
    out.print(f"widths over iterations: {to / 'widths.svg'}; to train the last:", highlight=False)
    out.print(f"deepreshape train {steps[-1].network} --data {data} --out ...", highlight=False, soft_wrap=True)


def _adjustable(network: str, data: Dataset) -> ResNet:
    from deepreshape.cli.models import find_network
    from deepreshape.models import ResNet, architecture_for

    manifest = find_network(network).manifest
    start = manifest.architecture if manifest else architecture_for(network, data)
    if not isinstance(start, ResNet):
        raise ValueError(f"{network} is no ResNet, the only networks here that have widths by layer")
    if start.input != data.shape or start.relus != start.unreduced.relus:
        raise ValueError(f"{network} has fewer ReLUs than its layers or takes other images than {data.name}'s")
    return start
