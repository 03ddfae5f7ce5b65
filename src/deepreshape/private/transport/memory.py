"""A channel between two threads of one process."""

from __future__ import annotations

import queue

from deepreshape.private.errors import ProtocolError
from deepreshape.private.transport.channel import Frame, Payload, as_bytes, as_writable
from deepreshape.private.transport.ledger import Ledger


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
