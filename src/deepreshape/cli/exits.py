"""Commands for networks with exits: exits train, exits search, exits save; and what the others say of exits."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import into, new_table, out, print_json, progress_bar, stoppable, thousands
from deepreshape.cli.options import (
    DataDir,
    DataName,
    ExitPoint,
    Json,
    ModelArgument,
    NewModel,
    SavedDataName,
    Seed,
    Threads,
    TrainedArgument,
    new_file,
    new_model,
    read_data,
    read_integers,
    read_pairs,
    set_threads,
    setting,
)

if TYPE_CHECKING:
    from typing import TypeAlias

    from deepreshape.cli.models import Inputs, Network
    from deepreshape.data import Dataset
    from deepreshape.design.exits import Configuration, Evidence
    from deepreshape.models.exits import MultiExitNetwork
    from deepreshape.pricing.quote import Terms
    from deepreshape.private.program.program import Program
    from deepreshape.private.service.stop import Stop
    from deepreshape.report.exits import Ended
    from deepreshape.training import Progress
    from deepreshape.training.exits import ExitTraining

    Seen: TypeAlias = tuple[MultiExitNetwork, Evidence, Dataset]

app = typer.Typer(no_args_is_help=True, help="Networks with exits (MESS): train them, choose where to stop, save one.")

SHOWN = 8
"""Images of each exit on a page."""
LOSS = 0.5
"""Points of quality that stopping early may cost, unless said."""


@app.command()
def train(
    network: ModelArgument,
    to: NewModel,
    at: Annotated[str, typer.Option(help="Stages after which there are exits, rising, with commas.")],
    heads: Annotated[
        str,
        typer.Option(
            help="Kind of the exits' heads: light (a pool and a linear layer; of maps a 1x1 convolution) or conv (the "
            "same behind a 3x3 convolution and a ReLU)."
        ),
    ] = "light",
    trunk: Annotated[
        str, typer.Option(help="aware (trained with its exits first) or kept (a trained network's, as it is).")
    ] = "aware",
    distill: Annotated[
        str, typer.Option(help="What teaches heads beside labels: none, pfd (the end where it is right), kd (the end).")
    ] = "none",
    data: DataName = "digits",
    data_dir: DataDir = None,
    seed: Seed = 0,
    settings: Annotated[
        list[str] | None,
        setting("A setting of the recipe of the trunk, such as lr=0.1, or of the heads, such as heads.epochs=2."),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Give a network exits after some stages and train them; the command can be given a name or a trained network."""
    from deepreshape.models import attach_exits
    from deepreshape.models.saved import note_step, save, weights_digest
    from deepreshape.training import METRICS, objective_of
    from deepreshape.training.exits import train_exits
    from deepreshape.training.runs import claim_folder

    new_model(to)
    points = read_integers(at, "--at")
    set_threads(threads, data)
    how, dataset = _training(data, settings, trunk, distill), read_data(data, data_dir)
    start = _start(network, dataset, seed, kept=trunk == "kept")
    model = attach_exits(start, points, heads, seed=seed)
    step = {"method": "exits", "at": list(points), "heads": heads, "seed": seed, "distillation": distill}
    step |= {"trunk": how.trunk and asdict(how.trunk), "recipe": asdict(how.heads)}
    claim_folder(to / "run", step | {"data": dataset.name, "weights": weights_digest(model)})
    with progress_bar() as bar:
        task = bar.add_task("", total=None)

        def show(phase: str, progress: Progress) -> None:
            bar.update(task, description=f"exits: {phase}")
            into(bar, task)(progress)

        stoppable(lambda: train_exits(model, dataset, how, seed=seed, folder=to / "run", progress=show))
    note_step(model, dataset, step, source=start)
    save(model, to)
    shutil.rmtree(to / "run")
    rows = [_measured(model, point, dataset) for point in model.architecture.points]
    values = {"exits": rows[:-1], "end": rows[-1], "model": str(to)}
    if as_json:
        print_json(values)
        return
    table = new_table("exit", "ReLUs", "MACs", f"validation {METRICS[objective_of(dataset).measures]}, %")
    for row in rows:
        table.add_row(str(row["at"]), thousands(row["relus"]), thousands(row["macs"]), f"{row['quality']:.2f}")
    out.print(table)
    out.print(f"{rows[-1]['at']} is the end; saved in {to}", highlight=False)


