"""What the garbled ReLU protocols share: set-up, roles, and what their messages cost.

Model: semi-honest. Before: x = x_client + x_server, x_client known offline. After: shares of max(x, 0) / 2^shift,
rounded, of which the client's is r, what it chose offline as its share of the next linear layer; so that layer's
homomorphic part does not wait for this one. ``relu_gc.py`` has the whole ReLU in a garbled circuit, ``relu_sign.py``
only its sign; ``label_transfer.py`` is how labels get to the evaluator.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from deepreshape.cost import Work
from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.crypto.gc.halfgates import TABLE_BYTES
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols.base import (
    Arrays,
    Declared,
    Effort,
    Message,
    Offline,
    Online,
    Prepared,
    ReluProtocol,
    Run,
    Segment,
    base_transfers,
    check_shares,
)
from deepreshape.private.protocols.garbled.label_transfer import (
    LABEL_BYTES,
    Evaluator,
    GarbledLayer,
    Garbler,
    Party,
    choose,
    choosing_bytes,
    chosen_by_peer,
    evaluator_of,
    garbled_bytes,
    garbler_of,
    random_choices,
    wipe,
)
from deepreshape.private.transport.ledger import Phase

OTHER: dict[Role, Role] = {"client": "server", "server": "client"}


@dataclass(frozen=True)
class GarbledRelu(ReluProtocol[GarbledLayer, Party]):
    """A ReLU of which a part is garbled, by the party that ``config`` names."""

    config: ReluConfig

    kinds = "garble", "evaluate"
    setup_kind = "transfers"
    mux: ClassVar[bool]
    """Whether there are transfers from the garbler to the evaluator too."""
    work_names: ClassVar[str]
    """Under which name its work is measured."""

    def __str__(self) -> str:
        return str(self.config)

    def setup(self, run: Run, layers: Sequence[GarbledLayer]) -> Party:
        kind = Garbler if self.config.garbler == run.role else Evaluator
        return kind.start(run, type(self).__name__, mux=self.mux)

    def setup_declared(self, layers: Sequence[GarbledLayer]) -> Segment:
        # each pair of base transfers is opened by its sender: the evaluator, and the garbler for products
        there, back = IKNP.setup_bytes
        garbler, evaluator = self.config.garbler, OTHER[self.config.garbler]
        first = Message(evaluator, there), Message(garbler, back)
        return (*first, Message(garbler, there), Message(evaluator, back)) if self.mux else first

    def setup_work(self, layers: Sequence[GarbledLayer]) -> Sequence[Effort]:
        return base_transfers(2 if self.mux else 1)

    def offline(self, run: Run, setup: Party, layer: GarbledLayer, share: Words | None, blind: Words | None) -> Offline:
        if share is not None and blind is not None:
            check_shares(layer.name, layer.modulus, layer.count, share=share, blind=blind)
        if layer.garbler == run.role:
            known, kept = self.known(run, layer, share, blind)
            garbler = garbler_of(setup, layer)
            self._require_mux(garbler)
            chosen = chosen_by_peer(run, layer, garbler)
            yield None
            yield from self.garble(run, layer, garbler, chosen, known, kept)
            return
        if share is None or blind is None:
            choices = random_choices(layer, run.rng)
            kept = {"choices": np.packbits(choices)}
        else:
            choices, kept = self.choices(layer, share, blind)
        evaluator = evaluator_of(setup, layer)
        self._require_mux(evaluator)
        labels = choose(run, layer, evaluator, choices)
        yield None
        yield from self.evaluate(run, layer, evaluator, labels, kept)

    def _require_mux(self, party: Party) -> None:
        if self.mux and party.mux is None:
            raise TypeError(
                f"this session's {type(party).__name__} has no transfers for the MUX; start it with mux=True"
            )

    def online(self, run: Run, layer: GarbledLayer, prepared: Iterator[Prepared], share: Words | None) -> Online:
        yield from ()
        if share is None:
            with _opened(prepared) as (head, batches):
                self.client_online(run, layer, head, batches)
            return None
        check_shares(layer.name, layer.modulus, layer.count, share=share)
        with _opened(prepared) as (head, batches):
            return self.server_online(run, layer, head, batches, share)

    @abstractmethod
    def known(self, run: Run, layer: GarbledLayer, share: Words | None, blind: Words | None) -> tuple[Bits, Arrays]:
        """The words that a garbler feeds in and knows offline, (bits, count), and what it keeps of its own.

        A client is given its share of the input and its blind; both are None at a server.
        """

    @abstractmethod
    def choices(self, layer: GarbledLayer, share: Words, blind: Words) -> tuple[Bits, Arrays]:
        """The bits of an evaluating client, (chosen, count), and what it keeps of its own."""

    @abstractmethod
    def garble(
        self, run: Run, layer: GarbledLayer, garbler: Garbler, chosen: list[Words], known: Bits, kept: Arrays
    ) -> Offline:
        """Offline, at the garbler, with the labels of zero of what its peer chose, and what :meth:`known` gave."""

    @abstractmethod
    def evaluate(
        self, run: Run, layer: GarbledLayer, evaluator: Evaluator, labels: list[Words], kept: Arrays
    ) -> Offline:
        """Offline, at the evaluator, with the labels of its bits; those of a server are random ones."""

    @abstractmethod
    def client_online(self, run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared]) -> None:
        """The client's online step. Its share of the output is the blind it chose offline."""

    @abstractmethod
    def server_online(
        self, run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared], share: Words
    ) -> Words:
        """The server's online step: its share of the output."""

    @abstractmethod
    def and_gates(self, layer: GarbledLayer) -> int:
        """Of one instance, by formula."""

    @abstractmethod
    def decode_bytes(self, layer: GarbledLayer) -> int:
        """Bytes of what the garbler sends offline beside its circuits: decode bits, and its own transfers."""

    def offline_messages(self, layer: GarbledLayer) -> tuple[Segment, ...]:
        """What passes offline."""
        chosen = Message(OTHER[layer.garbler], choosing_bytes(layer))
        garbled = Message(layer.garbler, garbled_bytes(layer, self.and_gates(layer)) + self.decode_bytes(layer))
        if self.mux and layer.garbler == "server":
            return (chosen,), (garbled,), (Message("client", layer.count * layer.modulus.element_bytes),)
        return (chosen,), (garbled,)

    @abstractmethod
    def online_bytes(self, layer: GarbledLayer) -> tuple[int, int]:
        """Bytes of the online step, (client to server, server to client)."""

    @abstractmethod
    def stored(self, layer: GarbledLayer) -> tuple[int, int]:
        """Bytes of arrays that (client, server) keep between the phases."""

    def declared(self, layer: GarbledLayer) -> Declared:
        up, down = self.online_bytes(layer)
        gates = layer.count * layer.circuit.and_gates
        labels = LABEL_BYTES * layer.chosen * layer.count
        # a batch of tables is there three times: as made or received, sealed, and in the pipe
        circuits = 3 * TABLE_BYTES * layer.circuit.and_gates * min(layer.count, layer.batch)
        transfers = layer.count * (layer.chosen + self.mux)
        return Declared(
            self.offline_messages(layer),
            # one round: what the server says first depends on nothing that it waits for
            ((Message("server", down), Message("client", up)),),
            self.stored(layer),
            {
                "offline": {"relus": layer.count, "and_gates": gates, "transfers": transfers},
                "online": {"relus": layer.count},
            },
            waiting=labels,
            transient=circuits + 2 * labels,
        )

    def work(self, layer: GarbledLayer) -> Mapping[Phase, Sequence[Effort]]:
        name, pieces = f"{self.work_names}.{layer.garbler}", len(layer.spans)
        gates, transfers, stored = layer.circuit.and_gates, layer.chosen * layer.count, sum(self.stored(layer))

        def circuits(step: str, *, batches: bool = True) -> Work:
            """A gate costs something for each instance and batch; a product outside, something for each ReLU."""
            work: dict[str, float] = {f"{name}.{step}": gates * layer.count}
            if batches:
                work[f"{name}.{step}.gate"] = gates * pieces
            if self.mux:
                work[f"{name}.{step}.relu"] = layer.count
            return work

        offline = [
            Effort({f"{name}.ot.choose": transfers, f"{name}.offline": 1}, {f"{name}.ot.send": transfers}, pieces),
            Effort(circuits("garble"), circuits("take", batches=False), pieces, aside={"store.write": stored}),
            Effort(take={f"{name}.element": layer.count}),
        ]
        taken = Effort(
            {**circuits("label", batches=False), f"{name}.online": 1},
            {**circuits("evaluate"), f"{name}.store.read": stored},
            pieces,
        )
        answer = Effort(take={f"{name}.element": layer.count})
        online = [taken, answer] if layer.garbler == "server" else [answer, taken]
        return {"offline": offline[: len(self.offline_messages(layer))], "online": online}


@contextmanager
def _opened(prepared: Iterator[Prepared]) -> Generator[tuple[Arrays, Iterator[Prepared]]]:
    """The layer's head, overwritten afterwards, and the batches still to come."""
    first = next(prepared, None)
    if first is None:
        raise ValueError("nothing prepared was given; run the offline step of this layer first")
    head = first.take()
    try:
        yield head, prepared
    finally:
        wipe(head.values())
