"""From what two parties do, segment by segment, to seconds: two clocks and a link between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from deepreshape.cost.link import Link
from deepreshape.cost.profile import Profile, Work
from deepreshape.cost.report import Cost, CostReport, Phase

__all__ = ["Party", "Segment", "compute_schedule"]

Party = Literal["client", "server"]


@dataclass(frozen=True)
class Segment:
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


def compute_schedule(segments: Iterable[Segment], profile: Profile, link: Link, workers: int = 1) -> CostReport:
    """When each segment ends, on the two parties' clocks.

    Args:
        segments: in the order in which they are taken.
        profile: of the machines; both parties have the same.
        link: between them.
        workers: processes of the sender that share the segments that are ``parallel``.

    Returns:
        A row for each layer, phase and kind, whose seconds are by how much it moved the end. They add up to the whole.
    """
    clocks: dict[Party, _Clock] = {"client": _Clock(), "server": _Clock()}
    rows: dict[tuple[str, Phase, str], Cost] = {}
    last: Party = "server"
    for segment in segments:
        before = _end(clocks)
        if segment.trips:
            for clock in clocks.values():
                clock.free = before + 2 * segment.trips * link.latency
        _advance(clocks, segment, profile, link, workers)
        key = segment.layer, segment.phase, segment.kind
        row = rows.get(key, Cost(*key))
        up, down = (segment.nbytes, 0) if segment.sender == "client" else (0, segment.nbytes)
        waited = segment.nbytes > 0 and last == "client" and segment.sender == "server"
        last = segment.sender if segment.nbytes else last
        rows[key] = replace(
            row,
            seconds=row.seconds + _end(clocks) - before,
            bytes_up=row.bytes_up + up,
            bytes_down=row.bytes_down + down,
            rounds=row.rounds + waited,
            **{name: getattr(row, name) + count for name, count in segment.counts.items()},
        )
    return CostReport.of(rows.values())


def _end(clocks: Mapping[Party, _Clock]) -> float:
    return max(clock.free for clock in clocks.values())


def _advance(clocks: Mapping[Party, _Clock], segment: Segment, profile: Profile, link: Link, workers: int) -> None:
    sender = clocks[segment.sender]
    receiver = clocks["server" if segment.sender == "client" else "client"]
    if segment.settles:
        sender.free = max(sender.free, sender.aside)
    if workers > 1 and segment.parallel > 1 and not sender.workers:
        sender.workers = workers
        sender.free += profile.seconds({"worker": workers - 1})
    # the worker with most parts decides
    share = -(-segment.parallel // min(workers, segment.parallel)) / segment.parallel
    make, take, aside = (profile.seconds(work) / segment.pieces for work in (segment.make, segment.take, segment.aside))
    if not segment.nbytes:
        sender.free += share * make * segment.pieces
        return
    carry = max(
        8 * segment.nbytes / (link.up if segment.sender == "client" else link.down),
        profile.seconds({"tls.send": segment.nbytes}),
        profile.seconds({"tls.receive": segment.nbytes}),
    )
    for piece in range(segment.pieces):
        sender.free += share * make
        if piece:  # a pipe holds little: the next piece goes when the receiver is done with the last
            sender.free = max(sender.free, receiver.free - link.latency)
        sender.free += carry / segment.pieces
        receiver.free = max(receiver.free, sender.free + link.latency) + take
        receiver.aside = max(receiver.aside, receiver.free) + aside