def _training(data: str, settings: list[str] | None, trunk: str, distill: str) -> ExitTraining:
    """How both steps are done, of a command line's words."""
    from deepreshape.training import recipe_of
    from deepreshape.training.exits import DISTILLATIONS, ExitTraining, heads_recipe

    if trunk not in ("aware", "kept"):
        raise ValueError(f"--trunk is aware or kept, not {trunk!r}")
    if distill not in DISTILLATIONS:
        raise ValueError(f"--distill is one of {', '.join(DISTILLATIONS)}, not {distill!r}")
    pairs = read_pairs(settings, "--set")
    of_heads = {name.removeprefix("heads."): value for name, value in pairs.items() if name.startswith("heads.")}
    of_trunk = {name: value for name, value in pairs.items() if not name.startswith("heads.")}
    if trunk == "kept" and of_trunk:
        name, value = next(iter(of_trunk.items()))
        raise ValueError(f"--set {name}={value} is of the trunk, which --trunk kept does not train; heads.{name} is")
    first, second = recipe_of(data).with_values(dict(of_trunk)), heads_recipe(data).with_values(dict(of_heads))
    if not (first.holdout and second.holdout):
        raise ValueError("holdout=false leaves no validation split, on which exits are judged; leave it out")
    return ExitTraining(first if trunk == "aware" else None, second, distill)  # pyright: ignore[reportArgumentType]


def _start(word: str, data: Dataset, seed: int, *, kept: bool) -> Any:
    """The network that gets exits: a trained one, or one by its name with fresh weights."""
    from deepreshape.cli.models import find_network
    from deepreshape.experiments.points import see_fits
    from deepreshape.models import architecture_for, build

    network = find_network(word, data.shape, len(data.class_names))
    if network.architecture and not network.exits:
        architecture_for(word, data)
    if network.exits:
        raise ValueError(f"{word} has exits already; give the network without: `deepreshape exits save` writes it")
    if network.architecture:
        if kept:
            raise ValueError(f"--trunk kept: {word} is a name and no trained network; `deepreshape train` makes one")
        return build(network.architecture, seed=seed)
    if network.manifest:
        see_fits(network.module, data, word)
    return network.module


def _measured(model: MultiExitNetwork, point: int, data: Dataset) -> dict[str, Any]:
    """Counts of a plain network up to an exit, and its quality on the validation split."""
    from deepreshape.counting import count
    from deepreshape.training import accuracy

    plain = model.exit(point)
    total = count(plain, data.shape).total
    quality = accuracy(plain, data, data.validation)
    return {"at": point, "macs": total.macs, "relus": total.relus, "quality": quality}


