"""The carry of two words in few bytes and a few rounds: one transfer a bit, then a tree of ANDs of shared bits.

Model: semi-honest. The client knows the word a offline, the server the word b online; they are to share the carry of a
+ b + carry_in, each holding a bit of it. For every bit of a there is one correlated transfer, in which the client
chooses by that bit; every AND of the tree takes one transfer either way.

*Generate and propagate.* Bits i .. j of the two words generate a carry (g) or pass one on (p = all of a_i ^ b_i). For
neighbours, high and low, g = g_h ^ p_h g_l and p = p_h p_l. The lowest needs no p. For one bit, g = a b and p = a ^ b.

*Products with the client's bit.* With blinds P_0, P_1 of a transfer in which it chose by a_i, the server sends P_0 ^
P_1 ^ m; the client takes P_{a_i} ^ a_i (what was sent) = a_i m ^ P_0, the server P_0: they share a_i m. A blind hides
one m.

*Two bits.* As the client knows both bits of a, neighbours l and h need no AND of shared bits. With [..] such products,

    g_l = [a_l b_l] = y_client ^ y_server,
    g = [a_h (b_h ^ y_server)] ^ a_h y_client ^ [a_l (b_h b_l)],
    p = [a_h b_l] ^ [a_l b_h] ^ a_h a_l ^ b_h b_l,

5 bits sent and 2 transfers, where single bits and an AND of shared ones would take 8 and 4. Transfers are of single
bits by single bits of a; no transfer is of the strings of two bits of a (docs/protocols.md says why that matters).

*The tree* over these pairs is of ANDs with a common factor, p_h (g_l, p_l), as of Goldreich, Micali and Wigderson (STOC
1987) on random triples: from a transfer either way, the choice is the party's share of the triple's alpha, the
difference of the blinds the peer's share of beta, so triples take no bytes (Asharov, Lindell, Schneider and Zohner, CCS
2013). Both parties open their shares of p_h ^ alpha and of the others ^ beta at once: a level is one exchange.

*Security.* The client sees rows under blinds that it did not choose, and shares masked by the server's shares of alpha
and beta; the server sees shares masked by the client's. All are uniform and used once.

A plane holds one bit of each of n elements: uint8 of ceil(n / 8) bytes. All here is planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deepreshape.private.arith.ring import Bits, Words, to_bits

Shared = list[tuple[Bits, Bits | None]]
"""One party's shares of (g, p), from the lowest; the lowest has no p."""


def planes(words: Words, bits: int) -> Bits:
    """The low bits of words (n,), a plane each: uint8 (bits, ceil(n / 8))."""
    return np.packbits(to_bits(words, bits), axis=1, bitorder="little")


def hash_planes(hashed: Words, count: int) -> Bits:
    """The ``count`` <= 8 lowest bits of hashes (n, 2), a plane each."""
    lowest = np.ascontiguousarray(np.ascontiguousarray(hashed).view(np.uint8).reshape(-1, 16)[:, 0])
    return np.stack([np.packbits(lowest & np.uint8(1 << bit), bitorder="little") for bit in range(count)])


def unpacked(plane: Bits, count: int) -> Words:
    """A plane as words (n,) of zeros and ones."""
    return np.unpackbits(plane, count=count, bitorder="little").astype(np.uint64)


