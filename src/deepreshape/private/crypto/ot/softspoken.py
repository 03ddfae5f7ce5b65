"""SoftSpoken: 15 bits a correlated transfer from 128 base transfers, by symmetric operations alone.

Model: semi-honest parties; a malicious receiver is not checked. Construction: Roy (CRYPTO 2022) with fields of 2^8
elements. Delta falls into 16 bytes. For each, the receiver has a tree of 256 seeds, of which the sender learns all but
number D, its byte of Delta. With G(x) the stream of seed x, the receiver makes

    u = sum over x of G(x),    r_j = sum over x of x_j G(x),

and the sender, for whom seed D drops out,

    q_j = sum over x of (x_j ^ D_j) G(x) = r_j ^ D_j u.

So byte by byte these are transfers with choices u. For one choice in all bytes the receiver takes that of the byte with
the permute bit, and sends how the other 15 differ, which the sender adds where D_j is one. Last the permute bits are
set to what the choice says (``_permuted``): 127 bits of a label are random, and Delta's permute bit is one.

*Seeds.* A node's children are its hashes under two public keys (``labels.py``); of each level the sum of all left and
of all right nodes travels under the two keys of one base transfer, in which the sender chooses by a bit of Delta and
learns the other side of its path (Goldreich, Goldwasser and Micali; Boyle et al., CCS 2019). G is the hash under a
fresh public key for every 16 bytes.
"""

from __future__ import annotations

from typing import final

import numpy as np

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.labels import PERMUTE_BIT, Context, Delta
from deepreshape.private.crypto.ot.base import BASE_BYTES, BASE_TRANSFERS, receive_base, send_base
from deepreshape.private.crypto.ot.cot import Cot, CotReceiver, CotSender, End, correct, corrected
from deepreshape.private.transport.channel import Channel, Frame

FIELD_BITS = 8
GROUPS = BASE_TRANSFERS // FIELD_BITS
LEAVES = 1 << FIELD_BITS
BITS = GROUPS - 1
"""Bits that a transfer with a random choice costs."""

TREE_BYTES = 2 * 16 * BASE_TRANSFERS
PERMUTE_GROUP = PERMUTE_BIT // FIELD_BITS
_OTHERS = [group for group in range(GROUPS) if group != PERMUTE_GROUP]


