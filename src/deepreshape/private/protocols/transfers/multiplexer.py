"""A multiplexer with truncation by oblivious transfer, of which the client's share of the result is chosen beforehand.

Model: semi-honest. Before: x = x_client + x_server mod M, x_client known offline, and c = s ^ t at the client, where s
is the bit to multiply by and t a random bit of the server. After: shares of s T, where T is x / 2^f, rounded
(``truncation.py``); the client's is r, which it chose offline. The client sends last.

*Parts.* T = E + G + e g K, of which the client knows E and e offline, the server G and g online. The client has two
transfers, with blinds A of the one it chooses by e and B of one with a random choice kappa; the server has one, of
choice t, in which the client has both blinds C and C'. All blinds are hashes; those for the wrap e g K are in the group
of ``ShareTruncation.message``, whose unit is u.

    offline  client -> server   its choice of e, masked;  M3 = (1 - 2 kappa) E - C_1 + C_0
    online   server -> client   M2 = (1 - 2 t) T_S - B_1 + B_0;  M1 = g K - A_1 + A_0
             client -> server   d;  F;  M4 = (1 - 2 kappa) v - C'_1 + C'_0

*The wrap.* v = e M1 + A_e = e g K + A_0, so with T_C = E + u v and T_S = G - u A_0, T = T_C + T_S.

*The multiplexer.* d = c ^ kappa is uniform to the server. With tau = t ^ d, s = kappa ^ tau, and 1 - 2 tau is (1 - 2 d)
times (1 - 2 t): d is a public sign, so what is multiplied can be sent before d is known. From

    s T_S = tau T_S + (1 - 2 d) kappa (1 - 2 t) T_S,
    s T_C = kappa T_C + d (1 - 2 kappa) T_C + (1 - 2 d) t (1 - 2 kappa) T_C

and the transfers' products, kappa (1 - 2 t) T_S = kappa M2 + B_kappa - B_0 and t (1 - 2 kappa) T_C = t M3 + C_t - C_0 +
u (t M4 + C'_t - C'_0), the client's part is

    F = kappa T_C + d (1 - 2 kappa) T_C + (1 - 2 d)(kappa M2 + B_kappa - C_0 - u C'_0) - r

and the server adds tau T_S + (1 - 2 d)(t M3 + C_t - B_0 + u (t M4 + C'_t)).

*What the parties see.* The client: M1 and M2 under the blinds that it did not choose. The server: e under a random
choice, M3 and M4 under the blinds it did not choose, d under kappa, F under r. So kappa is never corrected, no bit of a
hash blinds two messages, and t is fresh for each element: two of one t would show the client s ^ s', two of one kappa
the server. Everything that is kept is for one inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.arith.truncation import ShareTruncation
from deepreshape.private.crypto.labels import Context, Delta, derive_blinds, permute_bits
from deepreshape.private.protocols.transfers.carry_chain import ONE
from deepreshape.private.protocols.transfers.sign_conversion import SignConversion, both_blinds, checked, negated_where

KAPPA, HALF, BACK, BACK_WRAP = "kappa", "half", "multiplexer", "multiplexer, wrap"
"""Tweaks of the hash."""


@dataclass(frozen=True, eq=False, repr=False)
class ServerState:
    """At the server between its two steps: t, T_S, and what it adds with the sign of d."""

    choice: Words
    part: Words
    rest: Words


@dataclass(frozen=True)
class Multiplexer(SignConversion[ServerState]):
    """Over ``modulus``, truncating by ``shift``, right for values down to -``reach``.

    The client's transfers are by kappa and, if bits are dropped, by e.
    """

    modulus: Ring | Field
    shift: int
    reach: int

    @cached_property
    def truncation(self) -> ShareTruncation:
        return ShareTruncation(self.modulus, self.shift, self.reach)

    @property
    def transfers(self) -> int:
        return 2 if self.shift else 1

    @property
    def _wrap(self) -> list[int]:
        return [self.truncation.message.bits] if self.shift else []

    @property
    def offline_widths(self) -> list[int]:
        return [*[1] * bool(self.shift), self.modulus.bits]

    @property
    def sent_widths(self) -> list[int]:
        return [self.modulus.bits, *self._wrap]

    @property
    def answer_widths(self) -> list[int]:
        return [1, self.modulus.bits, *self._wrap]

    @property
    def client_widths(self) -> list[int]:
        """Kappa and e; E, what F adds with the sign of d, r; A_e and the difference of C'."""
        return [2, *[self.modulus.bits] * 3, *self._wrap * 2]

    @property
    def server_widths(self) -> list[int]:
        """t; B_0 - B_1, what it adds with the sign of d; A_0 and the difference of A."""
        return [1, *[self.modulus.bits] * 2, *self._wrap * 2]

    def client_offline(
        self, share: Words, blind: Words, labels: Words, back: Words, delta: Delta, context: Context, rng: Randomness
    ) -> tuple[list[Words], list[Words]]:
        modulus = self.modulus
        part, half = self.truncation.client_part(share)
        kappa, *chosen = permute_bits(labels).astype(np.uint64)
        zero, one = both_blinds(back, delta, context, BACK, modulus)
        third = modulus.add(modulus.sub(negated_where(kappa, part, modulus), one), zero)
        rest = modulus.sub(derive_blinds(labels[0], context, KAPPA, modulus), zero)
        if not self.shift:
            return [third], [kappa, part, rest, blind]
        message, e = self.truncation.message, half.astype(np.uint64)
        zero, one = both_blinds(back, delta, context, BACK_WRAP, message)
        wraps = [derive_blinds(labels[1], context, HALF, message), message.sub(zero, one)]
        rest = modulus.sub(rest, self._units(zero))
        return [e ^ chosen[0], third], [kappa | (e << ONE), part, rest, blind, *wraps]

    def server_offline(
        self, received: list[Words], labels: Words, delta: Delta, back: Words, context: Context
    ) -> list[Words]:
        modulus, others = self.modulus, labels ^ delta.words
        third = checked(received[-1], modulus)
        choice = permute_bits(back).astype(np.uint64)
        zero, one = (derive_blinds(side[0], context, KAPPA, modulus) for side in (labels, others))
        rest = modulus.add(_where(choice, third), derive_blinds(back, context, BACK, modulus))
        kept = [choice, modulus.sub(zero, one), modulus.sub(rest, zero)]
        if not self.shift:
            return kept
        group = self.truncation.message
        first, second = (derive_blinds(side[1], context, HALF, group) for side in (labels, others))
        first, second = np.where(received[0], second, first), np.where(received[0], first, second)
        kept[2] = modulus.add(kept[2], self._units(derive_blinds(back, context, BACK_WRAP, group)))
        return [*kept, first, group.sub(first, second)]

    def server_online(self, kept: list[Words], share: Words) -> tuple[list[Words], ServerState]:
        choice, second, rest, *wraps = kept
        part, half = self.truncation.server_part(share)
        first: list[Words] = []
        if self.shift:
            message = self.truncation.message
            part = self.modulus.sub(part, self._units(wraps[0]))
            first = [message.add(np.where(half, np.uint64(self.truncation.correction), np.uint64(0)), wraps[1])]
        sent = self.modulus.add(negated_where(choice, part, self.modulus), second)
        return [sent, *first], ServerState(choice, part, rest)

    def client_online(self, kept: list[Words], received: list[Words], chosen: Words) -> list[Words]:
        modulus = self.modulus
        flags, part, rest, blind, *wraps = kept
        kappa, fourth = flags & ONE, list[Words]()
        opened = chosen ^ kappa
        if self.shift:
            group = self.truncation.message
            wrap = group.add(_where(flags >> ONE, checked(received[1], group)), wraps[0])
            part = modulus.add(part, self._units(wrap))
            fourth = [group.add(negated_where(kappa, wrap, group), wraps[1])]
        product = modulus.add(_where(kappa, checked(received[0], modulus)), rest)
        total = modulus.add(_where(kappa, part), _where(opened, negated_where(kappa, part, modulus)))
        total = modulus.add(total, negated_where(opened, product, modulus))
        return [opened, modulus.sub(total, blind), *fourth]

    def server_finish(self, state: ServerState, received: list[Words]) -> Words:
        modulus, rest = self.modulus, state.rest
        opened, other, *fourth = received
        if self.shift:
            wrap = _where(state.choice, checked(fourth[0], self.truncation.message))
            rest = modulus.add(rest, self._units(wrap))
        total = modulus.add(_where(state.choice ^ opened, state.part), negated_where(opened, rest, modulus))
        return modulus.add(total, checked(other, modulus))

    def _units(self, values: Words) -> Words:
        return self.modulus.scale(values, self.truncation.unit)


def _where(bits: Words, values: Words) -> Words:
    """``values``, and zero where ``bits`` are."""
    return values & -bits
