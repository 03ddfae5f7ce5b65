"""Sums, and products with public constants: each party computes them on its share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.program.integer_linear import windows
from deepreshape.private.program.ops.base import Exact, Integers, Local, Rounding, Value, Weights, roomy


@dataclass(frozen=True)
class Add(Local):
    """The sum of two or more values of one shape and fraction."""

    kind = "add"
    several = True

    def value(self, *sources: Value) -> Value:
        same = len(set(sources)) == 1
        self.require(same, f"adds values that differ in shape or fraction: {[*map(tuple, sources)]}")
        return sources[0]

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return sum(inputs)

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        total = roomy(inputs[0], len(inputs))
        for addend in inputs[1:]:
            total = total + addend
        return total

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        return _added(shares, modulus)


@dataclass(frozen=True)
class SumPool(Local):
    """The sum over windows of (C, H, W), without padding; windows that do not fit whole are left out.

    A kernel of (H, W) pools globally.
    """

    kind = "sum_pool"

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def value(self, *sources: Value) -> Value:
        source = sources[0]
        self.require(len(source.shape) == 3, f"wants (channels, height, width), gets {source.shape}")
        self.require(min(*self.kernel, *self.stride) >= 1, f"sizes below 1 in {self}")
        channels, *sides = source.shape
        room = [side - kernel for side, kernel in zip(sides, self.kernel, strict=True)]
        self.require(min(room) >= 0, f"a window of {self.kernel} is larger than the image {source.shape}")
        rows, columns = (left // stride + 1 for left, stride in zip(room, self.stride, strict=True))
        return Value((channels, rows, columns), source.fraction)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return math.prod(self.kernel) * inputs[0]

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        total = np.zeros((), np.int64)
        image = roomy(inputs[0], self.kernel[0] * self.kernel[1])
        for rows, columns in windows(self.kernel, self.stride, *image.shape[2:]):
            total = total + image[:, :, rows, columns]
        return total

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        places = windows(self.kernel, self.stride, *shares[0].shape[1:])
        return _added([np.ascontiguousarray(shares[0][:, *place]) for place in places], modulus)


@dataclass(frozen=True)
class Raise(Local):
    """A value times 2^shift, with that many more fraction bits: the same number, in a finer format."""

    kind = "raise"

    shift: int

    def value(self, *sources: Value) -> Value:
        self.require(0 <= self.shift < 63, f"cannot add {self.shift} fraction bits")
        return Value(sources[0].shape, sources[0].fraction + self.shift)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return inputs[0] << self.shift

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        return roomy(inputs[0], 1 << self.shift) * (1 << self.shift)

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        return modulus.scale(shares[0], 1 << self.shift)


@dataclass(frozen=True)
class Rescale(Local):
    """factor * x + offset, with ``fraction`` more fraction bits: a product with a public constant, and another added.

    ``factor`` is not zero; ``offset`` has the fraction of the result.
    """

    kind = "scale"

    factor: int
    fraction: int = 0
    offset: int = 0

    def value(self, *sources: Value) -> Value:
        self.require(1 <= abs(self.factor) <= 1 << 30, f"a factor of {self.factor}; ±1 to ±2^30 are supported")
        self.require(0 <= self.fraction <= 60, f"a factor of {self.fraction} fraction bits; use 0 to 60")
        return Value(sources[0].shape, sources[0].fraction + self.fraction)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return abs(self.factor) * inputs[0] + abs(self.offset)

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        return roomy(inputs[0], abs(self.factor) + abs(self.offset)) * self.factor + self.offset

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        scaled = modulus.scale(shares[0], self.factor)
        return modulus.add(scaled, modulus.encode(np.array(self.offset))) if server and self.offset else scaled


def _added(shares: Sequence[Words], modulus: Ring | Field) -> Words:
    total = shares[0]
    for addend in shares[1:]:
        total = modulus.add(total, addend)
    return total