@app.command()
def search(
    models: Annotated[
        list[str], typer.Argument(help="Saved models with exits; several, such as of two kinds of heads, are compared.")
    ],
    by: Annotated[str, typer.Option("--cost", help="What is spent: macs, relus, seconds or bytes.")] = "relus",
    link: Annotated[
        str | None,
        typer.Option(
            help="Of seconds and bytes: loopback, lan, wan, wireless or up/down/round trip, as `cost` takes it.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Of seconds and bytes: how ReLUs are computed, as `cost` takes it; gc-full without.",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        float, typer.Option(min=0, max=100, help="Points of quality that the configuration named at the end may lose.")
    ] = LOSS,
    page: Annotated[
        Path | None,
        typer.Option("--out", help="Also write a page with the list and images by exit.", show_default=False),
    ] = None,
    data: SavedDataName = None,
    data_dir: DataDir = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """List where inputs may stop, with quality, expected cost and leak; nothing is trained or changed."""
    from deepreshape.cli.models import trained_network
    from deepreshape.design.exits import cheapest_within, gather, search_exits
    from deepreshape.report.exits import page_of_exits
    from deepreshape.training import METRICS, objective_of

    if page:
        new_file(page)
    for option, value in (("--link", link), ("--protocol", protocol)):
        if value and by in ("macs", "relus"):
            raise ValueError(f"{option} {value} is of seconds and bytes; --cost {by} is the same whatever it is")
    of: dict[Configuration, str] = {}
    seen: dict[str, Seen] = {}
    inputs: dict[str, int] = {}
    for model in models:
        network, dataset = trained_network(model, data, data_dir, threads)
        whole = network.all_exits()
        if whole is None:
            raise ValueError(f"{model} has no exits to choose from; `deepreshape exits train` gives it some")
        inputs[dataset.name] = len(dataset.validation)
        if len(inputs) > 1:
            raise ValueError(
                f"{model} is of {dataset.name} and {models[0]} of {next(iter(inputs))}; one data set at a time"
            )
        costs, at_once = exit_costs(whole, by, link, protocol), 50 if dataset.maps else 500
        evidence = gather(whole, ((dataset.normalize(x), y) for x, y in dataset.validation.batches(at_once)))
        of = dict.fromkeys(search_exits(evidence, costs), model) | of  # of two alike, the first model's
        seen[model] = whole, evidence, dataset
    configurations = sorted(of, key=lambda each: (each.expected_cost, -each.quality))
    chosen = cheapest_within(configurations, loss)
    (count,) = inputs.values()
    rows = {each: {"model": of[each], **asdict(each), "word": each.word} for each in configurations}
    values = {"models": models, "cost": by, "n": count, "loss": loss}
    values |= {"chosen": rows[chosen], "configurations": list(rows.values())}
    if page:
        shown, metric = _shown(configurations, chosen), METRICS[objective_of(next(iter(seen.values()))[2]).measures]
        terms = {"--link": link, "--protocol": protocol}
        where = "".join(f" {option} {value}" for option, value in terms.items() if value)
        command = f"deepreshape exits search {' '.join(models)} --cost {by}{where} --loss {loss:g} --out {page.name}"
        ended = _ended(*seen[of[shown]], shown) if shown else []
        title = f"Exits of {', '.join(models)} by {by}{where and f' ({where.strip()})'}"
        page.write_text(page_of_exits(title, values, metric, shown.word if shown else "", ended, command))
    if as_json:
        print_json(values)
        return
    names = ("model",) * (len(models) > 1)
    table = new_table(*names, "--exit", "quality, %", f"expected {by}", "shares, %", "bits told")
    for each in configurations:
        shares = " / ".join(f"{100 * share:.0f}" for share in each.shares)
        cost = f"{each.expected_cost:,.0f}" if by != "seconds" else f"{each.expected_cost:,.2f}"
        row = (each.word or f"({each.policy})", f"{each.quality:.2f}", cost, shares, str(each.leaked_bits))
        table.add_row(*(of[each] for _ in names), *row)
    out.print(table)
    word = f"--exit {chosen.word}" if chosen.word else chosen.policy
    out.print(
        f"{count:,} validation inputs; bits are what the server learns of one input, at most, and the client learns "
        f"the logits of every exit that it asks. With at most {loss:g} points lost: "
        f"{word}{f' of {of[chosen]}' if names else ''}",
        highlight=False,
    )


def _shown(configurations: Sequence[Configuration], chosen: Configuration) -> Configuration | None:
    """The dynamic policy of which a page shows images: the one chosen, else the best of all."""
    dynamic = [each for each in configurations if each.policy == "dynamic"]
    return chosen if chosen in dynamic else max(dynamic, key=lambda each: each.quality, default=None)


def _ended(network: MultiExitNetwork, evidence: Evidence, data: Dataset, policy: Configuration) -> list[Ended]:
    """Some validation images of each exit at which a dynamic policy ends any, with their answers there."""
    import numpy as np
    import torch

    from deepreshape.data.augment import VOID
    from deepreshape.experiments.answers import pixels_of
    from deepreshape.private.service.bundle import Facts
    from deepreshape.private.service.segmented import class_maps
    from deepreshape.report.exits import Ended

    places, split = [evidence.points.index(point) for point in policy.exits], data.validation
    ends, _ = evidence.of(places, policy.threshold or 0.0)
    facts, images = Facts(**data.facts), list[Ended]()
    colours = np.zeros((VOID + 1, 3), np.uint8)
    colours[: len(data.class_names)] = [facts.colour(number) for number in range(len(data.class_names))]
    for number, point in enumerate(policy.exits):
        plain = network.exit(point)
        for at in np.flatnonzero(ends == number)[:SHOWN]:
            image, label = split.images[int(at) : int(at) + 1], split.labels[int(at)]
            with torch.no_grad():
                logits = plain(data.normalize(image)).double().numpy()
            pictures, caption = [pixels_of(image[0])], ""
            if data.maps:
                answer = class_maps(logits, (image.shape[2], image.shape[3]))[0]
                pictures += [colours[classes].tolist() for classes in (label.numpy(), answer)]
            else:
                name, true = (data.class_names[int(place)] for place in (logits.argmax(), label))
                caption = name if name == true else f"{name} (it is {true})"
            images.append(Ended.of(point, float(evidence.confidence[places[number], at]), pictures, caption))
    return images


def exit_costs(network: MultiExitNetwork, by: str, link: str | None, protocol: str | None = None) -> Any:
    """What exits cost: MACs in the clear, where what the trunk gave is kept, all else as two parties start again.

    Raises:
        ValueError: if it has no price in that unit.
    """
    from deepreshape.counting import count
    from deepreshape.design.exits import Costs
    from deepreshape.pricing.network import price

    architecture = network.architecture
    plain = [network.exit(point) for point in architecture.points]
    counted = [count(each, architecture.input).complete() for each in plain]
    if by == "macs":
        heads = tuple(float(each.by_stage["head"].macs) for each in counted)
        return Costs(tuple(float(each.total.macs) for each in counted), heads)
    if by == "relus":
        return Costs(tuple(float(each.total.relus) for each in counted))
    if by not in ("seconds", "bytes"):
        raise ValueError(f"--cost is macs, relus, seconds or bytes, not {by!r}")
    quotes = [price(each, architecture.input, link=link, protocol=protocol or "gc-full") for each in plain]
    return Costs(tuple(float(q.report.seconds if by == "seconds" else q.report.bytes) for q in quotes))


@app.command("save")
def save_exit(
    model: TrainedArgument,
    to: Annotated[Path, typer.Option("--out", help="Folder for the plain network.")],
    exit: ExitPoint = None,
    as_json: Json = False,
) -> None:
    """Save the plain network up to an exit, or the one without exits, as a model of its own."""
    from dataclasses import replace

    from deepreshape.cli.models import find_network
    from deepreshape.models.saved import save

    new_model(to)
    network = find_network(model)
    if network.exits is None or network.manifest is None:
        raise ValueError(f"{model} is no saved model with exits; `deepreshape exits train` makes one")
    plain = network.at(exit)
    point = plain.point
    history = (*network.manifest.history, {"method": "exit", "exit": point})
    save(plain.built(), to, replace(network.manifest, architecture=plain.module.architecture, history=history))
    if as_json:
        print_json({"model": str(to), "exit": point})
    else:
        out.print(f"exit {point} of {model} saved in {to}", highlight=False)


def read_stop(word: str | None, network: Network, model: str) -> Stop | None:
    """What ``--exit`` says of a network, if it says something.

    Raises:
        ValueError: if the network has no exits, or no such one.
    """
    from deepreshape.private.service.stop import Stop

    if word is None:
        return None
    stop = Stop.parse(word)
    if network.exits is None:
        raise ValueError(f"--exit {word}: {model} has no exits; `deepreshape exits train` gives it some")
    if stop.static is None:
        stop.points(network.exits.architecture.points)
    else:
        network.exits.architecture.exit(stop.static)
    return stop


def with_threshold(stop: Stop, network: Network, inputs: Inputs) -> tuple[float, Evidence | None]:
    """The threshold of a dynamic policy, and the validation inputs it rests on, where nobody said one.

    Raises:
        ValueError: if there are no labelled inputs to choose it on.
    """
    import torch

    from deepreshape.design.exits import gather, lowest_threshold

    if inputs.labels is None:
        if stop.threshold is None:
            raise ValueError("--exit dynamic chooses its threshold on labelled images; give one, as dynamic:0.8")
        return stop.threshold, None
    whole = network.all_exits()
    assert whole is not None  # noqa: S101 - read_stop says so
    evidence = gather(whole, [(torch.from_numpy(inputs.validation), torch.from_numpy(inputs.labels))])
    if stop.threshold is not None:
        return stop.threshold, evidence
    return lowest_threshold(evidence, stop.points(whole.architecture.points), LOSS), evidence


def price_dynamic(
    network: Network, stop: Stop, terms: Sequence[Terms], data: Dataset | None, data_dir: Path | None
) -> list[dict[str, Any]]:
    """What an inference is expected to cost that asks exits in turn, by shares of validation inputs, and what it tells.

    Returns:
        A price under each of the terms.

    Raises:
        ValueError: if there are no labelled inputs that say how many stop where, or a protocol is not our runtime's.
    """
    import numpy as np

    from deepreshape.cli.models import find_inputs, lowered_exits

    for each in terms:
        if not each.ours:
            raise ValueError(f"{each.protocol} has a price as it was published, for one network; give --exit a stage")
    assert network.exits is not None  # noqa: S101 - read_stop says so
    points = stop.points(network.exits.architecture.points)
    inputs = find_inputs(network, data_dir=data_dir, data=data)
    threshold, evidence = with_threshold(stop, network, inputs)
    if evidence is None:
        raise ValueError(
            "--exit dynamic is priced by how many labelled images stop where, which a saved classifier brings; "
            "of maps, `deepreshape exits search --cost seconds` has expected prices"
        )
    ends, quality = evidence.of([evidence.points.index(point) for point in points], threshold)
    shares = [float(share) for share in np.bincount(ends, minlength=len(points)) / len(ends)]
    lowered = lowered_exits(network, inputs)
    programs = [lowered[point].program for point in points]
    facts = {"threshold": threshold, "quality": quality, "leaked_bits": len(points) - 1}
    return [_expected(dict(zip(points, programs, strict=True)), shares, each) | facts for each in terms]


def _expected(programs: dict[int, Program], shares: Sequence[float], terms: Terms) -> dict[str, Any]:
    """The price of each exit's program, and by the shares of inputs that end there the expected one."""
    from deepreshape.design.exits import Costs
    from deepreshape.pricing.quote import quote_program

    rows = [quote_program(program, terms).to_dict() for program in programs.values()]
    expected = {
        name: {
            phase: Costs(tuple(row[name][phase] for row in rows)).expected(range(len(rows)), shares)
            for phase in ("offline", "online", "total")
        }
        for name in ("seconds", "bytes")
    }
    exits = [{"at": at, "share": share, **row} for at, share, row in zip(programs, shares, rows, strict=True)]
    return {"protocol": terms.protocol, "link": rows[0]["link"], "expected": expected, "exits": exits}


def print_dynamic(priced: dict[str, Any]) -> None:
    """What :func:`price_dynamic` says, as a table."""
    table = new_table("exit", "ends there", "ReLUs", "offline, s", "online, s", "MB")
    rows = [(str(each["at"]), f"{each['share']:.0%}", thousands(each["relus"]), each) for each in priced["exits"]]
    for at, share, relus, each in [*rows, ("expected", "", "", priced["expected"])]:
        seconds = [f"{each['seconds'][phase]:.2f}" for phase in ("offline", "online")]
        table.add_row(at, share, relus, *seconds, f"{each['bytes']['total'] / 1e6:,.1f}")
    out.print(table)
    whole, total = priced["exits"][-1]["seconds"]["total"], priced["expected"]["seconds"]["total"]
    out.print(
        f"{priced['protocol']}, link {priced['link']}: {total:.2f} s expected, where the whole network alone takes "
        f"{whole:.2f} s; from confidence {priced['threshold']:g} on, quality {priced['quality']:.2f} % on validation "
        f"images; {leak_of([each['at'] for each in priced['exits']])}",
        highlight=False,
    )


def leak_of(points: Sequence[int]) -> str:
    """What a dynamic policy tells, in words."""
    bits = len(points) - 1
    return (
        f"the server learns of each input at which exit it ended, at most {bits} bit{'s' * (bits > 1)}; the client the "
        "logits of every exit that it asked"
    )
