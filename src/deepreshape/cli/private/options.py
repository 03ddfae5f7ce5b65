"""Options that commands of two parties share, and what is read of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from deepreshape.cli.console import tell
from deepreshape.cli.convex import ROW
from deepreshape.cli.options import ObjectiveWord, ProfileFile

if TYPE_CHECKING:
    from deepreshape.cost import Assigned
    from deepreshape.pricing.quote import Terms
    from deepreshape.private.parties.plan import Plan
    from deepreshape.private.parties.sessions import InferenceClient
    from deepreshape.private.program.program import Program
    from deepreshape.private.transport.tls import Endpoint, Limits

Role = Literal["client", "server"]

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
PinOption = Annotated[
    str | None,
    typer.Option(
        "--pin",
        help="Fingerprint of the one server certificate to accept, as `keygen` prints it; else any of the authority.",
        show_default=False,
    ),
]


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


def read_pin(fingerprint: str | None) -> str | None:
    """A fingerprint as certificates are compared by."""
    from deepreshape.private.transport.certificates import FINGERPRINT

    if fingerprint is not None and not FINGERPRINT.fullmatch(fingerprint.lower()):
        raise ValueError(f"--pin {fingerprint}: a fingerprint has 64 hexadecimal digits; `keygen` prints the server's")
    return fingerprint and fingerprint.lower()


def read_program(path: Path) -> Program:
    """One party's part, from its file."""
    from deepreshape.private.program.encoding import from_bytes
    from deepreshape.private.program.ops import ProgramError

    try:
        return from_bytes(path.read_bytes())
    except ProgramError as error:
        raise ValueError(f"{path}: {error}") from None


class Stages(NamedTuple):
    """What a client asks: programs by their stages, 0 where there is one program, and the confidence that ends.

    There is no threshold where one program answers everything.
    """

    paths: dict[int, Path]
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """Who a party is, and where the server listens."""

    keys: Annotated[Path, typer.Option(help="Folder with authority.pem, and this party's certificate and key.")]
    name: Annotated[str, typer.Option(help="Name in this party's certificate; else its role.", show_default=False)] = ""
    host: Annotated[str, typer.Option(help="Address of the server.")] = "127.0.0.1"

    def endpoint(self, role: Role, limits: Limits | None = None) -> Endpoint:
        """Its certificate, loaded."""
        from deepreshape.private.transport.certificates import Credentials
        from deepreshape.private.transport.tls import Endpoint

        credentials = Credentials.within(self.keys, role, self.name or role)
        endpoint = Endpoint(credentials, limits)
        if role == "client":  # a server's own process says it, every day
            credentials.require_unexpired()
            for line in credentials.warnings():
                tell(line)
        return endpoint


@dataclass(frozen=True, kw_only=True)
class Party(End):
    """What a party brings along; the same options for serve, prepare and query."""

    program: Annotated[
        Path,
        typer.Option(
            help="The folder that `lower` wrote, or this party's part of it, a file; the client's facts lie beside it."
        ),
    ]
    store: Annotated[Path, typer.Option(help="This party's folder for prepared batches; never copy it.")]
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 lets `serve` choose one.")] = 7411

    def clients(self, how: Relus, pin: str | None, paths: dict[int, Path]) -> dict[int, InferenceClient]:
        """By stage, clients with all of it, whose programs lie at ``paths``."""
        from deepreshape.private.parties.sessions import InferenceClient
        from deepreshape.private.parties.store import Store

        if not self.port:
            raise ValueError("--port 0 lets `serve` choose; a client needs the port that it chose")
        plans = {
            at: how.plan(read_program(path), lambda assigned: tell(f"ReLUs by {assigned}"))
            for at, path in paths.items()
        }
        endpoint, store, pinned = self.endpoint("client"), Store(self.store), read_pin(pin)
        return {at: InferenceClient(endpoint, self.host, self.port, plan, store, pinned) for at, plan in plans.items()}

    def _alone(self, part: str) -> Path | None:
        """The one program that ``--program`` means; None of a network's exits."""
        if not self.program.is_dir():
            return self.program
        return self.program / part if (self.program / part).is_file() else None

    def served(self) -> list[Path]:
        """The programs that a server offers."""
        from deepreshape.private.service.bundle import SERVER_PROGRAM
        from deepreshape.private.service.exit_bundle import exit_folder, read_exits

        alone = self._alone(SERVER_PROGRAM)
        if alone:
            return [alone]
        return [exit_folder(self.program, point) / SERVER_PROGRAM for point in read_exits(self.program).points]

    def asked(self, word: str | None) -> Stages:
        """The programs that a client asks, by what ``--exit`` says.

        Raises:
            ValueError: if there are no such exits, or nothing says from which confidence on an answer is taken.
        """
        from deepreshape.private.service.bundle import CLIENT_PROGRAM
        from deepreshape.private.service.exit_bundle import EXITS, exit_folder, read_exits
        from deepreshape.private.service.stop import Stop

        alone = self._alone(CLIENT_PROGRAM)
        if alone:
            if word is not None:
                raise ValueError(
                    f"--exit {word}: {self.program} is one program; `private lower --exit all` writes one for each exit"
                )
            return Stages({0: alone})
        known = read_exits(self.program)
        stop = Stop(known.points[-1]) if word is None else Stop.parse(word)
        if stop.static is not None and stop.static not in known.points:
            listed = ", ".join(map(str, known.points))
            raise ValueError(f"--exit {word}: {self.program} holds exits {listed}")
        points = stop.points(known.points) if stop.static is None else (stop.static,)
        paths = {point: exit_folder(self.program, point) / CLIENT_PROGRAM for point in points}
        threshold = known.threshold if stop.threshold is None else stop.threshold
        if stop.static is None and threshold is None:
            raise ValueError(
                f"--exit {word}: {self.program / EXITS} names no confidence that ends; give one, as dynamic:0.8"
            )
        return Stages(paths, threshold if stop.static is None else None)


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
