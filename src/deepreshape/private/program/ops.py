"""The operations of the integer program, each with all that it means.

An operation is a frozen dataclass. It says the shape and fraction of its result (:meth:`Op.value`), how large it may
get (:meth:`Op.worst`) and what it computes (:meth:`Op.interpret`); if each party can do it on its share alone, it is
:class:`Local` and says how (:meth:`Local.on_share`). Its bytes follow from its fields (``encoding.py``).

*Meaning.* A value stands for integer / 2^fraction, images being (channels, height, width). ``Conv2d`` and ``Linear``
multiply exactly, so the fraction grows by that of the weights; ``Relu``, ``Truncate`` and ``Square`` drop bits of it,
rounding towards minus infinity. All others are exact. ``SumPool`` sums and does not divide: an average's division
belongs into the weights of the next layer. Nothing is ever reduced: a program is right only while every value fits the
modulus, and :meth:`Program.check` says whether it must.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.bounds import SUM_BITS
from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.arith.square import Squaring
from deepreshape.private.program.integer_linear import exactly, patches, windows

Shape = tuple[int, ...]
Integers = NDArray[np.int64]
Exact = NDArray[np.int64] | NDArray[np.object_]
"""Integers of any size: int64 where they fit, else Python's."""

INPUT = "input"
LARGEST = 1 << 31
"""No integer of an operation may be larger."""
MOST_ELEMENTS = 1 << 24
"""Of one value: the largest of a ResNet-50 on ImageNet has 2^20."""
MOST_WEIGHTS = 1 << 28
"""Of one layer."""


class ProgramError(ValueError):
    """A program that makes no sense, or cannot be run safely; the text names the layer and what would help."""


class Value(NamedTuple):
    """The public facts of a value: its shape, and how many of its bits stand behind the binary point."""

    shape: Shape
    fraction: int

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """Weights and bias of one operation, int64; the server's secret."""

    weight: Integers
    bias: Integers

    @cached_property
    def reach(self) -> int:
        """The largest sum of the absolute weights of one output."""
        return int(np.abs(self.weight.reshape(len(self.weight), -1)).sum(1).max())


class Rounding(Protocol):
    """How an interpreter rounds: what may depend on the parties' shares."""

    def rounded(self, op: Op, x: Integers, exact: Exact) -> Exact:
        """What the parties make of ``x`` by their protocols for ``op``; ``exact`` where no share decides anything."""
        ...


@dataclass(frozen=True)
class Op(ABC):
    """One operation: it makes the value ``name`` from the values ``inputs``."""

    name: str
    inputs: tuple[str, ...]

    kind: ClassVar[str]
    """What it is called in a program's bytes."""
    several: ClassVar[bool] = False
    """Whether it takes two or more inputs; all others take one."""

    @abstractmethod
    def value(self, *sources: Value) -> Value:
        """The value made from ``sources``.

        Raises:
            ProgramError: if they do not fit.
        """

    @abstractmethod
    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        """The largest absolute value of the result, from those of the inputs.

        Raises:
            ProgramError: if weights are needed and there are none.
        """

    @abstractmethod
    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        """The result for a batch of inputs, (N, *shape) each."""

    def reach(self, bound: int, weights: Weights | None) -> int:
        """The largest absolute value that a protocol is given for inputs up to ``bound``."""
        return bound

    def require(self, holds: bool, otherwise: str) -> None:
        """Raise a ``ProgramError`` that names this operation unless ``holds``."""
        if not holds:
            raise ProgramError(f"{self.name}: {otherwise}")


@dataclass(frozen=True)
class Local(Op):
    """What each party does on its own shares, without a word to the other: a linear map with public coefficients."""

    @abstractmethod
    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        """A party's share of the result. ``server``: whether it is the party that adds constants."""


@dataclass(frozen=True)
class Secret(Op):
    """What has weights of the server's, in :attr:`Program.weights`."""

    @abstractmethod
    def weight_shape(self, source: Value) -> Shape:
        """Shape of the weights for an input like ``source``; there is a bias for each of its rows."""


