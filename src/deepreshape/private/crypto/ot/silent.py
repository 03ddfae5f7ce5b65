"""Silent transfers: correlated transfers that are reserved for less than a bit each and then cost nothing to send.

Model: semi-honest parties. Construction: Ferret (Yang, Weng, Lan, Zhang and Wang, CCS 2020) with regular noise, its
trees being half-trees (Guo, Yang, Wang, Zhang, Xie, Liu and Zhao, EUROCRYPT 2023). Assumptions: learning parity with
regular noise at the sizes of ``lpn.py``; the hash of ``labels.py``; those of SoftSpoken, which makes the first base.

A round consumes correlated labels of permute bit c, the choice: a table, and one for each level of each tree. The
sender grows every tree from a fresh root s, with s and s ^ Delta below it, and sends, level by level, the sum of the
left nodes plus its label q. The receiver has q ^ c Delta, and as every level sums to Delta, it gets the sum of the
left nodes for c = 0, of the right ones for c = 1; so it grows the tree but for one leaf, off all those sides, and
that leaf is the sum of all others, up to Delta. Sums are masked by q, of which the receiver knows no other multiple of
Delta; each q serves one sum. Leaves and table entries are correlated, and so are sums of them: the outputs.

The sender sends all sums of all rounds when transfers are reserved, and forgets its trees but for their roots; either
party makes outputs some trees at a time, as they are asked for, so that memory is a few megabytes whatever the count.
The first outputs of a round are the base of the next and leave this file no other way; every output leaves once.

Public keys of trees and indices belong to (session, round); the session never repeats, nor in the other direction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.labels import PERMUTE_BIT, Context, Delta, permute_bits
from deepreshape.private.crypto.ot.cot import Cot, CotReceiver, CotSender, End, correct, corrected
from deepreshape.private.crypto.ot.lpn import LARGE, SMALL, Expansion, Round, Size, cheapest_expansion
from deepreshape.private.crypto.ot.softspoken import BITS, SOFTSPOKEN
from deepreshape.private.transport.channel import Channel, Frame

TREES = 32
"""Trees that are made at once: their outputs take 0.5 to 1 MB."""

_WITHOUT_PERMUTE_BIT = np.uint64((1 << PERMUTE_BIT) - 1)


@final
@dataclass(frozen=True)
class Silent(Cot):
    """See the module; other sizes than these two are for tests."""

    small: Size = SMALL
    large: Size = LARGE

    def schedule(self, count: int) -> Expansion:
        """How ``count`` transfers are made."""
        return cheapest_expansion(count, BITS, self.small, self.large)

    def sender(self, channel: Channel, session: bytes, delta: Delta, rng: Randomness) -> SilentSender:
        return SilentSender(self, SOFTSPOKEN.sender(channel, _base(session), delta, rng), session, rng)

    def receiver(self, channel: Channel, session: bytes, rng: Randomness) -> SilentReceiver:
        return SilentReceiver(self, SOFTSPOKEN.receiver(channel, _base(session), rng), session)

    @property
    def setup_messages(self) -> list[tuple[End, int]]:
        return SOFTSPOKEN.setup_messages

    def reserve_bytes(self, count: int) -> tuple[int, int]:
        plan = self.schedule(count)
        return SOFTSPOKEN.random_bytes(plan.base), plan.nbytes

    def chosen_bytes(self, count: int) -> int:
        return -(-count // 8)

    def random_bytes(self, count: int) -> int:
        return 0


SILENT = Silent()


def _base(session: bytes) -> bytes:
    return b"deepreshape silent base" + session


class _Keys:
    """The public keys of one round: of its trees, and of the indices into its table."""

    def __init__(self, session: bytes, number: int) -> None:
        self.tree, self.index = Context(session, "silent", number).keys(2, "round")


class _Base:
    """The labels that a round consumes: its table, and one for each level of each tree. Each is used once."""

    def __init__(self, labels: Words, step: Round) -> None:
        self.table = labels[: step.size.secret]
        self.levels = labels[step.size.secret : step.base].reshape(step.trees, step.size.depth, 2)


class _Stream(ABC):
    """The outputs of one reservation, made as they are asked for, some trees at a time."""

    def __init__(self, plan: Expansion, keys: list[_Keys], base: Words) -> None:
        self._plan = plan
        self._keys = keys
        self._pieces = self._outputs(base)
        self._rest = np.empty((0, 2), np.uint64)
        self.left = plan.count
        """How many outputs there still are."""

    @abstractmethod
    def _leaves(self, number: int, base: _Base, part: slice) -> Words:
        """The leaves of some trees of round ``number``."""

    def take(self, count: int) -> Words:
        """The next outputs, (count, 2); there are as many."""
        self.left -= count
        labels, self._rest = _first(self._rest, self._pieces, count)
        return labels

    def _outputs(self, base: Words) -> Iterator[Words]:
        """All that leaves this file. What a round's successor consumes does not."""
        rounds = self._plan.rounds
        bases = [*(step.base for step in rounds), 0]
        labels, rest = base[: bases[0]], base[bases[0] :]
        yield rest
        for number, step in enumerate(rounds):
            pieces = self._round(number, step, _Base(labels, step))
            labels, rest = _first(rest[:0], pieces, bases[number + 1])
            yield rest
            yield from pieces

    def _round(self, number: int, step: Round, base: _Base) -> Iterator[Words]:
        for part in _parts(step):
            outputs = self._leaves(number, base, part)
            engine().gather(outputs, base.table, self._keys[number].index, part.start << step.size.depth)
            yield outputs


def _parts(step: Round) -> list[slice]:
    return [slice(first, min(first + TREES, step.trees)) for first in range(0, step.trees, TREES)]


