"""From a network to what one private inference of it costs, under a protocol, a link and a profile of machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from deepreshape.cost import (
    LINKS,
    PROFILES,
    Assigned,
    CostReport,
    Layer,
    Link,
    Profile,
    Quote,
    SquareLayer,
    compute_schedule,
    price_published,
    reference,
    split,
)
from deepreshape.pricing.assign import AUTO, Objective, assign, candidates
from deepreshape.pricing.estimate import estimate_steps
from deepreshape.pricing.work import segments, working_set
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import GC_FULL, SETTINGS, Assignment, ReluConfig, Role, takes
from deepreshape.private.protocols.he_workers import worthwhile
from deepreshape.private.protocols.steps import Steps

__all__ = ["OURS", "PROTOCOLS", "Terms", "chosen_relus", "quote_layers", "quote_program"]

OURS = ("gc-full", "gc-sign", "gc-stochastic:drop=12")
"""Ways to compute ReLUs in the private runtime; others are words of ``pricing.assign.candidates``."""
PROTOCOLS = (*OURS, *PROFILES)
"""What can be priced: our runtime under a measured profile, and the systems of a published study."""


@dataclass(frozen=True)
class Terms:
    """Under what an inference is priced.

    Attributes:
        protocol: one of :data:`PROTOCOLS`, or another word of our runtime, of ``pricing.assign.candidates``.
        garbler, cot: who garbles and what makes transfers, where the word does not say it and there is any; a published
            protocol says so itself.
        objective: what is least, where the word lets protocols be chosen.
        link: between the parties; None is this machine alone for our runtime, and the study's own for its protocols.
        slots: divide the sum of the link's rates between its directions by need.
        workers: the most processes of the server that share homomorphic work; as many as pay on the profile's machine
            without.
        profile: measured; the package's reference without.
        bits: of the ring, for networks that are priced by their layers alone; what suits ReLUs or squares without.
    """

    protocol: str = "gc-full"
    garbler: Role = "server"
    link: Link | None = None
    slots: bool = False
    workers: int | None = None
    profile: Profile | None = None
    bits: int | None = None
    cot: str = GC_FULL.cot
    objective: Objective = "seconds"

    def __post_init__(self) -> None:
        if self.protocol.partition(":")[0] not in (*SETTINGS, *PROFILES, AUTO) and "@" not in self.protocol:
            raise ValueError(f"unknown protocol {self.protocol!r}; known are {', '.join((*PROTOCOLS, 'ot', AUTO))}")
        _ = self.ours and self.candidates  # refuses settings that it does not have
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"{self.workers} workers: at least 1 is needed")

    @property
    def ours(self) -> bool:
        """Whether the protocol is our runtime's."""
        return self.protocol not in PROFILES

    @property
    def candidates(self) -> tuple[ReluConfig | Assignment, ...]:
        """How our runtime computes ReLUs; several to choose from, layer by layer."""
        return candidates(self.protocol, self.garbler, self.cot)

    @property
    def chooses(self) -> bool:
        """Whether it is chosen layer by layer."""
        return self.ours and len(self.candidates) > 1


def quote_layers(layers: Sequence[Layer], terms: Terms, notes: tuple[str, ...] = ()) -> Quote:
    """Price a network by its layers: instantly, and for networks that cannot be lowered too.

    Raises:
        ValueError: if there is nothing to price, a published system has no price for a layer, or one is too large for
            every known set of parameters.
    """
    if not terms.ours:
        published = PROFILES[terms.protocol]
        link = terms.link or LINKS["wireless"]
        report = price_published(layers, published, link)
        return Quote(terms.protocol, published.garbler, link, "Garimella et al., ASPLOS 2023", report, notes=notes)
    squares = any(isinstance(layer, SquareLayer) for layer in layers)
    return _quote(lambda relu: estimate_steps(layers, relu, terms.bits).steps, terms, notes, squares, exact=False)


def quote_program(program: Program, terms: Terms, notes: tuple[str, ...] = ()) -> Quote:
    """Price a lowered program under our runtime: its bytes are those that will travel.

    Raises:
        ProgramError: if a layer is too wide for every known set of parameters.
        ValueError: if an assignment is for another number of layers.
    """
    public = program.public()
    return _quote(lambda relu: Plan(public, relu).steps, terms, notes, bool(program.squares), exact=True)


def chosen_relus(program: Program, terms: Terms) -> tuple[ReluConfig | Assignment, Assigned | None]:
    """How a program's ReLUs are computed, and by what that was chosen; None where there is nothing to choose.

    Raises:
        ProgramError: if a layer cannot be computed so.
    """
    if not terms.chooses:
        return terms.candidates[0], None
    public = program.public()
    return _chosen(lambda relu: Plan(public, relu).steps, terms, bool(program.squares))


def _chosen(
    steps: Callable[[ReluConfig | Assignment], Steps], terms: Terms, squares: bool
) -> tuple[ReluConfig | Assignment, Assigned]:
    configs = [config for config in terms.candidates if isinstance(config, ReluConfig)]
    transfers = [config for config in configs if takes(config, "cot")]
    if squares and transfers and transfers[0].cot != GC_FULL.cot:
        configs = transfers  # who says what makes transfers means those of squares too, and a garbled ReLU says none
    relu, choices, tried = assign(configs, steps, lambda of: _schedule(of, terms)[0], terms.objective)
    return relu, Assigned(str(relu), terms.objective, str(terms.link or LINKS["loopback"]), choices, tried)


def _schedule(steps: Steps, terms: Terms) -> tuple[CostReport, Link]:
    """What the steps cost, and over which division of the link."""
    profile, link = terms.profile or reference(), terms.link or LINKS["loopback"]
    taken = list(segments(steps))
    if terms.slots and isfinite(link.up + link.down):
        up = sum(segment.nbytes for segment in taken if segment.sender == "client")
        link = split(link.up + link.down, up, sum(segment.nbytes for segment in taken) - up, link.latency)
    products = sum(segment.counts.get("he_products", 0) for segment in taken)
    workers = worthwhile(products, terms.workers or int(profile.machine["cpus"]))
    return compute_schedule(taken, profile, link, workers), link


def _quote(
    steps: Callable[[ReluConfig | Assignment], Steps],
    terms: Terms,
    notes: tuple[str, ...],
    squares: bool,
    *,
    exact: bool,
) -> Quote:
    relu, assigned = _chosen(steps, terms, squares) if terms.chooses else (terms.candidates[0], None)
    there = steps(relu)
    report, link = _schedule(there, terms)
    profile = terms.profile or reference()
    memory = tuple(profile.resident + nbytes for nbytes in working_set(there))
    title = f"{profile.name}, {profile.date}, {profile.machine['cpu']}"
    of = terms.protocol, relu.garbler, link, title, report
    return Quote(*of, exact, (memory[0], memory[1]), notes, assigned)
