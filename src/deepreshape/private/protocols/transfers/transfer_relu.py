"""A batch of shared ReLUs or signs by oblivious transfer: the carry of two words says the sign, and a number follows.

Model: semi-honest. Before: x = x_client + x_server mod M, x_client known offline. After: shares of s T; s says whether
x counts as positive (``drelu.py``), T is x / 2^f, rounded (``multiplexer.py``); or shares of 2 s - 1
(``sign_value.py``). The client's is r, which it chose offline. A sign test adds a word of either party, and the sign is
that sum's carry, plus a bit of each word. The two classes differ in how the carry comes to the client, under the
server's random bit t: :class:`ChainRelu` in one message (``carry_chain.py``), :class:`TreeRelu` in fewer bytes and more
rounds (``carry_tree.py``).

Here are steps as functions of shares and correlated labels, ``transfers`` of which the client receives and ``back``
sends. The online steps are generators: they give what their party sends, or None to be sent what the peer sent, in the
order of :attr:`TransferRelu.messages`. What is kept is packed.

*Assumptions.* Those of the transfers, and that the hash of ``labels.py`` is correlation robust. One key hashes one
column of one batch: the labels of all its ReLUs that belong to the same bit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import numpy as np

from deepreshape.private.arith.drelu import Parity, Sign, Window, Wrap
from deepreshape.private.arith.ring import Bits, Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.bit_fields import pack, packed_bytes, unpack
from deepreshape.private.crypto.labels import Context, Delta, permute_bits
from deepreshape.private.protocols.transfers.carry_chain import ONE, Blinds, Chain
from deepreshape.private.protocols.transfers.carry_tree import Tree, Walk, hash_planes, planes, unpacked
from deepreshape.private.protocols.transfers.multiplexer import Multiplexer
from deepreshape.private.protocols.transfers.sign_conversion import SignConversion, TransferWidths
from deepreshape.private.protocols.transfers.sign_value import SignValue

CHOICES, ANDS, ANDS_BACK = "choices", "ands", "ands back"
"""Tweaks of the hash."""

Online = Generator[Bits | None, Bits | memoryview, Words | None]
"""An online step. The server's returns its share of the output."""


@dataclass(frozen=True)
class TransferRelu(TransferWidths):
    """A ReLU over ``modulus``, truncated by ``shift``, whose sign is tested by ``sign``; or that sign, as +1 or -1.

    Attributes:
        values: give signs, and no ReLUs; ``shift`` is 0 then.

    Raises:
        ValueError: by :attr:`carry`, if the words are too wide for it.
    """

    modulus: Ring | Field
    shift: int
    sign: Sign
    values: bool = False

    work_names: ClassVar[str]
    """Under which name its work is measured."""

    @cached_property
    def mux(self) -> Multiplexer:
        """Of a ReLU."""
        return Multiplexer(self.modulus, self.shift, self.sign.reach)

    @cached_property
    def conversion(self) -> SignConversion[Any]:
        """What is made of the sign."""
        return SignValue(self.modulus) if self.values else self.mux

    @property
    def bits(self) -> int:
        """Those of a word that the carry comes from; over a ring the top ones only add to it."""
        return self.sign.width - isinstance(self.sign, Window)

    @property
    def carry_in(self) -> bool:
        return isinstance(self.sign, Wrap) and self.sign.mode == "neg-pass"

    @property
    @abstractmethod
    def back(self) -> int:
        """Those that the server receives."""

    @property
    def offline_widths(self) -> list[int]:
        return [self.bits, *self.conversion.offline_widths]

    @property
    @abstractmethod
    def messages(self) -> list[tuple[Literal["client", "server"], list[int]]]:
        """Who sends fields of how many bits, online, in order."""

    def client_offline(
        self, share: Words, blind: Words, labels: Words, back: Words, delta: Delta, context: Context, rng: Randomness
    ) -> tuple[Bits, Bits]:
        """What the client sends, and what it keeps.

        Args:
            share: x_client, uint64 (n,).
            blind: r.
            labels: the client's of the transfers that it receives, uint64 (:attr:`transfers`, n, 2).
            back: its labels of zero of the others, (:attr:`back`, n, 2).
            delta: their difference; it claims ``context``.
            context: where the batch is; both parties know it.
            rng: of the client.
        """
        delta.claim(context)
        word, conversion = self.sign.client_word(share), self.conversion
        masked = word & np.uint64((1 << self.bits) - 1)
        for bit, column in enumerate(permute_bits(labels[: self.bits]).astype(np.uint64)):
            masked = masked ^ (column << np.uint64(bit))
        sent, kept = conversion.client_offline(
            share, blind, labels[self.bits :][: conversion.transfers], back[0], delta, context, rng
        )
        head = _pack([word, *kept], [self.sign.width, *conversion.client_widths])
        kept_too = self.client_carry(word, labels, back, delta, context)
        return _pack([masked, *sent], self.offline_widths), np.concatenate([head, kept_too])

    def server_offline(
        self, message: memoryview | Bits, labels: Words, delta: Delta, back: Words, context: Context, rng: Randomness
    ) -> Bits:
        """What the server keeps; ``labels`` are its labels of zero, ``back`` those with its choices.

        Raises:
            ProtocolError: if ``message`` holds what is no element of the modulus.
        """
        delta.claim(context)
        masked, *received = unpack(message, self.offline_widths, back.shape[1])
        ours = labels[self.bits :][: self.conversion.transfers]
        kept = self.conversion.server_offline(received, ours, delta, back[0], context)
        carry = self.server_carry(masked, labels, delta, back, context, rng)
        return np.concatenate([_pack(kept, self.conversion.server_widths), carry])

    @abstractmethod
    def client_carry(self, word: Words, labels: Words, back: Words, delta: Delta, context: Context) -> Bits:
        """What the client keeps for the carry, packed."""

    @abstractmethod
    def server_carry(
        self, masked: Words, labels: Words, delta: Delta, back: Words, context: Context, rng: Randomness
    ) -> Bits:
        """The same at the server; ``masked`` says which bits of its word the client did not choose by."""

    @abstractmethod
    def client_online(self, kept: Bits, count: int) -> Online:
        """The client's step for ``count`` ReLUs.

        Raises:
            ProtocolError: if what it is sent holds what is no element of its group.
        """

    @abstractmethod
    def server_online(self, kept: Bits, share: Words) -> Online:
        """The server's step; ``share`` is x_server, uint64 (n,). Errors as of :meth:`client_online`."""

    def client_top(self, word: Words) -> Words:
        """What the client's word adds to the carry to make the sign."""
        if isinstance(self.sign, Wrap):
            return np.zeros_like(word)
        return (word >> np.uint64(0 if isinstance(self.sign, Parity) else self.bits)) & ONE

    def server_top(self, word: Words) -> Words:
        """What the server's word adds; over a ring a sum with a top bit of one is negative."""
        return self.client_top(word) ^ np.uint64(isinstance(self.sign, Window))


