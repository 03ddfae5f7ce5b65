"""What client and server send each other: the keys that the server has not, then one ciphertext up and one down each.

Who sends what, and how long it is, both know from the public part of the circuit. The same two functions run over a
pair of sockets on one machine (:mod:`.local`) and inside a TLS session (:mod:`.remote`).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks import wire
from deepreshape.engines.ckks.evaluate import EncodedCircuit
from deepreshape.engines.ckks.public import PublicCircuit
from deepreshape.engines.ckks.scheme import CkksEvaluator, Holder, Scheme
from deepreshape.private.errors import ProtocolError
from deepreshape.private.parties.sessions import Admit
from deepreshape.private.transport.channel import Frame, Payload

__all__ = ["KeysHeld", "Line", "NoKeys", "Requester", "answer_requests", "upload_bytes"]

Real = NDArray[np.float64]


class Line(Protocol):
    """What both talk through."""

    def send(self, kind: Frame, payload: Payload) -> None: ...
    def receive(self, kind: Frame, nbytes: int) -> memoryview: ...


class KeysHeld(Protocol):
    """Where a server keeps one client's evaluation keys for one circuit, as they came."""

    def names(self) -> frozenset[str]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: memoryview) -> None: ...


class NoKeys:
    """Keeps none: keys last for one session."""

    def names(self) -> frozenset[str]:
        return frozenset()

    def read(self, name: str) -> bytes:
        raise KeyError(name)

    def write(self, name: str, data: memoryview) -> None: ...


def upload_bytes(public: PublicCircuit) -> int:
    """What all evaluation keys take on the wire, once."""
    return len(public.key_names) * wire.key_bytes(Scheme(public.parameters))


class Requester:
    """The client's side.

    Attributes:
        cpu: seconds by step: keys, encrypt, decrypt.
        sent: bytes by what they were: keys, up, down.
    """

    def __init__(self, line: Line, public: PublicCircuit, holder: Holder) -> None:
        self.line, self.public, self.holder = line, public, holder
        self.cpu: defaultdict[str, float] = defaultdict(float)
        self.sent: Counter[str] = Counter({"keys": 0, "up": 0, "down": 0})

    def upload(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Send the keys that the server has not; one that broke off goes on there.

        Args:
            progress: is told the bytes that went, and all that are to go.
        """
        scheme, names = self.holder.scheme, self.public.key_names
        here = self.line.receive(Frame.READY, len(names))
        missing = [name for name, there in zip(names, here, strict=True) if not there]
        each = wire.key_bytes(scheme)
        for number, name in enumerate(missing):
            if progress:
                progress(number * each, len(missing) * each)
            since = time.process_time()
            data = wire.key(scheme, name, self.holder.evaluation_key(name))
            self.cpu["keys"] += time.process_time() - since
            self.line.send(Frame.CIPHERTEXTS, data)
            self.sent["keys"] += len(data)
        if progress and missing:
            progress(len(missing) * each, len(missing) * each)

    def ask(self, images: Iterable[Real]) -> Iterator[Real]:
        """The answers of each group of images, of which each gives one ciphertext; (n, C, H, W) to (n, ...).

        Raises:
            ProtocolError: if what comes is no ciphertext.
        """
        scheme = self.holder.scheme
        for some in images:
            since = time.process_time()
            up = wire.fresh(scheme, self.holder.encrypt(self.public.pack(some)))
            self.cpu["encrypt"] += time.process_time() - since
            self.line.send(Frame.CIPHERTEXTS, up)
            down = self.line.receive(Frame.CIPHERTEXTS, wire.answer_bytes(scheme))
            since = time.process_time()
            try:
                slots = self.holder.decrypt(wire.read_answer(scheme, down))
            except ValueError as error:
                raise ProtocolError(str(error)) from None
            self.cpu["decrypt"] += time.process_time() - since
            self.sent["up"] += len(up)
            self.sent["down"] += len(down)
            yield self.public.unpack(slots, len(some))


def answer_requests(line: Line, model: EncodedCircuit, keys: KeysHeld, count: int, admit: Admit | None = None) -> None:
    """The server's side: take the keys that are missing, and answer ``count`` ciphertexts.

    Args:
        line: to the client.
        model: what is served.
        keys: this client's, for this circuit.
        count: how many ciphertexts come; 0 only takes keys.
        admit: is asked before keys are taken ("prepare"), and for all ciphertexts when the keys are there ("query"):
            none is computed if they are too many.

    Raises:
        ProtocolError: if what comes is no key or ciphertext.
    """
    public, scheme = model.circuit.public, Scheme(model.circuit.parameters)
    evaluator, held = CkksEvaluator(scheme), keys.names()
    if admit and not held.issuperset(public.key_names):
        admit("prepare", 1)
    line.send(Frame.READY, bytes(name in held for name in public.key_names))
    try:
        for name in public.key_names:
            if name not in held:
                data = line.receive(Frame.CIPHERTEXTS, wire.key_bytes(scheme))
                evaluator.add_key(name, wire.read_key(scheme, name, data))
                keys.write(name, data)
            elif count:
                evaluator.add_key(name, wire.read_key(scheme, name, keys.read(name)))
        if admit and count:
            admit("query", count)
        for _ in range(count):
            up = wire.read_fresh(scheme, line.receive(Frame.CIPHERTEXTS, wire.fresh_bytes(scheme)))
            line.send(Frame.CIPHERTEXTS, wire.answer(scheme, model.evaluate(evaluator, up)))
    except ValueError as error:
        raise ProtocolError(str(error)) from None
