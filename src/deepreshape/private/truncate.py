"""Truncation of shared values without a circuit: one oblivious transfer of two short messages per element.

Model: semi-honest. Before: x = x_client + x_server mod M, M = 2^l or a prime, x_client known offline. After: shares of
x / 2^f, rounded; the client's is a mask r it chose offline. This is the truncation of linearised positions, whose cost
must be nothing beside that of a ReLU. The idea is that of the truncation of non-negative values in CrypTFlow2 (Rathee
et al., CCS 2020) and SIRNN (Rathee et al., IEEE S&P 2021), where the wrap follows from the two top bits.

*Why it is right.* The server adds d to its share, so that x' = x + d lies in [0, M/2): d = 2^(l-2) + 2^f - 1 in the
ring, or the multiple of 2^f next below p/4 in the field. As integers x_client + x_server = x' + w M with w in {0, 1}.
If w = 0, neither share reaches M/2, since their sum is x'. If w = 1, one of them does, since their sum is at least M.
So w = b_client OR b_server, where b says whether a share is at least M/2. Shift both shares:

    T = (x_client >> f) + (x_server >> f) - w (M >> f)

Let c be the carry out of the low f bits of the two shares. In the ring, M >> f is exact and T = (x' >> f) - c. As d
holds 2^f - 1, (x' >> f) - 2^(l-2-f) is the ceiling of x / 2^f, and c = 1 exactly if the low bits of x_client exceed
those of x - 1. x_client is uniform, so x / 2^f is rounded up with probability equal to its fractional part: one unit
in the last place at most, unbiased, exact for multiples of 2^f. In the field M is no multiple of 2^f: T is the floor,
less c, plus one if w and the low bits of x' and p carry: one unit either way at most. Unlike truncation of each share
on its own, which is off by M / 2^f with probability |x| / M, no large error is possible while |x| fits
``program.truncation_room``; beyond it the result is off by M / 2^f.

*The transfer.* -w (M >> f) is a sharing of (b_client OR b_server): w is 1 if b_client is, else b_server. With
K = M >> f and pads P0, P1 of a random transfer whose choice was b_client, the server sends one message

    e = (b_server - 1) K - P0 + P1

A client with b = 0 takes m = -P0, one with b = 1 takes m = e - P1; in both cases m = rho - w K, where the server knows
rho = b_server K - P0. In the ring all of this is a multiple of 2^(l-f), so f bits travel. The client then sends
(x_client >> f) + m - r, uniform since r is, and the server adds (x_server >> f) - rho and takes the shift of d off.
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

import hashlib
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from deepreshape.private import ot
from deepreshape.private.channel import Channel, Frame, Phase
from deepreshape.private.garble import Offset
from deepreshape.private.relu import Prepared
from deepreshape.private.shares import Bits, Field, Modulus, Randomness, Ring, Words


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
    def message(self) -> Modulus:
        """Where e and the pads live: Z_{2^f} in the ring."""
        return Ring(max(self.shift, 2)) if isinstance(self.modulus, Ring) else self.modulus

    @property
    def unit(self) -> int:
        """What an element of ``message`` is worth."""
        return self.modulus.order // self.message.order

    @property
    def correction(self) -> int:
        """K, in units."""
        return (self.modulus.order >> self.shift) // self.unit

    @property
    def raised(self) -> int:
        """d: what the server adds to its share."""
        if isinstance(self.modulus, Ring):
            return self.modulus.order // 4 + (1 << self.shift) - 1
        return (self.modulus.order // 4) >> self.shift << self.shift

    def reaches_half(self, share: Words) -> Bits:
        """b: is the share at least M/2?"""
        return (share >= np.uint64((self.modulus.order + 1) // 2)).view(np.uint8)


@dataclass(repr=False)
class Receiver:
    """The client's end of one offline session's transfers."""

    session: bytes
    transfers: ot.CorrelatedReceiver
    layers: set[str] = field(default_factory=set[str], init=False)

    @classmethod
    def start(cls, channel: Channel, session: bytes, rng: Randomness) -> Receiver:
        """Run the base transfers; the server calls :meth:`Sender.start`. ``session`` never repeats."""
        return cls(session, ot.CorrelatedReceiver.start(channel, _own(session), rng))


@dataclass(repr=False)
class Sender:
    """The server's end of one offline session's transfers."""

    session: bytes
    transfers: ot.CorrelatedSender
    layers: set[str] = field(default_factory=set[str], init=False)

    @classmethod
    def start(cls, channel: Channel, session: bytes, rng: Randomness) -> Sender:
        """Run the base transfers; the client calls :meth:`Receiver.start`."""
        return cls(session, ot.CorrelatedSender.start(channel, _own(session), Offset(rng), rng))


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
    choices = layer.reaches_half(share)
    pads = _pads(layer, receiver.session, receiver.transfers.extend(channel, choices))
    answer = layer.modulus.sub(share >> np.uint64(layer.shift), mask)
    return Prepared({"choices": np.packbits(choices), "pads": pads, "answer": answer})


def server_offline(channel: Channel, layer: TruncationLayer, sender: Sender) -> Prepared:
    """The server's offline step, the counterpart of :func:`client_offline`."""
    _claim(sender, layer)
    rows = sender.transfers.extend(channel, layer.count)
    zero = _pads(layer, sender.session, rows)
    one = _pads(layer, sender.session, rows ^ sender.transfers.offset.words)
    return Prepared({"zero": zero, "difference": layer.message.sub(one, zero)})


