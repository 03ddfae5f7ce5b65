"""Truncation of shared values without a circuit: one oblivious transfer of two short messages per element.

Model: semi-honest. Before: x = x_client + x_server mod M, M = 2^l or a prime, x_client known offline. After: shares of
x / 2^f, rounded; the client's is a mask r it chose offline. This is the truncation of linearised positions, whose cost
must be nothing beside that of a ReLU.

*Why it is right.* ``division.py`` derives T = (x_client >> f) + (x_server >> f) - (b_client OR b_server) (M >> f) with
x raised to be positive, and shows that T is the floor or one unit beside it: in the ring x / 2^f rounded up with
probability equal to its fractional part, so unbiased, and exact for multiples of 2^f. That holds while |x| fits
``program.truncation_room``; beyond it the result is off by M / 2^f.

*The transfer.* What remains is the product b_client (b_server K). With pads P0, P1 of a random transfer whose choice
was b_client, the server sends one message, f bits in the ring,

    e = b_server K - P0 + P1

A client with b = 0 takes m = -P0, one with b = 1 takes m = e - P1; in both cases m = b_client b_server K - P0, and the
server knows P0. The client then sends its part of T plus m - r, uniform since r is, and the server adds its own and P0.
    offline  client -> server   transfer extension, 16 bytes an element
    online   server -> client   e
             client -> server   one element of Z_M

*Security.* Pads hash the rows q and q ^ offset of a correlated transfer (IKNP, ``ot.py``), of which the client knows
the one that it chose. The hash is AES under a public key that belongs to (session, layer) alone, after the
orthomorphism of ``garble.py`` and with feed-forward; it must be correlation robust (Guo, Katz, Wang and Yu, IEEE S&P
2020). Hence the client sees e masked by a pad that is pseudorandom to it, and the server sees a uniform element. The
offset is drawn for these transfers only and shared with no garbling, and base transfers run under a session id of their
own. In the field pads are 128 bits reduced, within 2^-65 of uniform. The server is the sender whoever garbles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from deepreshape.private.arith.ring import Field, Randomness, Ring, Words
from deepreshape.private.arith.truncation import Division
from deepreshape.private.crypto.labels import Context, Delta, blinds
from deepreshape.private.crypto.ot.cot import CotReceiver, CotSender
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.protocols.label_transfer import Prepared
from deepreshape.private.transport.channel import Channel, Frame
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
    def division(self) -> Division:
        """The rounding, of values of either sign."""
        return Division(self.modulus, self.shift, self.modulus.order // 4)


@dataclass(repr=False)
class Receiver:
    """The client's end of one offline session's transfers."""

    session: bytes
    transfers: CotReceiver
    layers: set[str] = field(default_factory=set[str], init=False)

    @classmethod
    def start(cls, channel: Channel, session: bytes, rng: Randomness) -> Receiver:
        """Run the base transfers; the server calls :meth:`Sender.start`. ``session`` never repeats."""
        return cls(session, IKNP.receiver(channel, _own(session), rng))


@dataclass(repr=False)
class Sender:
    """The server's end of one offline session's transfers."""

    session: bytes
    transfers: CotSender
    layers: set[str] = field(default_factory=set[str], init=False)

    @classmethod
    def start(cls, channel: Channel, session: bytes, rng: Randomness) -> Sender:
        """Run the base transfers; the client calls :meth:`Receiver.start`."""
        return cls(session, IKNP.sender(channel, _own(session), Delta(rng), rng))


def client_offline(channel: Channel, layer: TruncationLayer, receiver: Receiver, share: Words, mask: Words) -> Prepared:
    """The client's offline step.

    Args:
        channel: to the server.
        layer: what to prepare.
        receiver: of the session.
        share: the client's share of the input, uint64 (count,).
        mask: what shall be its share of the output, uniform, uint64 (count,).
    """
    _claim(receiver, layer)
    part, half = layer.division.client_part(share)
    labels = receiver.transfers.chosen(channel, half)
    hidden = blinds(labels, Context(receiver.session, layer.name, 0), TWEAK, layer.division.message)
    return Prepared({"choices": np.packbits(half), "pads": hidden, "answer": layer.modulus.sub(part, mask)})


def server_offline(channel: Channel, layer: TruncationLayer, sender: Sender) -> Prepared:
    """The server's offline step, the counterpart of :func:`client_offline`."""
    _claim(sender, layer)
    labels, context = sender.transfers.chosen(channel, layer.count), Context(sender.session, layer.name, 0)
    message = layer.division.message
    zero = blinds(labels, context, TWEAK, message)
    one = blinds(labels ^ sender.transfers.delta.words, context, TWEAK, message)
    return Prepared({"zero": zero, "difference": message.sub(one, zero)})


def server_send(channel: Channel, layer: TruncationLayer, prepared: Prepared, share: Words) -> Words:
    """The server's first online step: sends e. Returns what :func:`server_receive` adds to the client's answer.

    ``share`` is the server's share of the input, uint64 (count,).
    """
    arrays, division = prepared.take(), layer.division
    part, half = division.server_part(share)
    product = np.where(half, np.uint64(division.correction), np.uint64(0))
    channel.send(Frame.ROWS, division.message.pack(division.message.add(arrays["difference"], product)))
    return layer.modulus.add(part, layer.modulus.scale(arrays["zero"], division.unit))


def client_receive(channel: Channel, layer: TruncationLayer, prepared: Prepared) -> Words:
    """The client's first online step: takes e. Returns its answer, for :func:`client_send`.

    Raises:
        ProtocolError: if the message is not one of elements.
    """
    arrays, message = prepared.take(), layer.division.message
    received = message.unpack(channel.receive(Frame.ROWS, layer.count * message.element_bytes), layer.count)
    choices = np.unpackbits(arrays["choices"], count=layer.count).astype(np.bool_)
    mine = message.sub(np.where(choices, received, np.uint64(0)), arrays["pads"])
    return layer.modulus.add(arrays["answer"], layer.modulus.scale(mine, layer.division.unit))


def client_send(channel: Channel, layer: TruncationLayer, answer: Words) -> None:
    """The client's last online step. Its share of the output is the mask it gave to :func:`client_offline`."""
    channel.send(Frame.SHARES, layer.modulus.pack(answer))


def server_receive(channel: Channel, layer: TruncationLayer, own: Words) -> Words:
    """The server's last online step: its share of the output, uint64 (count,).

    Raises:
        ProtocolError: if the answer is not one of shares.
    """
    answer = channel.receive(Frame.SHARES, layer.count * layer.modulus.element_bytes)
    return layer.modulus.add(own, layer.modulus.unpack(answer, layer.count))


def declared(layer: TruncationLayer) -> dict[Phase, tuple[int, int]]:
    """Bytes in each phase, (client to server, server to client); ``IKNP.setup_bytes`` come once a session."""
    online = layer.count * layer.modulus.element_bytes, layer.count * layer.division.message.element_bytes
    return {"offline": (IKNP.chosen_bytes(layer.count), 0), "online": online}


def stored(layer: TruncationLayer) -> tuple[int, int]:
    """Bytes of arrays that (client, server) keep between the phases."""
    return -(-layer.count // 8) + 16 * layer.count, 16 * layer.count


def _own(session: bytes) -> bytes:
    return b"deepreshape truncation" + session


def _claim(end: Receiver | Sender, layer: TruncationLayer) -> None:
    if layer.name in end.layers:
        raise RuntimeError(f"layer {layer.name!r} was prepared before in this session; start another session for it")
    end.layers.add(layer.name)
