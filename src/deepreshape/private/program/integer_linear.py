"""Linear operations on integers without rounding, at the speed of floating-point matrix products.

A product of integers is exact in double precision while every sum stays below 2^53. Larger operands are cut into limbs
that are narrow enough for that, so that a convolution of 40-bit shares costs one or two floating-point products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring, Words

if TYPE_CHECKING:
    from deepreshape.private.program.ops import Weighted, Weights

Integers = NDArray[np.int64]
EXACT_BITS = 53


def products(op: Weighted, weights: Weights, x: Integers) -> Iterator[tuple[int, Integers]]:
    """Parts of the operation's result without its bias: the result is the sum of part * 2^shift.

    Args:
        op: what to compute.
        weights: its weights; the bias is left out.
        x: (N, *input shape), int64, above -2^63.

    Yields:
        (shift, part): parts are (N, *output shape), int64, of absolute value below 2^53.

    Raises:
        ValueError: if the weights of one output add up to 2^52 or more.
    """
    width = EXACT_BITS - weights.reach.bit_length()
    if width < 1:
        raise ValueError(f"{op.name}: weights of one output add up to {weights.reach}; 2^{EXACT_BITS - 1} is too much")
    factors = weights.weight.astype(np.float64)
    shift = 0
    while max(int(x.max()), -int(x.min())) >> width:
        yield shift, op.multiply(factors, (x & np.int64((1 << width) - 1)).astype(np.float64)).astype(np.int64)
        x, shift = x >> np.int64(width), shift + width
    yield shift, op.multiply(factors, x.astype(np.float64)).astype(np.int64)


def exactly(op: Weighted, weights: Weights, x: Integers) -> Integers | NDArray[np.object_]:
    """The operation with its bias on (N, *input shape): int64 where everything fits, else Python's integers."""
    reach = weights.reach * int(np.abs(x).max()) + int(np.abs(weights.bias).max())
    bias = op.spread(weights.bias)
    if reach < 1 << 63:
        total = bias[None]
        for shift, part in products(op, weights, x):
            total = total + (part << np.int64(shift))  # whatever wraps on the way comes back: the sum fits
        return total
    wide = bias[None].astype(np.object_)
    for shift, part in products(op, weights, x):
        wide = wide + part.astype(np.object_) * (1 << shift)
    return wide


def on_shares(op: Weighted, weights: Weights, x: Words, modulus: Ring | Field) -> Words:
    """The operation without its bias on one share (*input shape); uint64 of the output's shape."""
    total = np.zeros((), np.uint64)
    for shift, part in products(op, weights, x.view(np.int64)[None]):
        if isinstance(modulus, Ring):
            residues = part.view(np.uint64) & np.uint64(modulus.order - 1)
        else:
            residues = np.mod(part, np.int64(modulus.order)).astype(np.uint64)
        scaled = modulus.scale(residues, 1 << shift) if shift else residues
        total = modulus.add(total, scaled)
    return total[0]


def windows(kernel: tuple[int, int], stride: tuple[int, int], height: int, width: int) -> list[tuple[slice, slice]]:
    """What a pooling of height x width adds up: for each place in the window, the rows and columns that it meets."""

    def places(side: int, kernel: int, stride: int) -> list[slice]:
        reach = (side - kernel) // stride * stride + 1
        return [slice(first, first + reach, stride) for first in range(kernel)]

    rows, columns = places(height, kernel[0], stride[0]), places(width, kernel[1], stride[1])
    return [(row, column) for row in rows for column in columns]


def patches(
    x: NDArray[np.float64], kernel: int, stride: int, padding: int, mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """What a square kernel meets on the zero-padded (N, C, H, W): (C, kernel, kernel, N, H', W').

    With a ``mask``, (H', W'), only where that is true: (C, kernel, kernel, N, pixels).
    """
    edge = (padding, padding)
    padded = np.pad(x, ((0, 0), (0, 0), edge, edge))
    views = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    strided = views[:, :, ::stride, ::stride]  # (N, C, H', W', k, k)
    if mask is not None:
        return np.ascontiguousarray(strided[:, :, mask].transpose(1, 3, 4, 0, 2))  # (N, C, pixels, k, k) before
    return np.ascontiguousarray(strided.transpose(1, 4, 5, 0, 2, 3))
