"""Half-gates garbling of one circuit over many instances at once.

Model: semi-honest parties. Construction: two ciphertexts an AND gate (half-gates: Zahur, Rosulek and Evans, EUROCRYPT
2015), XOR and NOT for nothing (free-XOR: Kolesnikov and Schneider, ICALP 2008), the active row picked by a colour bit
(point-and-permute). Assumption: H_k(x) = AES_k(s(x)) ^ s(x) is circular correlation robust, s being the linear
orthomorphism (lo, hi) -> (lo ^ hi, lo), and the key k the tweak. Guo, Katz, Wang and Yu (IEEE S&P 2020) prove it for
one key, with AES a random permutation; Guo, Katz, Wang, Weng and Yu (CRYPTO 2020) for changing keys and many instances,
with AES an ideal cipher. Without s one query would reveal the offset.

Keys k are public and one-time: each (session, layer, batch, gate, side) has its own, so one key hashes the labels of
one batch only, and of the offset's 127 bits the bound loses about log2(instances of a batch), as in the latter paper.
:class:`Offset` refuses a (session, layer, batch) that it has seen, because a repeated key under one offset would undo
that. Garbled circuits go out before the inputs are chosen, as in DELPHI; that this is safe for inputs which depend on
them rests on the ideal cipher, not on the robustness above alone.

A label is two uint64 words, low word first; its colour is bit 63 of the low word. Here is what may be garbled and
evaluated, and how often; the gates themselves are worked through by one of the ``engines``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Bits, Randomness, Words
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.circuit import Circuit

Labels = Words | Sequence[Words]

BATCH = 8192
"""Instances that one garbling covers: few enough for rows to stay in cache, many enough to hide the interpreter."""

TABLE_BYTES = 32
"""Two ciphertexts of 16 bytes an AND gate."""


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


class Offset:
    """The secret difference between the two labels of every wire, for one offline session.

    127 bits are random; the colour bit is one, so that the two labels of a wire differ in colour.
    """

    __reduce_ex__ = refuse_copy

    def __init__(self, rng: Randomness) -> None:
        self.words: Words = rng.words(2)
        self.words[0] |= np.uint64(1 << 63)
        self._garbled: set[Context] = set()

    def claim(self, context: Context) -> None:
        """Take a context for good.

        Raises:
            RuntimeError: if it was taken before.
        """
        if context in self._garbled:
            raise RuntimeError(f"batch {context.batch} of layer {context.layer!r} was garbled before under this offset")
        self._garbled.add(context)


class Garbled:
    """A garbled batch; it is sent once by the one party and evaluated once by the other.

    ``tables``: uint64 of shape (AND gates, 2, n, 2). ``decode``: zeros and ones, uint8 of shape (outputs, n); a colour
    of an output label, flipped by this, is the output's value.
    """

    __reduce_ex__ = refuse_copy

    def __init__(self, tables: Words, decode: Bits) -> None:
        self._left = [(tables, decode)]

    def take(self) -> tuple[Words, Bits]:
        """Tables and decode bits.

        Raises:
            RuntimeError: the second time. Two evaluations of one garbling would reveal the offset.
        """
        try:
            return self._left.pop()  # of two threads one gets it
        except IndexError:
            raise RuntimeError("this garbled batch was used; a garbled circuit is for one evaluation") from None


def table_shape(circuit: Circuit, count: int) -> tuple[int, int, int, int]:
    """Shape of the tables of ``count`` instances."""
    return circuit.and_gates, 2, count, 2


def pick(labels: Words, offset: Words, bits: Bits, out: Words | None = None) -> Words:
    """``labels`` (..., 2), each moved by the offset (2,) where ``bits`` (...) are one: zero's label to the bit's.

    ``out``, contiguous, is written and returned if it is given; it may be ``labels``.

    Raises:
        ValueError: if there is not one bit a label, or room for each.
    """
    labels, bits = np.ascontiguousarray(labels, np.uint64), np.ascontiguousarray(bits, np.uint8)
    out = np.empty_like(labels) if out is None else out
    if labels.shape != (*bits.shape, 2) or out.shape != labels.shape or not out.flags.c_contiguous:
        raise ValueError(f"{bits.shape} bits cannot pick from labels of shape {labels.shape} into {out.shape}")
    engine().pick(labels.reshape(-1, 2), offset, bits.reshape(-1), out.reshape(-1, 2))
    return out


def hash_labels(labels: Words, context: Context, tweak: str) -> Words:
    """The gates' hash, as a pad of 16 bytes for every label.

    What it pads must differ from label to label only by what the peer may learn: one label, one context and one tweak
    give one pad, which hides one message.

    Args:
        labels: uint64 of shape (..., 2), all hashed under one key.
        context: where the labels are; both parties know it.
        tweak: what the pad is for; no two uses in one context share it.

    Returns:
        uint64 of the shape of ``labels``.

    Raises:
        ValueError: if the tweak is empty, as that of the gates is.
    """
    if not tweak:
        raise ValueError("the empty tweak is that of the gates themselves; name what the pads are for")
    return engine().hash(labels.reshape(-1, 2), context.keys(1, tweak)[0]).reshape(labels.shape)


def garble(
    circuit: Circuit, offset: Offset, false_labels: Labels, context: Context, room: Words | None = None
) -> Garbled:
    """Garble as many instances as there are labels.

    Args:
        circuit: what to garble.
        offset: the session's offset; it claims ``context``.
        false_labels: labels of zero for every input wire, uint64 of shape (circuit.width, n, 2) or pieces that follow
            one another, uniform but for those that the evaluator derives too.
        context: where this is; both parties know it.
        room: uint64 to write the tables into, at least as many as they have; for a garbler of many batches that is
            done with one before it makes the next, and need not ask for fresh memory.

    Raises:
        RuntimeError: if the context was used under this offset.
    """
    tables, labels = garble_labels(circuit, offset, false_labels, context, room)
    return Garbled(tables, colours(labels))


def garble_labels(
    circuit: Circuit, offset: Offset, false_labels: Labels, context: Context, room: Words | None = None
) -> tuple[Words, Words]:
    """As :func:`garble`, for outputs that the evaluator shall not learn but go on from.

    Returns:
        The tables, and the labels of zero of every output, uint64 of shape (outputs, n, 2).
    """
    wires = _wires(circuit, false_labels)
    offset.claim(context)
    shape = table_shape(circuit, len(wires[0]))
    size = int(np.prod(shape))
    tables = (np.empty(size, np.uint64) if room is None else room[:size]).reshape(shape)
    keys = context.keys(2 * circuit.and_gates)
    labels = engine().garble(circuit, offset.words, wires, keys, tables)
    for label, (_, inverted) in zip(labels, circuit.schedule.outputs, strict=True):
        if inverted:
            label ^= offset.words
    return tables, labels


def evaluate(circuit: Circuit, garbled: Garbled, labels: Labels, context: Context) -> Bits:
    """Evaluate a garbled batch on one label for every input wire.

    Args:
        circuit: what was garbled.
        garbled: the peer's batch; used up.
        labels: uint64 of shape (circuit.width, n, 2), or pieces that follow one another.
        context: where this is, as when it was garbled.

    Returns:
        The outputs, zeros and ones, uint8 of shape (outputs, n).

    Raises:
        RuntimeError: if ``garbled`` was used before.
    """
    tables, decode = garbled.take()
    return colours(evaluate_labels(circuit, tables, labels, context)) ^ decode


def evaluate_labels(circuit: Circuit, tables: Words, labels: Labels, context: Context) -> Words:
    """As :func:`evaluate`: one label of every output, uint64 of shape (outputs, n, 2).

    The caller sees to it that tables are evaluated once.
    """
    wires = _wires(circuit, labels)
    wanted = table_shape(circuit, len(wires[0]))
    if tables.shape != wanted:
        raise ValueError(f"tables have shape {tables.shape}; this circuit and these labels want {wanted}")
    return engine().evaluate(circuit, tables, wires, context.keys(2 * circuit.and_gates))


def colours(labels: Words) -> Bits:
    """The colour of every label (..., 2), zeros and ones of shape (...)."""
    return (labels[..., 0] >> np.uint64(63)).astype(np.uint8)


def _wires(circuit: Circuit, labels: Labels) -> list[Words]:
    """The labels of each wire, (n, 2), where they lie."""
    pieces = [labels] if isinstance(labels, np.ndarray) else labels
    wires = [np.ascontiguousarray(wire, np.uint64) for piece in pieces for wire in piece]
    if len(wires) != circuit.width or {wire.shape for wire in wires} != {(wires[0].size // 2, 2)}:
        shapes = ", ".join(str(piece.shape) for piece in pieces)
        raise ValueError(f"labels have shape {shapes}; this circuit wants ({circuit.width}, n, 2)")
    return wires
