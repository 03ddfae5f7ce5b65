"""Oblivious transfer: 128 base transfers by public keys, and their extension to any number by symmetric ones.

Model: semi-honest parties. A malicious receiver of the extension can learn bits of the offset, because the consistency
check of Keller, Orsini and Scholl (CRYPTO 2015) is not made.

Base: Chou and Orlandi's protocol (LATINCRYPT 2015) on the prime-order group of edwards25519; computational
Diffie-Hellman there, SHA-256 as a random oracle. A key is a hash of the session, the transfer's number, both public
points and the shared one, so keys of different sessions are unrelated. Every point received must lie in that group:
with a part of small order in the sender's point, each reply would show which of the two keys was chosen, hence the
offset. libsodium missed such points until CVE-2025-69277 was mended (PyNaCl 1.6.2); an older one is refused at import.

Extension: Ishai, Kilian, Nissim and Petrank (CRYPTO 2003) in its correlated form (Asharov, Lindell, Schneider and
Zohner, CCS 2013); AES-256 in counter mode expands the keys. The sender's choices in the base transfers are the garbling
offset, so for choice c a transfer gives the sender a label q and the receiver q ^ c * offset: the outputs are wire
labels as they are, and nothing is hashed.
"""

from __future__ import annotations

import hashlib

import numpy as np
from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_core_ed25519_scalar_reduce,
    crypto_core_ed25519_sub,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)

from deepreshape.private.arith.ring import Bits, Randomness, Words
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.gc.halfgates import Offset
from deepreshape.private.transport.channel import Channel, Frame, ProtocolError

BASE_TRANSFERS = 128
POINT_BYTES = 32

SETUP_BYTES = (POINT_BYTES, BASE_TRANSFERS * POINT_BYTES)
"""Bytes of :meth:`CorrelatedReceiver.start` to the sender, and of :meth:`CorrelatedSender.start` back."""


