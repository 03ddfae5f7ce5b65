"""The reference engine: one NumPy operation a step on the labels of all instances, and AES of the crypto library."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.crypto.circuit import Circuit

Keys = NDArray[np.uint8]
"""AES-128 keys, 16 bytes each."""

PERMUTE_BIT = 1 << 63
LOCALITY = 10
"""Entries of the table that one output of ``gather`` sums."""


class Reference:
    """See :class:`deepreshape.private.crypto.backend.Engine`."""

    name = "numpy"

    def __init__(self, hint: str = "AES of the cryptography package") -> None:
        self.about = hint

    def prepare(self) -> None:
        """Nothing is made at first use."""

    def garble(self, circuit: Circuit, delta: Words, labels: list[Words], keys: Keys, tables: Words) -> Words:
        count = len(labels[0])
        rows = _rows(circuit, labels)
        tables = tables.reshape(circuit.and_gates, 2, 2 * count)
        # whole rows of Delta: adding a (2,) array to a (n, 2) array one pair at a time is 20 times slower
        deltas = np.tile(delta, count)
        sigma_delta = np.tile(np.array([delta[0] ^ delta[1], delta[0]]), count)
        paired_deltas = np.stack([sigma_delta, sigma_delta])
        x = np.empty((2, 2, 2 * count), np.uint64)  # [side, permute bit]: what is hashed
        hashing = _Hashing(x)
        y = hashing.output
        masked_delta = np.empty((2, 2 * count), np.uint64)  # [side]: Delta where the false label has permute bit 1
        plain = np.empty(2 * count, np.uint64)
        at = 0
        for step in circuit.schedule.steps:
            a, b, out = rows[step.a], rows[step.b], rows[step.out]
            if step.op == "xor":
                np.bitwise_xor(a, b, out=out)
                continue
            for side, label in enumerate((a, b)):
                _spread_permute_bit(label, masked_delta[side])
                np.bitwise_and(masked_delta[side], deltas, out=masked_delta[side])
                np.bitwise_xor(label, masked_delta[side], out=plain)
                _sigma(plain, x[side, 0])
                np.bitwise_xor(x[side, 0], sigma_delta, out=x[side, 1])
                hashing.run(side, keys[2 * at + side])
            if step.invert_a:
                np.bitwise_xor(masked_delta[0], deltas, out=masked_delta[0])
            if step.invert_b:
                np.bitwise_xor(masked_delta[1], deltas, out=masked_delta[1])

            # rows: H(a, 0) ^ H(a, 1) ^ permute(b) delta, and H(b, 0) ^ H(b, 1) ^ (the label of a = 0)
            table = tables[at]
            np.bitwise_xor(y[:, 0], y[:, 1], out=table)
            np.bitwise_xor(table, paired_deltas, out=table)
            np.bitwise_xor(table[0], masked_delta[1], out=table[0])
            np.bitwise_xor(table[1], a, out=table[1])
            if step.invert_a:
                np.bitwise_xor(table[1], deltas, out=table[1])
            # whatever the permute bits, both halves reduce to the hash of the label of permute bit 0, but for
            # this product
            np.bitwise_and(masked_delta[0], masked_delta[1], out=plain)
            np.bitwise_xor(y[0, 0], plain, out=out)
            np.bitwise_xor(out, x[0, 0], out=out)
            np.bitwise_xor(out, y[1, 0], out=out)
            np.bitwise_xor(out, x[1, 0], out=out)
            at += 1
        return _outputs(circuit, rows)

    def evaluate(self, circuit: Circuit, tables: Words, labels: list[Words], keys: Keys) -> Words:
        count = len(labels[0])
        rows = _rows(circuit, labels)
        tables = tables.reshape(circuit.and_gates, 2, 2 * count)
        x = np.empty((2, 1, 2 * count), np.uint64)
        hashing = _Hashing(x)
        y = hashing.output
        mask = np.empty((2, 2 * count), np.uint64)
        row = np.empty(2 * count, np.uint64)
        at = 0
        for step in circuit.schedule.steps:
            a, b, out = rows[step.a], rows[step.b], rows[step.out]
            if step.op == "xor":
                np.bitwise_xor(a, b, out=out)
                continue
            for side, label in enumerate((a, b)):
                _sigma(label, x[side, 0])
                hashing.run(side, keys[2 * at + side])
                _spread_permute_bit(label, mask[side])
            np.bitwise_and(mask[0], tables[at, 0], out=mask[0])
            np.bitwise_xor(tables[at, 1], a, out=row)
            np.bitwise_and(mask[1], row, out=mask[1])
            np.bitwise_xor(y, x, out=y)
            np.bitwise_xor(y[0, 0], y[1, 0], out=out)
            np.bitwise_xor(out, mask[0], out=out)
            np.bitwise_xor(out, mask[1], out=out)
            at += 1
        return _outputs(circuit, rows)

    def hash(self, labels: Words, key: Keys) -> Words:
        x = np.empty(2 * len(labels), np.uint64)
        _sigma(labels.reshape(-1), x)
        y = np.empty(x.size + 2, np.uint64)
        _encrypt(key, x.data.cast("B"), y.data.cast("B"))
        return np.bitwise_xor(x, y[:-2], out=x).reshape(-1, 2)

    def pick(self, labels: Words, delta: Words, bits: Bits, out: Words) -> None:
        choose = np.negative(bits.astype(np.int64)).view(np.uint64)
        for word in range(2):
            np.bitwise_xor(labels[:, word], choose & delta[word], out=out[:, word])

    def transpose(self, columns: Bits) -> Words:
        """In tiles of 8x8 bits, each one word, turned by three exchanges of ever larger blocks."""
        m = columns.shape[1]
        rows = np.empty((m, 8, 2), np.uint64)
        for start in range(0, m, 2048):  # pieces that stay in cache
            tiles = columns[:, start : start + 2048].T.copy().view(np.uint64)
            for distance, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
                swap = (tiles ^ (tiles >> np.uint64(distance))) & np.uint64(mask)
                tiles ^= swap ^ (swap << np.uint64(distance))
            octets = tiles.view(np.uint8).reshape(-1, 16, 8)
            rows[start : start + 2048].view(np.uint8)[...] = octets.transpose(0, 2, 1)
        return rows.reshape(8 * m, 2)

    def grow(self, roots: Words, delta: Words, depth: int, key: Keys) -> tuple[Words, Words]:
        nodes = np.stack([roots, roots ^ delta], axis=1)
        sums = [roots]
        for level in range(1, depth):
            nodes = self._children(nodes, key, level == depth - 1)
            sums.append(np.bitwise_xor.reduce(nodes[:, : 1 << level], axis=1))
        return nodes.reshape(-1, 2), np.stack(sums, axis=1)

    def regrow(self, sums: Words, sides: Bits, key: Keys) -> Words:
        trees, depth = len(sides), sides.shape[1]
        tree = np.arange(trees)
        hole = 1 - sides[:, 0].astype(np.int64)
        nodes = np.zeros((trees, 2, 2), np.uint64)
        nodes[tree, 1 - hole] = sums[:, 0]
        for level in range(1, depth):
            nodes = self._children(nodes, key, level == depth - 1)
            side = sides[:, level].astype(np.int64)
            known, hole = hole + (side << level), hole + ((1 - side) << level)
            nodes[tree, known] = nodes[tree, hole] = 0
            halves = np.bitwise_xor.reduce(nodes.reshape(trees, 2, -1, 2), axis=2)
            nodes[tree, known] = sums[:, level] ^ halves[tree, side]
        nodes[:, :, 0] &= np.uint64(PERMUTE_BIT - 1)
        nodes[tree, hole] = np.bitwise_xor.reduce(nodes, axis=1)
        nodes[tree, hole, 0] |= np.uint64(PERMUTE_BIT)
        return nodes.reshape(-1, 2)

    def _children(self, nodes: Words, key: Keys, last: bool) -> Words:
        """Of (trees, n) nodes; the left ones come first."""
        left = self.hash(nodes.reshape(-1, 2), key).reshape(nodes.shape)
        children = np.concatenate([left, left ^ nodes], axis=1)
        if last:
            children[..., 0] &= np.uint64(PERMUTE_BIT - 1)
        return children

    def gather(self, out: Words, table: Words, key: Keys, first: int) -> None:
        step = 1 << 14
        for start in range(0, len(out), step):
            piece = out[start : start + step]
            counters = np.zeros((len(piece) * LOCALITY // 4, 2), np.uint64)
            counters[:, 0] = np.arange(len(counters), dtype=np.uint64) + np.uint64((first + start) * LOCALITY // 4)
            room = np.empty(counters.size + 2, np.uint64)
            _encrypt(key, counters.reshape(-1).data.cast("B"), room.data.cast("B"))
            indices = room[:-2].view(np.uint32).reshape(-1, LOCALITY) & np.uint32(len(table) - 1)
            for column in indices.T:
                piece ^= table[column]

    def hash_columns(self, labels: Words, keys: Keys, delta: Words) -> Words:
        moved = labels ^ delta
        return np.stack([self.hash(column, key) for column, key in zip(moved, keys, strict=True)])

    def fold(self, seeds: Words, keys: Keys) -> tuple[Words, Words]:
        columns = np.empty((len(seeds), 8, len(keys), 2), np.uint64)
        sums = np.empty((len(seeds), len(keys), 2), np.uint64)
        for number, key in enumerate(keys):
            left = self.hash(seeds.reshape(-1, 2), key).reshape(seeds.shape)
            for bit in range(7, -1, -1):
                low, high = left[:, : 1 << bit], left[:, 1 << bit :]
                columns[:, bit, number] = np.bitwise_xor.reduce(high, axis=1)
                left = low ^ high
            sums[:, number] = left[:, 0]
        return columns, sums

    def pack(self, values: Words, bits: int) -> Bits:
        octets = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
        return np.packbits(np.unpackbits(octets, axis=1, count=bits, bitorder="little"), bitorder="little")

    def unpack(self, data: Bits, bits: int, count: int) -> Words:
        planes = np.zeros((count, 64), np.uint8)
        planes[:, :bits] = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
        return np.packbits(planes, axis=1, bitorder="little").view(np.uint64).reshape(-1)


class _Hashing:
    """AES over the labels of one side at a time, from ``x`` (side, k, 2n) into ``output`` of the same shape."""

    def __init__(self, x: Words) -> None:
        room = np.empty(x.size + 2, np.uint64)
        self.output: Words = room[:-2].reshape(x.shape)
        half = x.nbytes // 2
        source, target = x.reshape(-1).data.cast("B"), room.data.cast("B")
        self._ends = [(source[i * half : (i + 1) * half], target[i * half : (i + 1) * half + 16]) for i in range(2)]

    def run(self, side: int, key: Keys) -> None:
        _encrypt(key, *self._ends[side])


def _encrypt(key: Keys, source: memoryview, target: memoryview) -> None:
    """AES of each block; the library's binding wants a block of room behind what it writes."""
    Cipher(algorithms.AES(key.data), modes.ECB()).encryptor().update_into(source, target)  # noqa: S305


def _rows(circuit: Circuit, labels: list[Words]) -> list[Words]:
    rows = list(np.empty((circuit.schedule.slots, labels[0].size), np.uint64))
    for row, label in zip(rows, labels, strict=False):
        row[:] = label.reshape(-1)
    return rows


def _outputs(circuit: Circuit, rows: list[Words]) -> Words:
    return np.stack([rows[slot] for slot, _ in circuit.schedule.outputs]).reshape(len(circuit.outputs), -1, 2)


def _sigma(label: Words, out: Words) -> None:
    np.bitwise_xor(label[0::2], label[1::2], out=out[0::2])
    out[1::2] = label[0::2]


def _spread_permute_bit(label: Words, out: Words) -> None:
    """All ones in both words where the label's permute bit is one, else zeros."""
    np.right_shift(label.view(np.int64), 63, out=out.view(np.int64))  # contiguous, then one copy: the faster way
    out[1::2] = out[0::2]