@final
class SoftSpoken(Cot):
    """See the module."""

    def sender(self, channel: Channel, session: bytes, delta: Delta, rng: Randomness) -> SoftSpokenSender:
        choices = np.unpackbits(delta.words.view(np.uint8), bitorder="little")
        keys = receive_base(channel, session, choices, rng)
        sent = np.frombuffer(channel.receive(Frame.BASE_OT, TREE_BYTES), np.uint64).reshape(BASE_TRANSFERS, 2, 2)
        blinds = np.stack([_blind(key) for key in keys])
        sums = np.where(choices[:, None], sent[:, 1], sent[:, 0]) ^ blinds
        seeds = _punctured(sums.reshape(GROUPS, FIELD_BITS, 2), choices.reshape(GROUPS, FIELD_BITS), session)
        return SoftSpokenSender(delta, seeds, session)

    def receiver(self, channel: Channel, session: bytes, rng: Randomness) -> SoftSpokenReceiver:
        pairs = send_base(channel, session, rng)
        seeds, sums = _grown(rng.labels(GROUPS), session)
        blinds = np.array([[_blind(zero), _blind(one)] for zero, one in pairs])
        # whoever chooses by a bit of Delta learns the side that its path does not take
        channel.send(Frame.BASE_OT, sums.reshape(BASE_TRANSFERS, 2, 2)[:, ::-1] ^ blinds)
        return SoftSpokenReceiver(seeds, session)

    @property
    def setup_messages(self) -> list[tuple[End, int]]:
        point, replies = BASE_BYTES  # here the receiver is the sender of the base transfers
        return [("receiver", point), ("sender", replies), ("receiver", TREE_BYTES)]

    def reserve_bytes(self, count: int) -> tuple[int, int]:
        return 0, 0

    def chosen_bytes(self, count: int) -> int:
        return self.random_bytes(count) + -(-count // 8)

    def random_bytes(self, count: int) -> int:
        return BITS * -(-count // 8)


SOFTSPOKEN = SoftSpoken()


@final
class SoftSpokenSender(CotSender):
    """The sender, from all ``seeds`` (16, 256, 2) but one a group, each at its number ^ the group's byte of Delta."""

    def __init__(self, delta: Delta, seeds: Words, session: bytes) -> None:
        self.delta = delta
        self._streams = _Streams(seeds, session)
        self._choices = np.unpackbits(delta.words.view(np.uint8), bitorder="little").reshape(GROUPS, FIELD_BITS, 1)

    def reserve(self, channel: Channel, count: int) -> None:
        """Nothing is made ahead."""

    def random(self, channel: Channel, count: int) -> Words:
        nbytes = -(-count // 8)
        received = np.frombuffer(channel.receive(Frame.EXTENSION, SOFTSPOKEN.random_bytes(count)), np.uint8)
        columns, _ = self._streams.take(nbytes)
        masks = np.negative(self._choices[_OTHERS])  # 0 or 255
        columns[_OTHERS] ^= masks & received.reshape(BITS, 1, nbytes)
        return _permuted(columns, np.zeros(nbytes, np.uint8))[:count]

    def chosen(self, channel: Channel, count: int) -> Words:
        return corrected(self, channel, count)


@final
class SoftSpokenReceiver(CotReceiver):
    """The receiver, from all ``seeds`` (16, 256, 2)."""

    def __init__(self, seeds: Words, session: bytes) -> None:
        self._streams = _Streams(seeds, session)

    def reserve(self, channel: Channel, count: int) -> None:
        """Nothing is made ahead."""

    def random(self, channel: Channel, count: int) -> Words:
        columns, sums = self._streams.take(-(-count // 8))
        channel.send(Frame.EXTENSION, sums[_OTHERS] ^ sums[PERMUTE_GROUP])
        return _permuted(columns, sums[PERMUTE_GROUP])[:count]

    def chosen(self, channel: Channel, choices: Bits) -> Words:
        return correct(self, channel, choices)


class _Streams:
    """The streams of all seeds (16, 256, 2), which run on from call to call."""

    def __init__(self, seeds: Words, session: bytes) -> None:
        self._seeds = np.ascontiguousarray(seeds)
        self._session = session
        self._calls = 0

    def take(self, nbytes: int) -> tuple[Bits, Bits]:
        """The next ``nbytes`` of each: sums over seeds with bit j of their number, (16, 8, nbytes), and over all."""
        blocks = -(-nbytes // 16)
        keys = Context(self._session, "softspoken", self._calls).keys(blocks, "streams")
        self._calls += 1
        columns, sums = engine().fold(self._seeds, keys)
        flat = columns.view(np.uint8).reshape(GROUPS, FIELD_BITS, -1)
        return np.ascontiguousarray(flat[..., :nbytes]), sums.view(np.uint8).reshape(GROUPS, -1)[:, :nbytes]


def _permuted(columns: Bits, permute: Bits) -> Words:
    """The labels of columns (16, 8, m), with these permute bits."""
    columns = columns.reshape(BASE_TRANSFERS, -1)
    columns[PERMUTE_BIT] = permute
    return engine().transpose(columns)


def _blind(key: bytes) -> Words:
    return np.frombuffer(key[:16], np.uint64)


def _children(nodes: Words, level: int, session: bytes) -> Words:
    """Of (groups, n, 2) nodes: n left ones, then n right ones."""
    keys = Context(session, "softspoken", level).keys(2, "seeds")
    return np.concatenate([engine().hash(nodes.reshape(-1, 2), key).reshape(nodes.shape) for key in keys], axis=1)


def _halves(nodes: Words) -> Words:
    """The sums of the left and of the right nodes, (groups, 2, 2)."""
    return np.bitwise_xor.reduce(nodes.reshape(GROUPS, 2, -1, 2), axis=2)


def _grown(roots: Words, session: bytes) -> tuple[Words, Words]:
    """All seeds (16, 256, 2) of the trees, and the sums of both sides of every level, (16, 8, 2, 2)."""
    nodes, sums = roots[:, None], list[Words]()
    for level in range(FIELD_BITS):
        nodes = _children(nodes, level, session)
        sums.append(_halves(nodes))
    return nodes, np.stack(sums, axis=1)


def _punctured(sums: Words, path: Bits, session: bytes) -> Words:
    """From the sums (16, 8, 2) off the ``path`` (16, 8): all seeds but the path's, each at its number ^ the path's."""
    tree = np.arange(GROUPS)
    nodes, hole = np.zeros((GROUPS, 1, 2), np.uint64), np.zeros(GROUPS, np.int64)
    for level in range(FIELD_BITS):
        nodes = _children(nodes, level, session)
        side = path[:, level].astype(np.int64)
        known, hole = hole + ((1 - side) << level), hole + (side << level)
        nodes[tree, known] = nodes[tree, hole] = 0
        nodes[tree, known] = sums[:, level] ^ _halves(nodes)[tree, 1 - side]
    return nodes[tree[:, None], np.arange(LEAVES) ^ hole[:, None]]
