"""The protocol ``ot``: ReLUs and signs by oblivious transfer; ``transfer_relu.py`` is what happens to a batch.

Model: semi-honest. Before: x = x_client + x_server, x_client known offline. After: shares of max(x, 0) / 2^shift,
rounded, of which the client's is r, what it chose offline as its share of the next linear layer. Nobody garbles. Of an
operation ``Sign``: shares of +1 where x + t is above 0 and of -1 elsewhere, where t is the server's, added to its share
before; which bits are read is said in ``sign_test.py``. A sign that is proven to need few bits costs a few bytes.

Transfers have random choices and go both ways; ``cot`` of the config says which protocol makes them. All of a run are
reserved at set-up, in two sessions with a Delta of their own each, drawn for this use.

    offline  server -> client   transfers back, if they take bytes
             client -> server   transfers, if they take bytes; how its choices differ from the random ones; M3
    online   messages of the layer's ``transfer_relu.TransferRelu`` in turn, the server's first

A chain takes one round and more bytes, a tree fewer bytes and more rounds. Unless the config names one, a layer takes
the tree where that saves more bytes than its trips are worth: :data:`TREE_SAVES`.

Both parties keep one packed array a batch. It is for one inference: the store marks it used before the server's first
online byte, since two messages of the server on the same blinds would open both labels of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from deepreshape.private.arith.drelu import Parity, Window, Wrap
from deepreshape.private.arith.drelu import Sign as SignTest
from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.crypto.bit_fields import packed_bytes
from deepreshape.private.crypto.labels import Context
from deepreshape.private.crypto.ot.cot import Cot
from deepreshape.private.program.ops import ProgramError, Relu, Sign
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols.base import (
    Declared,
    Effort,
    Integers,
    Message,
    Offline,
    Online,
    Prepared,
    ReluProtocol,
    Run,
    check_shares,
    claim,
)
from deepreshape.private.protocols.garbled.label_transfer import wipe
from deepreshape.private.protocols.sign_test import replayed, thresholds_of, window_of
from deepreshape.private.protocols.transfers.carry_chain import WIDEST
from deepreshape.private.protocols.transfers.transfer_ends import (
    COTS,
    Batches,
    Reservation,
    TransferEnds,
    TransferProtocol,
)
from deepreshape.private.protocols.transfers.transfer_relu import ChainRelu, TransferRelu, TreeRelu
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.ledger import Phase

TREE_SAVES = 300_000
"""Bytes of a layer for each trip that the tree adds: what 100 Mbit/s carries in half a round trip of 50 ms."""

FRAMES: dict[Role, Frame] = {"server": Frame.ROWS, "client": Frame.SHARES}


@dataclass(frozen=True)
class OtLayer(Batches):
    """A layer of ``count`` ReLUs or signs, ``batch`` of them at a time; ``name`` is unique in a run."""

    name: str
    relu: TransferRelu
    count: int
    batch: int

    @property
    def modulus(self) -> Ring | Field:
        """That of its shares."""
        return self.relu.modulus


@final
@dataclass(frozen=True)
class ReluOt(TransferProtocol[OtLayer], ReluProtocol[OtLayer, TransferEnds]):
    """See the module.

    Args:
        config: which bits are tested, how, and what makes the transfers.
        thresholds: at the server, t of each layer of signs, uint64 (count,); :meth:`serving` makes it.
    """

    config: ReluConfig
    thresholds: Mapping[str, Words] = field(default_factory=dict[str, Words], repr=False)

    kinds = "transfer", "compare"
    session = b"deepreshape ot"
    by_shares = True

    @property
    def cot(self) -> Cot:
        """What makes the transfers."""
        return COTS[self.config.cot]

    def layer(self, modulus: Ring | Field, op: Relu | Sign, count: int) -> OtLayer:
        try:
            relu = self._carried(modulus, op, count)
            _ = relu.messages  # refuses what is too wide
        except ValueError as error:
            raise ProgramError(f"{op.name}: {error}") from None
        return OtLayer(op.name, relu, count, self.config.batch)

    def _carried(self, modulus: Ring | Field, op: Relu | Sign, count: int) -> TransferRelu:
        """By the carry that suits the layer, unless the config names one."""
        values = isinstance(op, Sign)
        sign, shift = (window_of(modulus, op, self.config), 0) if values else (self._test(modulus, op), op.shift)
        chain, tree = (kind(modulus, shift, sign, values) for kind in (ChainRelu, TreeRelu))
        if self.config.carry:
            return chain if self.config.carry == "chain" else tree
        if chain.bits > WIDEST:
            return tree
        fewer = count * sum(way * sum(sum(w) for _, w in relu.messages) for way, relu in ((1, chain), (-1, tree)))
        return tree if fewer // 8 > TREE_SAVES * (len(tree.messages) - 2) else chain

    def _test(self, modulus: Ring | Field, op: Relu) -> SignTest:
        config = self.config
        low = op.low if config.window else config.drop
        if isinstance(modulus, Field):
            exact = not low and config.mode == "pos-zero"
            return Parity(modulus) if exact else Wrap(modulus, low, config.mode)
        high = op.high if config.window and op.high else modulus.bits
        return Window(modulus, low, high, config.mode)

    def serving(self, layers: Sequence[OtLayer], program: Program, *, keep: bool, workers: int) -> ReluOt:
        signs = {layer.name: layer.count for layer in layers if layer.relu.values}
        return replace(self, thresholds=thresholds_of(program, signs))

    def reservation(self, layers: Sequence[OtLayer]) -> Reservation:
        there = sum(layer.relu.transfers * layer.count for layer in layers)
        return Reservation(self.cot, there, sum(layer.relu.back * layer.count for layer in layers))

    def offline(
        self, run: Run, setup: TransferEnds, layer: OtLayer, share: Words | None, blind: Words | None
    ) -> Offline:
        claim(setup.layers, layer.name)
        relu, back = layer.relu, list[Words]()
        ours, peer_labels = setup.receiver, setup.sender
        if run.role == "server":
            ours, peer_labels = peer_labels, ours
        for size in layer.sizes:
            back.append(peer_labels.random(run.channel, relu.back * size).reshape(relu.back, size, 2))
        if self.cot.random_bytes(layer.count):
            yield None
        for number, (span, size) in enumerate(zip(layer.spans, layer.sizes, strict=True)):
            context = Context(run.id, layer.name, number)
            labels = ours.random(run.channel, relu.transfers * size).reshape(relu.transfers, size, 2)
            delta = setup.sender.delta
            if share is None or blind is None:
                received = run.channel.receive(Frame.SHARES, packed_bytes(relu.offline_widths, size))
                kept = relu.server_offline(received, labels, delta, back[number], context, run.rng)
            else:
                check_shares(layer.name, relu.modulus, layer.count, share=share, blind=blind)
                message, kept = relu.client_offline(
                    share[span], blind[span], labels, back[number], delta, context, run.rng
                )
                run.channel.send(Frame.SHARES, message)
            yield layer.packed(kept)

    def online(self, run: Run, layer: OtLayer, prepared: Iterator[Prepared], share: Words | None) -> Online:
        if share is not None:
            check_shares(layer.name, layer.relu.modulus, layer.count, share=share)
            if layer.relu.values:
                share = layer.relu.modulus.add(share, self.thresholds[layer.name])
        kept = layer.taken(prepared)
        if share is None:
            steps = [layer.relu.client_online(array, size) for array, size in zip(kept, layer.sizes, strict=True)]
        else:
            steps = [
                layer.relu.server_online(array, share[span]) for array, span in zip(kept, layer.spans, strict=True)
            ]
        outputs: list[Words | None] = []
        given = [next(step) for step in steps]
        for number, (sender, widths) in enumerate(layer.relu.messages):
            if number:
                yield None
            for at, (step, size) in enumerate(zip(steps, layer.sizes, strict=True)):
                message = given[at]
                if sender == run.role:
                    assert message is not None  # noqa: S101 - it is this party's turn
                    run.channel.send(FRAMES[sender], message)
                    given[at] = next(step, None)
                    continue
                try:
                    given[at] = step.send(run.channel.receive(FRAMES[sender], packed_bytes(widths, size)))
                except StopIteration as end:
                    outputs.append(end.value)
        wipe(kept)
        return np.concatenate([output for output in outputs if output is not None]) if outputs else None

    def declared(self, layer: OtLayer) -> Declared:
        relu = layer.relu
        there, back = (
            sum(self.cot.random_bytes(transfers * size) for size in layer.sizes)
            for transfers in (relu.transfers, relu.back)
        )
        message = Message("client", there + layer.nbytes(relu.offline_widths))
        labels = 16 * min(layer.batch, layer.count) * (relu.transfers + relu.back)
        kind = "signs" if relu.values else "relus"
        return Declared(
            ((Message("server", back),), (message,)) if back else ((message,),),
            tuple((Message(sender, layer.nbytes(widths)),) for sender, widths in relu.messages),
            (layer.nbytes(relu.client_widths), layer.nbytes(relu.server_widths)),
            {
                "offline": {kind: layer.count, "transfers": layer.count * (relu.transfers + relu.back)},
                "online": {kind: layer.count},
            },
            waiting=16 * relu.back * layer.count,
            transient=4 * labels,
            resident=8 * layer.count * relu.values,
        )

    def work(self, layer: OtLayer) -> Mapping[Phase, Sequence[Effort]]:
        transfers, stored = layer.count * (layer.relu.transfers + layer.relu.back), sum(self.declared(layer).stored)
        name, pieces = f"ot.{layer.relu.work_names}", len(layer.spans)
        make, take = {f"{name}.client.offline": transfers}, {f"{name}.server.offline": transfers}
        offline = [Effort(make, take, pieces, aside={"store.write": stored})]
        if self.cot.random_bytes(1):
            offline.insert(0, Effort())
        online = [Effort({f"{name}.server.online": transfers}, {f"{name}.client.online": transfers}, pieces)]
        return {"offline": offline, "online": online + [Effort()] * (len(layer.relu.messages) - 1)}

    def replay(self, layer: OtLayer, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        sign, modulus = layer.relu.sign, layer.relu.modulus
        if layer.relu.values:
            return replayed(sign, x, client)
        server = modulus.sub(modulus.encode(x), client)
        positive = sign.positive(sign.client_word(client), sign.server_word(server))
        return np.where(positive, layer.relu.mux.truncation.rounded(x, client), 0)

    def max_input(self, layer: OtLayer) -> int:
        room = layer.relu.sign.max_input
        return room if layer.relu.values else min(room, layer.relu.mux.truncation.max_input)