def extension_bytes(count: int) -> int:
    """Bytes, from receiver to sender, of one call of ``extend`` for ``count`` transfers."""
    return BASE_TRANSFERS * -(-count // 8)


def send_base(channel: Channel, session: bytes, rng: Randomness) -> list[tuple[bytes, bytes]]:
    """128 pairs of random 32-byte keys, of each of which the peer learns one.

    Raises:
        ProtocolError: if the peer sends a point outside the prime-order group.
    """
    secret = _scalar(rng)
    point = crypto_scalarmult_ed25519_base_noclamp(secret)
    channel.send(Frame.BASE_OT, point)
    replies = bytes(channel.receive(Frame.BASE_OT, SETUP_BYTES[1]))
    shift = crypto_scalarmult_ed25519_noclamp(secret, point)
    pairs: list[tuple[bytes, bytes]] = []
    for i in range(BASE_TRANSFERS):
        reply = _checked(replies[i * POINT_BYTES : (i + 1) * POINT_BYTES])
        shared = crypto_scalarmult_ed25519_noclamp(secret, reply)
        other = crypto_core_ed25519_sub(shared, shift)
        pairs.append((_key(session, i, point, reply, shared), _key(session, i, point, reply, other)))
    return pairs


def receive_base(channel: Channel, session: bytes, choices: Bits, rng: Randomness) -> list[bytes]:
    """The key of each of the peer's 128 pairs that ``choices`` (128 zeros and ones) says.

    Raises:
        ProtocolError: if the peer sends a point outside the prime-order group.
    """
    point = _checked(bytes(channel.receive(Frame.BASE_OT, SETUP_BYTES[0])))
    replies: list[bytes] = []
    keys: list[bytes] = []
    for i in range(BASE_TRANSFERS):
        secret = _scalar(rng)
        own = crypto_scalarmult_ed25519_base_noclamp(secret)
        reply = (own, crypto_core_ed25519_add(own, point))[int(choices[i])]
        replies.append(reply)
        keys.append(_key(session, i, point, reply, crypto_scalarmult_ed25519_noclamp(secret, point)))
    channel.send(Frame.BASE_OT, b"".join(replies))
    return keys


class CorrelatedSender:
    """The party whose offset correlates the labels; it is the garbler. One per session and direction."""

    def __init__(self, offset: Offset, keys: list[bytes]) -> None:
        self.offset = offset
        self._choices = _bits_of(offset)
        self._streams = [Randomness(key) for key in keys]

    @classmethod
    def start(cls, channel: Channel, session: bytes, offset: Offset, rng: Randomness) -> CorrelatedSender:
        """Run the base transfers, as their receiver; the peer calls :meth:`CorrelatedReceiver.start`."""
        return cls(offset, receive_base(channel, session, _bits_of(offset), rng))

    def extend(self, channel: Channel, count: int) -> Words:
        """The labels of zero of ``count`` transfers, uint64 of shape (count, 2)."""
        received = channel.receive(Frame.EXTENSION, extension_bytes(count))
        columns = np.frombuffer(received, np.uint8).reshape(BASE_TRANSFERS, -1)
        masks = np.negative(self._choices).astype(np.uint8)  # 0 or 255
        q = _columns(columns.shape[1])
        for i, stream in enumerate(self._streams):
            np.bitwise_and(columns[i], masks[i], out=q[i])
            stream.mask(q[i], q[i])
        return engine().transpose(q)[:count]


class CorrelatedReceiver:
    """The party that chooses; it is the evaluator. One per session and direction."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        # the streams run on from call to call: the same pad under two choice vectors would reveal their difference
        self._streams = [(Randomness(zero), Randomness(one)) for zero, one in pairs]

    @classmethod
    def start(cls, channel: Channel, session: bytes, rng: Randomness) -> CorrelatedReceiver:
        """Run the base transfers, as their sender; the peer calls :meth:`CorrelatedSender.start`."""
        return cls(send_base(channel, session, rng))

    def extend(self, channel: Channel, choices: Bits) -> Words:
        """Labels for ``choices``, zeros and ones of shape (count,): uint64 of shape (count, 2)."""
        packed = np.packbits(choices, bitorder="little")
        t = _columns(packed.size)
        columns = np.empty(t.shape, np.uint8)
        for i, (zero, one) in enumerate(self._streams):
            zero.fill(t[i])
            one.mask(packed, columns[i])
            columns[i] ^= t[i]
        channel.send(Frame.EXTENSION, columns)
        return engine().transpose(t)[: choices.size]


def _scalar(rng: Randomness) -> bytes:
    return crypto_core_ed25519_scalar_reduce(rng.bytes(64).tobytes())


def _refuse_old_libsodium() -> None:
    """Ask the library in use, as it may be the system's and not the one that came with PyNaCl."""
    order_two = (2**255 - 20).to_bytes(POINT_BYTES, "little")
    mixed = crypto_core_ed25519_add(crypto_scalarmult_ed25519_base_noclamp(bytes([1]) + bytes(31)), order_two)
    if crypto_core_ed25519_is_valid_point(mixed):
        raise ImportError(
            "this libsodium takes points outside the prime-order group (CVE-2025-69277), and oblivious transfer would "
            "give the garbling offset away; install PyNaCl 1.6.2 or later, with the libsodium it brings"
        )


_refuse_old_libsodium()


def _checked(point: bytes) -> bytes:
    if not crypto_core_ed25519_is_valid_point(point):
        raise ProtocolError("the peer sent a base-OT point that is not in the prime-order group of edwards25519")
    return point


def _key(session: bytes, number: int, sent: bytes, reply: bytes, shared: bytes) -> bytes:
    digest = hashlib.sha256(b"deepreshape base OT" + len(session).to_bytes(8, "little") + session)
    digest.update(number.to_bytes(8, "little") + sent + reply + shared)
    return digest.digest()


def _bits_of(offset: Offset) -> Bits:
    return np.unpackbits(offset.words.view(np.uint8), bitorder="little")


def _columns(m: int) -> Bits:
    """Room for 128 packed columns of m bytes, as a transpose reads them fastest.

    Rows that start a multiple of 4096 bytes apart would share a few cache lines and make a transpose 5 times slower.
    """
    stride = -(-m // 4096) * 4096 + 64
    return np.empty((BASE_TRANSFERS, stride), np.uint8)[:, :m]
