"""ReLUs, squares, signs and truncations: what the parties compute by a protocol, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.square import Squaring
from deepreshape.private.arith.truncation import to_nearest
from deepreshape.private.program.ops.base import (
    Exact,
    Integers,
    Op,
    ProgramError,
    Rounding,
    Secret,
    Shape,
    Value,
    Weights,
    roomy,
)


@dataclass(frozen=True, eq=False)
class Relu(Op):
    """max(x, 0) / 2^shift where ``mask`` is true, x / 2^shift elsewhere, rounded to the nearest.

    ``mask`` is bool, of the shape of the value; None is true everywhere. ``low`` and ``high`` say, by calibration,
    which bits of x a sign test may be content with (``drelu.Window``): bits from ``high`` up repeat the sign, and those
    below ``low`` hardly matter; 0 and 0 say nothing.
    """

    kind = "relu"

    shift: int = 0
    mask: NDArray[np.bool_] | None = None
    low: int = 0
    high: int = 0

    def value(self, *sources: Value) -> Value:
        source = sources[0]
        _check_mask(self, self.mask, source)
        window = (self.low, self.high) == (0, 0) or 0 <= self.low <= self.high - 2
        self.require(window, f"a sign test of the bits from {self.low} up to {self.high}; it needs two bits")
        return _shifted(self, source, self.shift)

    def positions(self, source: Value) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Flat positions that are rectified, and those that are only truncated."""
        if self.mask is None:
            return np.arange(source.size), np.arange(0)
        mask = self.mask.reshape(-1)
        return np.flatnonzero(mask), np.flatnonzero(~mask)

    def truncated(self, source: Value) -> NDArray[np.intp]:
        """Flat positions that are truncated without a ReLU."""
        return self.positions(source)[1] if self.shift else np.arange(0)

    def count(self, source: Value) -> int:
        """How many elements are rectified."""
        return source.size if self.mask is None else int(np.count_nonzero(self.mask))

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return _shifted_bound(inputs[0], self.shift)

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        x = inputs[0]
        kept = np.maximum(x, 0) if self.mask is None else np.where(self.mask, np.maximum(x, 0), x)
        return rounding.rounded(self, x, to_nearest(kept, self.shift))


@dataclass(frozen=True, eq=False)
class Square(Secret):
    """(((x + t) >> before)^2 >> after) + c; max(x, 0) / 2^shift, to the nearest, where ``mask`` is true.

    t and c are the server's: weight and bias, (C,) each for an input of C rows (channels), t with the fraction of the
    input and c with that of the output. ``mask`` is bool, of the shape of the value; None is true nowhere.
    """

    kind = "square"
    holds = "constants"

    before: int
    after: int
    shift: int = 0
    mask: NDArray[np.bool_] | None = None

    def weight_shape(self, source: Value) -> Shape:
        return source.shape[:1]

    def value(self, *sources: Value) -> Value:
        source = sources[0]
        _check_mask(self, self.mask, source)
        fraction = 2 * (source.fraction - self.before) - self.after
        fits = min(self.before, self.after) >= 0 and source.fraction >= self.before and fraction >= 0
        self.require(fits, f"drops {self.before} and {self.after} bits around the square of {source.fraction} to drop")
        shift = 0 if self.relus is None else source.fraction - fraction
        self.require(self.shift == shift, f"its ReLUs drop {self.shift} bits; beside its squares they drop {shift}")
        return Value(source.shape, fraction)

    @property
    def relus(self) -> Relu | None:
        """What it does where the mask is true, as an operation of that mask; None if it is so nowhere."""
        if self.mask is None or not self.mask.any():
            return None
        return Relu(self.name, self.inputs, self.shift, self.mask)

    def positions(self, source: Value) -> NDArray[np.intp]:
        """Flat positions of squares."""
        return np.arange(source.size) if self.mask is None else np.flatnonzero(~self.mask)

    def squaring(self, modulus: Ring | Field) -> Squaring:
        """The arithmetic on shares.

        Raises:
            ProgramError: if squares cannot be taken over ``modulus``.
        """
        if isinstance(modulus, Field):
            raise ProgramError(f"{self.name}: squares are computed over a ring, not over {modulus}; use Ring(bits)")
        try:
            return Squaring(modulus, self.before, self.after)
        except ValueError as error:
            raise ProgramError(f"{self.name}: {error}") from None

    def reach(self, bound: int, weights: Weights | None) -> int:
        return bound + int(np.abs(self.secret(weights).weight).max())

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        root = (self.reach(inputs[0], weights) >> self.before) + 1
        square = (root**2 >> self.after) + 1 + int(np.abs(self.secret(weights).bias).max())
        return max(square, (inputs[0] >> self.shift) + 1)

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        x, secret = inputs[0], self.secret(weights)
        shift, constant = (part.reshape(-1, *[1] * (x.ndim - 2)) for part in (secret.weight, secret.bias))
        moved = x + shift
        root = moved >> np.int64(self.before)
        exact = (roomy(root, int(np.abs(root).max())) * root) >> self.after
        mask = self.mask
        if mask is None:
            return rounding.rounded(self, moved, exact) + constant
        exact = np.where(mask, to_nearest(np.maximum(x, 0), self.shift), exact)
        return rounding.rounded(self, np.where(mask, x, moved), exact) + np.where(mask, 0, constant)


