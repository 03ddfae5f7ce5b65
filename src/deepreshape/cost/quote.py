"""What one inference costs under given terms, summed up, and one sentence of advice that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deepreshape.cost.link import Link
from deepreshape.cost.report import CostReport

__all__ = ["Assigned", "LayerChoice", "Quote"]

LINEAR = ("he", "clear", "shares", "keys", "truncate")
NONLINEAR = ("garble", "evaluate", "transfers", "transfer", "compare", "square")
LITTLE = 0.05
"""Share of the time below which something is not worth removing."""


@dataclass(frozen=True)
class LayerChoice:
    """The protocol that was chosen for one layer, and the next best for it.

    Attributes:
        layer: its name.
        relus: how many ReLUs or signs it has.
        protocol: that was chosen.
        seconds, bytes: of this layer, both phases, without what a run sets up once.
        other: what the whole costs least with in its place, other layers as they are; empty if nothing else can be.
        more_seconds, more_bytes: how much more the whole would cost with that.
    """

    layer: str
    relus: int
    protocol: str
    seconds: float
    bytes: int
    other: str = ""
    more_seconds: float = 0.0
    more_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {
            "seconds": round(self.seconds, 6),
            "more_seconds": round(self.more_seconds, 6),
        }


@dataclass(frozen=True)
class Assigned:
    """What was chosen, layer by layer, and by what.

    Attributes:
        word: of the protocols, which both parties of a run need alike.
        objective: what is least: seconds, bytes or online (seconds).
        link: it was chosen for.
        choices: by layer, in order.
        tried: how many assignments were priced.
    """

    word: str
    objective: str
    link: str
    choices: tuple[LayerChoice, ...]
    tried: int

    def __str__(self) -> str:
        return f"{self.word}, chosen for {self.objective} on link {self.link}, {self.tried} assignments priced"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        facts = {name: getattr(self, name) for name in ("word", "objective", "link", "tried")}
        return facts | {"choices": [choice.to_dict() for choice in self.choices]}


@dataclass(frozen=True)
class Quote:
    """A cost report with the terms it holds under.

    Attributes:
        protocol, garbler, link, profile: the terms; ``profile`` is the name of what gave the seconds.
        report: the rows.
        exact: bytes and counts are those of a lowered program, not of its layers alone.
        memory: peak bytes of (client, server), about; None where nothing is known.
        notes: what a reader must know.
        assigned: what was chosen for each layer, where the protocol was ``auto``.
    """

    protocol: str
    garbler: str
    link: Link
    profile: str
    report: CostReport
    exact: bool = False
    memory: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    assigned: Assigned | None = None

    @property
    def online(self) -> CostReport:
        """The rows of the online phase."""
        return self.report.only(phase="online")

    @property
    def seconds(self) -> float:
        """Offline and online together."""
        return self.report.seconds

    @property
    def relus(self) -> int:
        """ReLUs that run."""
        return _relus(self.report)

    @property
    def squares(self) -> int:
        """Squares that run."""
        return sum(row.squares for row in self.online.rows)

    @property
    def signs(self) -> int:
        """Signs that run."""
        return sum(row.signs for row in self.online.rows)

    def share(self, kinds: tuple[str, ...]) -> float:
        """Share of the seconds that work of these kinds takes, sending its bytes included."""
        of = {row.layer for row in self.report.rows if row.kind in kinds}
        other = {row.layer for row in self.report.rows if row.kind in (*LINEAR, *NONLINEAR) and row.kind not in kinds}
        seconds = sum(
            row.seconds
            for row in self.report.rows
            if row.kind in kinds or (row.kind == "send" and row.layer in of - other)
        )
        return seconds / self.seconds if self.seconds else 0.0

    @property
    def relu_share(self) -> float:
        """Of the seconds, what ReLUs take."""
        return self.share(NONLINEAR)

    @property
    def linear_share(self) -> float:
        """Of the seconds, what linear layers take; sessions and the store are in neither share."""
        return self.share(LINEAR)

    @property
    def waiting_share(self) -> float:
        """Of the seconds, what passes while bytes are under way because the link is far, whatever its rate."""
        return 2 * self.link.latency * self.report.rounds / self.seconds if self.seconds else 0.0

    @property
    def advice(self) -> str:
        """One sentence."""
        relu, linear = self.relu_share, self.linear_share
        if self.waiting_share > 0.3:
            alone = self.squares and not self.relus
            instead = "take fewer layers" if alone else "remove whole layers of ReLUs rather than parts of them"
            return (
                f"Waiting takes {self.waiting_share:.0%} of the time on this link: {self.report.rounds} round trips; "
                f"{instead}, and prepare ahead of queries."
            )
        if self.squares and not self.relus:
            return (
                f"Linear layers take {linear:.0%} of the time and squares {relu:.0%}; squares cost "
                f"{self.online.only(kind='square').bytes / self.squares:.1f} B each online: fewer or narrower "
                "convolutions gain more than fewer squares."
            )
        if self.signs and not self.relus:
            return (
                f"Linear layers take {linear:.0%} of the time and signs {relu:.0%}; a sign costs what its bits do, "
                "which are few between one-bit weights and many behind a real shortcut."
            )
        if not self.relus or relu < LITTLE:
            return (
                f"Linear layers take {linear:.0%} of the time and ReLUs {relu:.0%}: removing ReLUs gains nearly "
                "nothing here; fewer or narrower convolutions do."
            )
        # below n ReLUs, removing the rest gains under LITTLE of what is then left
        enough = int(self.relus * LITTLE / (1 - LITTLE) * (1 - relu) / relu)
        if relu >= linear:
            layer, seconds = max(
                ((name, self.report.only(layer=name).seconds) for name in self._relu_layers), key=lambda pair: pair[1]
            )
            return (
                f"ReLUs take {relu:.0%} of the time: half as many save about {relu / 2:.0%}, and {layer} alone takes "
                f"{seconds / self.seconds:.0%}; below about {enough:,} ReLUs, removing the rest gains under "
                f"{LITTLE:.0%}."
            )
        return (
            f"Linear layers take {linear:.0%} of the time: removing every ReLU gains at most {relu:.0%}, and below "
            f"about {enough:,} ReLUs under {LITTLE:.0%}; fewer MACs or HE layers in parallel gain more."
        )

    def __str__(self) -> str:
        """Seconds and bytes of both phases, and the advice."""
        online = self.online
        return (
            f"{self.protocol}, link {self.link}: offline {self.seconds - online.seconds:.2f} s and "
            f"{(self.report.bytes - online.bytes) / 1e6:.1f} MB, online {online.seconds:.2f} s and "
            f"{online.bytes / 1e6:.1f} MB in {online.rounds} rounds. {self.advice}"
        )

    @property
    def _relu_layers(self) -> list[str]:
        return list(dict.fromkeys(row.layer for row in self.report.rows if row.kind in NONLINEAR and row.relus))

    def to_dict(self) -> dict[str, Any]:
        """As ``deepreshape cost --json`` prints it."""
        return {
            "protocol": self.protocol,
            "garbler": self.garbler,
            "link": str(self.link),
            "profile": self.profile,
            "exact": self.exact,
            "relus": self.relus,
            "squares": self.squares,
            "signs": self.signs,
            "seconds": _phases(self.seconds, self.online.seconds, 6),
            "bytes": _phases(self.report.bytes, self.online.bytes),
            "rounds": self.online.rounds,
            "rounds_offline": self.report.rounds - self.online.rounds,
            "stored_bytes": {"client": self.report.stored_client, "server": self.report.stored_server},
            "memory_bytes": dict(zip(("client", "server"), self.memory, strict=True)) if self.memory else None,
            "relu_share": round(self.relu_share, 4),
            "linear_share": round(self.linear_share, 4),
            "layers": [self._layer(name) for name in self.report.layers],
            "advice": self.advice,
            "notes": list(self.notes),
            "assigned": self.assigned and self.assigned.to_dict(),
        }

    def _layer(self, name: str) -> Mapping[str, Any]:
        costs = self.report.only(layer=name)
        online = costs.only(phase="online")
        return {
            "layer": name,
            "relus": _relus(costs),
            "squares": sum(row.squares for row in online.rows),
            "signs": sum(row.signs for row in online.rows),
            "macs": sum(row.macs for row in costs.rows),
            "he_products": sum(row.he_products for row in costs.rows),
            "seconds": _phases(costs.seconds, online.seconds, 6),
            "bytes": _phases(costs.bytes, online.bytes),
            "kinds": {
                kind: round(costs.only(kind=kind).seconds, 6) for kind in dict.fromkeys(r.kind for r in costs.rows)
            },
        }


def _relus(costs: CostReport) -> int:
    """ReLUs that run, which a report books in one phase or in both."""
    return max(sum(row.relus for row in costs.rows if row.phase == phase) for phase in ("offline", "online"))


def _phases(total: float, online: float, digits: int | None = None) -> dict[str, float]:
    return {"offline": round(total - online, digits), "online": round(online, digits), "total": round(total, digits)}
