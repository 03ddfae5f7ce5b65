"""Maps in slots, and linear layers as rotations and products of diagonals.

*SlotLayout.* Channels of a map (C, H, W) interleave k x k into one plane after k-fold striding, so that a strided layer
moves no value of the planes it keeps (multiplexed packing: Lee et al., ICML 2022). A plane has a pitch of powers of
two; a ciphertext repeats the planes until its slots are full, so that rotations are modulo the layout's size.

*Linear layers.* With d = in - out, out = sum over d of diagonal_d * rotate(in, d), and only diagonals that are not zero
are computed. d is written (G, R, C): planes, rows, columns. Columns and the first few rows are *babies*, made once for
the layer by rotations of one step; the rest are *giants*, applied by Horner's rule from the largest to zero, so that a
layer needs keys for few distinct rotations: 1, -1, one row, and the distances between giants (baby-step giant-step:
Halevi and Shoup, CRYPTO 2014).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["DenseReduction", "Diagonals", "Entries", "SlotLayout", "convolution", "diagonals", "pool_sums", "reduction"]

Real = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class SlotLayout:
    """Where the values of a map (channels, height, width) lie: ``gap`` x ``gap`` channels interleaved in a plane."""

    channels: int
    height: int
    width: int
    gap: int
    rows: int
    columns: int

    @classmethod
    def of(cls, channels: int, height: int = 1, width: int = 1) -> SlotLayout:
        return cls(channels, height, width, 1, _power(height), _power(width))

    @property
    def plane(self) -> int:
        return self.rows * self.columns

    @property
    def planes(self) -> int:
        return _power(-(-self.channels // self.gap**2))

    @property
    def size(self) -> int:
        """Slots of one copy, a power of two."""
        return self.planes * self.plane

    def strided(self, channels: int, height: int, width: int, stride: int) -> SlotLayout:
        """The layout of a layer's output that keeps this one's planes."""
        return SlotLayout(channels, height, width, self.gap * stride, self.rows, self.columns)

    @cached_property
    def slots(self) -> Index:
        """Slot of each value, (channels, height, width)."""
        channel, row, column = np.meshgrid(
            np.arange(self.channels), np.arange(self.height), np.arange(self.width), indexing="ij"
        )
        group, within = np.divmod(channel, self.gap**2)
        down, right = np.divmod(within, self.gap)
        return group * self.plane + (self.gap * row + down) * self.columns + self.gap * column + right

    def packed(self, values: Real, slots: int) -> Real:
        """``values``, that broadcast to (channels, height, width), repeated over ``slots``; zero between."""
        vector = np.zeros(self.size)
        vector[self.slots] = values
        return np.tile(vector, slots // self.size)

    def unpacked(self, vector: Real) -> Real:
        return vector[self.slots]


@dataclass(frozen=True)
class Entries:
    """Entries of a matrix that are not zero, by flat index of output and input value."""

    outputs: Index
    inputs: Index
    weights: Real


def convolution(weight: Real, shape: tuple[int, int, int], stride: int, padding: int, groups: int) -> Entries:
    """A convolution (out, in / groups, kernel, kernel) of maps of ``shape`` (C, H, W), padded with zeros."""
    outs, ins, kernel_h, kernel_w = weight.shape
    _, height, width = shape
    rows = (height + 2 * padding - kernel_h) // stride + 1
    columns = (width + 2 * padding - kernel_w) // stride + 1
    parts: list[Entries] = []
    for down in range(kernel_h):
        for right in range(kernel_w):
            out, channel, row, column = (
                axis.ravel()
                for axis in np.meshgrid(*map(np.arange, (outs, ins, rows, columns)), indexing="ij", sparse=False)
            )
            y, x = stride * row + down - padding, stride * column + right - padding
            values = weight[out, channel, down, right]
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (values != 0)
            source = channel + out // (outs // groups) * ins
            parts.append(
                Entries(
                    ((out * rows + row) * columns + column)[inside],
                    ((source * height + y) * width + x)[inside],
                    values[inside],
                )
            )
    return _concatenated(parts)


def pool_sums(shape: tuple[int, int, int], kernel: tuple[int, int], stride: tuple[int, int]) -> Entries:
    """Sums over windows of maps of ``shape``."""
    channels, height, width = shape
    rows, columns = (height - kernel[0]) // stride[0] + 1, (width - kernel[1]) // stride[1] + 1
    channel, row, column, down, right = (
        axis.ravel() for axis in np.meshgrid(*map(np.arange, (channels, rows, columns, *kernel)), indexing="ij")
    )
    inputs = (channel * height + stride[0] * row + down) * width + stride[1] * column + right
    return Entries((channel * rows + row) * columns + column, inputs, np.ones(len(inputs)))


def _concatenated(parts: Iterable[Entries]) -> Entries:
    parts = list(parts)
    return Entries(
        np.concatenate([part.outputs for part in parts]),
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class Diagonals:
    """A linear layer between two layouts of one pitch.

    Attributes:
        slots: of a ciphertext.
        row: slots of one step down, the key of which babies need.
        baby_rows: rows that babies reach, from 0.
        columns: lowest and highest column shift.
        giants: by giant rotation, descending: the babies (row, column) and their diagonals, rotated back.
    """

    slots: int
    row: int
    baby_rows: int
    columns: tuple[int, int]
    giants: tuple[tuple[int, tuple[tuple[tuple[int, int], Real], ...]], ...]

    @property
    def products(self) -> int:
        return sum(len(terms) for _, terms in self.giants)

    @property
    def rotations(self) -> int:
        babies = self.baby_rows * (self.columns[1] - self.columns[0] + 1) - 1
        return babies + len(self.giants) - 1 + bool(self.giants[-1][0])

    @property
    def steps(self) -> frozenset[int]:
        """Rotations that need a key, to the left, in slots."""
        at = [giant for giant, _ in self.giants]
        steps = {high - low for high, low in pairwise(at)} | {at[-1]}
        steps |= {1} if self.columns[1] else set()
        steps |= {self.slots - 1} if self.columns[0] else set()
        steps |= {self.row} if self.baby_rows > 1 else set()
        return frozenset(steps - {0})


def diagonals(entries: Entries, source: SlotLayout, target: SlotLayout, slots: int) -> Diagonals:
    """The diagonals of a matrix, cut into babies and giants so that rotations are fewest.

    ``source`` is repeated in the input ciphertext, and ``target`` will be in the output.
    """
    if not len(entries.weights):
        raise ValueError("a layer whose weights are all zero has nothing to compute")
    into, out_of = target.slots.ravel()[entries.outputs], source.slots.ravel()[entries.inputs]
    copies = slots // target.size
    into = (into[None] + target.size * np.arange(copies)[:, None]).ravel()
    out_of, weights = np.tile(out_of, copies), np.tile(entries.weights, copies)
    planes = (out_of // source.plane - into // source.plane) % source.planes
    rows = out_of % source.plane // source.columns - into % source.plane // source.columns
    columns = out_of % source.columns - into % source.columns
    lowest, span = int(rows.min()), int(rows.max() - rows.min()) + 1
    narrow = min(int(columns.min()), 0), max(int(columns.max()), 0)
    wide, distinct = narrow[1] - narrow[0] + 1, len(np.unique(planes))
    baby_rows = min(range(1, span + 1), key=lambda count: count * wide + -(-span // count) * distinct)
    step, baby = np.divmod(rows - lowest, baby_rows)
    giants = (planes * source.plane + (lowest + step * baby_rows) * source.columns) % slots
    order = np.lexsort((columns, baby, giants))
    keys = np.stack([giants[order], baby[order], columns[order]])
    cuts = np.flatnonzero((np.diff(keys) != 0).any(axis=0)) + 1
    terms: dict[int, list[tuple[tuple[int, int], Real]]] = {}
    for part in np.split(order, cuts):
        giant = int(giants[part[0]])
        vector = np.zeros(slots)
        np.add.at(vector, (into[part] + giant) % slots, weights[part])
        terms.setdefault(giant, []).append(((int(baby[part[0]]), int(columns[part[0]])), vector))
    ordered = tuple((giant, tuple(terms[giant])) for giant in sorted(terms, reverse=True))
    return Diagonals(slots, source.columns, baby_rows, narrow, ordered)


@dataclass(frozen=True, eq=False)
class DenseReduction:
    """A dense layer to few outputs: ``width`` diagonals by rotations of one step, then sums by halving.

    Every slot of its result holds an output or zero: output i lies at all slots that are i modulo ``width``.
    """

    slots: int
    width: int
    size: int
    vectors: tuple[Real, ...]

    @property
    def products(self) -> int:
        return len(self.vectors)

    @property
    def halvings(self) -> tuple[int, ...]:
        return tuple(self.width << at for at in range((self.size // self.width).bit_length() - 1))

    @property
    def rotations(self) -> int:
        return len(self.vectors) - 1 + len(self.halvings)

    @property
    def steps(self) -> frozenset[int]:
        return frozenset({*self.halvings, *([1] if len(self.vectors) > 1 else [])})


def reduction(entries: Entries, outputs: int, source: SlotLayout, slots: int) -> DenseReduction:
    """A dense layer from ``source`` to ``outputs`` values."""
    width = min(_power(outputs), source.size)
    if outputs > width:
        raise ValueError(f"a dense layer from {source.size} slots to {outputs} outputs: more outputs than slots")
    matrix = np.zeros((width, source.size))
    np.add.at(matrix, (entries.outputs, source.slots.ravel()[entries.inputs]), entries.weights)
    slot = np.arange(slots)
    vectors = tuple(matrix[slot % width, (slot + shift) % source.size] for shift in range(width))
    return DenseReduction(slots, width, source.size, vectors)


def _power(count: int) -> int:
    """The least power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()