@dataclass(frozen=True)
class Sign(Secret):
    """+1 where x + t is above 0, -1 elsewhere, without fraction bits.

    t is the server's, with the fraction of the input: the weight, (C,) for an input of C rows (channels). ``high`` says
    in how many bits x + t fits for every input, as a signed integer; a sign test reads no others. 0 says nothing.
    ``low`` and ``calibrated`` say, by calibration, with which of these it may be content, as ``low`` and ``high`` of a
    :class:`Relu`; 0 and 0 where x is a whole number, whose signs are exact.
    """

    kind = "sign"
    holds = "thresholds"

    high: int = 0
    low: int = 0
    calibrated: int = 0

    def weight_shape(self, source: Value) -> Shape:
        return source.shape[:1]

    def value(self, *sources: Value) -> Value:
        self.require(self.high == 0 or self.high >= 2, f"a sign test of {self.high} bits; it needs two")
        window = (self.low, self.calibrated) == (0, 0) or 0 <= self.low <= self.calibrated - 2
        self.require(window, f"a sign test of the bits from {self.low} up to {self.calibrated}; it needs two bits")
        wider = self.high and self.calibrated > self.high
        self.require(not wider, f"calibration reads {self.calibrated} bits, and {self.high} are proven to be enough")
        return Value(sources[0].shape, 0)

    def reach(self, bound: int, weights: Weights | None) -> int:
        return bound + int(np.abs(self.secret(weights).weight).max())

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return 1

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        moved = inputs[0] + self.secret(weights).weight.reshape(-1, *[1] * (inputs[0].ndim - 2))
        return rounding.rounded(self, moved, np.where(moved > 0, 1, -1).astype(np.int64))


@dataclass(frozen=True)
class Truncate(Op):
    """x / 2^shift, rounded to the nearest."""

    kind = "truncate"

    shift: int

    def value(self, *sources: Value) -> Value:
        return _shifted(self, sources[0], self.shift)

    def truncated(self, source: Value) -> NDArray[np.intp]:
        """Flat positions that are truncated: all, or none if nothing is dropped."""
        return np.arange(source.size if self.shift else 0)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return _shifted_bound(inputs[0], self.shift)

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        return rounding.rounded(self, inputs[0], to_nearest(inputs[0], self.shift))


def _check_mask(op: Op, mask: NDArray[np.bool_] | None, source: Value) -> None:
    if mask is not None:
        fits = mask.dtype == np.bool_ and mask.shape == source.shape
        op.require(fits, f"its mask is {mask.dtype} of shape {mask.shape}; it must be bool of shape {source.shape}")


def _shifted_bound(bound: int, shift: int) -> int:
    """The largest size of what is left of values up to ``bound``: a negative one's floor is one unit further from zero,
    and truncation of shares over a field may end one below that (``truncation.py``).
    """
    return (bound >> shift) + 2 if shift else bound


def _shifted(op: Relu | Truncate, source: Value, shift: int) -> Value:
    op.require(0 <= shift <= source.fraction, f"drops {shift} bits of a value that has {source.fraction} to drop")
    return Value(source.shape, source.fraction - shift)
