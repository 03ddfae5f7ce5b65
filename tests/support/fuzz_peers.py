"""Readers of what a peer sends in the midst of a protocol: ciphertexts, and the messages of transfers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from support.mutate import Reader, Target
from support.two_parties import fixed

from deepreshape.private.crypto.he.bfv import ClientKey, Parameters, Responder
from deepreshape.private.crypto.labels import Delta
from deepreshape.private.crypto.ot.cot import Cot
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.crypto.ot.lpn import Size
from deepreshape.private.crypto.ot.silent import Silent
from deepreshape.private.crypto.ot.softspoken import SOFTSPOKEN
from deepreshape.private.errors import ProtocolError
from deepreshape.private.transport.channel import Frame, Payload, as_bytes
from deepreshape.private.transport.ledger import Ledger
from deepreshape.private.transport.memory import MemoryChannel, memory_pair

SMALL = Silent(small=Size(6, 5, 9), large=Size(8, 6, 10))
TRANSFERS = 3000


class _Recorded:
    """One end of a channel, and what it received."""

    def __init__(self, end: MemoryChannel) -> None:
        self.ledger, self.received = end.ledger, bytearray()
        self._end = end

    def send(self, kind: Frame, payload: Payload) -> None:
        self._end.send(kind, payload)

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        view = self._end.receive(kind, nbytes)
        self.received += view
        return view

    def receive_into(self, kind: Frame, out: Payload) -> None:
        as_bytes(out)[:] = self.receive(kind, as_bytes(out).nbytes)


class _Replayed:
    """An end whose peer sends these bytes, in frames as they are waited for."""

    def __init__(self, data: bytes) -> None:
        self.ledger = Ledger()
        self._data = memoryview(bytearray(data))

    def send(self, kind: Frame, payload: Payload) -> None: ...

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        if nbytes > len(self._data):
            raise ProtocolError("the peer is gone")
        view, self._data = self._data[:nbytes], self._data[nbytes:]
        return view

    def receive_into(self, kind: Frame, out: Payload) -> None:
        as_bytes(out)[:] = self.receive(kind, as_bytes(out).nbytes)


def _send(cot: Cot, end: object) -> None:
    sender = cot.sender(end, b"session", Delta(fixed(1)), fixed(2))  # pyright: ignore[reportArgumentType]
    sender.reserve(end, TRANSFERS)  # pyright: ignore[reportArgumentType]
    sender.random(end, TRANSFERS)  # pyright: ignore[reportArgumentType]


def _receive(cot: Cot, end: object) -> None:
    receiver = cot.receiver(end, b"session", fixed(3))  # pyright: ignore[reportArgumentType]
    receiver.reserve(end, TRANSFERS)  # pyright: ignore[reportArgumentType]
    receiver.random(end, TRANSFERS)  # pyright: ignore[reportArgumentType]


def _transfers(cot: Cot, side: Callable[[Cot, object], None], other: Callable[[Cot, object], None]) -> Target:
    """What one side of transfers receives."""

    def seeds() -> list[bytes]:
        near, far = memory_pair()
        recorded = _Recorded(near)
        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(other, cot, far)
            side(cot, recorded)
            done.result()
        return [bytes(recorded.received)]

    return Target(seeds, lambda _: lambda data: side(cot, _Replayed(data)), (ProtocolError,))


@cache
def _key() -> ClientKey:
    return ClientKey(Parameters(2**37, (60, 60)))


def _ciphertexts(_: Path) -> Reader:
    responder = Responder(_key().parameters, _key().public_key())
    return responder.receive


PEERS: dict[str, Target] = {
    "ciphertext": Target(
        lambda: [_key().encrypt(np.zeros(_key().parameters.degree, np.uint64))], _ciphertexts, (ProtocolError,)
    ),
    "silent transfers, sender": _transfers(SMALL, _send, _receive),
    "silent transfers, receiver": _transfers(SMALL, _receive, _send),
    "softspoken transfers, sender": _transfers(SOFTSPOKEN, _send, _receive),
    "softspoken transfers, receiver": _transfers(SOFTSPOKEN, _receive, _send),
    "iknp transfers, sender": _transfers(IKNP, _send, _receive),
    "iknp transfers, receiver": _transfers(IKNP, _receive, _send),
}
