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

A label is two uint64 words, low word first; its colour is bit 63 of the low word. A gate is one operation on the
contiguous labels of all instances of the batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NoReturn, SupportsIndex

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from deepreshape.private.circuit import Circuit
from deepreshape.private.shares import Bits, Randomness, Words

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

    def keys(self, count: int, tweak: str = "half-gates") -> NDArray[np.uint8]:
        """``count`` distinct AES-128 keys, uint8 of shape (count, 16).

        Those of other contexts or other tweaks, which say what the hash is for, are unrelated.
        """
        digest = hashlib.sha256(b"deepreshape garbling")
        for part in (tweak.encode(), self.session, self.layer.encode(), self.batch.to_bytes(8, "little")):
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


def pick(labels: Words, offset: Words, bits: Bits) -> Words:
    """``labels`` (..., 2), each moved by the offset (2,) where ``bits`` (...) are one: zero's label to the bit's."""
    choose = np.negative(bits.astype(np.int64)).view(np.uint64)
    moved = np.empty_like(labels)
    for word in range(2):
        moved[..., word] = labels[..., word] ^ (choose & offset[word])
    return moved


def hash_labels(labels: Words, context: Context, tweak: str) -> Words:
    """The gates' hash, as a pad of 16 bytes for every label.

    What it pads must differ from label to label only by what the peer may learn: one label, one context and one tweak
    give one pad, which hides one message.

    Args:
        labels: uint64 of shape (..., 2), all hashed under one key.
        context: where the labels are; both parties know it.
        tweak: what the pad is for. No two uses under one offset share it, and none is ``"half-gates"``.

    Returns:
        uint64 of the shape of ``labels``.

    Raises:
        ValueError: if the tweak is that of the gates.
    """
    if tweak == "half-gates":
        raise ValueError("'half-gates' is the tweak of the gates themselves; name another use")
    x = np.empty(labels.shape, np.uint64)
    np.bitwise_xor(labels[..., 0], labels[..., 1], out=x[..., 0])
    x[..., 1] = labels[..., 0]
    room = np.empty(x.size + 2, np.uint64)  # OpenSSL's binding wants a block of room behind what it writes
    key = context.keys(1, tweak)[0].data
    Cipher(algorithms.AES(key), modes.ECB()).encryptor().update_into(x.data.cast("B"), room.data.cast("B"))  # noqa: S305
    x ^= room[:-2].reshape(x.shape)
    return x


def garble(
    circuit: Circuit, offset: Offset, false_labels: Words, context: Context, room: Words | None = None
) -> Garbled:
    """Garble as many instances as there are labels.

    Args:
        circuit: what to garble.
        offset: the session's offset; it claims ``context``.
        false_labels: labels of zero for every input wire, uint64 of shape (circuit.width, n, 2), uniform but for those
            that the evaluator derives too.
        context: where this is; both parties know it.
        room: uint64 to write the tables into, at least as many as they have; for a garbler of many batches that is
            done with one before it makes the next, and need not ask for fresh memory.

    Raises:
        RuntimeError: if the context was used under this offset.
    """
    offset.claim(context)
    schedule = circuit.schedule
    count = false_labels.shape[1]
    rows = _rows(circuit, false_labels)
    shape = table_shape(circuit, count)
    size = int(np.prod(shape))
    tables = (np.empty(size, np.uint64) if room is None else room[:size]).reshape(circuit.and_gates, 2, 2 * count)
    keys = context.keys(2 * circuit.and_gates)

    # whole rows of the offset: adding a (2,) array to a (n, 2) array one pair at a time is 20 times slower
    delta = np.tile(offset.words, count)
    sigma_delta = np.tile(np.array([offset.words[0] ^ offset.words[1], offset.words[0]]), count)
    both_deltas = np.stack([sigma_delta, sigma_delta])
    x = np.empty((2, 2, 2 * count), np.uint64)  # [side, colour]: what is hashed
    hashing = _Hashing(x)
    y = hashing.output
    tint = np.empty((2, 2 * count), np.uint64)  # [side]: the offset where the side's false label has colour one
    plain = np.empty(2 * count, np.uint64)
    at = 0
    for step in schedule.steps:
        a, b, out = rows[step.a], rows[step.b], rows[step.out]
        if step.op == "xor":
            np.bitwise_xor(a, b, out=out)
            continue
        for side, label in enumerate((a, b)):
            _spread_colour(label, tint[side])
            np.bitwise_and(tint[side], delta, out=tint[side])
            np.bitwise_xor(label, tint[side], out=plain)
            _sigma(plain, x[side, 0])
            np.bitwise_xor(x[side, 0], sigma_delta, out=x[side, 1])
            hashing.run(side, keys[2 * at + side])
        if step.invert_a:
            np.bitwise_xor(tint[0], delta, out=tint[0])
        if step.invert_b:
            np.bitwise_xor(tint[1], delta, out=tint[1])

        # rows: H(a, 0) ^ H(a, 1) ^ colour(b) delta, and H(b, 0) ^ H(b, 1) ^ (the label of a = 0)
        table = tables[at]
        np.bitwise_xor(y[:, 0], y[:, 1], out=table)
        np.bitwise_xor(table, both_deltas, out=table)
        np.bitwise_xor(table[0], tint[1], out=table[0])
        np.bitwise_xor(table[1], a, out=table[1])
        if step.invert_a:
            np.bitwise_xor(table[1], delta, out=table[1])
        # whatever the colours, both halves reduce to the hash of the label of colour 0, but for this product
        np.bitwise_and(tint[0], tint[1], out=plain)
        np.bitwise_xor(y[0, 0], plain, out=out)
        np.bitwise_xor(out, x[0, 0], out=out)
        np.bitwise_xor(out, y[1, 0], out=out)
        np.bitwise_xor(out, x[1, 0], out=out)
        at += 1
    decode = np.stack([_colours(rows[slot]) ^ np.uint8(inverted) for slot, inverted in schedule.outputs])
    return Garbled(tables.reshape(shape), decode)


