"""Operations that put elements elsewhere: each party moves those of its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.program.ops.base import (
    Exact,
    Integers,
    Local,
    Rounding,
    Secret,
    Shape,
    Value,
    Weights,
)


@dataclass(frozen=True)
class Flatten(Local):
    """The elements in C order, as one axis."""

    kind = "flatten"

    def value(self, *sources: Value) -> Value:
        return Value((sources[0].size,), sources[0].fraction)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return inputs[0]

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        return inputs[0].reshape(len(inputs[0]), -1)

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        return shares[0].reshape(-1)


@dataclass(frozen=True)
class Concat(Local):
    """Values of one fraction behind one another, along their first axis; all other sides are equal."""

    kind = "concat"
    several = True

    def value(self, *sources: Value) -> Value:
        rest = {(source.shape[1:], source.fraction) for source in sources}
        self.require(len(rest) == 1, f"joins values that differ in size or fraction: {[*map(tuple, sources)]}")
        return Value((sum(source.shape[0] for source in sources), *sources[0].shape[1:]), sources[0].fraction)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return max(inputs)

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        return np.concatenate(inputs, 1)

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        return np.concatenate(shares)


@dataclass(frozen=True, eq=False)
class Gather(Local):
    """An array of chosen elements: slices, permutations, zero padding, repetition, shuffles.

    ``index`` is int32 of the result's shape: where in the input, in C order, each element stands; -1 is a zero.
    """

    kind = "gather"

    index: NDArray[np.int32]

    def value(self, *sources: Value) -> Value:
        fits = self.index.dtype == np.int32 and self.index.size > 0 and self.index.ndim > 0
        self.require(fits, f"its index is {self.index.dtype} {self.index.shape}; it must be int32 and not empty")
        low, high = int(self.index.min()), int(self.index.max())
        self.require(low >= -1 and high < sources[0].size, f"reads {low} to {high} of {sources[0].size} elements")
        return Value(self.index.shape, sources[0].fraction)

    def rows(self, of: NDArray[np.float64], source: Value) -> NDArray[np.float64]:
        """For each row of the result (its first axis), the largest of what ``of`` says of the rows that it reads."""
        each = np.repeat(of, source.size // len(of))[np.maximum(self.index, 0)]
        return np.where(self.index < 0, 0.0, each).reshape(len(self.index), -1).max(1)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return inputs[0]

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        return np.where(self.index < 0, 0, inputs[0].reshape(len(inputs[0]), -1)[:, self.index])

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        return np.where(self.index < 0, np.uint64(0), shares[0].reshape(-1)[self.index])


@dataclass(frozen=True, eq=False)
class Fill(Local, Secret):
    """(C, P) -> (C, H, W): the P pixels where ``mask``, bool (H, W), is true, in C order; elsewhere a constant.

    The constants are the server's, with the fraction of the value: the weight, (C,). Each party puts its share in its
    place with zeros around it, and the server adds them (:meth:`constants`).
    """

    kind = "fill"
    holds = "constants"

    mask: NDArray[np.bool_]

    def weight_shape(self, source: Value) -> Shape:
        return source.shape[:1]

    def value(self, *sources: Value) -> Value:
        shape, pixels = sources[0].shape, np.count_nonzero(self.mask)
        fits = self.mask.dtype == np.bool_ and self.mask.ndim == 2 and shape[1:] == (pixels,)
        given = f"{self.mask.dtype} of shape {self.mask.shape} with {pixels} pixels"
        self.require(fits, f"its mask is {given}, for values of shape {shape}; it must be bool, (H, W), with as many")
        return Value((shape[0], *self.mask.shape), sources[0].fraction)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return max(inputs[0], int(np.abs(self.secret(weights).weight).max()))

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        result = np.zeros((*inputs[0].shape[:2], *self.mask.shape), np.int64)
        result[:, :, self.mask] = inputs[0]
        return result + np.where(self.mask, 0, self.secret(weights).weight[:, None, None])

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        result = np.zeros((len(shares[0]), *self.mask.shape), np.uint64)
        result[:, self.mask] = shares[0]
        return result

    def constants(self, weights: Weights, modulus: Ring | Field) -> Words:
        """What the server adds to its share."""
        return modulus.encode(np.where(self.mask, 0, weights.weight[:, None, None]))
