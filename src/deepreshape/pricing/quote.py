"""From a network to what one private inference of it costs, under a protocol, a link and a profile of machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from deepreshape.cost import (
    LINKS,
    PROFILES,
    Layer,
    Link,
    Profile,
    Quote,
    compute_schedule,
    price_published,
    reference,
    split,
)
from deepreshape.pricing.estimate import estimate_steps
from deepreshape.pricing.work import segments, working_set
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import SETTINGS, ReluConfig, Role
from deepreshape.private.protocols.he_workers import worthwhile
from deepreshape.private.protocols.steps import Steps

__all__ = ["OURS", "PROTOCOLS", "Terms", "quote_layers", "quote_program"]

OURS = ("gc-full", "gc-sign", "gc-stochastic:drop=12")
"""Ways to compute ReLUs in the private runtime; others are words of ``private.program.relu_config``."""
PROTOCOLS = (*OURS, *PROFILES)
"""What can be priced: our runtime under a measured profile, and the systems of a published study."""


@dataclass(frozen=True)
class Terms:
    """Under what an inference is priced.

    Attributes:
        protocol: one of :data:`PROTOCOLS`, or another word for a :class:`ReluConfig` of our runtime.
        garbler: who garbles, where the word does not say it; a published protocol says so itself.
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

    def __post_init__(self) -> None:
        if self.protocol.partition(":")[0] not in (*SETTINGS, *PROFILES):
            raise ValueError(f"unknown protocol {self.protocol!r}; known are {', '.join(PROTOCOLS)}")
        _ = self.ours and self.relu  # refuses settings that it does not have
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"{self.workers} workers: at least 1 is needed")

    @property
    def ours(self) -> bool:
        """Whether the protocol is our runtime's."""
        return self.protocol not in PROFILES

    @property
    def relu(self) -> ReluConfig:
        """How our runtime computes ReLUs."""
        given = ReluConfig.parse(self.protocol)
        return replace(given, garbler=self.garbler) if given.garbler == "server" else given


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
    return _quote(estimate_steps(layers, terms.relu, terms.bits).steps, terms, notes, exact=False)


def quote_program(program: Program, terms: Terms, notes: tuple[str, ...] = ()) -> Quote:
    """Price a lowered program under our runtime: its bytes are those that will travel.

    Raises:
        ProgramError: if a layer is too wide for every known set of parameters.
    """
    return _quote(Plan(program.public(), terms.relu).steps, terms, notes, exact=True)


def _quote(steps: Steps, terms: Terms, notes: tuple[str, ...], *, exact: bool) -> Quote:
    profile, link = terms.profile or reference(), terms.link or LINKS["loopback"]
    taken = list(segments(steps))
    if terms.slots and isfinite(link.up + link.down):
        up = sum(segment.nbytes for segment in taken if segment.sender == "client")
        link = split(link.up + link.down, up, sum(segment.nbytes for segment in taken) - up, link.latency)
    products = sum(segment.counts.get("he_products", 0) for segment in taken)
    workers = worthwhile(products, terms.workers or int(profile.machine["cpus"]))
    report = compute_schedule(taken, profile, link, workers)
    memory = tuple(profile.resident + nbytes for nbytes in working_set(steps))
    title = f"{profile.name}, {profile.date}, {profile.machine['cpu']}"
    return Quote(terms.protocol, terms.relu.garbler, link, title, report, exact, (memory[0], memory[1]), notes)
