"""Commands about costs: cost, calibrate, ui."""

from __future__ import annotations

import re
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deepreshape.cli.console import NOTHING_KEPT, err, new_table, out, print_assigned, print_json, stoppable, thousands
from deepreshape.cli.exits import price_dynamic, print_dynamic, read_stop
from deepreshape.cli.options import (
    Classes,
    DataDir,
    ExitWord,
    InputData,
    Json,
    ModelArgument,
    ObjectiveWord,
    ProfileFile,
    new_file,
    read_shape,
)
from deepreshape.cli.private.fhe import price_of, print_price

if TYPE_CHECKING:
    from deepreshape.cli.models import Network
    from deepreshape.cost import Quote
    from deepreshape.data import Dataset
    from deepreshape.pricing.quote import Terms
    from deepreshape.private.program.program import Program

app = typer.Typer()

BAR = 14

Protocol = Annotated[
    str,
    typer.Option(
        help="How ReLUs are computed: gc-full, gc-sign, gc-stochastic:drop=12 or ot, or auto, the best for each layer "
        "on the link (our runtime; squares need no word), or a published system such as server-garbler; several by "
        "commas. Or fhe: squares under CKKS alone."
    ),
]
Links = Annotated[
    str | None,
    typer.Option(
        help="loopback, lan, wan, wireless, or up/down/round trip such as 20mbit/100mbit/40ms; several by commas. "
        "Without: loopback for our runtime, wireless, as published, for a published system.",
        show_default=False,
    ),
]
Garbler = Annotated[
    str | None,
    typer.Option(
        help="Who garbles: server (without) or client; published systems say so themselves.", show_default=False
    ),
]
Slots = Annotated[bool, typer.Option("--slots", help="Divide the link's rate between its directions by need.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Server processes for homomorphic work; as many as pay without.", show_default=False),
]


@app.command()
def cost(
    model: ModelArgument,
    protocol: Protocol = "gc-full",
    link: Links = None,
    garbler: Garbler = None,
    slots: Slots = False,
    workers: Workers = None,
    profile: ProfileFile = None,
    objective: ObjectiveWord = None,
    input: Annotated[
        str | None, typer.Option(help="Shape of one input: channels x height x width.", show_default=False)
    ] = None,
    classes: Classes = 100,
    plot: Annotated[
        Path | None, typer.Option(help="Also write the bars of every layer as an SVG.", show_default=False)
    ] = None,
    arrivals: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=100_000, help="Queries an hour that arrive at random: how long they wait.", show_default=False
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="With --arrivals: storage of client/server for what lies ready; 16gb/10tb without.", show_default=False
        ),
    ] = None,
    exit: ExitWord = None,
    data: InputData = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say what one private inference costs, layer by layer, and where the time goes."""
    from deepreshape.cli.models import shown_network
    from deepreshape.report.bars import bars

    if protocol == "fhe":
        others = {
            "--objective": objective,
            "--garbler": garbler,
            "--slots": slots,
            "--workers": workers,
            "--profile": profile,
            "--plot": plot,
        }
        others |= {"--arrivals": arrivals, "--storage": storage}
        for option in (option for option, given in others.items() if given):
            raise ValueError(f"{option} is not for fhe, which is priced by counts and one model of the library's times")
        network, _ = shown_network(model, read_shape(input) if input else None, classes, data, data_dir)
        network = _up_to(exit, network, model)
        report = {"network": model, **price_of(network, link)}
        print_json(report) if as_json else print_price(report)
        return
    terms = read_terms(protocol, link, garbler, slots, workers, profile, objective)
    if plot:
        new_file(plot, ".svg")
    network, dataset = shown_network(model, read_shape(input) if input else None, classes, data, data_dir)
    if storage and arrivals is None:
        raise ValueError(f"--storage {storage} is for queries that wait; --arrivals says how many there are an hour")
    room = _storage(storage or "16gb/10tb")
    stop = read_stop(exit, network, model)
    if stop and stop.static is None:
        if plot or arrivals:
            raise ValueError(f"--plot and --arrivals are for one program, and --exit {exit} asks for several")
        priced = [
            {"network": model, "exit": exit, **of} for of in price_dynamic(network, stop, terms, dataset, data_dir)
        ]
        if as_json:
            print_json(priced[0] if len(priced) == 1 else {"quotes": priced})
            return
        for quote in priced:
            print_dynamic(quote)
        return
    network = _up_to(exit, network, model)
    quotes, compared = _quotes(network, model, terms, dataset, data_dir)
    queues = [_queue(quote, arrivals, room) if arrivals else {} for quote in quotes]
    if plot:
        plot.write_text(bars(model, quotes))
    if as_json:
        values = [{"network": model, **quote.to_dict(), **queue} for quote, queue in zip(quotes, queues, strict=True)]
        rows = {"compared": [*map(_summary, compared), *_under_ckks(network, quotes, link)]}
        print_json((values[0] if len(values) == 1 else {"quotes": values}) | rows)
        return
    for quote, queue in zip(quotes, queues, strict=True):
        _print_quote(model, quote)
        if queue:
            _print_queue(queue["arrivals"])
    if compared:
        _print_compared([*map(_summary, compared), *_under_ckks(network, quotes, link)])


def _up_to(word: str | None, network: Network, model: str) -> Network:
    """The network up to the exit that a word says, if it says one.

    Raises:
        ValueError: if it says none that is there, or that inputs stop at different ones.
    """
    stop = read_stop(word, network, model)
    if stop and stop.static is None:
        raise ValueError(f"--exit {word} asks several programs, which --protocol fhe does not price; give a stage")
    return network.at(stop.static) if stop else network


@app.command()
def calibrate(
    to: Annotated[Path, typer.Option("--out", help="The profile's file.")],
    name: Annotated[str, typer.Option(help="Of the profile.")] = "this machine",
    rounds: Annotated[int, typer.Option(min=1, help="How often each step is timed; the fastest counts.")] = 25,
    as_json: Json = False,
) -> None:
    """Time this machine's primitives, a minute or so; predictions are made of them."""
    from deepreshape.pricing.calibrate import measure

    new_file(to)
    profile = stoppable(
        lambda: measure(name, rounds, lambda step: err.print(f"timing {step}", highlight=False)), NOTHING_KEPT
    )
    to.write_text(profile.to_json())
    if as_json:
        print_json({"profile": str(to), "name": profile.name, "units": dict(profile.units)})
        return
    out.print(
        f"wrote {to}: {profile.machine['cpu']}, {profile.machine['cpus']} cores, load {profile.machine['load_1min']}"
    )