@dataclass(frozen=True)
class Tree:
    """Of words of ``bits`` bits."""

    bits: int
    carry_in: bool = False

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Bits that are taken at once, from the lowest: pairs, and a single one on top if their number is odd."""
        return [tuple(range(first, min(first + 2, self.bits))) for first in range(0, self.bits, 2)]

    @cached_property
    def row_bits(self) -> list[int]:
        """Which bit's transfer hides each row."""
        order: list[int] = []
        for low, *high in self.groups:
            # in the order of send: a_l b_l, a_l b_h b_l, a_l b_h; a_h (b_h ^ ..), a_h b_l
            order += [low, low, *[low] * bool(low), *high, *high * bool(low)] if high else [low]
        return order

    @cached_property
    def levels(self) -> list[list[int]]:
        """By level, how many bits each AND's common factor multiplies."""
        count, levels = len(self.groups), list[list[int]]()
        while count > 1:
            levels.append([1 if not pair else 2 for pair in range(count // 2)])
            count = -(-count // 2)
        return levels

    @property
    def ands(self) -> list[int]:
        """The widths of all ANDs; each takes one transfer either way."""
        return [width for level in self.levels for width in level]

    def opened(self, level: int) -> int:
        """Planes that either party sends at a level."""
        return sum(1 + width for width in self.levels[level])

    def triples(
        self, choices: Sequence[Bits], hashes: Sequence[Bits], first: Sequence[Bits], second: Sequence[Bits]
    ) -> Bits:
        """One party's shares of the triples, planes (alpha, betas, products of each AND).

        Args:
            choices: alpha of each AND, from the transfers in which this party chose.
            hashes: planes of the hashes of its labels there, 2 for each AND.
            first: planes of the hashes of the labels of zero in the transfers in which the peer chose.
            second: those of the other labels there.
        """
        shares: list[Bits] = []
        for width, alpha, hashed, zero, one in zip(self.ands, choices, hashes, first, second, strict=True):
            beta = (zero ^ one)[:width]
            shares += [alpha[None], beta, (alpha & beta) ^ hashed[:width] ^ zero[:width]]
        return np.concatenate(shares) if shares else np.empty((0, 0), np.uint8)

    @property
    def triple_planes(self) -> int:
        """Planes of :meth:`triples`."""
        return sum(1 + 2 * width for width in self.ands)

    def send(self, b: Bits, zero: Bits, one: Bits) -> tuple[Bits, Shared]:
        """The server's rows, and its shares of every group.

        Args:
            b: planes of its word.
            zero: planes of the blinds of the client's bits if they are zero, one for each of :attr:`row_bits`.
            one: those if they are one.
        """
        hidden, at, shares = list[Bits](), 0, Shared()

        def product(message: Bits) -> Bits:
            nonlocal at
            hidden.append(zero[at] ^ one[at] ^ message)
            at += 1
            return zero[at - 1]

        for group in self.groups:
            low = b[group[0]]
            lowest = self.carry_in and group[0] == 0
            generated = product(low)
            if lowest:
                generated = generated ^ low
            if len(group) == 1:
                shares.append((generated, low if group[0] else None))
                continue
            high = b[group[1]]
            through = product((high & ~low) if lowest else (high & low))
            crossed = product(high) if group[0] else None
            total = product(high ^ generated) ^ through
            if lowest:
                total = total ^ (high & low)
            if crossed is None:
                shares.append((total, None))
            else:
                shares.append((total, product(low) ^ crossed ^ (high & low)))
        return np.stack(hidden), shares

    def receive(self, a: Bits, rows: Bits, hashes: Bits) -> Shared:
        """The client's shares, from planes of its word, the rows, and planes of the blinds that it chose."""
        at, shares = 0, Shared()

        def product(bit: Bits) -> Bits:
            nonlocal at
            at += 1
            return hashes[at - 1] ^ (bit & rows[at - 1])

        for group in self.groups:
            low = a[group[0]]
            generated = product(low)
            if self.carry_in and group[0] == 0:
                generated = generated ^ low
            if len(group) == 1:
                shares.append((generated, low if group[0] else None))
                continue
            high = a[group[1]]
            through = product(low)
            crossed = product(low) if group[0] else None
            total = product(high) ^ (high & generated) ^ through
            if crossed is None:
                shares.append((total, None))
            else:
                shares.append((total, product(high) ^ crossed ^ (high & low)))
        return shares


class Walk:
    """One party's way up the tree, from its shares of every group to its share of the carry.

    Args:
        tree: which.
        shares: of :meth:`Tree.send` or :meth:`Tree.receive`.
        triples: of :meth:`Tree.triples`; used up.
        leads: one of the two parties does; it adds what both know.
    """

    def __init__(self, tree: Tree, shares: Shared, triples: Bits, leads: bool) -> None:
        self._tree, self._shares, self._triples, self._leads = tree, shares, triples, leads
        self._level = self._at = 0
        self._opened: list[Bits] = []

    @property
    def level(self) -> int:
        """How many levels are behind this party."""
        return self._level

    @property
    def carry(self) -> Bits:
        """The party's share of the carry, a plane, after all levels."""
        return self._shares[0][0]

    def open(self) -> Bits:
        """What this party sends at the next level, planes."""
        self._opened = []
        at = self._at
        for pair, width in enumerate(self._tree.levels[self._level]):
            factor, factors = self._operands(pair)
            masks = self._triples[at : at + 1 + width]
            self._opened.append(np.stack([factor, *factors]) ^ masks)
            at += 1 + 2 * width
        return np.concatenate(self._opened)

    def close(self, received: Bits) -> None:
        """Go up a level with what the peer sent."""
        merged, at = Shared(), 0
        for pair, width in enumerate(self._tree.levels[self._level]):
            opened = self._opened[pair] ^ received[at : at + 1 + width]
            at += 1 + width
            alpha, rest = self._triples[self._at], self._triples[self._at + 1 : self._at + 1 + 2 * width]
            self._at += 1 + 2 * width
            products = rest[width:] ^ (opened[0] & rest[:width]) ^ (opened[1:] & alpha)
            if self._leads:
                products = products ^ (opened[0] & opened[1:])
            high = self._shares[2 * pair + 1][0]
            merged.append((high ^ products[0], products[1] if width == 2 else None))
        if len(self._shares) % 2:
            merged.append(self._shares[-1])
        self._shares, self._level = merged, self._level + 1

    def _operands(self, pair: int) -> tuple[Bits, list[Bits]]:
        (low, through), (_, factor) = self._shares[2 * pair], self._shares[2 * pair + 1]
        assert factor is not None  # noqa: S101 - only the lowest has none
        return factor, [low] if through is None else [low, through]
