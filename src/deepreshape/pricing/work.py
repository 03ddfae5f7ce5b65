"""From the step list of an inference to segments: what both parties do, in units that ``calibrate.py`` measures.

Each protocol declares the work behind its messages (``private/protocols``); here come the sessions and the store
around it. Under a measured profile and a link, ``cost.schedule`` makes seconds of the segments.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepreshape.cost import Party, Segment, Work
from deepreshape.private.protocols.steps import Steps

SESSION = "(session)"
"""Under this name connecting, greeting and the store's bookkeeping are booked."""
PREPARE_TRIPS = 5.0
INFER_TRIPS = 6.0
"""Round trips beside the program's: TCP, TLS, two of the handshake, the end; online also the claims."""


def segments(steps: Steps) -> Iterator[Segment]:
    """All segments of one inference, offline and online, with one session each."""
    make: Work = {"session": 1, "store.create": 1}
    yield Segment(SESSION, "offline", "session", "client", make=make, trips=PREPARE_TRIPS)
    online = False
    for layer, phase, kind, (sender, nbytes), effort, counts in steps.messages():
        if phase == "online" and not online:
            online = True
            yield from _between(steps)
        yield Segment(layer, phase, kind, sender, nbytes, **effort._asdict(), counts=counts)


def _between(steps: Steps) -> Iterator[Segment]:
    """The end of the offline session and the beginning of the online one."""
    # the server makes its half durable and says so, then the client its own
    order: tuple[tuple[int, Party], ...] = (1, "server"), (0, "client")
    for at, party in order:
        make = {"store.commit": steps.stored[at], "store.stream": steps.streams[at]}
        yield Segment(SESSION, "offline", "store", party, make=make, trips=0.5, settles=True)
    # both open and read their streams side by side; the client is done when its own are destroyed
    make = {"session": 1, "store.claim": 1, "store.open": max(steps.streams), "store.destroy": steps.stored[0]}
    yield Segment(SESSION, "online", "session", "client", make=make, trips=INFER_TRIPS)


def working_set(steps: Steps) -> tuple[int, int]:
    """About how many bytes (client, server) hold at once, beside the program and the interpreter."""
    layers = [[step.declared for flight in stage.flights for step in flight] for stage in steps.offline]
    transient = sum(max(declared.transient for declared in stage) for stage in layers)
    return transient, transient + sum(declared.resident for stage in layers for declared in stage)