@app.command()
def ui(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Job folders whose points are shown too.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On loopback; 0 takes a free one.")] = 8642,
    as_json: Json = False,
) -> None:
    """Show counts and prices of networks live, under sliders, in a browser on this machine."""
    from deepreshape.experiments.live import page_server
    from deepreshape.report import summarize
    from deepreshape.training.runs import finished

    rows = [row for folder in folders or [] for row in finished(folder)]
    with page_server(port, summarize(rows), folders or []) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        if as_json:
            print_json({"address": address})
        else:
            out.print(f"{address} (Ctrl-C ends it)", soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            err.print("ended")


def read_terms(
    protocols: str,
    links: str | None,
    garbler: str | None,
    slots: bool,
    workers: int | None,
    profile: Path | None,
    objective: str | None = None,
) -> list[Terms]:
    """Every protocol on every link."""
    from deepreshape.cost import Profile, read_link
    from deepreshape.pricing.assign import read_objective
    from deepreshape.pricing.quote import Terms

    names = read_protocols(protocols)
    if "fhe" in names:
        raise ValueError(f"--protocol {protocols}: fhe has other costs than those beside it; give it alone")
    measured = Profile.read(profile) if profile else None
    least = read_objective("seconds" if objective is None else objective)
    terms = [
        Terms(name, read_role(garbler or "server"), at, slots, workers, measured, objective=least)
        for name in names
        for at in ([read_link(text) for text in links.split(",")] if links else [None])
    ]
    if objective and not any(each.chooses for each in terms):
        raise ValueError(f"--objective {objective} is what auto chooses for; {protocols} leaves nothing to choose")
    if not any(each.ours for each in terms):
        for option, given in (
            ("--garbler", garbler),
            ("--slots", slots),
            ("--workers", workers),
            ("--profile", profile),
        ):
            if given:
                raise ValueError(f"{option} is for our runtime; {protocols} has a price as it was published")
    if links is None and len({each.ours for each in terms}) > 1:
        raise ValueError(
            f"{protocols} mixes our runtime with a published system; --link says over what to compare them"
        )
    if slots and all(each.link is None or not isfinite(each.link.up + each.link.down) for each in terms):
        raise ValueError(f"--slots divides a link's rate, and {links or 'loopback'} has no limit; give another --link")
    return terms


def read_one_terms(protocol: str, link: str | None) -> Terms:
    """One protocol on one link, of which several are refused."""
    terms, *more = read_terms(protocol, link, None, False, None, None)
    if more:
        raise ValueError(f"one protocol and one link are compared here, not {protocol} and {link or 'its own'}")
    return terms


def read_protocols(text: str) -> tuple[str, ...]:
    """Reads names with commas between; settings behind a colon may hold commas too."""
    return tuple(re.split(r",(?!drop=|window|pos-zero|neg-pass|chain|tree|exact|cot=|garbler=|batch=)", text))


def read_role(text: str) -> Literal["server", "client"]:
    """Reads who garbles."""
    if text == "server" or text == "client":
        return text
    raise ValueError(f"--garbler is server or client, not {text!r}")


def _quotes(
    network: Network, model: str, terms: list[Terms], data: Dataset | None, data_dir: Path | None
) -> tuple[list[Quote], list[Quote]]:
    """A quote for each of ``terms``, and, over the first link of our runtime, one for each way to be nonlinear.

    Raises:
        ValueError: if the network, which the word ``model`` meant, cannot run privately, or has parts without a price.
    """
    from deepreshape.cli.models import find_inputs, lowered, random_inputs
    from deepreshape.counting import count
    from deepreshape.pricing.compare import compare
    from deepreshape.pricing.quote import quote_layers, quote_program
    from deepreshape.private.parties.plan import Plan
    from deepreshape.private.program.lowering.trace import UnsupportedNetworkError, by_kind
    from deepreshape.private.program.ops import ProgramError

    counted = count(network.module, network.shape)
    notes: list[str] = []
    program: Program | None = None
    if any(each.ours for each in terms):
        try:
            try:
                inputs = find_inputs(network, data_dir=data_dir, data=data)
            except ValueError as missing:
                inputs = random_inputs(network.shape)
                why = missing if network.manifest else "--data says which are the network's own"
                notes.append(f"formats rest on random inputs: {why}")
            program = lowered(network, inputs).program
            if program.squares:
                _ = Plan(program.public()).parameters  # squares of an untrained network may grow past all of them
        except UnsupportedNetworkError as error:
            why = "; ".join(by_kind(error.problems))
            raise ValueError(f"{model} does not run privately as it is, so it has no price: {why}") from None
        except ProgramError as error:
            program = None
            notes.append(f"priced by its layers, as it cannot be lowered as it is: {error}")
    quotes = [
        quote_program(program, each, tuple(notes))
        if program and each.ours
        else quote_layers(counted.priced_layers, each, tuple(notes))
        for each in terms
    ]
    first = [each for each in terms if each.ours][: not counted.unknown]
    return quotes, [quote for each in first for quote in compare(counted.priced_layers, each)]


def _summary(quote: Quote) -> dict[str, Any]:
    facts = quote.to_dict()
    return {
        name: facts[name] for name in ("protocol", "link", "relus", "squares", "signs", "seconds", "bytes", "rounds")
    }


def _under_ckks(network: Network, quotes: list[Quote], links: str | None) -> list[dict[str, Any]]:
    """A network of squares alone under CKKS, as a row beside the others; none if it is another or does not fit."""
    ours = next((quote for quote in quotes if quote.squares and not quote.relus), None)
    if ours is None:
        return []
    at = (links or "loopback").split(",")[0]
    try:
        price = price_of(network, at)
    except ValueError:
        return []
    images, sizes = price["images_a_ciphertext"], price["bytes"]
    online = (price["seconds"]["kept"] + price["links"][at]["query"]) / images
    sent = (sizes["up"] + sizes["down"]) // images
    counts = {"protocol": "fhe", "link": str(ours.link), "relus": 0, "squares": ours.squares, "rounds": 1}
    phases = {"seconds": (0.0, online), "bytes": (0, sent)}
    return [counts | {name: {"offline": a, "online": b, "total": a + b} for name, (a, b) in phases.items()}]


def _print_compared(rows: list[dict[str, Any]]) -> None:
    table = new_table("way", "offline, s", "online, s", "offline, MB", "online, MB", "rounds")
    for row in rows:
        seconds = (f"{row['seconds'][phase]:.2f}" for phase in ("offline", "online"))
        sizes = (f"{row['bytes'][phase] / 1e6:,.1f}" for phase in ("offline", "online"))
        table.add_row(row["protocol"], *seconds, *sizes, str(row["rounds"]))
    out.print(table)
    out.print(
        f"the same shape, by its layers, link {rows[0]['link']}: ReLUs in four ways, and squares in their places, for "
        "which a network must be trained (-herpn, or linearize --method herpn); fhe, where it fits: an image's part of "
        "a full ciphertext, after one upload of keys (cost --protocol fhe)",
        highlight=False,
    )


def _storage(text: str) -> tuple[float, float]:
    """Reads client/server, in units of 1,000."""
    units = {"mb": 1e6, "gb": 1e9, "tb": 1e12}
    sizes = [re.fullmatch(r"(\d+(?:\.\d+)?)(mb|gb|tb)", part) for part in text.lower().split("/")]
    if len(sizes) != 2 or not all(sizes):
        raise ValueError(f"--storage takes client/server in mb, gb or tb, such as 16gb/10tb, not {text!r}")
    client, server = (float(part[1]) * units[part[2]] for part in sizes if part)
    return client, server


def _queue(quote: Quote, an_hour: float, room: tuple[float, float]) -> dict[str, Any]:
    from deepreshape.cost import QueryService, simulate, sustainable

    online, report = quote.online.seconds, quote.report
    stored = report.stored_client, report.stored_server
    service = QueryService.of(quote.seconds - online, online, stored, room)
    hours = max(24.0, 200 / an_hour)
    served = simulate(service, an_hour, hours=hours)
    return {
        "arrivals": {
            "queries_an_hour": an_hour,
            "stored_batches": service.buffer,
            "mean_seconds": served.mean,
            "p95_seconds": served.worst,
            "ready_share": served.ready,
            "limit_an_hour": service.limit,
            "sustainable_an_hour": sustainable(service, hours=max(24.0, 200 / service.limit)),
        }
    }


def _print_queue(queue: dict[str, Any]) -> None:
    out.print(
        f"{queue['queries_an_hour']:g} queries an hour, {queue['stored_batches']} batches stored: an answer after "
        f"{queue['mean_seconds']:,.1f} s in the mean, {queue['p95_seconds']:,.1f} s for 95 of 100; "
        f"{queue['ready_share']:.0%} find a batch ready; {queue['sustainable_an_hour']:,.1f} an hour are sustained",
        highlight=False,
    )


def _print_quote(model: str, quote: Quote) -> None:
    facts = quote.to_dict()
    counted = [name for name in ("relus", "squares", "signs") if facts[name]] or ["relus"]
    named = {"relus": "ReLUs", "squares": "squares", "signs": "signs"}
    bars = "█\u00a0off ▒\u00a0on"
    table = new_table("layer", *(named[name] for name in counted), "offline, s", "online, s", "KB", bars)
    table.columns[-1].justify = "left"
    longest = max(row["seconds"]["total"] for row in facts["layers"]) or 1.0
    for row in facts["layers"]:
        seconds = row["seconds"]
        marks = "".join(
            sign * round(BAR * seconds[phase] / longest) for sign, phase in (("█", "offline"), ("▒", "online"))
        )
        table.add_row(
            row["layer"],
            *(thousands(row[name]) for name in counted),
            *(f"{seconds[phase]:.3f}" for phase in ("offline", "online")),
            f"{row['bytes']['total'] / 1000:,.1f}",
            marks,
        )
    out.print(table)
    if quote.assigned:
        print_assigned(quote.assigned)
    seconds, sizes, stored = facts["seconds"], facts["bytes"], facts["stored_bytes"]
    garbled = any(row.kind in ("garble", "evaluate") for row in quote.report.rows)
    garbles = f", the {quote.garbler} garbles" * garbled
    out.print(
        f"{model}, {quote.protocol}{garbles}, link {quote.link}, profile {quote.profile}: offline "
        f"{seconds['offline']:.2f} s and {sizes['offline'] / 1e6:,.1f} MB, online {seconds['online']:.2f} s and "
        f"{sizes['online'] / 1e6:,.1f} MB in {facts['rounds']} rounds; stored {stored['client'] / 1e6:,.1f} MB at the "
        f"client, {stored['server'] / 1e6:,.1f} MB at the server",
        highlight=False,
    )
    for note in quote.notes:
        out.print(f"[yellow]note:[/] {note}", highlight=False)
    out.print(quote.advice, highlight=False)
