"""Two threads that prepare and run one layer of ReLUs, and a channel end that remembers what it sent."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from deepreshape.private.arith.ring import Randomness, Words
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols.base import (
    Prepared,
    ReluLayer,
    client_offline,
    client_online,
    server_offline,
    server_online,
    together,
)
from deepreshape.private.protocols.label_transfer import Evaluator, Garbler
from deepreshape.private.transport.channel import Channel, Frame, Payload, as_bytes
from deepreshape.private.transport.memory import memory_pair

A = TypeVar("A")
B = TypeVar("B")
ROLES: list[Role] = ["server", "client"]
SESSION = b"a session of the tests"


def fixed(number: int) -> Randomness:
    return Randomness(bytes([number]) * 32)


def both(left: Callable[[], A], right: Callable[[], B]) -> tuple[A, B]:
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(left), pool.submit(right)
        return one.result(), two.result()


@dataclass
class Session:
    """Both ends after the base transfers; ``client`` and ``server`` are channels."""

    client: Channel
    server: Channel
    engines: tuple[Garbler | Evaluator, Garbler | Evaluator]

    @classmethod
    def start(cls, garbler: Role, *ends: Channel, products: bool = False) -> Session:
        client, server = ends or memory_pair()
        kinds = (Garbler, Evaluator) if garbler == "client" else (Evaluator, Garbler)
        engines = both(
            lambda: kinds[0].start(client, SESSION, fixed(1), products=products),
            lambda: kinds[1].start(server, SESSION, fixed(2), products=products),
        )
        return cls(client, server, engines)

    def offline(self, layer: ReluLayer, share: Words, mask: Words) -> tuple[list[Prepared], list[Prepared]]:
        def client() -> list[Prepared]:
            with self.client.ledger.at(layer.name, "offline"):
                step = client_offline(self.client, layer, self.engines[0], share, mask)
                return [prepared for _, prepared in together(self.client, {layer.name: step})]

        def server() -> list[Prepared]:
            with self.server.ledger.at(layer.name, "offline"):
                step = server_offline(self.server, layer, self.engines[1])
                return [prepared for _, prepared in together(self.server, {layer.name: step})]

        return both(client, server)

    def online(self, layer: ReluLayer, prepared: tuple[list[Prepared], list[Prepared]], share: Words) -> Words:
        def client() -> None:
            with self.client.ledger.at(layer.name, "online"):
                client_online(self.client, layer, SESSION, prepared[0])

        def server() -> Words:
            with self.server.ledger.at(layer.name, "online"):
                return server_online(self.server, layer, SESSION, prepared[1], share)

        return both(client, server)[1]


def role_of(session: Session) -> Role:
    return "client" if isinstance(session.engines[0], Garbler) else "server"


names = iter(range(10**9))


class Tap:
    """A channel end that remembers what it sent."""

    def __init__(self, end: Channel) -> None:
        self.ledger = end.ledger
        self.frames: list[tuple[Frame, bytes]] = []
        self._end = end

    def send(self, kind: Frame, payload: Payload) -> None:
        self._end.send(kind, payload)
        self.frames.append((kind, bytes(as_bytes(payload))))

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        return self._end.receive(kind, nbytes)