@dataclass(frozen=True)
class Weighted(Secret):
    """What multiplies by the server's weights."""

    @abstractmethod
    def multiply(self, weight: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The product with (N, *input shape), without the bias."""

    @abstractmethod
    def spread(self, bias: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bias in the shape in which it is added to an output."""

    @abstractmethod
    def widths(self) -> tuple[int, int]:
        """The declared bits of a weight, and of the absolute weights of one output in sum."""

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        if weights is None:
            raise ProgramError(f"{self.name}: bounds come from the weights, which a public program has not")
        rows = np.abs(weights.weight.reshape(len(weights.weight), -1)).sum(1)
        return max(int(row) * inputs[0] + abs(int(bias)) for row, bias in zip(rows, weights.bias, strict=True))

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        if weights is None:
            raise ProgramError(f"{self.name}: a public program has no weights to run with")
        return exactly(self, weights, inputs[0])


@dataclass(frozen=True, eq=False)
class Conv2d(Weighted):
    """(C, H, W) -> (out_channels, H', W') with square kernels and zero padding, as torch's ``Conv2d`` has it.

    With a ``mask``, bool of shape (H', W'), it gives (out_channels, P): the P pixels where that is true, in C order.

    Weights are (out_channels, C / groups, kernel, kernel), of absolute value at most 2^weight_bits, and the absolute
    weights of one output channel sum to at most 2^sum_bits; they and the bias (out_channels,) stand in
    :attr:`Program.weights`. The bias has the fraction of the output.
    """

    kind = "conv2d"

    out_channels: int
    kernel: int
    weight_bits: int
    weight_fraction: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    sum_bits: int = SUM_BITS
    mask: NDArray[np.bool_] | None = None

    def weight_shape(self, source: Value) -> Shape:
        return self.out_channels, source.shape[0] // self.groups, self.kernel, self.kernel

    def value(self, *sources: Value) -> Value:
        source = sources[0]
        self.require(len(source.shape) == 3, f"wants (channels, height, width), gets {source.shape}")
        self.require(min(self.out_channels, self.kernel, self.stride, self.groups) >= 1, f"sizes below 1 in {self}")
        channels, *sides = source.shape
        fits = channels % self.groups == 0 and self.out_channels % self.groups == 0
        self.require(fits, f"{channels} to {self.out_channels} channels do not divide into {self.groups} groups")
        self.require(0 <= self.padding < self.kernel, f"padding {self.padding} must be below kernel {self.kernel}")
        padded = [side + 2 * self.padding - self.kernel for side in sides]
        self.require(min(padded) >= 0, f"kernel {self.kernel} is larger than the padded image {source.shape}")
        size = channels * math.prod(side + 2 * self.padding for side in sides)
        self.require(size <= MOST_ELEMENTS, f"pads to {size} elements; at most {MOST_ELEMENTS} are supported")
        _check_weight_count(self, source)
        rows, columns = (side // self.stride + 1 for side in padded)
        _check_weight_format(self)
        fraction = source.fraction + self.weight_fraction
        if self.mask is None:
            return Value((self.out_channels, rows, columns), fraction)
        fits = self.mask.dtype == np.bool_ and self.mask.shape == (rows, columns) and self.mask.any()
        given = f"{self.mask.dtype} of shape {self.mask.shape}, true at {np.count_nonzero(self.mask)} pixels"
        self.require(bool(fits), f"its mask is {given}; it must be bool of shape {(rows, columns)}, true somewhere")
        return Value((self.out_channels, int(np.count_nonzero(self.mask))), fraction)

    def multiply(self, weight: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = patches(x, self.kernel, self.stride, self.padding, self.mask)  # (C, k, k, N, H', W'), or (..., P)
        channels, place = columns.shape[0] // self.groups, columns.shape[3:]
        grouped = columns.reshape(self.groups, channels * self.kernel**2, -1)
        product = weight.reshape(self.groups, self.out_channels // self.groups, -1) @ grouped
        return product.reshape(self.out_channels, *place).swapaxes(0, 1)

    def spread(self, bias: NDArray[np.int64]) -> NDArray[np.int64]:
        return bias[:, None, None] if self.mask is None else bias[:, None]

    def widths(self) -> tuple[int, int]:
        return self.weight_bits, self.sum_bits


@dataclass(frozen=True)
class Linear(Weighted):
    """(I,) -> (out_features,), weights (out_features, I); otherwise as :class:`Conv2d`."""

    kind = "linear"

    out_features: int
    weight_bits: int
    weight_fraction: int
    sum_bits: int = SUM_BITS

    def weight_shape(self, source: Value) -> Shape:
        return self.out_features, source.shape[0]

    def value(self, *sources: Value) -> Value:
        source = sources[0]
        self.require(len(source.shape) == 1, f"wants a flat input, gets {source.shape}; put a Flatten before it")
        self.require(self.out_features >= 1, f"{self.out_features} outputs")
        _check_weight_count(self, source)
        _check_weight_format(self)
        return Value((self.out_features,), source.fraction + self.weight_fraction)

    def multiply(self, weight: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x @ weight.T

    def spread(self, bias: NDArray[np.int64]) -> NDArray[np.int64]:
        return bias

    def widths(self) -> tuple[int, int]:
        return self.weight_bits, self.sum_bits


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
        total = _roomy(inputs[0], len(inputs))
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
        roomy = _roomy(inputs[0], self.kernel[0] * self.kernel[1])
        for rows, columns in windows(self.kernel, self.stride, *roomy.shape[2:]):
            total = total + roomy[:, :, rows, columns]
        return total

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        places = windows(self.kernel, self.stride, *shares[0].shape[1:])
        return _added([np.ascontiguousarray(shares[0][:, *place]) for place in places], modulus)


@dataclass(frozen=True, eq=False)
class Relu(Op):
    """max(x, 0) >> shift where ``mask`` is true, x >> shift elsewhere.

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
        return (inputs[0] >> self.shift) + 1  # floor of a negative value, or one unit of rounding

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        x = inputs[0]
        kept = np.maximum(x, 0) if self.mask is None else np.where(self.mask, np.maximum(x, 0), x)
        return rounding.rounded(self, x, kept >> np.int64(self.shift))


@dataclass(frozen=True, eq=False)
class Square(Secret):
    """(((x + t) >> before)^2 >> after) + c; max(x, 0) >> shift where ``mask`` is true.

    t and c are the server's: weight and bias, (C,) each for an input of C rows (channels), t with the fraction of the
    input and c with that of the output. ``mask`` is bool, of the shape of the value; None is true nowhere.
    """

    kind = "square"

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
        return bound + int(np.abs(self._secret(weights).weight).max())

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        root = (self.reach(inputs[0], weights) >> self.before) + 1
        square = (root**2 >> self.after) + 1 + int(np.abs(self._secret(weights).bias).max())
        return max(square, (inputs[0] >> self.shift) + 1)

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        x, secret = inputs[0], self._secret(weights)
        shift, constant = (part.reshape(-1, *[1] * (x.ndim - 2)) for part in (secret.weight, secret.bias))
        moved = x + shift
        root = moved >> np.int64(self.before)
        exact = (_roomy(root, int(np.abs(root).max())) * root) >> self.after
        mask = self.mask
        if mask is None:
            return rounding.rounded(self, moved, exact) + constant
        exact = np.where(mask, np.maximum(x, 0) >> np.int64(self.shift), exact)
        return rounding.rounded(self, np.where(mask, x, moved), exact) + np.where(mask, 0, constant)

    def _secret(self, weights: Weights | None) -> Weights:
        if weights is None:
            raise ProgramError(f"{self.name}: a public program has no constants to run with")
        return weights


@dataclass(frozen=True)
class Sign(Secret):
    """+1 where x + t is above 0, -1 elsewhere, without fraction bits.

    t is the server's, with the fraction of the input: the weight, (C,) for an input of C rows (channels). ``high`` says
    in how many bits x + t fits for every input, as a signed integer; a sign test reads no others. 0 says nothing.
    """

    kind = "sign"

    high: int = 0

    def weight_shape(self, source: Value) -> Shape:
        return source.shape[:1]

    def value(self, *sources: Value) -> Value:
        self.require(self.high == 0 or self.high >= 2, f"a sign test of {self.high} bits; it needs two")
        return Value(sources[0].shape, 0)

    def reach(self, bound: int, weights: Weights | None) -> int:
        return bound + int(np.abs(self._threshold(weights)).max())

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return 1

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        moved = inputs[0] + self._threshold(weights).reshape(-1, *[1] * (inputs[0].ndim - 2))
        return rounding.rounded(self, moved, np.where(moved > 0, 1, -1).astype(np.int64))

    def _threshold(self, weights: Weights | None) -> Integers:
        if weights is None:
            raise ProgramError(f"{self.name}: a public program has no thresholds to run with")
        return weights.weight


@dataclass(frozen=True)
class Truncate(Op):
    """x >> shift."""

    kind = "truncate"

    shift: int

    def value(self, *sources: Value) -> Value:
        return _shifted(self, sources[0], self.shift)

    def truncated(self, source: Value) -> NDArray[np.intp]:
        """Flat positions that are truncated: all, or none if nothing is dropped."""
        return np.arange(source.size if self.shift else 0)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return (inputs[0] >> self.shift) + 1

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        return rounding.rounded(self, inputs[0], inputs[0] >> np.int64(self.shift))


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
        return _roomy(inputs[0], 1 << self.shift) * (1 << self.shift)

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
        return _roomy(inputs[0], abs(self.factor) + abs(self.offset)) * self.factor + self.offset

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        scaled = modulus.scale(shares[0], self.factor)
        return modulus.add(scaled, modulus.encode(np.array(self.offset))) if server and self.offset else scaled


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
        return max(inputs[0], int(np.abs(self._constant(weights)).max()))

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        result = np.zeros((*inputs[0].shape[:2], *self.mask.shape), np.int64)
        result[:, :, self.mask] = inputs[0]
        return result + np.where(self.mask, 0, self._constant(weights)[:, None, None])

    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        result = np.zeros((len(shares[0]), *self.mask.shape), np.uint64)
        result[:, self.mask] = shares[0]
        return result

    def constants(self, weights: Weights, modulus: Ring | Field) -> Words:
        """What the server adds to its share."""
        return modulus.encode(np.where(self.mask, 0, weights.weight[:, None, None]))

    def _constant(self, weights: Weights | None) -> Integers:
        if weights is None:
            raise ProgramError(f"{self.name}: a public program has no constants to run with")
        return weights.weight


OPS: tuple[type[Op], ...] = (
    Conv2d, Linear, Add, SumPool, Relu, Square, Sign, Truncate, Raise, Rescale, Flatten, Concat, Gather, Fill,
)  # fmt: skip
"""All there are."""


def _added(shares: Sequence[Words], modulus: Ring | Field) -> Words:
    total = shares[0]
    for addend in shares[1:]:
        total = modulus.add(total, addend)
    return total


def _roomy(x: Integers, terms: int) -> Exact:
    """``x``, as Python integers if a sum of that many might leave int64."""
    return x if terms * max(int(np.abs(x).max()), 1) < 1 << 63 else x.astype(np.object_)


def _check_mask(op: Op, mask: NDArray[np.bool_] | None, source: Value) -> None:
    if mask is not None:
        fits = mask.dtype == np.bool_ and mask.shape == source.shape
        op.require(fits, f"its mask is {mask.dtype} of shape {mask.shape}; it must be bool of shape {source.shape}")


def _check_weight_format(op: Conv2d | Linear) -> None:
    op.require(1 <= op.weight_bits <= 30, f"weights of {op.weight_bits} bits; 1 to 30 are supported")
    sums = f"weights that sum to 2^{op.sum_bits}; 1 to {SUM_BITS} bits are supported"
    op.require(1 <= op.sum_bits <= SUM_BITS, sums)
    op.require(0 <= op.weight_fraction <= 60, f"weights of {op.weight_fraction} fraction bits; use 0 to 60")


def _check_weight_count(op: Weighted, source: Value) -> None:
    count = math.prod(op.weight_shape(source))
    op.require(count <= MOST_WEIGHTS, f"has {count} weights; at most {MOST_WEIGHTS} are supported")


def _shifted(op: Relu | Truncate, source: Value, shift: int) -> Value:
    op.require(0 <= shift <= source.fraction, f"drops {shift} bits of a value that has {source.fraction} to drop")
    return Value(source.shape, source.fraction - shift)
