"""From what two parties do, turn by turn, to seconds: two clocks and a link between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from deepreshape.cost.link import Link
from deepreshape.cost.profile import Profile, Work
from deepreshape.cost.report import Cost, CostReport, Phase

__all__ = ["Party", "Turn", "compute_schedule"]

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
        parallel: in how many like parts several workers can do ``make``.
        aside: what the receiver does with a piece in a thread of its own, beside all that follows.
        settles: the sender waits until nothing it does aside is left.
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
    parallel: int = 1
    aside: Work = field(default_factory=dict[str, float])
    settles: bool = False
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    trips: float = 0.0


@dataclass
class _Clock:
    """When a party is free, when what it does aside will be done, and how many workers it has started."""

    free: float = 0.0
    aside: float = 0.0
    workers: int = 0


def compute_schedule(turns: Iterable[Turn], profile: Profile, link: Link, workers: int = 1) -> CostReport:
    """When each turn ends, on the two parties' clocks.

    Args:
        turns: in the order in which they are taken.
        profile: of the machines; both parties have the same.
        link: between them.
        workers: processes of the sender that share the turns that are ``parallel``.

    Returns:
        A row for each layer, phase and kind, whose seconds are by how much it moved the end. They add up to the whole.
    """
    clocks: dict[Party, _Clock] = {"client": _Clock(), "server": _Clock()}
    rows: dict[tuple[str, Phase, str], Cost] = {}
    last: Party = "server"
    for turn in turns:
        before = _end(clocks)
        if turn.trips:
            for clock in clocks.values():
                clock.free = before + 2 * turn.trips * link.latency
        _advance(clocks, turn, profile, link, workers)
        key = turn.layer, turn.phase, turn.kind
        row = rows.get(key, Cost(*key))
        up, down = (turn.nbytes, 0) if turn.sender == "client" else (0, turn.nbytes)
        waited = turn.nbytes > 0 and last == "client" and turn.sender == "server"
        last = turn.sender if turn.nbytes else last
        rows[key] = replace(
            row,
            seconds=row.seconds + _end(clocks) - before,
            bytes_up=row.bytes_up + up,
            bytes_down=row.bytes_down + down,
            rounds=row.rounds + waited,
            **{name: getattr(row, name) + count for name, count in turn.counts.items()},
        )
    return CostReport.of(rows.values())


def _end(clocks: Mapping[Party, _Clock]) -> float:
    return max(clock.free for clock in clocks.values())


def _advance(clocks: Mapping[Party, _Clock], turn: Turn, profile: Profile, link: Link, workers: int) -> None:
    sender = clocks[turn.sender]
    receiver = clocks["server" if turn.sender == "client" else "client"]
    if turn.settles:
        sender.free = max(sender.free, sender.aside)
    if workers > 1 and turn.parallel > 1 and not sender.workers:
        sender.workers = workers
        sender.free += (workers - 1) * profile.units["worker"]
    # the worker with most parts decides
    share = -(-turn.parallel // min(workers, turn.parallel)) / turn.parallel
    make, take, aside = (profile.seconds(work) / turn.pieces for work in (turn.make, turn.take, turn.aside))
    if not turn.nbytes:
        sender.free += share * make * turn.pieces
        return
    carry = max(
        8 * turn.nbytes / (link.up if turn.sender == "client" else link.down),
        turn.nbytes * profile.units["tls.send"],
        turn.nbytes * profile.units["tls.receive"],
    )
    for piece in range(turn.pieces):
        sender.free += share * make
        if piece:  # a pipe holds little: the next piece goes when the receiver is done with the last
            sender.free = max(sender.free, receiver.free - link.latency)
        sender.free += carry / turn.pieces
        receiver.free = max(receiver.free, sender.free + link.latency) + take
        receiver.aside = max(receiver.aside, receiver.free) + aside