@final
@dataclass(frozen=True)
class ChainRelu(TransferRelu):
    """One message either way."""

    work_names = "chain"

    @cached_property
    def carry(self) -> Chain:
        return Chain(self.bits, self.carry_in)

    @property
    def transfers(self) -> int:
        return self.bits + self.conversion.transfers

    @property
    def back(self) -> int:
        return 1

    @property
    def messages(self) -> list[tuple[Literal["client", "server"], list[int]]]:
        return [
            ("server", [*self.carry.row_widths, *self.conversion.sent_widths]),
            ("client", self.conversion.answer_widths),
        ]

    @property
    def client_widths(self) -> list[int]:
        return [self.sign.width, *self.conversion.client_widths, *self.carry.label_widths]

    @property
    def server_widths(self) -> list[int]:
        return [*self.conversion.server_widths, len(self.carry.digits), *self.carry.blind_widths]

    def client_carry(self, word: Words, labels: Words, back: Words, delta: Delta, context: Context) -> Bits:
        blinds = self.carry.client_blinds(_hashed(labels[: self.bits], context, CHOICES), word)
        return _pack(_flat(blinds), self.carry.label_widths)

    def server_carry(
        self, masked: Words, labels: Words, delta: Delta, back: Words, context: Context, rng: Randomness
    ) -> Bits:
        first, second = (_hashed(labels[: self.bits], context, CHOICES, move) for move in (_STAY, delta.words))
        blinds = _flat(self.carry.server_blinds(first, second, masked))
        return _pack([rng.words(len(masked)), *blinds], [len(self.carry.digits), *self.carry.blind_widths])

    def server_online(self, kept: Bits, share: Words) -> Online:
        conversion, word = self.conversion, self.sign.server_word(share)
        fields = unpack(kept, self.server_widths, len(share))
        conversion_fields, (lambdas, *blinds) = (
            fields[: len(conversion.server_widths)],
            fields[len(conversion.server_widths) :],
        )
        rows = self.carry.garble(self._blinds(blinds), word, conversion_fields[0] ^ self.server_top(word), lambdas)
        sent, state = conversion.server_online(conversion_fields, share)
        received = yield from _exchange(_pack([*rows, *sent], self.messages[0][1]))
        return conversion.server_finish(state, unpack(received, conversion.answer_widths, len(share)))

    def client_online(self, kept: Bits, count: int) -> Online:
        conversion = self.conversion
        word, *fields = unpack(kept, self.client_widths, count)
        conversion_fields, blinds = fields[: len(conversion.client_widths)], fields[len(conversion.client_widths) :]
        received = unpack((yield from _received()), self.messages[0][1], count)
        rows, received = received[: len(self.carry.row_widths)], received[len(self.carry.row_widths) :]
        chosen = self.carry.walk(rows, word, self._blinds(blinds)) ^ self.client_top(word)
        yield _pack(conversion.client_online(conversion_fields, received, chosen), conversion.answer_widths)
        return None

    def _blinds(self, fields: Sequence[Words]) -> Blinds:
        left = iter(fields)
        return [[next(left) for _ in range(digit.halves)] for digit in self.carry.digits]


