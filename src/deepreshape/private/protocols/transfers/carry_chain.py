"""The carry of two words in one message: a chain of digits, garbled with one-time pads instead of a cipher.

Model: semi-honest. The client knows the word a offline, the server the word b online, and the client is to learn sigma
= carry(a + b + carry_in) ^ blind, with a blind of the server's choice. For every bit of a there is one correlated
transfer, in which the client chooses by that bit; its hashes are blinds. That a garbling of a formula needs no cipher
is Kolesnikov's (GESS, ASIACRYPT 2005).

*Digits.* Bits of a fall into digits j = 0 .. D - 1, from the lowest, of m bits, N = 2^m values. The carry out of digit
j is a state x, which the client holds as a label of n = D - j bits: the bit p = x ^ lambda_j, and above it R_p, the n -
1 bits that the next digit needs. The label out of the top digit is p alone, lambda_{D-1} being the blind.

*Blinds.* The transfers of digit j give the server, for every value v of the digit, a blind of one or two halves of n
bits, and the client those of its own value: blind v is the sum, over the digit's bits t, of bits [v n, (v + 1) n) of
the hash that belongs to bit value v_t. Values have bits of their own: with one stretch for all values, the blinds of a
digit of two bits would sum to zero. Half h is in word h of the hash, so N n <= 64.

*Rows.* Let next(v, c) = [v + b_j + c >= N], S_x the label of x. For digits above 0, a client that comes with the label
(p, R) of the digit below takes half p of row v, where c = p ^ lambda_{j-1}:

    R_p = S_next(0, c) ^ blind(0, half p),        row(v, half p) = S_next(v, c) ^ R_p ^ blind(v, half p)     for v > 0

so there is no row 0, and the client's S is row ^ blind ^ R (the row being zero for v = 0). Digit 0 has one half and all
rows, S_next(v, carry_in) ^ blind(v); of row 0 the lowest bit is left out (if D > 1), as lambda_0 makes it zero.

*Security.* For each pair of words the map from all blinds, lambdas and the blind to the rows and the client's own
blinds is a bijection, so what the client sees is uniform, whatever b is. From rows and own blinds the client's walk
gives its p in every digit, and with the true states all lambdas; from the top digit down, the two labels S are known,
R_p of the half it walks follows from its own blind, or from its row, and so does everything that these blind.
``test_carry_chain.py`` counts views for small words.

All rows of a half travel and are computed as one word of N n bits: with ones = sum of 2^(v n), stretch v of
S_0 ones ^ ((S_0 ^ S_1) ones << n (N - b_j - c)) is S_next(v, c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from deepreshape.private.arith.ring import Words

LONGEST = 64
"""Bits of all labels of a half."""
WIDEST_DIGIT = 4
WIDEST = 60
ONE = np.uint64(1)

Blinds = list[list[Words]]
"""Of each digit and half."""


class Digit(NamedTuple):
    """Bits ``first`` to ``first + bits - 1`` of a word, whose label out has ``label`` bits."""

    first: int
    bits: int
    label: int

    @property
    def values(self) -> int:
        return 1 << self.bits

    @property
    def halves(self) -> int:
        return 2 if self.first else 1

    @property
    def length(self) -> int:
        """Bits of a half: one label for each value."""
        return self.label << self.bits

    @property
    def ones(self) -> np.uint64:
        return np.uint64(sum(1 << value * self.label for value in range(self.values)))

    @property
    def full(self) -> np.uint64:
        return np.uint64((1 << self.length) - 1)

    @property
    def mask(self) -> np.uint64:
        """Of one label."""
        return np.uint64((1 << self.label) - 1)

    def values_with(self, bit: int) -> np.uint64:
        """The stretches of the values whose ``bit`` is one."""
        stretch = (1 << self.label) - 1
        return np.uint64(sum(stretch << value * self.label for value in range(self.values) if value >> bit & 1))

    def of(self, word: Words) -> Words:
        """The digit's value in a word."""
        return (word >> np.uint64(self.first)) & np.uint64(self.values - 1)


