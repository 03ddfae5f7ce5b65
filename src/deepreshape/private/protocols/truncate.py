"""Truncation of shared values without a circuit: one oblivious transfer of two short messages per element.

Model: semi-honest. Before: x = x_client + x_server mod M, M = 2^l or a prime, x_client known offline. After: shares of
x / 2^f, rounded; the client's is a blind r it chose offline. This is the truncation of linearised positions, whose cost
must be nothing beside that of a ReLU.

*Why it is right.* ``arith/truncation.py`` derives T = (x_client >> f) + (x_server >> f) - (b_client OR b_server) (M >>
f) with x raised to be positive, and shows that T is the floor or one unit beside it: in the ring x / 2^f rounded up
with probability equal to its fractional part, so unbiased, and exact for multiples of 2^f. That holds while |x| fits
``program.truncation_room``; beyond it the result is off by M / 2^f.

*The transfer.* What remains is the product b_client (b_server K). With blinds P0, P1 of a random transfer whose choice
was b_client, the server sends one message, f bits in the ring,

    e = b_server K - P0 + P1

A client with b = 0 takes m = -P0, one with b = 1 takes m = e - P1; in both cases m = b_client b_server K - P0, and the
server knows P0. The client then sends its part of T plus m - r, uniform since r is, and the server adds its own and P0.
    offline  client -> server   transfer extension, 16 bytes an element
    online   server -> client   e
             client -> server   one element of Z_M

*Security.* Blinds hash the rows q and q ^ Delta of a correlated transfer (IKNP), of which the client knows
the one that it chose. The hash is AES under a public key that belongs to (session, layer) alone, after the
orthomorphism of ``labels.py`` and with feed-forward; it must be correlation robust (Guo, Katz, Wang and Yu, IEEE S&P
2020). Hence the client sees e under a blind that is pseudorandom to it, and the server sees a uniform element. The
Delta is drawn for these transfers only and shared with no garbling, and base transfers run under a session id of their
own. In the field blinds are 128 bits reduced, within 2^-65 of uniform. The server is the sender whoever garbles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.arith.truncation import ShareTruncation
from deepreshape.private.crypto.labels import Context, Delta, derive_blinds
from deepreshape.private.crypto.ot.cot import CotReceiver, CotSender
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.program.ops import Relu, Truncate
from deepreshape.private.program.program import Program, truncation_room
from deepreshape.private.protocols.base import (
    Declared,
    Effort,
    Integers,
    Message,
    Offline,
    Online,
    Prepared,
    Protocol,
    Run,
    Segment,
    Step,
    base_transfers,
    claim,
)
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.ledger import Phase

TWEAK = "truncation"


@dataclass(frozen=True)
class TruncationLayer:
    """``count`` values to be truncated by ``shift`` >= 1 bits; ``name`` is unique in the session."""

    name: str
    modulus: Ring | Field
    shift: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.shift <= self.modulus.bits - 3 or self.count < 1:
            raise ValueError(f"{self}: needs a shift of 1 to {self.modulus.bits - 3} and at least one value")

    @property
    def truncation(self) -> ShareTruncation:
        """The rounding, of values of either sign."""
        return ShareTruncation(self.modulus, self.shift, self.modulus.order // 4)


@dataclass(repr=False)
class Transfers:
    """One party's end of one run's transfers: the client's receives, the server's sends."""

    cot: CotReceiver | CotSender
    layers: set[str] = field(default_factory=set[str], init=False)


@final
class Truncation(Protocol[TruncationLayer, Transfers]):
    """See the module."""

    kinds = "truncate", "truncate"
    setup_kind = "transfers"
    by_shares = True

    @classmethod
    def steps(cls, op: Relu | Truncate, program: Program) -> Iterator[Step]:
        """Of an operation that truncates elements which it does not rectify: one step, or none."""
        places = op.truncated(program.values[op.inputs[0]])
        if places.size:
            layer = TruncationLayer(op.name, program.modulus, op.shift, places.size)
            yield Step(op.name, cls(), layer, places, places)

    def setup(self, run: Run, layers: Sequence[TruncationLayer]) -> Transfers:
        id = b"deepreshape truncation" + run.id
        if run.role == "client":
            return Transfers(IKNP.receiver(run.channel, id, run.rng))
        return Transfers(IKNP.sender(run.channel, id, Delta(run.rng), run.rng))

    def setup_declared(self, layers: Sequence[TruncationLayer]) -> Segment:
        there, back = IKNP.setup_bytes
        return Message("client", there), Message("server", back)

    def setup_work(self, layers: Sequence[TruncationLayer]) -> Sequence[Effort]:
        return base_transfers(1)

    def offline(
        self, run: Run, setup: Transfers, layer: TruncationLayer, share: Words | None, blind: Words | None
    ) -> Offline:
        claim(setup.layers, layer.name)
        context, message = Context(run.id, layer.name, 0), layer.truncation.message
        if share is None or blind is None:
            assert isinstance(setup.cot, CotSender)  # noqa: S101 - the server's
            labels = setup.cot.chosen(run.channel, layer.count)
            zero = derive_blinds(labels, context, TWEAK, message)
            one = derive_blinds(labels ^ setup.cot.delta.words, context, TWEAK, message)
            yield Prepared({"zero": zero, "difference": message.sub(one, zero)})
            return
        assert isinstance(setup.cot, CotReceiver)  # noqa: S101 - the client's
        part, half = layer.truncation.client_part(share)
        hidden = derive_blinds(setup.cot.chosen(run.channel, half), context, TWEAK, message)
        yield Prepared({"choices": np.packbits(half), "pads": hidden, "answer": layer.modulus.sub(part, blind)})

    def online(self, run: Run, layer: TruncationLayer, prepared: Iterator[Prepared], share: Words | None) -> Online:
        arrays, truncation, modulus = next(prepared).take(), layer.truncation, layer.modulus
        message = truncation.message
        if share is None:
            received = message.unpack(run.channel.receive(Frame.ROWS, layer.count * message.element_bytes), layer.count)
            choices = np.unpackbits(arrays["choices"], count=layer.count).astype(np.bool_)
            opened = message.sub(np.where(choices, received, np.uint64(0)), arrays["pads"])
            yield None
            answer = modulus.add(arrays["answer"], modulus.scale(opened, truncation.unit))
            run.channel.send(Frame.SHARES, modulus.pack(answer))
            return None
        part, half = truncation.server_part(share)
        product = np.where(half, np.uint64(truncation.correction), np.uint64(0))
        run.channel.send(Frame.ROWS, message.pack(message.add(arrays["difference"], product)))
        part = modulus.add(part, modulus.scale(arrays["zero"], truncation.unit))
        yield None
        answer = run.channel.receive(Frame.SHARES, layer.count * modulus.element_bytes)
        return modulus.add(part, modulus.unpack(answer, layer.count))

    def declared(self, layer: TruncationLayer) -> Declared:
        down = layer.count * layer.truncation.message.element_bytes
        return Declared(
            ((Message("client", IKNP.chosen_bytes(layer.count)),),),
            ((Message("server", down),), (Message("client", layer.count * layer.modulus.element_bytes),)),
            (-(-layer.count // 8) + 16 * layer.count, 16 * layer.count),
            {"offline": {"transfers": layer.count}},
        )

    def work(self, layer: TruncationLayer) -> Mapping[Phase, Sequence[Effort]]:
        count, (client, server) = layer.count, self.declared(layer).stored
        make = {"ot.choose": count, "truncate.client.offline": count, "store.write": client}
        take = {"ot.send": count, "truncate.server.offline": count, "store.write": server}
        online = [Effort(take={f"truncate.{party}.online": count}) for party in ("client", "server")]
        return {"offline": [Effort(make, take)], "online": online}

    def replay(self, layer: TruncationLayer, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        return layer.truncation.rounded(x, client)

    def max_input(self, layer: TruncationLayer) -> int:
        return truncation_room(layer.modulus, layer.shift)
