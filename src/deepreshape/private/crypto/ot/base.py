"""Base oblivious transfer: 128 transfers of random keys, by public-key operations.

Model: semi-honest parties. Construction: Chou and Orlandi's protocol (LATINCRYPT 2015) on the prime-order group of
edwards25519. Assumptions: computational Diffie-Hellman there, SHA-256 as a random oracle. A key is a hash of the
session, the transfer's number, both public points and the shared one, so keys of different sessions are unrelated.

Every point received must lie in that group: with a part of small order in the sender's point, each reply would show
which of the two keys was chosen, hence Delta where the choices are its bits. libsodium missed such points until
CVE-2025-69277 was mended (PyNaCl 1.6.2); an older one is refused at import.
"""

from __future__ import annotations

import hashlib

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_core_ed25519_scalar_reduce,
    crypto_core_ed25519_sub,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)

from deepreshape.private.arith.ring import Bits
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.errors import ProtocolError
from deepreshape.private.transport.channel import Channel, Frame

BASE_TRANSFERS = 128
POINT_BYTES = 32

BASE_BYTES = (POINT_BYTES, BASE_TRANSFERS * POINT_BYTES)
"""Bytes of :func:`send_base` to the receiver, and of :func:`receive_base` back."""


def send_base(channel: Channel, session: bytes, rng: Randomness) -> list[tuple[bytes, bytes]]:
    """128 pairs of random 32-byte keys, of each of which the peer learns one.

    Raises:
        ProtocolError: if the peer sends a point outside the prime-order group.
    """
    secret = _scalar(rng)
    point = crypto_scalarmult_ed25519_base_noclamp(secret)
    channel.send(Frame.BASE_OT, point)
    replies = bytes(channel.receive(Frame.BASE_OT, BASE_BYTES[1]))
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
    point = _checked(bytes(channel.receive(Frame.BASE_OT, BASE_BYTES[0])))
    replies: list[bytes] = []
    keys: list[bytes] = []
    for i in range(BASE_TRANSFERS):
        secret = _scalar(rng)
        public = crypto_scalarmult_ed25519_base_noclamp(secret)
        reply = (public, crypto_core_ed25519_add(public, point))[int(choices[i])]
        replies.append(reply)
        keys.append(_key(session, i, point, reply, crypto_scalarmult_ed25519_noclamp(secret, point)))
    channel.send(Frame.BASE_OT, b"".join(replies))
    return keys


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