def evaluate(circuit: Circuit, garbled: Garbled, labels: Words, context: Context) -> Bits:
    """Evaluate a garbled batch on one label for every input wire.

    Args:
        circuit: what was garbled.
        garbled: the peer's batch; used up.
        labels: uint64 of shape (circuit.width, n, 2).
        context: where this is, as when it was garbled.

    Returns:
        The outputs, zeros and ones, uint8 of shape (outputs, n).

    Raises:
        RuntimeError: if ``garbled`` was used before.
    """
    tables, decode = garbled.take()
    schedule = circuit.schedule
    count = labels.shape[1]
    rows = _rows(circuit, labels)
    tables = tables.reshape(circuit.and_gates, 2, 2 * count)
    keys = context.keys(2 * circuit.and_gates)
    x = np.empty((2, 1, 2 * count), np.uint64)
    hashing = _Hashing(x)
    y = hashing.output
    mask = np.empty((2, 2 * count), np.uint64)
    row = np.empty(2 * count, np.uint64)
    at = 0
    for step in schedule.steps:
        a, b, out = rows[step.a], rows[step.b], rows[step.out]
        if step.op == "xor":
            np.bitwise_xor(a, b, out=out)
            continue
        for side, label in enumerate((a, b)):
            _sigma(label, x[side, 0])
            hashing.run(side, keys[2 * at + side])
            _spread_colour(label, mask[side])
        np.bitwise_and(mask[0], tables[at, 0], out=mask[0])
        np.bitwise_xor(tables[at, 1], a, out=row)
        np.bitwise_and(mask[1], row, out=mask[1])
        np.bitwise_xor(y, x, out=y)
        np.bitwise_xor(y[0, 0], y[1, 0], out=out)
        np.bitwise_xor(out, mask[0], out=out)
        np.bitwise_xor(out, mask[1], out=out)
        at += 1
    return np.stack([_colours(rows[slot]) for slot, _ in schedule.outputs]) ^ decode


class _Hashing:
    """AES over the labels of one side at a time, from ``x`` (side, k, 2n) into ``output`` of the same shape."""

    def __init__(self, x: Words) -> None:
        room = np.empty(x.size + 2, np.uint64)  # OpenSSL's binding wants a block of room behind what it writes
        self.output: Words = room[:-2].reshape(x.shape)
        half = x.nbytes // 2
        source, target = x.reshape(-1).data.cast("B"), room.data.cast("B")
        self._ends = [(source[i * half : (i + 1) * half], target[i * half : (i + 1) * half + 16]) for i in range(2)]

    def run(self, side: int, key: NDArray[np.uint8]) -> None:
        source, target = self._ends[side]
        Cipher(algorithms.AES(key.data), modes.ECB()).encryptor().update_into(source, target)  # noqa: S305


def _rows(circuit: Circuit, labels: Words) -> list[Words]:
    if labels.shape[0] != circuit.width or labels.shape[2:] != (2,):
        raise ValueError(f"labels have shape {labels.shape}; this circuit wants ({circuit.width}, n, 2)")
    rows = np.empty((circuit.schedule.slots, 2 * labels.shape[1]), np.uint64)
    rows[: circuit.width] = labels.reshape(circuit.width, -1)
    return list(rows)


def _sigma(label: Words, out: Words) -> None:
    np.bitwise_xor(label[0::2], label[1::2], out=out[0::2])
    out[1::2] = label[0::2]


def _spread_colour(label: Words, out: Words) -> None:
    """All ones in both words where the label's colour is one, else zeros."""
    np.right_shift(label.view(np.int64), 63, out=out.view(np.int64))  # contiguous, then one copy: the faster way
    out[1::2] = out[0::2]


def _colours(row: Words) -> Bits:
    return (row[0::2] >> np.uint64(63)).astype(np.uint8)
