"""Operations that multiply by the server's weights, each by its protocol on ciphertexts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.bounds import SUM_BITS
from deepreshape.private.program.integer_linear import exactly, patches
from deepreshape.private.program.ops.base import (
    MOST_ELEMENTS,
    MOST_WEIGHTS,
    Exact,
    Integers,
    ProgramError,
    Rounding,
    Secret,
    Shape,
    Value,
    Weights,
)


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
        return exactly(self, self.secret(weights), inputs[0])


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


def _check_weight_format(op: Conv2d | Linear) -> None:
    op.require(1 <= op.weight_bits <= 30, f"weights of {op.weight_bits} bits; 1 to 30 are supported")
    sums = f"weights that sum to 2^{op.sum_bits}; 1 to {SUM_BITS} bits are supported"
    op.require(1 <= op.sum_bits <= SUM_BITS, sums)
    op.require(0 <= op.weight_fraction <= 60, f"weights of {op.weight_fraction} fraction bits; use 0 to 60")


def _check_weight_count(op: Weighted, source: Value) -> None:
    count = math.prod(op.weight_shape(source))
    op.require(count <= MOST_WEIGHTS, f"has {count} weights; at most {MOST_WEIGHTS} are supported")
