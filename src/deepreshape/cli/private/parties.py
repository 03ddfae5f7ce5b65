"""Commands of the two parties: private keygen, serve, prepare, query."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from deepreshape.cli.console import (
    bytes_bar,
    err,
    out,
    print_assigned,
    print_json,
    print_segmented,
    stoppable,
    tell,
    write_pictures,
)
from deepreshape.cli.convex import GATES, gated_input
from deepreshape.cli.options import ExitWord, Json, PictureOption, new_file, with_groups
from deepreshape.cli.private.exits import exits_asked, print_exits_asked
from deepreshape.cli.private.options import Most, Party, PinOption, Relus, Role, RowOption, WorkersOption, read_program

app = typer.Typer()


@app.command()
def keygen(
    to: Annotated[Path, typer.Option("--out", help="Folder for the authority and the certificates.")],
    client: Annotated[
        list[str] | None,
        typer.Option(help="Name of a client; may be repeated. Of a new authority, else `client`.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an authority of your own, a certificate for a server, unless the folder has them, and some for clients."""
    from deepreshape.private.transport.certificates import Credentials, create_authority, issue, require_new

    new = not (to / "authority.pem").exists()
    names = client or (["client"] if new else [])
    if len({"server", *names}) <= len(names):
        raise ValueError(f"--client {' --client '.join(names)}: give each name once; `server` is the server's own")
    wanted: list[tuple[Role, str]] = [("client", name) for name in names]
    server = Credentials.within(to, "server", "server").certificate
    if not server.exists():
        wanted.insert(0, ("server", "server"))
    if not wanted:
        raise ValueError(
            f"{to} has an authority and a certificate for a server; --client NAME adds a client, and if {server.name} "
            "and its key are moved away the server gets new ones"
        )
    for role, name in wanted:  # before anything is written
        require_new(to, role, name)
    if new:
        create_authority(to)
    fingerprints = {name: issue(to, role, name).identity().fingerprint for role, name in wanted}
    if as_json:
        print_json({"folder": str(to), "fingerprints": fingerprints})
    else:
        out.print(
            f"made {', '.join(fingerprints)} in {to}; give each its own .pem and .key, and authority.pem to all",
            soft_wrap=True,
            highlight=False,
        )
        if "server" in fingerprints:
            out.print(
                f"clients accept this server only with --pin {fingerprints['server']}", soft_wrap=True, highlight=False
            )


