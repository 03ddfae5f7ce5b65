"""What two parties talk through: typed frames of known length, every byte booked to a layer and a phase.

A protocol step never sees a socket. It is given a :class:`Channel`, says what kind of frame it sends, and asks for
frames whose length it already knows from the program. :func:`memory_pair` joins two threads of one process;
``wire.py`` joins two processes over TLS.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.errors import PrivateError

Payload = bytes | bytearray | memoryview | NDArray[np.generic]
Phase = Literal["setup", "offline", "online"]


class Frame(IntEnum):
    """The kinds of frame there are. A receiver always expects exactly one of them."""

    HELLO = 1
    BASE_OT = 2
    EXTENSION = 3
    CIPHERTEXTS = 4
    TABLES = 5
    LABELS = 6
    ROWS = 7
    SHARES = 8
    READY = 9
    ABORT = 10


class ProtocolError(PrivateError):
    """The peer broke the protocol; the session is over and its offline material is spent."""


@dataclass
class Traffic:
    """Bytes and frames of one layer and phase, as one party saw them. Payload only; framing is the transport's."""

    sent: int = 0
    received: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    turns: int = 0
    """How often this party had to wait for the other after having sent something: its rounds."""


@dataclass
class Ledger:
    """Books traffic by (layer, phase). One per channel end; not shared between threads."""

    rows: dict[tuple[str, Phase], Traffic] = field(default_factory=dict[tuple[str, Phase], Traffic])
    seconds: dict[tuple[str, Phase], float] = field(default_factory=dict[tuple[str, Phase], float])
    """Wall-clock time this party spent there, waiting for the other included."""
    layer: str = ""
    phase: Phase = "setup"
    watch: Callable[[int], None] | None = None
    """Is told with every frame how many bytes were booked to layers so far, both ways."""
    _sent_last: bool = False
    _since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def at(self, layer: str, phase: Phase) -> Generator[None]:
        """Book what happens inside to this layer and phase."""
        before = self.layer, self.phase
        self._clock()
        self.layer, self.phase = layer, phase
        try:
            yield
        finally:
            self._clock()
            self.layer, self.phase = before

    def _clock(self) -> None:
        """Book the time since the last call to where we are."""
        now = time.perf_counter()
        place = self.layer, self.phase
        self.seconds[place] = self.seconds.get(place, 0.0) + now - self._since
        self._since = now

    def row(self) -> Traffic:
        """The row that is being written to."""
        return self.rows.setdefault((self.layer, self.phase), Traffic())

    def sent(self, nbytes: int) -> None:
        """Book one frame sent."""
        row = self.row()
        row.sent += nbytes
        row.frames_sent += 1
        self._sent_last = True
        self._tell()

    def received(self, nbytes: int) -> None:
        """Book one frame received."""
        row = self.row()
        row.received += nbytes
        row.frames_received += 1
        row.turns += self._sent_last
        self._sent_last = False
        self._tell()

    def _tell(self) -> None:
        if self.watch:
            self.watch(sum(row.sent + row.received for (layer, _), row in self.rows.items() if layer))


class Channel(Protocol):
    """One end of a connection."""

    ledger: Ledger

    def send(self, kind: Frame, payload: Payload) -> None:
        """Send one frame. ``payload`` is any contiguous buffer; an array is sent as its raw little-endian bytes."""
        ...

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        """The next frame's payload: writable, of exactly ``nbytes`` bytes.

        Raises:
            ProtocolError: if the next frame is of another kind or length. Checked before anything is allocated.
        """
        ...

    def receive_into(self, kind: Frame, out: Payload) -> None:
        """The next frame's payload, written over ``out``, a writable contiguous buffer of exactly its length."""
        ...


def as_bytes(payload: Payload) -> memoryview:
    """``payload`` as one flat view of bytes, without a copy.

    Raises:
        TypeError: if it is not contiguous.
    """
    view = payload.data if isinstance(payload, np.ndarray) else memoryview(payload)
    return view.cast("B") if view.nbytes else memoryview(b"")


def as_writable(out: Payload) -> memoryview:
    """``out`` as one flat view of bytes to write to, without a copy.

    Raises:
        TypeError: if it is read-only or not contiguous.
    """
    view = as_bytes(out)
    if view.nbytes and view.readonly:
        raise TypeError(f"cannot receive into a read-only buffer of {view.nbytes} bytes")
    return view


class MemoryChannel:
    """One end of an in-process pair; see :func:`memory_pair`."""

    def __init__(self, outbox: queue.Queue[tuple[Frame, bytes]], inbox: queue.Queue[tuple[Frame, bytes]]) -> None:
        self.ledger = Ledger()
        self._outbox = outbox
        self._inbox = inbox

    def send(self, kind: Frame, payload: Payload) -> None:
        data = bytes(as_bytes(payload))
        self._outbox.put((kind, data))
        self.ledger.sent(len(data))

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        try:
            got, data = self._inbox.get(timeout=120)
        except queue.Empty:
            raise ProtocolError(f"waited 120 s for a {kind.name} frame; the other thread has stopped") from None
        if got is not kind or len(data) != nbytes:
            raise ProtocolError(f"expected {kind.name} of {nbytes} bytes, got {got.name} of {len(data)}")
        self.ledger.received(nbytes)
        return memoryview(bytearray(data))

    def receive_into(self, kind: Frame, out: Payload) -> None:
        view = as_writable(out)
        view[:] = self.receive(kind, view.nbytes)


def memory_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Two ends joined by queues, for two threads of one process."""
    there: queue.Queue[tuple[Frame, bytes]] = queue.Queue()
    back: queue.Queue[tuple[Frame, bytes]] = queue.Queue()
    return MemoryChannel(there, back), MemoryChannel(back, there)
