"""Two threads that prepare and run one layer of ReLUs, and a channel end that remembers what it sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from deepreshape.private.arith.ring import Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols.base import Offline, Prepared, Run, side_by_side
from deepreshape.private.protocols.garbled.label_transfer import Evaluator, GarbledLayer, Garbler
from deepreshape.private.protocols.garbled.relu_garbled import GarbledRelu
from deepreshape.private.protocols.garbled.relu_gc import ReluGc
from deepreshape.private.protocols.garbled.relu_sign import ReluSign
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


def protocol_of(layer: GarbledLayer) -> GarbledRelu:
    """The protocol of a layer that a test has made by hand."""
    if layer.sign is None:
        return ReluGc(ReluConfig(garbler=layer.garbler))
    return ReluSign(ReluConfig("gc-stochastic", garbler=layer.garbler))


def run_of(channel: Channel, role: Role, rng: Randomness | None = None) -> Run:
    return Run(channel, SESSION, role, rng or Randomness())


def client_offline(channel: Channel, layer: GarbledLayer, engine: object, share: Words, mask: Words) -> Offline:
    return protocol_of(layer).offline(run_of(channel, "client"), engine, layer, share, mask)  # pyright: ignore


def server_offline(channel: Channel, layer: GarbledLayer, engine: object) -> Offline:
    return protocol_of(layer).offline(run_of(channel, "server"), engine, layer, None, None)  # pyright: ignore


def client_online(channel: Channel, layer: GarbledLayer, id: bytes, prepared: Iterable[Prepared]) -> None:
    run = Run(channel, id, "client", Randomness())
    side_by_side(run, "online", [(layer.name, protocol_of(layer).online(run, layer, iter(prepared), None))])


def server_online(
    channel: Channel, layer: GarbledLayer, id: bytes, prepared: Iterable[Prepared], share: Words
) -> Words:
    run = Run(channel, id, "server", Randomness())
    (out,) = side_by_side(run, "online", [(layer.name, protocol_of(layer).online(run, layer, iter(prepared), share))])
    assert out is not None
    return out


def prepared_by(channel: Channel, steps: Sequence[tuple[str, Offline]]) -> list[list[Prepared]]:
    """What each of these steps gives, in the order of the steps."""
    kept: list[list[Prepared]] = [[] for _ in steps]
    side_by_side(run_of(channel, "client"), "offline", steps, lambda number, prepared: kept[number].append(prepared))
    return kept


@dataclass
class Session:
    """Both ends after the base transfers; ``client`` and ``server`` are channels, and randomness is fixed."""

    client: Channel
    server: Channel
    engines: tuple[Garbler | Evaluator, Garbler | Evaluator]
    draws: tuple[Randomness, Randomness] = field(default_factory=lambda: (Randomness(), Randomness()))

    @classmethod
    def start(cls, garbler: Role, *ends: Channel, mux: bool = False) -> Session:
        client, server = ends or memory_pair()
        kinds = (Garbler, Evaluator) if garbler == "client" else (Evaluator, Garbler)
        draws = fixed(1), fixed(2)
        engines = both(
            lambda: kinds[0].start(run_of(client, "client", draws[0]), "test", mux=mux),
            lambda: kinds[1].start(run_of(server, "server", draws[1]), "test", mux=mux),
        )
        return cls(client, server, engines, draws)

    def offline(self, layer: GarbledLayer, share: Words, mask: Words) -> tuple[list[Prepared], list[Prepared]]:
        protocol = protocol_of(layer)
        runs = run_of(self.client, "client", self.draws[0]), run_of(self.server, "server", self.draws[1])

        def client() -> list[Prepared]:
            step = protocol.offline(runs[0], self.engines[0], layer, share, mask)
            return prepared_by(self.client, [(layer.name, step)])[0]

        def server() -> list[Prepared]:
            step = protocol.offline(runs[1], self.engines[1], layer, None, None)
            return prepared_by(self.server, [(layer.name, step)])[0]

        return both(client, server)

    def online(self, layer: GarbledLayer, prepared: tuple[list[Prepared], list[Prepared]], share: Words) -> Words:
        return both(
            lambda: client_online(self.client, layer, SESSION, prepared[0]),
            lambda: server_online(self.server, layer, SESSION, prepared[1], share),
        )[1]


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