@final
@dataclass(frozen=True)
class TreeRelu(TransferRelu):
    """Few bytes: turns alternate, and each but the first and the last carries what two levels of the tree open.

    With the other's share of a level a party goes up to the next, for which it has the other's share already; so a
    level takes one trip. The server's last turn has its share of the sign, under t.
    """

    work_names = "tree"

    @cached_property
    def carry(self) -> Tree:
        return Tree(self.bits, self.carry_in)

    @property
    def transfers(self) -> int:
        return self.bits + self.conversion.transfers + len(self.carry.ands)

    @property
    def back(self) -> int:
        return 1 + len(self.carry.ands)

    @cached_property
    def _openings(self) -> list[list[int]]:
        """The levels that each turn opens, the server's first; the last of them is the server's."""
        levels = len(self.carry.levels)
        messages = [[level for level in (turn - 1, turn) if 0 <= level < levels] for turn in range(levels + 1)]
        return [*messages, []] if levels % 2 else messages

    @property
    def messages(self) -> list[tuple[Literal["client", "server"], list[int]]]:
        messages: list[tuple[Literal["client", "server"], list[int]]] = []
        for number, levels in enumerate(self._openings):
            widths = [1] * sum(self.carry.opened(level) for level in levels)
            if number == 0:
                widths = [1] * len(self.carry.row_bits) + self.conversion.sent_widths + widths
            if number == len(self._openings) - 1:
                widths = [*widths, 1]
            messages.append(("client" if number % 2 else "server", widths))
        return [*messages, ("client", self.conversion.answer_widths)]

    @property
    def client_widths(self) -> list[int]:
        return [
            self.sign.width,
            *self.conversion.client_widths,
            *[1] * (len(self.carry.row_bits) + self.carry.triple_planes),
        ]

    @property
    def server_widths(self) -> list[int]:
        return [*self.conversion.server_widths, *[1] * (2 * len(self.carry.row_bits) + self.carry.triple_planes)]

    def client_carry(self, word: Words, labels: Words, back: Words, delta: Delta, context: Context) -> Bits:
        rows = self._row_planes(labels, context, _STAY)
        triples = self._triples(
            labels[self.bits + self.conversion.transfers :], back[1:], delta, context, (ANDS, ANDS_BACK)
        )
        return np.concatenate([rows, triples]).reshape(-1)

    def server_carry(
        self, masked: Words, labels: Words, delta: Delta, back: Words, context: Context, rng: Randomness
    ) -> Bits:
        zero, one = (self._row_planes(labels, context, move) for move in (_STAY, delta.words))
        swapped = (zero ^ one) & planes(masked, self.bits)[self.carry.row_bits]
        rest = labels[self.bits + self.conversion.transfers :]
        triples = self._triples(back[1:], rest, delta, context, (ANDS_BACK, ANDS))
        return np.concatenate([zero ^ swapped, one ^ swapped, triples]).reshape(-1)

    def _row_planes(self, labels: Words, context: Context, move: Words) -> Bits:
        """Planes of the hashes of the choices' labels, moved by ``move``, one for each row."""
        hashed = _hashed(labels[: self.bits], context, CHOICES, move)
        hashes = [hash_planes(column, 3) for column in hashed]
        used = [0] * self.bits
        rows: list[Bits] = []
        for bit in self.carry.row_bits:
            rows.append(hashes[bit][used[bit]])
            used[bit] += 1
        return np.stack(rows)

    def _triples(self, received: Words, sent: Words, delta: Delta, context: Context, tweaks: tuple[str, str]) -> Bits:
        choices = [np.packbits(column, bitorder="little") for column in permute_bits(received)]
        hashes, zero, one = (
            [hash_planes(column, 2) for column in _hashed(side, context, tweak, move)]
            for side, tweak, move in (
                (received, tweaks[0], _STAY),
                (sent, tweaks[1], _STAY),
                (sent, tweaks[1], delta.words),
            )
        )
        return self.carry.triples(choices, hashes, zero, one).reshape(self.carry.triple_planes, -(-sent.shape[1] // 8))

    def server_online(self, kept: Bits, share: Words) -> Online:
        conversion, word, count = self.conversion, self.sign.server_word(share), len(share)
        at = packed_bytes(conversion.server_widths, count)
        conversion_fields, blinds = (
            unpack(kept[:at], conversion.server_widths, count),
            kept[at:].reshape(-1, -(-count // 8)),
        )
        rows = len(self.carry.row_bits)
        sent, shares = self.carry.send(planes(word, self.bits), blinds[:rows], blinds[rows : 2 * rows])
        walk = Walk(self.carry, shares, blinds[2 * rows :], leads=False)
        first, state = conversion.server_online(conversion_fields, share)
        head = np.concatenate([sent.reshape(-1), _pack(first, conversion.sent_widths)])
        top = planes(conversion_fields[0] ^ self.server_top(word), 1)[0]
        received = yield from self._climb(walk, "server", head, top, count)
        return conversion.server_finish(state, unpack(received, conversion.answer_widths, count))

    def client_online(self, kept: Bits, count: int) -> Online:
        conversion = self.conversion
        widths = [self.sign.width, *conversion.client_widths]
        at, rows, size = packed_bytes(widths, count), len(self.carry.row_bits), -(-count // 8)
        word, *conversion_fields = unpack(kept[:at], widths, count)
        blinds = kept[at:].reshape(-1, size)
        message = np.frombuffer((yield from _received()), np.uint8)
        shares = self.carry.receive(planes(word, self.bits), message[: rows * size].reshape(rows, size), blinds[:rows])
        walk = Walk(self.carry, shares, blinds[rows:], leads=True)
        rest = message[rows * size :]
        taken = packed_bytes(conversion.sent_widths, count)
        second, rest = unpack(rest[:taken], conversion.sent_widths, count), rest[taken:]
        top = yield from self._climb(walk, "client", rest, None, count)
        chosen = unpacked(walk.carry ^ np.frombuffer(top, np.uint8), count) ^ self.client_top(word)
        yield _pack(conversion.client_online(conversion_fields, second, chosen), conversion.answer_widths)
        return None

    def _climb(
        self, walk: Walk, role: Literal["client", "server"], message: Bits, top: Bits | None, count: int
    ) -> Generator[Bits | None, Bits | memoryview, Bits | memoryview]:
        """All turns of the tree.

        Args:
            walk: of this party.
            role: of this party.
            message: at the server, what stands before the first opening; at the client, what came behind it.
            top: at the server, what its share of the carry is added to for its last turn.
            count: ReLUs.

        Returns:
            At the server, the client's answer; at the client, the server's share of the sign.
        """
        size, levels = -(-count // 8), len(self.carry.levels)
        peers: dict[int, Bits] = {}
        labels_here: dict[int, Bits] = {}

        def ahead() -> None:
            """Go up as far as the peer's openings take this party, and open the level after."""
            while (level := walk.level) < levels:
                if level not in labels_here:
                    labels_here[level] = walk.open()
                if level not in peers:
                    return
                walk.close(peers[level])

        def take(received: Bits, opened: list[int]) -> Bits:
            for level in opened:
                planes_in = self.carry.opened(level)
                peers[level] = received[: planes_in * size].reshape(planes_in, size)
                received = received[planes_in * size :]
            ahead()
            return received

        if role == "server":
            ahead()
        for number, opened in enumerate(self._openings):
            last = number == len(self._openings) - 1
            if role == ("client" if number % 2 else "server"):
                parts = [labels_here[level].reshape(-1) for level in opened]
                if number == 0:
                    parts.insert(0, message)
                if last and top is not None:
                    parts.append(walk.carry ^ top)
                yield np.concatenate(parts)
            else:
                received = message if number == 0 else np.frombuffer((yield from _received()), np.uint8)
                message = take(received, opened)
        return message if role == "client" else (yield from _received())


def _received() -> Generator[Bits | None, Bits | memoryview, Bits | memoryview]:
    """What the peer sent."""
    return (yield None)


def _exchange(message: Bits) -> Generator[Bits | None, Bits | memoryview, Bits | memoryview]:
    """Send, then receive."""
    yield message
    return (yield None)


_STAY = np.zeros(2, np.uint64)


def _hashed(labels: Words, context: Context, tweak: str, delta: Words = _STAY) -> Words:
    """The hashes of labels (columns, n, 2), moved by ``delta``, each column under a key of its own."""
    return engine().hash_columns(labels, context.keys(len(labels), tweak), delta)


def _flat(blinds: Blinds) -> list[Words]:
    return [half for halves in blinds for half in halves]


def _pack(values: Sequence[Words], widths: Sequence[int]) -> Bits:
    return pack(zip(values, widths, strict=True)) if widths else np.empty(0, np.uint8)