@dataclass(frozen=True)
class Chain:
    """Of words of ``bits`` bits.

    Raises:
        ValueError: if ``bits`` is not 1 to :data:`WIDEST`.
    """

    bits: int
    carry_in: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= WIDEST:
            raise ValueError(f"a carry chain takes words of 1 to {WIDEST} bits, not {self.bits}")

    @cached_property
    def digits(self) -> tuple[Digit, ...]:
        """From the lowest, of the fewest bits in all rows."""
        _, widths = _split(self.bits, 1)
        firsts = [sum(widths[:number]) for number in range(len(widths))]
        labels = range(len(widths), 0, -1)
        return tuple(Digit(*digit) for digit in zip(firsts, widths, labels, strict=True))

    @cached_property
    def row_widths(self) -> list[int]:
        """Bits of the fields of :meth:`garble`."""
        widths: list[int] = []
        for digit in self.digits:
            if digit.first:
                widths += [digit.length - digit.label] * 2
            else:
                widths.append(digit.length - (len(self.digits) > 1))
        return widths

    @cached_property
    def blind_widths(self) -> list[int]:
        """Bits of the server's blinds, digit by digit and half by half."""
        return [digit.length for digit in self.digits for _ in range(digit.halves)]

    @cached_property
    def label_widths(self) -> list[int]:
        """Bits of the client's blinds."""
        return [digit.label for digit in self.digits for _ in range(digit.halves)]

    def server_blinds(self, zero: Sequence[Words] | Words, one: Sequence[Words] | Words, swaps: Words) -> Blinds:
        """The blinds of all values.

        Args:
            zero: the hashes of the sender's label of zero of each transfer, (n, 2).
            one: those of the other label.
            swaps: words of which bit i says that bit i of a is not the choice of transfer i, but its opposite.
        """
        blinds: Blinds = []
        for digit in self.digits:
            halves = [np.zeros_like(swaps) for _ in range(digit.halves)]
            for bit in range(digit.bits):
                at = digit.first + bit
                chosen = digit.values_with(bit) ^ -((swaps >> np.uint64(at)) & ONE)
                for half, part in enumerate(halves):
                    first, second = zero[at][:, half], one[at][:, half]
                    part ^= first ^ ((first ^ second) & chosen)
            blinds.append([part & digit.full for part in halves])
        return blinds

    def client_blinds(self, hashed: Sequence[Words] | Words, word: Words) -> Blinds:
        """The blinds of the client's own digits, from the hashes (n, 2) of its labels."""
        blinds: Blinds = []
        for digit in self.digits:
            place = digit.of(word) * np.uint64(digit.label)
            halves: list[Words] = []
            for half in range(digit.halves):
                summed = hashed[digit.first][:, half]
                for bit in range(1, digit.bits):
                    summed = summed ^ hashed[digit.first + bit][:, half]
                halves.append((summed >> place) & digit.mask)
            blinds.append(halves)
        return blinds

    def garble(self, blinds: Blinds, word: Words, blind: Words, lambdas: Words) -> list[Words]:
        """The rows, as fields of :attr:`row_widths`.

        Args:
            blinds: of :meth:`server_blinds`.
            word: b.
            blind: of the carry, zeros and ones.
            lambdas: words of random bits, of which bit j is lambda_j for 0 < j < D - 1.
        """
        top = len(self.digits) - 1
        state = blind  # the label of state 0, and how that of state 1 differs
        change = np.ones_like(word)
        rows: list[list[Words]] = []
        for number in range(top, -1, -1):
            digit, size = self.digits[number], np.uint64(self.digits[number].values)
            value, label = digit.of(word), np.uint64(digit.label)
            base, other = state * digit.ones, change * digit.ones
            if not number:
                shift = (size - value - np.uint64(self.carry_in)) * label
                row = ((base ^ (other << shift)) & digit.full) ^ blinds[0][0]
                rows.append([row >> ONE if top else row])
                break
            below = self._lambda(number - 1, blinds, word, lambdas)
            following, fields = list[Words](), list[Words]()
            for half, part in enumerate(blinds[number]):
                shift = (size - value - (below ^ np.uint64(half))) * label
                row = ((base ^ (other << shift)) & digit.full) ^ part
                following.append(row & digit.mask)
                fields.append((row ^ (following[-1] * digit.ones)) >> label)
            rows.append(fields)
            difference = following[0] ^ following[1]
            state = below | ((following[0] ^ (difference & -below)) << ONE)
            change = (difference << ONE) | ONE
        return [field for fields in reversed(rows) for field in fields]

    def _lambda(self, number: int, blinds: Blinds, word: Words, lambdas: Words) -> Words:
        if number:
            return (lambdas >> np.uint64(number)) & ONE
        lowest = self.digits[0]
        carries = lowest.of(word) + np.uint64(self.carry_in) >= np.uint64(lowest.values)
        return (blinds[0][0] & ONE) ^ carries.astype(np.uint64)

    def walk(self, rows: Sequence[Words], word: Words, blinds: Blinds) -> Words:
        """The client's sigma, from the rows, its word a, and its :meth:`client_blinds`."""
        lowest, fields = self.digits[0], iter(rows)
        row = next(fields) << np.uint64(len(self.digits) > 1)
        label = ((row >> (lowest.of(word) * np.uint64(lowest.label))) ^ blinds[0][0]) & lowest.mask
        for digit, halves in zip(self.digits[1:], blinds[1:], strict=True):
            second, length = -(label & ONE), np.uint64(digit.label)
            first_row, second_row = next(fields), next(fields)
            row = (first_row ^ ((first_row ^ second_row) & second)) << length
            part = halves[0] ^ ((halves[0] ^ halves[1]) & second)
            label = (((row >> (digit.of(word) * length)) ^ part) & digit.mask) ^ (label >> ONE)
        return label


_NONE: tuple[int, tuple[int, ...]] = (1 << 30, ())


@lru_cache(None)
def _split(bits: int, label: int) -> tuple[int, tuple[int, ...]]:
    """The fewest bits of rows of the ``bits`` lowest bits of a word, and the widths of their digits, from the lowest.

    ``label`` is that of the highest of them; below it labels grow by one bit a digit.
    """
    choices = [_NONE]
    for width in range(1, min(WIDEST_DIGIT, bits) + 1):
        length = label << width
        if length <= LONGEST and width == bits:
            choices.append((length - (label > 1), (width,)))
        elif length <= LONGEST:
            rest, widths = _split(bits - width, label + 1)
            choices.append((2 * (length - label) + rest, (*widths, width)))
    return min(choices)
