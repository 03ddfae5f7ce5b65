"""Correlated oblivious transfer: what senders and receivers promise, whichever protocol makes the transfers.

A sender has a secret Delta. Each transfer gives it a label q, uniform to the receiver, and gives the receiver
r = q ^ c Delta for one bit c, its choice, which the sender does not learn. What labels are used for, and the hash that
breaks the correlation, are the caller's.

Use, the two parties side by side; a protocol is a value such as ``IKNP``::

    sender = IKNP.sender(channel, session, Delta(rng), rng)        receiver = IKNP.receiver(channel, session, rng)
    sender.reserve(channel, 2 * n)                                 receiver.reserve(channel, 2 * n)
    q = sender.chosen(channel, n)                                  r = receiver.chosen(channel, choices)
    q = sender.random(channel, n)                                  r = receiver.random(channel, n)

A protocol is one file: a subclass of :class:`Cot`, one of :class:`CotSender`, one of :class:`CotReceiver`, all final.
One that makes random choices only turns them into chosen ones by :func:`correct` and :func:`corrected`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.labels import Delta, permute_bits, pick
from deepreshape.private.transport.channel import Channel, Frame

End = Literal["receiver", "sender"]
ENDS: tuple[End, ...] = ("receiver", "sender")


class CotSender(ABC):
    """The party whose ``delta`` correlates the labels. One per session and direction; both ends make the same calls."""

    delta: Delta

    @abstractmethod
    def reserve(self, channel: Channel, count: int) -> None:
        """Prepare ``count`` more transfers, where the protocol makes any ahead; one large call costs the least.

        Every transfer is reserved before it is made, whatever the protocol.
        """

    @abstractmethod
    def chosen(self, channel: Channel, count: int) -> Words:
        """``count`` transfers by the receiver's choices: the labels q of zero, uint64 of shape (count, 2)."""

    @abstractmethod
    def random(self, channel: Channel, count: int) -> Words:
        """``count`` transfers by random choices: labels q as of :meth:`chosen`, all of permute bit zero."""


class CotReceiver(ABC):
    """The party that chooses."""

    @abstractmethod
    def reserve(self, channel: Channel, count: int) -> None:
        """As :meth:`CotSender.reserve`."""

    @abstractmethod
    def chosen(self, channel: Channel, choices: Bits) -> Words:
        """Labels r for ``choices``, zeros and ones of shape (count,): uint64 of shape (count, 2)."""

    @abstractmethod
    def random(self, channel: Channel, count: int) -> Words:
        """Labels r, uint64 of shape (count, 2), for random choices: each choice is the permute bit of its label."""


class Cot(ABC):
    """A protocol for correlated transfers. Bytes are public functions of counts.

    ``session`` never repeats, nor between the two directions of one session; both parties have compared it.
    """

    @abstractmethod
    def sender(self, channel: Channel, session: bytes, delta: Delta, rng: Randomness) -> CotSender:
        """Set up the sender; the peer calls :meth:`receiver`."""

    @abstractmethod
    def receiver(self, channel: Channel, session: bytes, rng: Randomness) -> CotReceiver:
        """Set up the receiver; the peer calls :meth:`sender`."""

    @property
    @abstractmethod
    def setup_messages(self) -> Sequence[tuple[End, int]]:
        """Who sends how many bytes in the set-up, in order."""

    @property
    def setup_bytes(self) -> tuple[int, int]:
        """Bytes of the set-up, (receiver to sender, sender to receiver)."""
        sent = {end: sum(nbytes for sender, nbytes in self.setup_messages if sender == end) for end in ENDS}
        return sent["receiver"], sent["sender"]

    @abstractmethod
    def reserve_bytes(self, count: int) -> tuple[int, int]:
        """Bytes of one call of ``reserve``, (receiver to sender, sender to receiver)."""

    @abstractmethod
    def chosen_bytes(self, count: int) -> int:
        """Bytes of one call of ``chosen``, from receiver to sender."""

    @abstractmethod
    def random_bytes(self, count: int) -> int:
        """Bytes of one call of ``random``, from receiver to sender."""


def correct(receiver: CotReceiver, channel: Channel, choices: Bits) -> Words:
    """``receiver.chosen`` by random transfers: what is sent says where the random choices are others."""
    labels = receiver.random(channel, choices.size)
    channel.send(Frame.EXTENSION, np.packbits(choices ^ permute_bits(labels), bitorder="little"))
    return labels


def corrected(sender: CotSender, channel: Channel, count: int) -> Words:
    """``sender.chosen`` by random transfers."""
    labels = sender.random(channel, count)
    received = np.frombuffer(channel.receive(Frame.EXTENSION, -(-count // 8)), np.uint8)
    return pick(labels, sender.delta.words, np.unpackbits(received, count=count, bitorder="little"))
