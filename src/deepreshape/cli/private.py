"""Commands that run a network between two parties: local, keygen, lower, serve, prepare, query."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deepreshape.cli.console import (
    MODEL,
    NOTHING_KEPT,
    DataDir,
    ExitPoint,
    ExitWord,
    InputData,
    Json,
    ObjectiveWord,
    PictureOption,
    ProfileFile,
    bytes_bar,
    err,
    new_file,
    new_table,
    out,
    print_assigned,
    print_json,
    print_segmented,
    read_data,
    stoppable,
    thousands,
    with_groups,
    write_pictures,
)
from deepreshape.cli.convex import GATES, ROW, gated_input, inputs_of, predictions, told_by, write_gates
from deepreshape.cli.exits import print_exits, read_stop, run_dynamic

if TYPE_CHECKING:
    from deepreshape.cli.models import Inputs, Network
    from deepreshape.cost import Assigned
    from deepreshape.pricing.quote import Terms
    from deepreshape.private.parties.plan import Plan
    from deepreshape.private.parties.sessions import InferenceClient
    from deepreshape.private.program.headroom import Headroom
    from deepreshape.private.program.program import Program
    from deepreshape.private.program.quantize import Lowered
    from deepreshape.private.program.relu_config import Assignment, ReluConfig
    from deepreshape.private.program.sign_bits import Calibrated
    from deepreshape.private.service.segmented import SegmentedImage
    from deepreshape.private.transport.tls import Endpoint

Role = Literal["client", "server"]

app = typer.Typer(no_args_is_help=True, help="Run a network privately between a client and a server.")

MaxLossOption = Annotated[
    float | None,
    typer.Option(
        "--max-loss",
        min=0,
        help="Points of accuracy on validation images that the low bits that gc-stochastic:window leaves out may cost.",
        show_default=False,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="At most so many processes for the server's homomorphic layers; else one a core.",
        show_default=False,
    ),
]

SamplesOption = Annotated[
    Path | None,
    typer.Option(
        "--samples",
        help="Inputs of a network of your own, normalised: an .npy of (N, channels, height, width). Formats are "
        "calibrated on the first 256. For a gated network, rows: .npy or .csv.",
        show_default=False,
    ),
]
RowOption = Annotated[str | None, typer.Option("--row", help=ROW, show_default=False)]

MAX_LOSS = 0.2
COMPARED = 8
"""Inputs on which `lower` compares the program with the network."""
LOOKED = 256
"""Validation inputs on which `lower` looks at the limits of squares."""


@dataclass(frozen=True)
class Relus:
    """How ReLUs are computed, and by whom; both parties need the same."""

    garbler: Annotated[
        str, typer.Option(help="Who garbles: server or client. The other party stores and evaluates.")
    ] = "server"
    relu: Annotated[
        str,
        typer.Option(
            help="How ReLUs are computed: gc-full, gc-sign, gc-sign:window, gc-stochastic:drop=12, "
            "gc-stochastic:drop=12,neg-pass, gc-stochastic:window; or without garbling ot (exact), ot:window, ot:tree "
            "(fewer bytes, more rounds). A window is the bits that the program says for each layer; `lower` chooses "
            "them. auto takes what a layer costs least with on --link, of all that is exact; auto:window also of "
            "windows, ot:auto of chain and tree alone."
        ),
    ] = "gc-full"
    cot: Annotated[
        str, typer.Option(help="What makes the transfers of --relu ot: silent, softspoken or iknp.", show_default=False)
    ] = "silent"
    link: Annotated[
        str | None,
        typer.Option(
            help="What --relu auto chooses for: lan, wan, or up/down/round trip such as 20mbit/100mbit/40ms; it slows "
            "nothing down.",
            show_default=False,
        ),
    ] = None
    objective: ObjectiveWord = None
    profile: ProfileFile = None

    def terms(self, link: str | None = None) -> Terms:
        """These options, read; ``link`` is the one to choose for where none is named."""
        from deepreshape.cost import Profile, read_link
        from deepreshape.pricing.assign import candidates, read_objective
        from deepreshape.pricing.quote import Terms
        from deepreshape.private.program.relu_config import COTS, ReluConfig

        if self.garbler not in ("server", "client"):
            raise ValueError(f"--garbler is server or client, not {self.garbler!r}")
        if self.cot not in COTS:
            raise ValueError(f"--cot is {', '.join(COTS)}, not {self.cot!r}")
        candidates(self.relu)  # of our own runtime: no published system runs anywhere
        least = read_objective("seconds" if self.objective is None else self.objective)
        at = link if self.link is None else self.link
        measured = Profile.read(self.profile) if self.profile else None
        goal = None if at is None else read_link(at)
        terms = Terms(self.relu, self.garbler, goal, profile=measured, cot=self.cot, objective=least)
        if terms.chooses and at is None:
            raise ValueError(f"--relu {self.relu} chooses for a link; say which by --link, such as lan or wan")
        named = {"--link": self.link, "--objective": self.objective, "--profile": self.profile}
        for option in (option for option, given in named.items() if given is not None and not terms.chooses):
            raise ValueError(f"{option} is for --relu auto; {self.relu} leaves nothing to choose")
        alone = terms.candidates[0]
        if isinstance(alone, ReluConfig) and alone.protocol == "gc-stochastic" and not (alone.drop or alone.window):
            raise ValueError(
                f"--relu {self.relu} leaves out no bits and saves none; write gc-stochastic:drop=12 or :window"
            )
        return terms

    def plan(self, program: Program, tell: Callable[[Assigned], None]) -> Plan:
        """How ``program`` is run; what was chosen for it is told."""
        from deepreshape.pricing.quote import chosen_relus
        from deepreshape.private.parties.plan import Plan

        relu, assigned = chosen_relus(program, self.terms())
        if assigned:
            tell(assigned)
        return Plan(program.public(), relu)


PinOption = Annotated[
    str | None,
    typer.Option(
        "--pin",
        help="Fingerprint of the one server certificate to accept, as `keygen` prints it; else any of the authority.",
        show_default=False,
    ),
]


def read_pin(fingerprint: str | None) -> str | None:
    """A fingerprint as certificates are compared by."""
    from deepreshape.private.transport.certificates import FINGERPRINT

    if fingerprint is not None and not FINGERPRINT.fullmatch(fingerprint.lower()):
        raise ValueError(f"--pin {fingerprint}: a fingerprint has 64 hexadecimal digits; `keygen` prints the server's")
    return fingerprint and fingerprint.lower()


@dataclass(frozen=True)
class Party:
    """What a party brings along; the same options for serve, prepare and query."""

    program: Annotated[Path, typer.Option(help="This party's part of the program; the client's facts lie beside it.")]
    keys: Annotated[Path, typer.Option(help="Folder with authority.pem, and this party's certificate and key.")]
    store: Annotated[Path, typer.Option(help="This party's folder for prepared batches; never copy it.")]
    name: Annotated[str, typer.Option(help="Name in this party's certificate; else its role.", show_default=False)] = ""
    host: Annotated[str, typer.Option(help="Address of the server.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 lets `serve` choose one.")] = 7411

    def endpoint(self, role: Role) -> Endpoint:
        """Its certificate, loaded."""
        from deepreshape.private.transport.certificates import Credentials
        from deepreshape.private.transport.tls import Endpoint

        credentials = Credentials.within(self.keys, role, self.name or role)
        endpoint = Endpoint(credentials)
        if role == "client":  # a server's own process says it, every day
            for line in credentials.warnings():
                _tell(line)
        return endpoint

    def client(self, how: Relus, pin: str | None) -> InferenceClient:
        """A client with all of it."""
        from deepreshape.private.parties.sessions import InferenceClient
        from deepreshape.private.parties.store import Store

        if not self.port:
            raise ValueError("--port 0 lets `serve` choose; a client needs the port that it chose")
        plan = how.plan(_program(self.program), lambda assigned: _tell(f"ReLUs by {assigned}"))
        return InferenceClient(self.endpoint("client"), self.host, self.port, plan, Store(self.store), read_pin(pin))


@dataclass(frozen=True)
class Most:
    """Caps of a server; their defaults are those of ``private/caps.py``, which is not loaded for ``--help``."""

    pending: Annotated[
        int, typer.Option("--max-pending", min=1, help="Connections at once that have shown no certificate yet.")
    ] = 256
    sessions: Annotated[int, typer.Option("--max-sessions", min=1, help="Sessions at once, in all.")] = 8
    sessions_each: Annotated[int, typer.Option("--max-sessions-each", min=1, help="Sessions at once of a client.")] = 2
    batches_each: Annotated[int, typer.Option("--max-batches-each", min=1, help="Batches held for a client.")] = 16
    batch_days: Annotated[int, typer.Option("--max-batch-days", min=1, help="Days until an unused batch goes.")] = 30
    queries_hour_each: Annotated[
        int, typer.Option("--max-queries-hour-each", min=1, help="Queries of a client in any hour.")
    ] = 200
    queries_day_each: Annotated[
        int, typer.Option("--max-queries-day-each", min=1, help="Queries of a client in any day.")
    ] = 2000


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
        new_file(picture)
    if max_loss is not None and not calibrates:
        raise ValueError(f"--max-loss {max_loss:g} is for --relu gc-stochastic:window, not for {how.relu}")
    network, inputs = _network(model, samples, data, data_dir, images, row)
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
        program = stoppable(lambda: _windows(lowered, inputs, most, given), NOTHING_KEPT).program
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
    _print_comparison(report["beside_float"])
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


@app.command()
def keygen(
    to: Annotated[Path, typer.Option("--out", help="Folder for the authority and the certificates.")],
    client: Annotated[
        list[str] | None, typer.Option(help="Name of a client; may be repeated. Else `client`.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an authority of your own with a certificate for a server, unless the folder has one, and for clients."""
    from deepreshape.private.transport.certificates import create_authority, issue

    server: list[tuple[Role, str]] = []
    if not client or not (to / "authority.pem").exists():
        create_authority(to)
        server.append(("server", "server"))
    wanted: list[tuple[Role, str]] = [*server, *(("client", name) for name in client or ["client"])]
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
def lower(
    model: Annotated[str, typer.Argument(help=MODEL)],
    to: Annotated[Path, typer.Option("--out", help="Folder for the program's two parts.")],
    exit: ExitPoint = None,
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
        str, typer.Option(help="What --max-loss chooses windows for: gc-stochastic:window, with neg-pass or without.")
    ] = "gc-stochastic:window",
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
    from deepreshape.private.program.ops import Relu
    from deepreshape.private.program.relu_config import ReluConfig
    from deepreshape.private.service.bundle import CLIENT_PROGRAM, FACTS, SERVER_PROGRAM, Bundle, Facts, read_facts

    given = ReluConfig.parse(relu)
    if given.protocol != "gc-stochastic" or not given.window:
        raise ValueError(f"--relu {relu} has no windows to choose; gc-stochastic:window has, with neg-pass or without")
    network, inputs = _network(model, samples, data, data_dir)
    network = network.at(exit)
    lowered = lowered_of(network, inputs)
    told = read_facts(facts, lowered.program) if facts else Facts(**inputs.facts)
    program, calibrated = lowered.program, None
    if max_loss is not None:
        calibrated = stoppable(lambda: _windows(lowered, inputs, max_loss, given), NOTHING_KEPT)
        program = calibrated.program
    tried = inputs.known[:COMPARED]
    outputs = program.decode(plain.run(program, program.encode(tried)))[0]
    beside = compare(network, tried, outputs, inputs.facts.get("upsample"))
    Bundle(program, told).write(to)
    if network.fitted:
        write_gates(network.fitted, to)
    known = inputs.labels is not None
    windows = {op.name: [op.low, op.high] for op in program.ops if isinstance(op, Relu)}
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
        _print_comparison(beside)
        if near:
            _print_headroom(near, len(looked))
        bits = [high - low for low, high in windows.values()]
        out.print(f"sign tests need {min(bits, default=0)} to {max(bits, default=0)} bits", highlight=False)
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
        out.print(f"{to / SERVER_PROGRAM} is the server's secret; the client gets {CLIENT_PROGRAM} and {FACTS}")


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
    """Serve a program to clients with a certificate of the same authority, several at once; Ctrl-C ends it."""
    from deepreshape.private.parties.server import Model
    from deepreshape.private.parties.store import Store
    from deepreshape.private.service.quotas import Caps
    from deepreshape.private.service.service import Service
    from deepreshape.private.transport.tls import listen

    program = _program(options.program)
    if not program.weights:
        raise ValueError(f"{options.program} has no weights: it is a client's part; `serve` takes server.program")
    model = Model(program, how.plan(program, lambda assigned: print_assigned(assigned, err)), workers=workers)
    endpoint, store = options.endpoint("server"), Store(options.store)
    with listen(options.host, options.port) as listener, ExitStack() as stack:
        page = None if status_port is None else stack.enter_context(listen("127.0.0.1", status_port))
        service = Service(listener, endpoint, model, store, Caps(**asdict(most)), status_listener=page, notify=_tell)
        if page:
            _tell(f"status on http://127.0.0.1:{page.getsockname()[1]}/status")
        _tell(f"serving {program.relus:,} ReLUs on {options.host}:{listener.getsockname()[1]}")
        service.run(until)
    if as_json:
        print_json(service.ended)


