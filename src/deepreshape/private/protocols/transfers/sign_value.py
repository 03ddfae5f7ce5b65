"""A shared sign as +1 or -1, of which the client's share is chosen beforehand: no value to multiply, no truncation.

Model: semi-honest. Before: c = s ^ t at the client, where s is the sign and t a random bit of the server. After: shares
of v = 2 s - 1; the client's is r, which it chose offline. The client sends last. As in ABY's share conversion by
correlated transfer (Demmler, Schneider and Zohner, NDSS 2015), but that the client's share is fixed before the sign is.

There is one transfer back, of choice t, in which the client has both blinds C_0 and C_1. The client draws a bit kappa.

    offline  client -> server   N = 2 (1 - 2 kappa) + C_1 - C_0
    online   client -> server   d = c ^ kappa;  F = (1 - 2 d)(C_0 - (1 - 2 kappa)) - r

From N the server has Q = t N - C_t = 2 t (1 - 2 kappa) - C_0, and takes F + (1 - 2 d) Q, since

    v = -(1 - 2 c)(1 - 2 t) = -(1 - 2 d)(1 - 2 kappa)(1 - 2 t) = (1 - 2 d)(C_0 - (1 - 2 kappa) + Q).

*What the parties see.* The client: nothing but what the carry sends it, under t. The server: N under the blind that it
did not choose, d under kappa, F under r; these three are uniform and independent given all that it has. kappa is drawn
for this use: if it were a bit of r, F would tell it. An element must be sent back: r is fixed before v is known, so the
server's share v - r is as uniform as r.

*Assumption.* The hash of ``labels.py`` is correlation robust; C_0 and C_1 hash labels that differ by the Delta of the
client.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.labels import Context, Delta, derive_blinds, permute_bits
from deepreshape.private.protocols.transfers.sign_conversion import SignConversion, both_blinds, checked, negated_where

VALUE = "value of a sign by transfer"
"""Tweak of the hash."""


@dataclass(frozen=True)
class SignValue(SignConversion[Words]):
    """Over ``modulus``; what the server holds between its two steps is Q."""

    modulus: Ring | Field

    @property
    def transfers(self) -> int:
        return 0

    @property
    def offline_widths(self) -> list[int]:
        return [self.modulus.bits]

    @property
    def sent_widths(self) -> list[int]:
        return []

    @property
    def answer_widths(self) -> list[int]:
        return [1, self.modulus.bits]

    @property
    def client_widths(self) -> list[int]:
        """Kappa; C_0 - (1 - 2 kappa), r."""
        return [1, self.modulus.bits, self.modulus.bits]

    @property
    def server_widths(self) -> list[int]:
        """t; Q."""
        return [1, self.modulus.bits]

    def client_offline(
        self, share: Words, blind: Words, labels: Words, back: Words, delta: Delta, context: Context, rng: Randomness
    ) -> tuple[list[Words], list[Words]]:
        modulus = self.modulus
        kappa = (rng.bytes(len(blind)) & np.uint8(1)).astype(np.uint64)
        one = negated_where(kappa, np.ones_like(blind), modulus)  # 1 - 2 kappa
        zero, other = both_blinds(back, delta, context, VALUE, modulus)
        sent = modulus.add(modulus.add(one, one), modulus.sub(other, zero))
        return [sent], [kappa, modulus.sub(zero, one), blind]

    def server_offline(
        self, received: list[Words], labels: Words, delta: Delta, back: Words, context: Context
    ) -> list[Words]:
        choice = permute_bits(back).astype(np.uint64)
        part = checked(received[0], self.modulus) & -choice
        return [choice, self.modulus.sub(part, derive_blinds(back, context, VALUE, self.modulus))]

    def server_online(self, kept: list[Words], share: Words) -> tuple[list[Words], Words]:
        return [], kept[1]

    def client_online(self, kept: list[Words], received: list[Words], chosen: Words) -> list[Words]:
        kappa, part, blind = kept
        opened = chosen ^ kappa
        return [opened, self.modulus.sub(negated_where(opened, part, self.modulus), blind)]

    def server_finish(self, state: Words, received: list[Words]) -> Words:
        opened, answer = received
        return self.modulus.add(negated_where(opened, state, self.modulus), checked(answer, self.modulus))
