"""DReLU on two shares: the word that each party makes of its share, and how wrong the sign that they give may be.

A sign test turns either share into a word of ``width`` bits. The sign follows from one bit of the sum of the two words,
for which two parties need no more than a carry over ``compared_bits``. How they compute it is not the test's concern.

:class:`Window` is for the ring. The sign is the top bit of x, so of the sum of the shares. Bits from ``high`` up may be
left out where |x| < 2^(high-1), since x has the same bit there as at the top (HummingBird: Maeng and Suh, 2023). The
``low`` bits may be left out at the price of faults: with r the low bits of the client's share, uniform,

    pos-zero:  x counts as positive if x > r:             0 < x < 2^low is zeroed with probability (2^low - x) / 2^low
    neg-pass:  x counts as positive if x + 2^low > r:     -2^low < x < 0 passes with probability (2^low - |x|) / 2^low

the two rules of Circa (Ghodsi et al., NeurIPS 2021). For the client's word is floor(x_client / 2^low); the
server's is ceil(x_server / 2^low), one less for pos-zero; and their sum is ceil((x - r) / 2^low), or one less. Nothing
else is ever wrong, and ``low`` = 0 is exact: then the rules differ at x = 0 only, where the ReLU is 0 either way.

:class:`Parity` is exact over the field, for n ANDs of n bits. With y = 2 x mod p, x is positive or zero if and only if
y is even, since p is odd (the idea of SecureNN: Wagh et al., PETS 2019). y is the sum of the doubled shares y_client
and y_server less p if they reach it, so its parity is that of both shares and of that carry.

:class:`Wrap` is Circa's test over the field. With t = -x_client, x_server = x + t mod p, and x counts as positive if
x_server > t. That is wrong if x + t leaves [0, p), which has probability |x| / p; comparing floor(x_server / 2^low) and
floor(t / 2^low) adds the faults above, pos-zero with > and neg-pass with >=.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from deepreshape.private.arith.ring import Bits, Field, Ring, Words

Mode = Literal["pos-zero", "neg-pass"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Window:
    """The bits ``low`` to ``high`` - 1 of the two shares over a ring."""

    modulus: Ring
    low: int
    high: int
    mode: Mode = "pos-zero"

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high - 2 <= self.modulus.bits - 2:
            raise ValueError(
                f"a sign test of bits {self.low} to {self.high - 1} of {self.modulus}: it takes two bits at least, and "
                f"none beyond {self.modulus.bits - 1}"
            )

    @property
    def width(self) -> int:
        """Bits of a word."""
        return self.high - self.low

    @property
    def compared_bits(self) -> int:
        """Bits of the two words that the carry is over."""
        return self.width - 1

    @property
    def max_input(self) -> int:
        """The largest absolute value for which the above holds."""
        return (1 << (self.high - 1)) - (1 << self.low)

    @property
    def reach(self) -> int:
        """How far below zero a value may count as positive."""
        return (1 << self.low) - 1 if self.mode == "neg-pass" else 0

    def client_word(self, share: Words) -> Words:
        """floor(x_client / 2^low)."""
        return self._cut(share)

    def server_word(self, share: Words) -> Words:
        """ceil(x_server / 2^low), or one less."""
        if self.mode == "pos-zero":
            return self._cut(self.modulus.sub(share, np.ones_like(share)))
        return self._cut(share + np.uint64((1 << self.low) - 1))

    def _cut(self, share: Words) -> Words:
        return (share >> np.uint64(self.low)) & np.uint64((1 << self.width) - 1)

    def positive(self, client: Words, server: Words) -> Bits:
        """The sign that two words give: zeros and ones."""
        return _bit(client + server, self.width - 1) ^ np.uint8(1)


@dataclass(frozen=True)
class Parity:
    """The parity of the doubled value over a field: exact."""

    modulus: Field

    @property
    def width(self) -> int:
        """Bits of a word."""
        return self.modulus.bits

    @property
    def compared_bits(self) -> int:
        """As of :class:`Window`."""
        return self.width

    @property
    def max_input(self) -> int:
        """As of :class:`Window`."""
        return self.modulus.order // 2

    @property
    def reach(self) -> int:
        """As of :class:`Window`."""
        return 0

    def client_word(self, share: Words) -> Words:
        """y_client + 2^n - p, so that the sum of the words reaches 2^n if y_client + y_server reaches p."""
        return self.modulus.add(share, share) + np.uint64((1 << self.width) - self.modulus.order)

    def server_word(self, share: Words) -> Words:
        """y_server."""
        return self.modulus.add(share, share)

    def positive(self, client: Words, server: Words) -> Bits:
        """As of :class:`Window`. The constant in the client's word is odd, and so is the number one."""
        return _bit(client ^ server, 0) ^ _bit(client + server, self.width)


@dataclass(frozen=True)
class Wrap:
    """The comparison of the two shares over a field, without their ``low`` bits."""

    modulus: Field
    low: int = 0
    mode: Mode = "pos-zero"

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.modulus.bits - 2:
            raise ValueError(f"a sign test without {self.low} of {self.modulus.bits} bits; it takes two bits at least")

    @property
    def width(self) -> int:
        """Bits of a word."""
        return self.modulus.bits - self.low

    @property
    def compared_bits(self) -> int:
        """As of :class:`Window`."""
        return self.width

    @property
    def max_input(self) -> int:
        """As of :class:`Window`; a wrap may let any value pass, and must leave the truncation room for it."""
        return self.modulus.order // 4

    @property
    def reach(self) -> int:
        """As of :class:`Window`."""
        return self.max_input

    def client_word(self, share: Words) -> Words:
        """2^width - 1 - floor(t / 2^low)."""
        return np.uint64((1 << self.width) - 1) - (self.modulus.neg(share) >> np.uint64(self.low))

    def server_word(self, share: Words) -> Words:
        """floor(x_server / 2^low)."""
        return share >> np.uint64(self.low)

    def positive(self, client: Words, server: Words) -> Bits:
        """As of :class:`Window`: the carry, into which neg-pass carries one."""
        return _bit(client + server + np.uint64(self.mode == "neg-pass"), self.width)


Sign = Window | Parity | Wrap


def _bit(words: Words, at: int) -> Bits:
    return (words >> np.uint64(at)).astype(np.uint8) & np.uint8(1)
