"""The one list of what an inference consists of, of which plan, price and both parties' order are made.

*Offline.* Blinds behind ReLUs do not depend on what is before them, so the steps of many layers go side by side: those
of one flight up to where they wait for the other party, then on from there. Linear layers come first, by the level at
which the client knows its shares of them; then truncations, then ReLUs, as many in a flight as may wait in memory.
*Online* the steps of one operation go side by side: a partly masked ReLU truncates and rectifies in one round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

from deepreshape.private.program.ops import INPUT
from deepreshape.private.protocols.base import (
    WORD_BYTES,
    Effort,
    Flight,
    Message,
    Protocol,
    ReluProtocol,
    Segment,
    Step,
)
from deepreshape.private.transport.ledger import Phase

SETUP = "(setup)"
"""Under this name keys and base transfers are booked."""
OUTPUT = "(output)"
"""Under this name the server's last share is booked."""
FLIGHT_BYTES = 1 << 26
"""How many bytes of labels may wait in memory for their circuits, unless one layer alone has more."""


class Stage(NamedTuple):
    """What is prepared after one set-up: the flights of one protocol."""

    protocol: Protocol[Any, Any]
    flights: Sequence[Flight]

    @property
    def layers(self) -> list[Any]:
        """Of all its steps."""
        return [step.layer for flight in self.flights for step in flight]


class Booked(NamedTuple):
    """One message, where it is booked, the work behind it, and what is counted with it."""

    layer: str
    phase: Phase
    kind: str
    message: Message
    effort: Effort
    counts: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Steps:
    """All that one inference consists of.

    Attributes:
        inputs, outputs: elements of the input and of all outputs.
        element_bytes: of an element on the wire.
        offline: what is prepared, in order.
        online: the steps of each operation, in order.
    """

    inputs: int
    outputs: int
    element_bytes: int
    offline: tuple[Stage, ...]
    online: tuple[Flight, ...]

    @classmethod
    def of(
        cls, inputs: int, outputs: int, element_bytes: int, levels: Sequence[Flight], online: Iterable[Flight]
    ) -> Steps:
        """From what runs online, and the levels of its linear layers; everything else is prepared behind them."""
        order = tuple(online)
        rest = [step for flight in order for step in flight if not step.protocol.decides]
        rest.sort(key=lambda step: isinstance(step.protocol, ReluProtocol))
        stages = [Stage(levels[0][0].protocol, levels)] if levels else []
        for kind in dict.fromkeys(type(step.protocol) for step in rest):
            alike = [step for step in rest if type(step.protocol) is kind]
            stages.append(Stage(alike[0].protocol, flights(alike)))
        return cls(inputs, outputs, element_bytes, tuple(stages), order)

    @cached_property
    def nonlinear(self) -> tuple[int, ...]:
        """Where online there are flights with ReLUs or signs; as many as a program has ``nonlinear`` operations."""
        kinds = [[step.protocol for step in flight] for flight in self.online]
        return tuple(at for at, protocols in enumerate(kinds) if any(isinstance(p, ReluProtocol) for p in protocols))

    def with_flights(self, others: Mapping[int, Flight]) -> Steps:
        """The same with other flights online at some places."""
        levels = [flight for stage in self.offline if stage.protocol.decides for flight in stage.flights]
        online = [others.get(at, flight) for at, flight in enumerate(self.online)]
        return Steps.of(self.inputs, self.outputs, self.element_bytes, levels, online)

    def __iter__(self) -> Iterator[Step]:
        """Every step, as it runs online."""
        return (step for flight in self.online for step in flight)

    @cached_property
    def stored(self) -> tuple[int, int]:
        """Bytes of arrays that (client, server) keep from offline to online."""
        kept = [step.declared.stored for step in self]
        client, server = (sum(side) for side in zip(*kept, strict=True)) if kept else (0, 0)
        return client + WORD_BYTES * (self.inputs + self.outputs), server

    @cached_property
    def streams(self) -> tuple[int, int]:
        """In how many streams (client, server) keep them."""
        kept = [step.declared.stored for step in self]
        return sum(client > 0 for client, _ in kept) + 2, sum(server > 0 for _, server in kept)

    def messages(self) -> Iterator[Booked]:
        """Everything that is sent, in order, and the work of one party between."""
        yield _shares(INPUT, "offline", Message("client", 0), self.inputs)
        for protocol, ahead in self.offline:
            layers = [step.layer for flight in ahead for step in flight]
            messages = zip(protocol.setup_declared(layers), protocol.setup_work(layers), strict=True)
            for message, effort in messages:
                yield Booked(SETUP, "setup", protocol.setup_kind, message, effort, {})
            for flight in ahead:
                yield from _interleaved(flight, "offline")
        yield _shares(OUTPUT, "offline", Message("client", 0), self.outputs)
        yield _shares(INPUT, "online", Message("client", self.element_bytes * self.inputs), self.inputs)
        for flight in self.online:
            yield from _interleaved(flight, "online")
        yield _shares(OUTPUT, "online", Message("server", self.element_bytes * self.outputs), self.outputs)


def _interleaved(flight: Flight, phase: Phase) -> Iterator[Booked]:
    """The messages of steps that go side by side: a segment of each, then the next of each."""
    by_step = [_segments(step, phase) for step in flight]
    for segment_of_each in zip_longest(*by_step, fillvalue=[]):
        for segment in segment_of_each:
            yield from segment


def _segments(step: Step, phase: Phase) -> list[list[Booked]]:
    kind = step.protocol.kinds[phase == "online"]
    segments: tuple[Segment, ...] = step.declared.online if phase == "online" else step.declared.offline
    counts = dict(step.declared.counts.get(phase, {}))
    if phase == "offline":
        counts |= dict(zip(("stored_client", "stored_server"), step.declared.stored, strict=True))
    messages = [message for segment in segments for message in segment]
    booked = [
        Booked(step.name, phase, kind, message, effort, {} if number else counts)
        for number, (message, effort) in enumerate(zip(messages, step.work[phase], strict=True))
    ]
    cuts = iter(booked)
    return [[next(cuts) for _ in segment] for segment in segments]


def _shares(layer: str, phase: Phase, message: Message, count: int) -> Booked:
    """The client keeps or sends shares of the input or output, or takes the last."""
    if phase == "offline":
        nbytes = WORD_BYTES * count
        return Booked(layer, phase, "shares", message, Effort({"store.write": nbytes}), {"stored_client": nbytes})
    return Booked(layer, phase, "shares", message, Effort({"element": count}, {"element": count}), {})


def flights(steps: Sequence[Step]) -> list[Flight]:
    """Steps, in order, by the flight in which they are prepared: what waits in memory bounds what goes together."""
    groups: list[list[Step]] = []
    room = 0
    for step in steps:
        nbytes = step.declared.waiting
        if nbytes > room or not groups:
            groups.append([])
            room = FLIGHT_BYTES
        groups[-1].append(step)
        room -= nbytes
    return [tuple(group) for group in groups]
