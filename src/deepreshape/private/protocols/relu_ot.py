"""A shared ReLU with truncation by oblivious transfer: the sign by a carry chain or tree, then a multiplexer.

Model: semi-honest. Before: x = x_client + x_server mod M, x_client known offline. After: shares of s T, where s says
whether x counts as positive (``drelu.py``) and T is x / 2^f, rounded (``truncation.py``); the client's is r, which it
chose offline. Here are the steps of one batch, as functions of shares and correlated labels; they send nothing.

*Parts.* T = E + G + e g K, of which the client knows E and e offline, the server G and g online. The client has two
transfers beside those of its word, with pads A of the one it chooses by e and B of one with a random choice kappa; and
the server one with a random choice t, in which the client has both pads C and C'. All pads are hashes, those for the
wrap e g K in the group of ``Division.message``, whose unit is u.

    offline  client -> server   choices of its word and of e, masked;  M3 = (1 - 2 kappa) E - C_1 + C_0
    online   server -> client   rows of the carry;  M2 = (1 - 2 t) T_S - B_1 + B_0;  M1 = g K - A_1 + A_0
             client -> server   d;  M4 = (1 - 2 kappa) v - C'_1 + C'_0;  F

*The wrap.* v = e M1 + A_e = e g K + A_0, so with T_C = E + u v and T_S = G - u A_0, T = T_C + T_S.

*The multiplexer.* The carry gives the client c = s ^ t; it sends d = c ^ kappa, which is uniform to the server. With
tau = t ^ d, s = kappa ^ tau, and 1 - 2 tau = (1 - 2 d)(1 - 2 t): d is a public sign, so both parties send before they
know it. From

    s T_S = tau T_S + (1 - 2 d) kappa (1 - 2 t) T_S,
    s T_C = kappa T_C + d (1 - 2 kappa) T_C + (1 - 2 d) t (1 - 2 kappa) T_C

and the transfers' products, kappa (1 - 2 t) T_S = kappa M2 + B_kappa - B_0 and t (1 - 2 kappa) T_C = t M3 + C_t - C_0 +
u (t M4 + C'_t - C'_0), the client's part is

    F = kappa T_C + d (1 - 2 kappa) T_C + (1 - 2 d)(kappa M2 + B_kappa - C_0 - u C'_0) - r

and the server adds tau T_S + (1 - 2 d)(t M3 + C_t - B_0 + u (t M4 + C'_t)).

*What the parties see.* The client: rows (``carry_chain.py``), and M1 and M2 under the pads that it did not choose. The
server: choices masked by random ones, M3 and M4 under the pads it did not choose, d masked by kappa, and F masked by r.
So kappa is never corrected, no bit of a hash masks two messages, and t is fresh for each ReLU: two ReLUs of one t would
show the client s ^ s', two of one kappa the server. Everything that is kept is for one inference: a second message of
the server on the same pads would open both halves of a row.

*Assumptions.* Those of the transfers, and that the hash of ``labels.py`` is correlation robust. One key hashes one
column of one batch: the labels of all ReLUs of the batch that belong to the same bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deepreshape.private.arith.drelu import Parity, Sign, Window, Wrap
from deepreshape.private.arith.ring import Bits, Field, Modulus, Randomness, Ring, Words
from deepreshape.private.arith.truncation import Division
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.bit_fields import pack, unpack
from deepreshape.private.crypto.labels import Context, Delta, blinds, permute_bits
from deepreshape.private.protocols.carry_chain import ONE, Chain, Pads
from deepreshape.private.transport.channel import ProtocolError

CHOICES, KAPPA, HALF, BACK, BACK_WRAP = "choices", "kappa", "half", "multiplexer", "multiplexer, wrap"
"""Tweaks of the hash."""


@dataclass(frozen=True)
class ChainRelu:
    """A ReLU over ``modulus``, truncated by ``shift``, whose sign is tested by ``sign`` with a carry chain."""

    modulus: Ring | Field
    shift: int
    sign: Sign

    @cached_property
    def chain(self) -> Chain:
        """Of the compared bits of the words; over a ring the top ones only add to the carry."""
        bits = self.sign.width - isinstance(self.sign, Window)
        return Chain(bits, isinstance(self.sign, Wrap) and self.sign.mode == "neg-pass")

    @cached_property
    def division(self) -> Division:
        return Division(self.modulus, self.shift, self.sign.passed)

    @property
    def transfers(self) -> int:
        """With the client as receiver: by its word's bits, by kappa, by e. There is one the other way."""
        return self.chain.bits + 1 + bool(self.shift)

    @property
    def _wrap(self) -> list[int]:
        """Bits of an element of the group of the wrap, if there is one."""
        return [self.division.message.bits] if self.shift else []

    @property
    def offline_widths(self) -> list[int]:
        """Bits of the fields of the client's offline message."""
        return [self.chain.bits + bool(self.shift), self.modulus.bits]

    @property
    def rows_widths(self) -> list[int]:
        """Bits of the fields of the server's online message."""
        return [*self.chain.row_widths, self.modulus.bits, *self._wrap]

    @property
    def answer_widths(self) -> list[int]:
        """Bits of the fields of the client's online message."""
        return [1, self.modulus.bits, *self._wrap]

    @property
    def client_widths(self) -> list[int]:
        """Bits of the fields that the client keeps: its word, kappa and e; pads; E, y, r; A_e and C'."""
        return [self.sign.width + 2, *self.chain.label_widths, *[self.modulus.bits] * 3, *self._wrap * 2]

    @property
    def server_widths(self) -> list[int]:
        """Bits of the fields that the server keeps: lambdas and t; pads; B and q; A_0 and A."""
        return [len(self.chain.digits) + 1, *self.chain.pad_widths, *[self.modulus.bits] * 2, *self._wrap * 2]

    def client_offline(
        self, share: Words, mask: Words, labels: Words, back: Words, delta: Delta, context: Context
    ) -> tuple[Bits, Bits]:
        """What the client sends, and what it keeps.

        Args:
            share: x_client, uint64 (n,).
            mask: r.
            labels: the client's of :attr:`transfers` transfers, uint64 (transfers, n, 2).
            back: its labels of zero of one transfer the other way, (n, 2).
            delta: their difference; it claims ``context``.
            context: where the batch is; both parties know it.
        """
        delta.claim(context)
        modulus, bits = self.modulus, self.chain.bits
        word = self.sign.client_word(share)
        part, half = self.division.client_part(share)
        choices = permute_bits(labels).astype(np.uint64)
        kappa, columns = choices[bits], choices[:bits]
        masked = word & np.uint64((1 << bits) - 1)
        for bit, column in enumerate(columns):
            masked = masked ^ (column << np.uint64(bit))
        pads = self.chain.client_pads(_hashed(labels[:bits], context), word)
        zero, one = _back_blinds(back, delta, context, BACK, modulus)
        third = modulus.add(modulus.sub(_signed(kappa, part, modulus), one), zero)
        rest = modulus.sub(blinds(labels[bits], context, KAPPA, modulus), zero)
        flags, wraps = kappa, list[Words]()
        if self.shift:
            message = self.division.message
            masked = masked | ((half ^ choices[bits + 1]) << np.uint64(bits))
            flags = kappa | (half.astype(np.uint64) << ONE)
            zero, one = _back_blinds(back, delta, context, BACK_WRAP, message)
            rest = modulus.sub(rest, self._units(zero))
            wraps = [blinds(labels[bits + 1], context, HALF, message), message.sub(zero, one)]
        kept = [flags | (word << np.uint64(2)), *_flat(pads), part, rest, mask, *wraps]
        return _pack([masked, third], self.offline_widths), _pack(kept, self.client_widths)

    def server_offline(
        self, message: memoryview | Bits, labels: Words, delta: Delta, back: Words, context: Context, rng: Randomness
    ) -> Bits:
        """What the server keeps; ``labels`` are its labels of zero, ``back`` those with its choices.

        Raises:
            ProtocolError: if ``message`` holds what is no element of the modulus.
        """
        delta.claim(context)
        modulus, bits, count = self.modulus, self.chain.bits, len(back)
        masked, third = unpack(message, self.offline_widths, count)
        third = _checked(third, modulus)
        others = labels ^ delta.words
        pads = self.chain.server_pads(_hashed(labels[:bits], context), _hashed(others[:bits], context), masked)
        choice = permute_bits(back).astype(np.uint64)
        zero, one = (blinds(side[bits], context, KAPPA, modulus) for side in (labels, others))
        product = modulus.add(_where(choice, third), blinds(back, context, BACK, modulus))
        rest, wraps = modulus.sub(product, zero), list[Words]()
        if self.shift:
            group = self.division.message
            swap = (masked >> np.uint64(bits)) & ONE
            first, second = (blinds(side[bits + 1], context, HALF, group) for side in (labels, others))
            first, second = np.where(swap, second, first), np.where(swap, first, second)
            rest = modulus.add(rest, self._units(blinds(back, context, BACK_WRAP, group)))
            wraps = [first, group.sub(first, second)]
        lambdas = rng.words(count) << ONE
        kept = [choice | lambdas, *_flat(pads), modulus.sub(zero, one), rest, *wraps]
        return _pack(kept, self.server_widths)

    def server_online(self, kept: Bits, share: Words) -> tuple[Bits, ServerState]:
        """What the server sends, and what it needs for :meth:`server_finish`; ``share`` is x_server, uint64 (n,)."""
        modulus = self.modulus
        fields = iter(unpack(kept, self.server_widths, len(share)))
        flags = next(fields)
        pads = [[next(fields) for _ in range(digit.halves)] for digit in self.chain.digits]
        second, rest, *wraps = fields
        choice = flags & ONE
        word = self.sign.server_word(share)
        rows = self.chain.garble(pads, word, choice ^ self._server_top(word), flags >> ONE)
        part, half = self.division.server_part(share)
        first: list[Words] = []
        if self.shift:
            message = self.division.message
            part = modulus.sub(part, self._units(wraps[0]))
            wrap = np.where(half, np.uint64(self.division.correction), np.uint64(0))
            first = [message.add(wrap, wraps[1])]
        sent = _pack([*rows, modulus.add(_signed(choice, part, modulus), second), *first], self.rows_widths)
        return sent, ServerState(choice, part, rest)

    def client_online(self, kept: Bits, message: memoryview | Bits, count: int) -> Bits:
        """The client's answer to the server's message.

        Raises:
            ProtocolError: if ``message`` holds what is no element of its group.
        """
        modulus = self.modulus
        fields = iter(unpack(kept, self.client_widths, count))
        flags = next(fields)
        pads = [[next(fields) for _ in range(digit.halves)] for digit in self.chain.digits]
        part, rest, mask, *wraps = fields
        received = unpack(message, self.rows_widths, count)
        rows, received = received[: len(self.chain.row_widths)], received[len(self.chain.row_widths) :]
        kappa, word = flags & ONE, flags >> np.uint64(2)
        second = _checked(received[0], modulus)
        chosen = self.chain.walk(rows, word, pads) ^ self._client_top(word)
        opened, fourth = chosen ^ kappa, list[Words]()
        if self.shift:
            group = self.division.message
            wrap = group.add(_where((flags >> ONE) & ONE, _checked(received[1], group)), wraps[0])
            part = modulus.add(part, self._units(wrap))
            fourth = [group.add(_signed(kappa, wrap, group), wraps[1])]
        product = modulus.add(_where(kappa, second), rest)
        total = modulus.add(_where(kappa, part), _where(opened, _signed(kappa, part, modulus)))
        total = modulus.add(total, _signed(opened, product, modulus))
        return _pack([opened, modulus.sub(total, mask), *fourth], self.answer_widths)

    def server_finish(self, state: ServerState, message: memoryview | Bits) -> Words:
        """The server's share of s T, uint64 (n,), from the client's answer.

        Raises:
            ProtocolError: if ``message`` holds what is no element of its group.
        """
        modulus = self.modulus
        opened, other, *fourth = unpack(message, self.answer_widths, len(state.part))
        rest = state.rest
        if self.shift:
            wrap = _where(state.choice, _checked(fourth[0], self.division.message))
            rest = modulus.add(rest, self._units(wrap))
        total = modulus.add(_where(state.choice ^ opened, state.part), _signed(opened, rest, modulus))
        return modulus.add(total, _checked(other, modulus))

    def _units(self, values: Words) -> Words:
        return self.modulus.scale(values, self.division.unit)

    def _client_top(self, word: Words) -> Words:
        """What the client's word adds to the carry to make the sign."""
        if isinstance(self.sign, Wrap):
            return np.zeros_like(word)
        return (word >> np.uint64(0 if isinstance(self.sign, Parity) else self.chain.bits)) & ONE

    def _server_top(self, word: Words) -> Words:
        """What the server's word adds; over a ring a sum with a top bit of one is negative."""
        return self._client_top(word) ^ np.uint64(isinstance(self.sign, Window))