def server_send(channel: Channel, layer: TruncationLayer, prepared: Prepared, share: Words) -> Words:
    """The server's first online step: sends e. Returns what :func:`server_receive` adds to the client's answer.

    ``share`` is the server's share of the input, uint64 (count,).
    """
    arrays, modulus, message = prepared.take(), layer.modulus, layer.message
    share = modulus.add(share, np.full_like(share, layer.raised))
    half = layer.reaches_half(share)
    k = np.uint64(layer.correction)
    sent = message.sub(arrays["difference"], np.where(half, np.uint64(0), k))
    channel.send(Frame.ROWS, message.pack(sent))
    rho = message.sub(np.where(half, k, np.uint64(0)), arrays["zero"])
    back = np.full_like(share, layer.raised >> layer.shift)
    return modulus.sub(modulus.sub(share >> np.uint64(layer.shift), back), modulus.scale(rho, layer.unit))


def client_receive(channel: Channel, layer: TruncationLayer, prepared: Prepared) -> Words:
    """The client's first online step: takes e. Returns its answer, for :func:`client_send`.

    Raises:
        ProtocolError: if the message is not one of elements.
    """
    arrays, message = prepared.take(), layer.message
    received = message.unpack(channel.receive(Frame.ROWS, layer.count * message.element_bytes), layer.count)
    choices = np.unpackbits(arrays["choices"], count=layer.count).astype(np.bool_)
    mine = message.sub(np.where(choices, received, np.uint64(0)), arrays["pads"])
    return layer.modulus.add(arrays["answer"], layer.modulus.scale(mine, layer.unit))


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
    """Bytes in each phase, (client to server, server to client); ``ot.SETUP_BYTES`` come once a session."""
    online = layer.count * layer.modulus.element_bytes, layer.count * layer.message.element_bytes
    return {"offline": (ot.extension_bytes(layer.count), 0), "online": online}


def stored(layer: TruncationLayer) -> tuple[int, int]:
    """Bytes of arrays that (client, server) keep between the phases."""
    return -(-layer.count // 8) + 16 * layer.count, 16 * layer.count


def _own(session: bytes) -> bytes:
    return b"deepreshape truncation" + session


def _claim(end: Receiver | Sender, layer: TruncationLayer) -> None:
    if layer.name in end.layers:
        raise RuntimeError(f"layer {layer.name!r} was prepared before in this session; start another session for it")
    end.layers.add(layer.name)


def _pads(layer: TruncationLayer, session: bytes, labels: Words) -> Words:
    """The hash of every label (n, 2), as an element of the layer's messages (n,)."""
    digest = hashlib.sha256(b"deepreshape truncation pads")
    for part in (session, layer.name.encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    x = np.stack([labels[:, 0] ^ labels[:, 1], labels[:, 0]], axis=1)
    cipher = Cipher(algorithms.AES(digest.digest()[:16]), modes.ECB()).encryptor()  # noqa: S305
    hashed = np.frombuffer(cipher.update(x.tobytes()), np.uint64).reshape(x.shape) ^ x
    message = layer.message
    if isinstance(message, Ring):
        return hashed[:, 0] & np.uint64(message.order - 1)
    order = np.uint64(message.order)
    return message.add(hashed[:, 0] % order, message.scale(hashed[:, 1] % order, 1 << 64))