@app.command()
@with_groups
def prepare(
    options: Party,
    how: Relus,
    pin: PinOption = None,
    count: Annotated[int, typer.Option(min=1, help="Batches to make; each serves one query.")] = 1,
    as_json: Json = False,
) -> None:
    """Do the offline work of queries ahead of time."""
    party = options.client(how, pin)
    batches: list[str] = []
    started = time.perf_counter()

    def work() -> None:
        with bytes_bar("offline") as show:
            for batch in party.prepare_several(count, show):
                batches.append(batch.batch)
                err.print(f"{len(batches)}/{count} batches", highlight=False)

    stoppable(work, "the batches counted above are kept")
    if as_json:
        print_json({"batches": batches, "seconds": time.perf_counter() - started, "relu": str(party.plan.relu)})


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
    pin: PinOption = None,
    picture: PictureOption = None,
    as_json: Json = False,
) -> None:
    """Ask for the classes of one input or its pixels, without showing it; prepares first if no batch is ready."""
    from deepreshape.private.program.program import to_fixed
    from deepreshape.private.service.bundle import FACTS, Facts, read_facts
    from deepreshape.private.service.predict import Prediction
    from deepreshape.private.service.segmented import SegmentedImage

    party = options.client(how, pin)
    public = party.plan.program
    if (input is None) == (row is None):
        raise ValueError(f"query takes one input, as a file or as --row, not {'neither' if input is None else 'two'}")
    given, gates = options.program.with_name(FACTS), options.program.with_name(GATES)
    facts = read_facts(given, public) if given.is_file() else Facts()
    if picture:
        new_file(picture)
        if not facts.upsample:
            raise ValueError(f"--picture {picture}: the program gives one class for an image, and none for its pixels")
    if gates.is_file():
        x, done = gated_input(gates, input, row), ""
    elif input is None:
        raise ValueError(f"--row is for networks that `convex fit` made, and there is no {gates}; give an image")
    else:
        x, done = facts.input_of(input, public.input_shape)
    if done:
        _tell(f"{input}: {done}")
    fixed = to_fixed(x, public.input_fraction)
    with bytes_bar("offline") as show:
        answer = stoppable(lambda: party.infer(fixed, progress=show), "no answer; a batch that it was using is spent")
    for why in answer.lost:
        _tell(f"another batch was used: {why}")
    sent = sum(moved.sent + moved.received for moved in answer.ledger.traffic.values())
    values = public.decode(answer.output)[0]
    logits, seconds, sizes = values.reshape(-1), {"online": answer.seconds}, {"online": sent}
    if facts.upsample:
        segmented = SegmentedImage.of(values, facts, seconds=seconds, bytes=sizes, agree=None, done=done)
        pictures = write_pictures([segmented], picture)
        if as_json:
            shares = [{"class": name, "colour": colour, "share": share} for name, colour, share in segmented.legend()]
            print_json({"classes": shares, "seconds": seconds, "bytes": sizes, "converted": done, "pictures": pictures})
            return
        print_segmented([segmented], pictures)
        out.print(f"online {answer.seconds:.2f} s, {sent / 1e6:,.2f} MB", highlight=False)
        return
    if gates.is_file() and not facts.class_names:
        if as_json:
            print_json({"value": logits.item(), "seconds": seconds, "bytes": sizes})
        else:
            out.print(f"{logits.item():.6g}; online {answer.seconds:.2f} s, {sent / 1e6:,.2f} MB", highlight=False)
        return
    prediction = Prediction.of(logits, facts, seconds=seconds, bytes=sizes, agree=None, done=done)
    if as_json:
        ranked = [{"class": name, "probability": share} for name, share in prediction.ranked]
        facts_of_run = {"seconds": seconds, "bytes": sizes, "relu": str(party.plan.relu)}
        print_json({"classes": ranked, "converted": done} | facts_of_run)
        return
    for name, share in prediction.ranked:
        out.print(f"{share:7.2%}  {name}", highlight=False, markup=False)  # the server's owner chose the name
    out.print(f"online {answer.seconds:.2f} s, {sent / 1e6:,.2f} MB", highlight=False)