@dataclass(frozen=True, eq=False, repr=False)
class ServerState:
    """Of a batch between the server's two steps: t, T_S, and what it adds with the sign of d."""

    choice: Words
    part: Words
    rest: Words


def _hashed(labels: Words, context: Context) -> list[Words]:
    """The hashes of each column under a key of its own."""
    keys = context.keys(len(labels), CHOICES)
    return [engine().hash(column, key) for column, key in zip(labels, keys, strict=True)]


def _back_blinds(labels: Words, delta: Delta, context: Context, tweak: str, modulus: Modulus) -> tuple[Words, Words]:
    return blinds(labels, context, tweak, modulus), blinds(labels ^ delta.words, context, tweak, modulus)


def _flat(pads: Pads) -> list[Words]:
    return [half for halves in pads for half in halves]


def _pack(values: list[Words], widths: list[int]) -> Bits:
    return pack(zip(values, widths, strict=True))


def _signed(bits: Words, values: Words, modulus: Modulus) -> Words:
    """(1 - 2 bit) times the value."""
    return np.where(bits, modulus.neg(values), values)


def _where(bits: Words, values: Words) -> Words:
    """``values``, and zero where ``bits`` are."""
    return values & -bits


def _checked(values: Words, modulus: Modulus) -> Words:
    if values.size and int(values.max()) >= modulus.order:
        raise ProtocolError(f"the peer sent a value that is not an element of {modulus}")
    return values
