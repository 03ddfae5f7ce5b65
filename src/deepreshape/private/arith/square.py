"""The square of a shared value, with both its truncations, in shares: what each party computes, message by message.

Before: x = x_client + x_server mod 2^l, x_client known offline. Wanted: shares of (x / 2^s1)^2 / 2^s2 mod 2^l,
rounded, of which the client's is a blind r that it chose offline. Write l1 = l - s1, l2 = l1 - s2, k = l1 - 1, w = s1
+ s2.

*Truncation by shrinking the ring.* With 2^s - 1 added to the server's share, (x_client >> s) + (x_server >> s) is
floor(x / 2^s) or one more: the wrap of the two shares is a multiple of 2^l, so of 2^(l-s) after the shift, and
vanishes modulo 2^(l-s); the carry out of the low bits is one with probability (x mod 2^s) / 2^s over a uniform
x_client. So z = x / 2^s1 is shared modulo 2^l1 as T_client + T_server, rounded right on average, exact for multiples.

*The square.* Offline the server has u, uniform modulo 2^k, and the parties share v + t = T_client u mod 2^k. Online
the server sends delta = T_server - u mod 2^k, uniform to the client. Then

    y_client = T_client^2 + 2 (T_client delta + v),    y_server = T_server^2 + 2 t    (mod 2^l1)

add up to (T_client + T_server)^2. It is shifted by s2 as before: Y_client + Y_server = Y mod 2^l2, Y = z^2 / 2^s2.

*Extension to 2^l.* While 0 <= Y < 2^(l2 - 1), the shares of Y wrap unless neither reaches 2^(l2 - 1): the wrap is 1 -
n_client n_server, where n says that a share is below 2^(l2 - 1). The server's n is known when it sends delta, so it
chooses in one oblivious transfer: offline it got Q_rho for a random rho, of which the client has both, Q_0 and Q_1
modulo 2^w. It sends d = n_server ^ rho. With R_0 = Q_d and R_1 = Q_(1-d), the client answers

    e = n_client + R_0 - R_1 mod 2^w,    msg = Y_client - 2^l2 R_0 - r mod 2^l

and the server takes m = Q_rho + n_server e, which is n_client n_server + R_0; its share of the result is
msg + Y_server + 2^l2 (m - 1).

*Range.* Right where |x| <= isqrt((2^(l2 - 1) - 1) 2^s2) 2^s1. Outside it the result may be off by 2^l2 with a
probability that grows from almost 0 at the edge, and nothing shows it: what may lie outside must be refused before.
Inside, it is one of at most four values: floor or ceiling of z^2 / 2^s2 for floor or ceiling z of x / 2^s1; its mean
is (x / 2^s1)^2 / 2^s2 plus p (1 - p) / 2^s2, where p is the fraction that the first rounding decides by chance.

*Security* (semi-honest, given the products and transfers). The client sees v (blinded by t), Q_0, Q_1 and r, delta
(blinded by u) and d (blinded by rho). The server sees u, t, rho, Q_rho, e and msg: of R_0 and R_1 it knows exactly
one, so e is uniform; msg is blinded by r, which is uniform modulo 2^l and seen nowhere else. Each of u, rho, the Qs
and r is for one value. What is computed is the rounding that the client's own share and t fix: the client knows its
coins.

Bits online: k + 1 down, w + l up, in one round trip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Bits, Ring, Words

__all__ = ["Squaring"]


@dataclass(frozen=True)
class Squaring:
    """(x / 2^``before``)^2 / 2^``after`` over ``modulus``.

    Raises:
        ValueError: if the ring is too narrow for the two shifts.
    """

    modulus: Ring
    before: int
    after: int

    def __post_init__(self) -> None:
        if self.before < 0 or self.after < 0 or self.rest < 3 or self.message < 1:
            raise ValueError(
                f"a square over {self.modulus} takes shifts of 0 and more that are together 1 to "
                f"{self.modulus.bits - 3}, not {self.before} and {self.after}"
            )

    @property
    def first(self) -> int:
        """l1, the bits of z."""
        return self.modulus.bits - self.before

    @property
    def rest(self) -> int:
        """l2, the bits of z^2 / 2^s2."""
        return self.first - self.after

    @property
    def product(self) -> int:
        """k, the bits of the offline product and of delta."""
        return self.first - 1

    @property
    def message(self) -> int:
        """w, the bits of Q and e."""
        return self.before + self.after

    @property
    def limit(self) -> int:
        """The largest |x| whose square comes out right."""
        return math.isqrt(((1 << (self.rest - 1)) - 1) << self.after) << self.before

    def client_root(self, share: Words) -> Words:
        """T_client: the client's share of z, known offline, modulo 2^l1."""
        return share >> np.uint64(self.before)

    def server_root(self, share: Words) -> Words:
        """T_server, modulo 2^l1."""
        return _raised(share, self.before, self.modulus.bits) >> np.uint64(self.before)

    def delta(self, root: Words, blind: Words) -> Words:
        """What the server sends of T_server, blinded by u."""
        return _low(root - blind, self.product)

    def server_square(self, root: Words, part: Words) -> tuple[Words, Bits]:
        """Y_server and n_server, of T_server and t."""
        square = _low(root * root + np.uint64(2) * part, self.first)
        share = _raised(square, self.after, self.first) >> np.uint64(self.after)
        return share, self._low_half(share)

    def client_product(self, root: Words, part: Words, delta: Words) -> Words:
        """T_client delta + v modulo 2^k, uniform: what decides the second rounding."""
        return _low(root * delta + part, self.product)

    def client_square(self, root: Words, product: Words) -> tuple[Words, Bits]:
        """Y_client and n_client, of T_client and T_client delta + v."""
        share = self._client_share(root, product) >> np.uint64(self.after)
        return share, self._low_half(share)

    def answer(self, share: Words, half: Bits, zero: Words, one: Words, blind: Words) -> tuple[Words, Words]:
        """The client's e and msg, of Y_client, n_client, R_0, R_1 and r."""
        message = _low(half.astype(np.uint64) + zero - one, self.message)
        return message, _low(share - (zero << np.uint64(self.rest)) - blind, self.modulus.bits)

    def result(self, share: Words, half: Bits, known: Words, message: Words, answer: Words) -> Words:
        """The server's share of the result, of Y_server, n_server, Q_rho, e and msg."""
        wrap = _low(known + np.where(half, message, np.uint64(0)), self.message) - np.uint64(1)
        return _low(answer + share + (wrap << np.uint64(self.rest)), self.modulus.bits)

    def rounded(self, x: NDArray[np.int64], client: Words, coins: Words) -> NDArray[np.int64]:
        """What two parties make of ``x`` when the client's share of it is ``client``.

        ``coins`` are :meth:`client_product`, modulo 2^k.

        Raises:
            OverflowError: if a value is beyond :attr:`limit`, where the result would not be certain.
        """
        if x.size and (largest := int(np.abs(x).max())) > self.limit:
            raise OverflowError(f"{largest} is beyond {self.limit}, the largest value with a certain square")
        root = self.client_root(client)
        other = self.server_root(self.modulus.sub(self.modulus.encode(x), client))
        z = Ring(self.first).decode(_low(root + other, self.first))
        square = z * z
        server = square.view(np.uint64) - self._client_share(root, coins)
        low = _low(server + np.uint64((1 << self.after) - 1), self.after)
        raised = square + ((1 << self.after) - 1)
        return (raised >> self.after) - (low > _low(raised.view(np.uint64), self.after))

    def _client_share(self, root: Words, product: Words) -> Words:
        """The client's share of z^2, modulo 2^l1."""
        return _low(root * root + np.uint64(2) * product, self.first)

    def _low_half(self, share: Words) -> Bits:
        return (share < np.uint64(1 << (self.rest - 1))).view(np.uint8)


def _low(values: Words, bits: int) -> Words:
    return values & np.uint64((1 << bits) - 1)


def _raised(share: Words, shift: int, bits: int) -> Words:
    """A share, modulo 2^bits, of the value plus 2^shift - 1."""
    return _low(share + np.uint64((1 << shift) - 1), bits)
