"""Linear operations on integers without rounding, at the speed of floating-point matrix products.

A product of integers is exact in double precision while every sum stays below 2^53. Larger operands are cut into limbs
that are narrow enough for that, so that a convolution of 40-bit shares costs one or two floating-point products.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.program.ops import Add, Conv2d, Flatten, Linear, Raise, SumPool, Weights

Integers = NDArray[np.int64]
EXACT_BITS = 53


def products(op: Conv2d | Linear, own: Weights, x: Integers) -> Iterator[tuple[int, Integers]]:
    """Parts of the operation's result without its bias: the result is the sum of part * 2^shift.

    Args:
        op: what to compute.
        own: its weights; the bias is left out.
        x: (N, *input shape), int64, above -2^63.

    Yields:
        (shift, part): parts are (N, *output shape), int64, of absolute value below 2^53.

    Raises:
        ValueError: if the weights of one output add up to 2^52 or more.
    """
    width = EXACT_BITS - own.reach.bit_length()
    if width < 1:
        raise ValueError(f"{op.name}: weights of one output add up to {own.reach}; 2^{EXACT_BITS - 1} is too much")
    factors = own.weight.astype(np.float64)
    shift = 0
    while max(int(x.max()), -int(x.min())) >> width:
        yield shift, _product(op, factors, x & np.int64((1 << width) - 1))
        x, shift = x >> np.int64(width), shift + width
    yield shift, _product(op, factors, x)


def on_shares(op: Conv2d | Linear, own: Weights, x: Words, modulus: Ring | Field) -> Words:
    """The operation without its bias on one share (*input shape); uint64 of the output's shape."""
    total = np.zeros((), np.uint64)
    for shift, part in products(op, own, x.view(np.int64)[None]):
        if isinstance(modulus, Ring):
            residues = part.view(np.uint64) & np.uint64(modulus.order - 1)
        else:
            residues = np.mod(part, np.int64(modulus.order)).astype(np.uint64)
        scaled = modulus.scale(residues, 1 << shift) if shift else residues
        total = modulus.add(total, scaled)
    return total[0]


def locally(op: Add | SumPool | Raise | Flatten, shares: list[Words], modulus: Ring | Field) -> Words:
    """An operation that each party does on its own shares, without a word to the other."""
    if isinstance(op, Flatten):
        return shares[0].reshape(-1)
    if isinstance(op, Raise):
        return modulus.scale(shares[0], 1 << op.shift)
    if isinstance(op, SumPool):
        shares = [np.ascontiguousarray(shares[0][:, *place]) for place in windows(op, *shares[0].shape[1:])]
    total = shares[0]
    for addend in shares[1:]:
        total = modulus.add(total, addend)
    return total


def windows(op: SumPool, height: int, width: int) -> list[tuple[slice, slice]]:
    """What a pooling of height x width adds up: for each place in the window, the rows and columns that it meets."""

    def places(side: int, kernel: int, stride: int) -> list[slice]:
        reach = (side - kernel) // stride * stride + 1
        return [slice(first, first + reach, stride) for first in range(kernel)]

    (kernel, breadth), (stride, step) = op.kernel, op.stride
    return [(rows, columns) for rows in places(height, kernel, stride) for columns in places(width, breadth, step)]


def _product(op: Conv2d | Linear, weight: NDArray[np.float64], x: Integers) -> Integers:
    if isinstance(op, Linear):
        return (x.astype(np.float64) @ weight.T).astype(np.int64)
    patches = _patches(op, x.astype(np.float64))  # (C, k, k, N, H', W')
    channels, place = patches.shape[0] // op.groups, patches.shape[3:]
    grouped = patches.reshape(op.groups, channels * op.kernel**2, -1)
    found = weight.reshape(op.groups, op.out_channels // op.groups, -1) @ grouped
    return found.astype(np.int64).reshape(op.out_channels, *place).swapaxes(0, 1)


def _patches(op: Conv2d, x: NDArray[np.float64]) -> NDArray[np.float64]:
    edge = (op.padding, op.padding)
    padded = np.pad(x, ((0, 0), (0, 0), edge, edge))
    views = np.lib.stride_tricks.sliding_window_view(padded, (op.kernel, op.kernel), (2, 3))
    strided = views[:, :, :: op.stride, :: op.stride]  # (N, C, H', W', k, k)
    return np.ascontiguousarray(strided.transpose(1, 4, 5, 0, 2, 3))
