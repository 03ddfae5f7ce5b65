"""Labels of 128 bits: how two that belong together differ, and the hash under which they hide messages.

A label is two uint64 words, low word first; its permute bit is bit 63 of the low word. The labels of zero and one of a
wire differ by :class:`Delta`, whose permute bit is one, so their permute bits differ too.

The hash is H_k(x) = AES_k(s(x)) ^ s(x), s being the linear orthomorphism (lo, hi) -> (lo ^ hi, lo), and the key k the
tweak. It is assumed to be circular correlation robust. Guo, Katz, Wang and Yu (IEEE S&P 2020) prove it for one key,
with AES a random permutation; Guo, Katz, Wang, Weng and Yu (CRYPTO 2020) for changing keys and many instances, with AES
an ideal cipher. Without s one query would reveal Delta.

Keys k are public and one-time: each (session, layer, batch, gate, side) has its own, so one key hashes the labels of
one batch only, and of Delta's 127 bits the bound loses about log2(instances of a batch), as in the latter paper.
:class:`Delta` refuses a (session, layer, batch) that it has seen, because a repeated key under one Delta would undo
that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NoReturn, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Bits, Modulus, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import engine

PERMUTE_BIT = 63
"""Its place among the 128 bits of a label."""


@dataclass(frozen=True)
class Context:
    """Where a batch is garbled; public, and part of every key of its hash."""

    session: bytes
    layer: str
    batch: int

    def keys(self, count: int, tweak: str = "") -> NDArray[np.uint8]:
        """``count`` distinct AES-128 keys, uint8 of shape (count, 16).

        Those of other contexts are unrelated, and so are those of another tweak; the gates have none.
        """
        digest = hashlib.sha256(b"deepreshape half-gates")
        use = [tweak.encode()] if tweak else []
        for part in (self.session, self.layer.encode(), self.batch.to_bytes(8, "little"), *use):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        # counter blocks of one AES key never repeat, so neither do these
        return Randomness(digest.digest()).bytes(16 * count).reshape(count, 16)


def refuse_copy(handle: object, protocol: SupportsIndex, /) -> NoReturn:
    """As ``__reduce_ex__`` of a class: its objects cannot be copied or pickled, hence not used once more."""
    raise TypeError(f"{type(handle).__name__} is for one use; it can be neither copied nor pickled")


class Delta:
    """The secret difference between the two labels of every wire, for one offline session.

    127 bits are random; the permute bit is one, so that the permute bits of the two labels of a wire differ.
    """

    __reduce_ex__ = refuse_copy

    def __init__(self, rng: Randomness) -> None:
        self.words: Words = rng.words(2)
        self.words[0] |= np.uint64(1 << PERMUTE_BIT)
        self._claimed: set[Context] = set()

    def claim(self, context: Context) -> None:
        """Take a context for good.

        Raises:
            RuntimeError: if it was taken before.
        """
        if context in self._claimed:
            raise RuntimeError(f"batch {context.batch} of layer {context.layer!r} was garbled before under this Delta")
        self._claimed.add(context)


def permute_bits(labels: Words) -> Bits:
    """Those of ``labels`` (..., 2): zeros and ones of shape (...)."""
    return (labels[..., 0] >> np.uint64(PERMUTE_BIT)).astype(np.uint8)


def pick(labels: Words, delta: Words, bits: Bits, out: Words | None = None) -> Words:
    """``labels`` (..., 2), each moved by ``delta`` (2,) where ``bits`` (...) are one: zero's label to the bit's.

    ``out``, contiguous, is written and returned if it is given; it may be ``labels``.

    Raises:
        ValueError: if there is not one bit a label, or room for each.
    """
    labels, bits = np.ascontiguousarray(labels, np.uint64), np.ascontiguousarray(bits, np.uint8)
    out = np.empty_like(labels) if out is None else out
    if labels.shape != (*bits.shape, 2) or out.shape != labels.shape or not out.flags.c_contiguous:
        raise ValueError(f"{bits.shape} bits cannot pick from labels of shape {labels.shape} into {out.shape}")
    engine().pick(labels.reshape(-1, 2), delta, bits.reshape(-1), out.reshape(-1, 2))
    return out


def hash_labels(labels: Words, context: Context, tweak: str) -> Words:
    """The gates' hash, 16 bytes for every label, to blind a message with.

    What it blinds must differ from label to label only by what the peer may learn: one label, one context and one tweak
    give one hash, which hides one message.

    Args:
        labels: uint64 of shape (..., 2), all hashed under one key.
        context: where the labels are; both parties know it.
        tweak: what the hash is for; no two uses in one context share it.

    Returns:
        uint64 of the shape of ``labels``.

    Raises:
        ValueError: if the tweak is empty, as that of the gates is.
    """
    if not tweak:
        raise ValueError("the empty tweak is that of the gates themselves; name what the hash is for")
    return engine().hash(labels.reshape(-1, 2), context.keys(1, tweak)[0]).reshape(labels.shape)


def derive_blinds(labels: Words, context: Context, tweak: str, modulus: Modulus) -> Words:
    """A blind below ``modulus`` for every label (n, 2): uint64 (n,). Context and tweak as of :func:`hash_labels`.

    Over a ring it is bits of the hash; over a field the hash's 128 bits reduced, within 2^-65 of uniform.
    """
    hashed = hash_labels(labels, context, tweak)
    if isinstance(modulus, Ring):
        return hashed[:, 0] & np.uint64(modulus.order - 1)
    order = np.uint64(modulus.order)
    return modulus.add(hashed[:, 0] % order, modulus.scale(hashed[:, 1] % order, 1 << 64))
