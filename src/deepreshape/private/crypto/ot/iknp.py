"""IKNP: the extension of 128 base transfers to any number of correlated ones, by symmetric operations.

Model: semi-honest parties. A malicious receiver can learn bits of Delta, because the consistency check of Keller,
Orsini and Scholl (CRYPTO 2015) is not made.

Construction: Ishai, Kilian, Nissim and Petrank (CRYPTO 2003) in its correlated form (Asharov, Lindell, Schneider and
Zohner, CCS 2013); AES-256 in counter mode expands the keys. The sender's choices in the base transfers are the bits of
Delta. Column i of the receiver's labels is the stream of its key 0 of base transfer i; the receiver sends

    u_i = stream_i(key 0) ^ stream_i(key 1) ^ c

and the sender, which has one of the two keys, makes column i of its own labels as stream_i(its key) ^ Delta_i u_i. So
q = r ^ c Delta, and nothing is hashed.

*Random choices.* The permute bit is bit 63 of Delta, which is one. With c = stream_63(key 0), which the sender cannot
know since it has key 1 there, c is the permute bit of r, and that of q is zero; u_63 is a stream that the sender could
make itself, so it is not sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.labels import PERMUTE_BIT, Delta
from deepreshape.private.crypto.ot.base import BASE_BYTES, BASE_TRANSFERS, receive_base, send_base
from deepreshape.private.crypto.ot.cot import Cot, CotReceiver, CotSender, End
from deepreshape.private.transport.channel import Channel, Frame

_OTHERS = [i for i in range(BASE_TRANSFERS) if i != PERMUTE_BIT]
"""The columns of a transfer with random choices."""


class Iknp(Cot):
    """See the module; 16 bytes a transfer, all of them from the receiver."""

    def sender(self, channel: Channel, session: bytes, delta: Delta, rng: Randomness) -> IknpSender:
        return IknpSender(delta, receive_base(channel, session, _bits_of(delta), rng))

    def receiver(self, channel: Channel, session: bytes, rng: Randomness) -> IknpReceiver:
        return IknpReceiver(send_base(channel, session, rng))

    @property
    def setup_messages(self) -> list[tuple[End, int]]:
        point, replies = BASE_BYTES  # here the receiver is the sender of the base transfers
        return [("receiver", point), ("sender", replies)]

    def reserve_bytes(self, count: int) -> tuple[int, int]:
        return 0, 0

    def chosen_bytes(self, count: int) -> int:
        return BASE_TRANSFERS * -(-count // 8)

    def random_bytes(self, count: int) -> int:
        return len(_OTHERS) * -(-count // 8)


IKNP = Iknp()


class IknpSender(CotSender):
    """The sender, from its keys of the base transfers, which it chose by the bits of ``delta``."""

    def __init__(self, delta: Delta, keys: list[bytes]) -> None:
        self.delta = delta
        self._choices = _bits_of(delta)
        self._streams = [Randomness(key) for key in keys]

    def reserve(self, channel: Channel, count: int) -> None:
        """Nothing is made ahead."""

    def chosen(self, channel: Channel, count: int) -> Words:
        received = channel.receive(Frame.EXTENSION, IKNP.chosen_bytes(count))
        return self._labels(np.frombuffer(received, np.uint8), range(BASE_TRANSFERS))[:count]

    def random(self, channel: Channel, count: int) -> Words:
        received = channel.receive(Frame.EXTENSION, IKNP.random_bytes(count))
        return self._labels(np.frombuffer(received, np.uint8), _OTHERS)[:count]

    def _labels(self, received: Bits, sent: Sequence[int]) -> Words:
        """The labels of zero, from the columns ``sent``; the others are zero."""
        columns = received.reshape(len(sent), -1)
        masks = np.negative(self._choices).astype(np.uint8)  # 0 or 255
        q = _columns(columns.shape[1])
        q[PERMUTE_BIT] = 0
        for column, i in zip(columns, sent, strict=True):
            np.bitwise_and(column, masks[i], out=q[i])
            self._streams[i].xor(q[i], q[i])
        return engine().transpose(q)


class IknpReceiver(CotReceiver):
    """The receiver, from both keys of every base transfer."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        # the streams run on from call to call: the same one under two choice vectors would reveal their difference
        self._streams = [(Randomness(zero), Randomness(one)) for zero, one in pairs]

    def reserve(self, channel: Channel, count: int) -> None:
        """Nothing is made ahead."""

    def chosen(self, channel: Channel, choices: Bits) -> Words:
        packed = np.packbits(choices, bitorder="little")
        return self._labels(channel, packed, _columns(packed.size), range(BASE_TRANSFERS))[: choices.size]

    def random(self, channel: Channel, count: int) -> Words:
        t = _columns(-(-count // 8))
        self._streams[PERMUTE_BIT][0].fill(t[PERMUTE_BIT])
        return self._labels(channel, t[PERMUTE_BIT], t, _OTHERS)[:count]

    def _labels(self, channel: Channel, choices: Bits, t: Bits, sent: Sequence[int]) -> Words:
        """The labels, and the columns ``sent`` to the sender; the others stand in ``t``. ``choices`` are packed."""
        columns = np.empty((len(sent), t.shape[1]), np.uint8)
        for column, i in zip(columns, sent, strict=True):
            zero, one = self._streams[i]
            zero.fill(t[i])
            one.xor(choices, column)
            column ^= t[i]
        channel.send(Frame.EXTENSION, columns)
        return engine().transpose(t)


def _bits_of(delta: Delta) -> Bits:
    return np.unpackbits(delta.words.view(np.uint8), bitorder="little")


def _columns(m: int) -> Bits:
    """Room for 128 packed columns of m bytes, as a transpose reads them fastest.

    Rows that start a multiple of 4096 bytes apart would share a few cache lines and make a transpose 5 times slower.
    """
    stride = -(-m // 4096) * 4096 + 64
    return np.empty((BASE_TRANSFERS, stride), np.uint8)[:, :m]
