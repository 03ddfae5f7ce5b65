"""Truncation of a shared value by f bits, up to one product of two bits, of which each party knows one.

Before: x = x_client + x_server mod M, M = 2^l or a prime. Wanted: shares of x / 2^f, rounded. The idea is that of the
truncation of non-negative values in CrypTFlow2 (Rathee et al., CCS 2020) and SIRNN (Rathee et al., IEEE S&P 2021),
where whether two shares wrap follows from whether each of them is at least half of the modulus.

*The wrap.* The server adds d to its share, so that x' = x + d lies in [0, M/2). As integers, x_client + x_server = x' +
w M with w in {0, 1}. If w = 0, neither share reaches M/2, since their sum is x'. If w = 1, one of them does, since
their sum is at least M. So w = b_client OR b_server, where b says whether a share is at least M/2. With K = M >> f,

    T = (x_client >> f) + (x_server >> f) - w K
      = ((x_client >> f) - b_client K) + ((x_server >> f) - b_server K) + b_client b_server K,

the first two terms being each party's own. In the ring b_client b_server K depends on f bits only.

*The rounding.* Let e be the sum of the low f bits of the two shares, at most 2^(f+1) - 2. Then 2^f T = x' + w (M mod
2^f) - e. The server chooses d = q 2^f + (2^f - 1 - M mod 2^f), and takes q off at the end: if w = 1, or in the ring,
where M mod 2^f = 0 anyway,

    T - q = (x + 2^f - 1 - e) / 2^f,

an integer above x / 2^f - 1 and below x / 2^f + 1: the floor or one unit above, exact for multiples of 2^f, and, as the
client's share is uniform, right on average. In the field with w = 0, which happens with probability x' / p, it may also
be one unit below the floor. Nothing else can happen while x' lies in [0, M/2), and q says how far below zero x may be.

Truncation of each share on its own would be off by K with probability |x| / M, which is not rare in a large network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Bits, Field, Modulus, Ring, Words


@dataclass(frozen=True)
class ShareTruncation:
    """By 2^``shift`` over ``modulus``, right for values down to -``reach``."""

    modulus: Ring | Field
    shift: int
    reach: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= max(self.modulus.bits - 3, 0):
            raise ValueError(f"{self.modulus} takes a shift of 0 to {self.modulus.bits - 3}, not {self.shift}")

    @property
    def max_input(self) -> int:
        """The largest value that comes out right."""
        return (self.modulus.order - 1) // 2 - self.addend

    @property
    def quotient(self) -> int:
        """The q above."""
        return -(-self.reach >> self.shift)

    @property
    def addend(self) -> int:
        """The d above."""
        if not self.shift:
            return 0
        return (self.quotient << self.shift) + (1 << self.shift) - 1 - self.modulus.order % (1 << self.shift)

    @property
    def message(self) -> Modulus:
        """Where b_client b_server K is shared: Z_{2^f} in the ring."""
        return Ring(max(self.shift, 2)) if isinstance(self.modulus, Ring) else self.modulus

    @property
    def unit(self) -> int:
        """What an element of ``message`` is worth."""
        return self.modulus.order // self.message.order

    @property
    def correction(self) -> int:
        """K, in units."""
        return (self.modulus.order >> self.shift) // self.unit

    def client_part(self, share: Words) -> tuple[Words, Bits]:
        """(x_client >> f) - b_client K, and b_client."""
        half = (share >= np.uint64((self.modulus.order + 1) // 2)).view(np.uint8)
        wrap = np.where(half, np.uint64((self.modulus.order >> self.shift) % self.modulus.order), np.uint64(0))
        return self.modulus.sub(share >> np.uint64(self.shift), wrap), half

    def server_part(self, share: Words) -> tuple[Words, Bits]:
        """The same for the server's share, with d added before and q taken off after."""
        part, half = self.client_part(self.modulus.add(share, np.full_like(share, self.addend)))
        return self.modulus.sub(part, np.full_like(share, self.quotient if self.shift else 0)), half

    def rounded(self, x: NDArray[np.int64], client: Words) -> NDArray[np.int64]:
        """What two parties make of ``x`` when the client's share of it is ``client``, bit for bit.

        Both of one shape, or of shapes that broadcast.
        """
        modulus = self.modulus
        client_part, b_client = self.client_part(client)
        server_part, b_server = self.server_part(modulus.sub(modulus.encode(x), client))
        product = np.where(b_client & b_server, np.uint64(self.correction), np.uint64(0))
        return modulus.decode(modulus.add(modulus.add(client_part, server_part), modulus.scale(product, self.unit)))


def half_unit(shift: int) -> int:
    """What is added before the low ``shift`` bits are dropped, so that what is left is the nearest."""
    return (1 << shift) >> 1


def to_nearest(x: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """The whole number nearest to x / 2^shift, halves up; int64."""
    return (x + np.int64(half_unit(shift))) >> np.int64(shift)