@app.command()
@with_groups
def serve(
    options: Party,
    how: Relus,
    most: Most,
    workers: WorkersOption = None,
    until: Annotated[int, typer.Option("--sessions", min=0, help="End after so many sessions; 0 never ends.")] = 0,
    status_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Show /status and /metrics on this port of 127.0.0.1.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve a program, or those of a network's exits, to clients with a certificate of the same authority.

    Several at once; Ctrl-C ends it.
    """
    from deepreshape.private.parties.server import Model
    from deepreshape.private.parties.store import Store
    from deepreshape.private.service.quotas import Caps
    from deepreshape.private.service.service import Service
    from deepreshape.private.transport.tls import listen

    models: list[Model] = []
    for path in options.served():
        program = read_program(path)
        if not program.weights:
            raise ValueError(f"{path} has no weights: it is a client's part; `serve` takes server.program")
        plan = how.plan(program, lambda assigned: print_assigned(assigned, err))
        models.append(Model(program, plan, workers=workers))
    endpoint = options.endpoint("server")
    with listen(options.host, options.port) as listener, ExitStack() as stack:
        store = Store(options.store)
        page = None if status_port is None else stack.enter_context(listen("127.0.0.1", status_port))
        service = Service(listener, endpoint, models, store, Caps(**asdict(most)), status_listener=page, notify=tell)
        sizes = ", ".join(f"{each.program.relus:,}" for each in models)
        lines = [f"serving {sizes} ReLUs on {options.host}:{listener.getsockname()[1]}"]
        if page:
            lines.insert(0, f"status on http://127.0.0.1:{page.getsockname()[1]}/status")
        service.run(until, lambda: [tell(line) for line in lines])
    if as_json:
        print_json(service.ended)


@app.command()
@with_groups
def prepare(
    options: Party,
    how: Relus,
    pin: PinOption = None,
    count: Annotated[int, typer.Option(min=1, help="Batches to make; each serves one query.")] = 1,
    exit: ExitWord = None,
    as_json: Json = False,
) -> None:
    """Do the offline work of queries ahead of time; of exits that are asked in turn, for each as many batches."""
    parties = list(options.clients(how, pin, options.asked(exit).paths).values())
    batches: list[str] = []
    started = time.perf_counter()

    def work() -> None:
        with bytes_bar("offline") as show:
            for batch in chain.from_iterable(party.prepare_several(count, show) for party in parties):
                batches.append(batch.batch)
                err.print(f"{len(batches)}/{count * len(parties)} batches", highlight=False)

    stoppable(work, "the batches counted above are kept")
    if as_json:
        relu = str(parties[-1].plan.relu)
        print_json({"batches": batches, "seconds": time.perf_counter() - started, "relu": relu})


@app.command()
@with_groups
def query(
    options: Party,
    how: Relus,
    input: Annotated[
        Path | None,
        typer.Argument(help="An image, a .npy array of the network's input shape, or a .csv with one row."),
    ] = None,
    row: RowOption = None,
    exit: ExitWord = None,
    pin: PinOption = None,
    picture: PictureOption = None,
    as_json: Json = False,
) -> None:
    """Ask for the classes of one input or its pixels, without showing it; prepares first if no batch is ready."""
    from deepreshape.private.program.program import to_fixed
    from deepreshape.private.service.bundle import FACTS, Facts, read_facts
    from deepreshape.private.service.exits_in_turn import ask_in_turn
    from deepreshape.private.service.predict import Prediction
    from deepreshape.private.service.segmented import SegmentedImage

    stages = options.asked(exit)
    parties = options.clients(how, pin, stages.paths)
    path, party = next(iter(stages.paths.values())), next(iter(parties.values()))
    public = party.plan.program
    if (input is None) == (row is None):
        raise ValueError(f"query takes one input, as a file or as --row, not {'neither' if input is None else 'two'}")
    given, gates = path.with_name(FACTS), path.with_name(GATES)
    facts = read_facts(given, public) if given.is_file() else Facts()
    if picture:
        new_file(picture, ".png")
        if not facts.upsample:
            raise ValueError(f"--picture {picture}: the program gives one class for an image, and none for its pixels")
    if gates.is_file():
        x, done = gated_input(gates, input, row), ""
    elif input is None:
        raise ValueError(f"--row is for networks that `convex fit` made, and there is no {gates}; give an image")
    else:
        x, done = facts.input_of(input, public.input_shape)
    if done:
        tell(f"{input}: {done}")
    fixed = to_fixed(x, public.input_fraction)
    with bytes_bar("offline") as show:
        enough = 0.0 if stages.threshold is None else stages.threshold
        asked = stoppable(
            lambda: ask_in_turn(parties, fixed, enough, show), "no answer; a batch that it was using is spent"
        )
    for why in (why for each in asked for why in each.answer.lost):
        tell(f"another batch was used: {why}")
    sent, took = sum(each.answer.bytes for each in asked), sum(each.answer.seconds for each in asked)
    values, told = asked[-1].logits, exits_asked(asked, stages)
    logits, seconds, sizes = values.reshape(-1), {"online": took}, {"online": sent}
    if told and not as_json:
        print_exits_asked(told)
    if facts.upsample:
        segmented = SegmentedImage.of(values, facts, seconds=seconds, bytes=sizes, agree=None, done=done)
        pictures = write_pictures([segmented], picture)
        if as_json:
            shares = [{"class": name, "colour": colour, "share": share} for name, colour, share in segmented.legend()]
            print_json(
                {"classes": shares, "seconds": seconds, "bytes": sizes, "converted": done, "pictures": pictures} | told
            )
            return
        print_segmented([segmented], pictures)
        out.print(f"online {took:.2f} s, {sent / 1e6:,.2f} MB", highlight=False)
        return
    if len(logits) == 1:
        if as_json:
            print_json({"value": logits.item(), "seconds": seconds, "bytes": sizes} | told)
        else:
            out.print(f"{logits.item():.6g}; online {took:.2f} s, {sent / 1e6:,.2f} MB", highlight=False)
        return
    prediction = Prediction.of(logits, facts, seconds=seconds, bytes=sizes, agree=None, done=done)
    if as_json:
        ranked = [{"class": name, "probability": share} for name, share in prediction.ranked]
        facts_of_run = {"seconds": seconds, "bytes": sizes, "relu": str(party.plan.relu)}
        print_json({"classes": ranked, "converted": done} | facts_of_run | told)
        return
    for name, share in prediction.ranked:
        out.print(f"{share:7.2%}  {name}", highlight=False, markup=False)  # the server's owner chose the name
    out.print(f"online {took:.2f} s, {sent / 1e6:,.2f} MB", highlight=False)