def _first(rest: Words, pieces: Iterator[Words], count: int) -> tuple[Words, Words]:
    """The first ``count`` labels of ``rest`` and the pieces after it, and what is left of the piece where they end."""
    labels, at = np.empty((count, 2), np.uint64), 0
    while at < count:
        rest = rest if len(rest) else next(pieces)
        part = rest[: count - at]
        labels[at : at + len(part)] = part
        at, rest = at + len(part), rest[len(part) :]
    return labels, rest


@final
class _SentStream(_Stream):
    """At the sender: ``base`` has labels of permute bit zero. Sends the sums of all rounds."""

    def __init__(
        self, channel: Channel, plan: Expansion, keys: list[_Keys], base: Words, delta: Delta, rng: Randomness
    ) -> None:
        super().__init__(plan, keys, base)
        self._delta = delta.words
        self._roots = [rng.labels(step.trees) for step in plan.rounds]
        bases = [*(step.base for step in plan.rounds), 0]
        labels = base[: bases[0]]
        for number, step in enumerate(plan.rounds):
            labels = self._announce(channel, number, _Base(labels, step), bases[number + 1])

    def _leaves(self, number: int, base: _Base, part: slice) -> Words:
        return self._grow(number, part)[0]

    def _grow(self, number: int, part: slice) -> tuple[Words, Words]:
        depth = self._plan.rounds[number].size.depth
        return engine().grow(self._roots[number][part], self._delta, depth, self._keys[number].tree)

    def _announce(self, channel: Channel, number: int, base: _Base, following: int) -> Words:
        """Send a round's sums; its first ``following`` outputs."""
        step = self._plan.rounds[number]
        sums, labels = np.empty_like(base.levels), np.empty((following, 2), np.uint64)
        for part in _parts(step):
            leaves, sums[part] = self._grow(number, part)
            first = part.start << step.size.depth
            if first < following:
                engine().gather(leaves, base.table, self._keys[number].index, first)
                labels[first : first + len(leaves)] = leaves[: following - first]
        sums[:, -1, 0] &= _WITHOUT_PERMUTE_BIT
        channel.send(Frame.EXTENSION, sums ^ base.levels)
        return labels


@final
class _ReceivedStream(_Stream):
    """At the receiver, which gets those sums."""

    def __init__(self, channel: Channel, plan: Expansion, keys: list[_Keys], base: Words) -> None:
        super().__init__(plan, keys, base)
        self._sums: list[Words] = []
        for step in plan.rounds:
            received = channel.receive(Frame.EXTENSION, step.nbytes)
            self._sums.append(np.frombuffer(received, np.uint64).reshape(step.trees, step.size.depth, 2))

    def _leaves(self, number: int, base: _Base, part: slice) -> Words:
        levels = base.levels[part]
        sums = self._sums[number][part] ^ levels
        sums[:, -1, 0] &= _WITHOUT_PERMUTE_BIT
        return engine().regrow(sums, permute_bits(levels), self._keys[number].tree)


class _Reserve:
    """The reservations of one end, in order, and the keys of all their rounds."""

    def __init__(self, session: bytes) -> None:
        self._session = session
        self._rounds = 0
        self._streams: list[_Stream] = []

    def keys(self, plan: Expansion) -> list[_Keys]:
        """For the next rounds."""
        first, self._rounds = self._rounds, self._rounds + len(plan.rounds)
        return [_Keys(self._session, number) for number in range(first, self._rounds)]

    def add(self, stream: _Stream) -> None:
        self._streams.append(stream)

    def take(self, count: int) -> Words:
        """The next labels, (count, 2).

        Raises:
            RuntimeError: if fewer are reserved.
        """
        left = sum(stream.left for stream in self._streams)
        if count > left:
            raise RuntimeError(f"{count} transfers were asked for, but {left} are reserved; reserve more")
        taken = [np.empty((0, 2), np.uint64)]
        while count:
            taken.append(self._streams[0].take(min(count, self._streams[0].left)))
            count -= len(taken[-1])
            if not self._streams[0].left:
                self._streams.pop(0)
        return np.concatenate(taken)


@final
class SilentSender(CotSender):
    """The sender, over ``base``, a sender too."""

    def __init__(self, protocol: Silent, base: CotSender, session: bytes, rng: Randomness) -> None:
        self.delta = base.delta
        self.delta.claim(Context(session, "silent", 0))
        self._protocol, self._base, self._rng = protocol, base, rng
        self._reserve = _Reserve(session)

    def reserve(self, channel: Channel, count: int) -> None:
        plan = self._protocol.schedule(count)
        keys, base = self._reserve.keys(plan), self._base.random(channel, plan.base)
        self._reserve.add(_SentStream(channel, plan, keys, base, self.delta, self._rng))

    def random(self, channel: Channel, count: int) -> Words:
        return self._reserve.take(count)

    def chosen(self, channel: Channel, count: int) -> Words:
        return corrected(self, channel, count)


@final
class SilentReceiver(CotReceiver):
    """The receiver, over ``base``, a receiver too."""

    def __init__(self, protocol: Silent, base: CotReceiver, session: bytes) -> None:
        self._protocol, self._base = protocol, base
        self._reserve = _Reserve(session)

    def reserve(self, channel: Channel, count: int) -> None:
        plan = self._protocol.schedule(count)
        keys, base = self._reserve.keys(plan), self._base.random(channel, plan.base)
        self._reserve.add(_ReceivedStream(channel, plan, keys, base))

    def random(self, channel: Channel, count: int) -> Words:
        return self._reserve.take(count)

    def chosen(self, channel: Channel, choices: Bits) -> Words:
        return correct(self, channel, choices)
