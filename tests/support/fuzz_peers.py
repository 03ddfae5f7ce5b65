"""Readers of what a peer sends in the midst of a protocol: ciphertexts, transfers, and nonlinear steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from support.mutate import Reader, Target
from support.programs import ONE_RELU, ONE_SIGN, ONE_SQUARE
from support.two_parties import fixed

from deepreshape.private.crypto.he.bfv import ClientKey, Parameters, Responder
from deepreshape.private.crypto.labels import Delta
from deepreshape.private.crypto.ot.cot import Cot
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.crypto.ot.lpn import Size
from deepreshape.private.crypto.ot.silent import Silent
from deepreshape.private.crypto.ot.softspoken import SOFTSPOKEN
from deepreshape.private.errors import ProtocolError
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ROLES, ReluConfig, Role
from deepreshape.private.protocols.base import Prepared, Run, side_by_side
from deepreshape.private.protocols.choose import Protocols
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


def _step(program: Program, role: Role, relu: str = "gc-full") -> Target:
    """What one party of a program with one nonlinear step receives: set-up, offline and online."""
    config = ReluConfig.parse(relu)
    (step,) = (step for op in program.ops for step in Protocols(config).steps(op, program))
    layer, ring = step.layer, program.modulus
    known = {"client": [ring.random(layer.count, fixed(5)), ring.random(layer.count, fixed(6))], "server": [None, None]}
    served = step.protocol.serving([layer], program, keep=False, workers=1)

    def act(at: Role, end: object) -> None:
        protocol = served if at == "server" else step.protocol
        run, kept = Run(end, b"run", at, fixed(len(at))), list[Prepared]()  # pyright: ignore[reportArgumentType]
        offline = protocol.offline(run, protocol.setup(run, [layer]), layer, *known[at])
        side_by_side(run, "offline", [(step.name, offline)], lambda _, part: kept.append(part))
        share = ring.random(layer.count, fixed(7)) if at == "server" else None
        side_by_side(run, "online", [(step.name, protocol.online(run, layer, iter(kept), share))])

    def seeds() -> list[bytes]:
        near, far = memory_pair()
        recorded = _Recorded(near)
        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(act, "server" if role == "client" else "client", far)
            act(role, recorded)
            done.result()
        return [bytes(recorded.received)]

    return Target(seeds, lambda _: lambda data: act(role, _Replayed(data)), (ProtocolError,))


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
    **{
        f"{name}, {role}": _step(program, role, relu)
        for name, program, relu in (
            ("signs by garbled circuits", ONE_SIGN, "gc-full"),
            ("signs by transfers", ONE_SIGN, "ot:cot=iknp"),
            ("ReLUs by transfers", ONE_RELU, "ot:tree,cot=iknp"),
            ("ReLUs by garbled signs", ONE_RELU, "gc-sign"),
            ("squares by transfers", ONE_SQUARE, "gc-full"),
        )
        for role in ROLES
    },
}
