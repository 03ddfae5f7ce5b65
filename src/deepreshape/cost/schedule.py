"""From what two parties do, turn by turn, to seconds: two clocks and a link between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from deepreshape.cost.link import Link
from deepreshape.cost.profile import Profile, Work
from deepreshape.cost.report import Cost, CostReport, Phase

__all__ = ["Party", "Turn", "schedule"]

Party = Literal["client", "server"]


@dataclass(frozen=True)
class Turn:
    """A message, the work that makes it and the work that takes it; or, with no bytes, work of one party alone.

    Attributes:
        layer, phase, kind: where it is booked.
        sender: who does ``make`` and sends; the other does ``take``.
        nbytes: payload.
        make, take: how much work, by kind.
        pieces: in how many parts it is made; the sender makes the next one while the receiver takes the last.
        parallel: the same work of other layers can be done beside this one's.
        counts: what the declared row holds beside bytes and rounds, such as ``relus``.
        trips: round trips before, for which both parties wait and which no payload is booked for.
    """

    layer: str
    phase: Phase
    kind: str
    sender: Party
    nbytes: int = 0
    make: Work = field(default_factory=dict[str, float])
    take: Work = field(default_factory=dict[str, float])
    pieces: int = 1
    parallel: bool = False
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    trips: float = 0.0


def schedule(turns: Iterable[Turn], profile: Profile, link: Link, workers: int = 1) -> CostReport:
    """When each turn ends, on the two parties' clocks.

    Args:
        turns: in the order in which they are taken.
        profile: of the machines; both parties have the same.
        link: between them.
        workers: threads or processes of the sender that share the turns marked ``parallel`` (layer-parallel HE): such a
            turn takes its part of what all take together, the longest at least.

    Returns:
        A row for each layer, phase and kind, whose seconds are by how much it moved the end. They add up to the whole.
    """
    turns = list(turns)
    shorter = _together([profile.seconds(turn.make) for turn in turns if turn.parallel], workers)
    clocks: dict[Party, float] = {"client": 0.0, "server": 0.0}
    rows: dict[tuple[str, Phase, str], Cost] = {}
    last: Party = "server"
    for turn in turns:
        before = max(clocks.values())
        if turn.trips:
            clocks = dict.fromkeys(clocks, before + 2 * turn.trips * link.latency)
        _advance(clocks, turn, profile, link, shorter if turn.parallel else 1.0)
        key = turn.layer, turn.phase, turn.kind
        row = rows.get(key, Cost(*key))
        up, down = (turn.nbytes, 0) if turn.sender == "client" else (0, turn.nbytes)
        waited = turn.nbytes > 0 and last == "client" and turn.sender == "server"
        last = turn.sender if turn.nbytes else last
        rows[key] = replace(
            row,
            seconds=row.seconds + max(clocks.values()) - before,
            bytes_up=row.bytes_up + up,
            bytes_down=row.bytes_down + down,
            rounds=row.rounds + waited,
            **{name: getattr(row, name) + count for name, count in turn.counts.items()},
        )
    return CostReport.of(rows.values())


def _advance(clocks: dict[Party, float], turn: Turn, profile: Profile, link: Link, shorter: float) -> None:
    sender = turn.sender
    receiver: Party = "server" if sender == "client" else "client"
    begin, free = clocks[sender], clocks[receiver]
    make, take = shorter * profile.seconds(turn.make), profile.seconds(turn.take)
    if not turn.nbytes:
        clocks[sender] = begin + make
        return
    carry = max(
        8 * turn.nbytes / (link.up if sender == "client" else link.down),
        turn.nbytes * profile.units["tls.send"],
        turn.nbytes * profile.units["tls.receive"],
    )
    for piece in range(turn.pieces):
        begin += make / turn.pieces
        # a pipe holds little: the sender is done with a piece when the receiver has it, but for the latency
        begin = max(begin, free - link.latency if piece else 0.0) + carry / turn.pieces
        free = max(free, begin + link.latency) + take / turn.pieces
    clocks[sender], clocks[receiver] = begin, free


def _together(alone: list[float], workers: int) -> float:
    """By how much less time turns take that ``workers`` share, than one after the other."""
    serial = sum(alone)
    return max(max(alone), serial / workers) / serial if workers > 1 and serial else 1.0