def _network(
    model: str, samples: Path | None, data: str | None, data_dir: Path | None, count: int = 1, row: str | None = None
) -> tuple[Network, Inputs]:
    """The network, a gated one too, and inputs of it."""
    from deepreshape.cli.models import find_network
    from deepreshape.convex.saved import is_fitted
    from deepreshape.models.zoo import folder_of

    if is_fitted(folder_of(model)):
        gated = find_network(model)
        assert gated.fitted is not None  # noqa: S101 - is_fitted says so
        return gated, inputs_of(gated.fitted, samples, row, count)
    if row is not None:
        raise ValueError(f"--row is for networks that `convex fit` made, which {model} is not")
    return network_and_inputs(model, samples, data, data_dir, count)


def network_and_inputs(
    model: str, samples: Path | None, data: str | None, data_dir: Path | None, count: int
) -> tuple[Network, Inputs]:
    """A network of any kind, and inputs of it: samples, those of a data set, or of its own."""
    from deepreshape.cli.models import find_inputs, find_network, read_samples, see_outputs

    if samples and data:
        raise ValueError(f"--samples {samples} and --data {data} both give inputs; leave one out")
    given, dataset = (read_samples(samples) if samples else None), (read_data(data, data_dir) if data else None)
    shape = dataset.shape if dataset else given.shape[1:] if given is not None else None
    network = find_network(model, shape, len(dataset.class_names) if dataset else 100)
    if given is not None:
        try:
            network.run(given[:1])
        except (RuntimeError, ValueError, TypeError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(f"{model} fails on an input of {samples}, of shape {given.shape[1:]}: {why}") from None
    if dataset:
        see_outputs(network, dataset, model)
    inputs = find_inputs(network, given, data_dir, count, dataset)
    return network, inputs


def _print_headroom(near: dict[str, Headroom], count: int) -> None:
    name, room = max(near.items(), key=lambda pair: (pair[1].share, pair[1].largest / pair[1].limit))
    out.print(
        f"squares: {room.share:.1%} of {count} validation inputs come above half of the limit of {name}, the nearest "
        f"({room.largest:.3g} of {room.limit:.3g}); beyond a limit an answer is wrong and neither party sees it",
        highlight=False,
    )


def _print_comparison(beside: dict[str, Any]) -> None:
    alike = f"the same class for {beside['same_class']} of {beside['inputs']} inputs"
    if "pixels" in beside:
        alike = f"the same class for {beside['same_pixels']:,} of {beside['pixels']:,} pixels"
    out.print(
        f"beside the network in floating point: {alike}, outputs at most {beside['largest_difference']:.2g} apart "
        f"where the largest is {beside['largest_output']:.2g}",
        highlight=False,
    )


def _program(path: Path) -> Program:
    """One party's part, from its file."""
    from deepreshape.private.program.encoding import from_bytes
    from deepreshape.private.program.ops import ProgramError

    try:
        return from_bytes(path.read_bytes())
    except ProgramError as error:
        raise ValueError(f"{path}: {error}") from None


def _windows(lowered: Lowered, inputs: Inputs, max_loss: float, relu: ReluConfig) -> Calibrated:
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


def _tell(line: str) -> None:
    err.print(line, highlight=False, markup=False, soft_wrap=True)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
