"""Any convolution over two axes as a square, undilated one with one stride: the only kind that is encrypted.

A dilated kernel has zeros between its taps. A kernel of another shape, or a padding that differs between sides, is
placed among zeros in a square kernel; where no padding of the square one does the same, the map is padded, or cut,
before. Two strides become their greatest common divisor, and of the finer result rows and columns are left out. A
transposed convolution gives stride^2 times the channels, whose pixels are then put in their places (Shi et al.,
arXiv:1609.07009).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

__all__ = ["Placement", "SquareForm", "square_form", "transposed_form"]

Pair = tuple[int, int]


class Placement(NamedTuple):
    """Of a convolution over (rows, columns): taps without dilation, stride, and padding before and after."""

    kernel: Pair
    stride: Pair
    before: Pair
    after: Pair


class SquareForm(NamedTuple):
    """The square convolution that does the same.

    Attributes:
        side, stride, padding: of the square kernel.
        place: the row and column of it at which the first tap stands.
        size: (rows, columns) of what it gives.
        steps: of which every so many rows and columns are the result.
        padded: (rows, columns) of the map that was padded or cut before; None if it is taken as it is.
    """

    side: int
    stride: int
    padding: int
    place: Pair
    size: Pair
    steps: Pair
    padded: Pair | None


def square_form(sides: Sequence[int], taps: Placement) -> SquareForm:
    """The square form of a convolution on a map of (rows, columns)."""
    kernel, axes = taps.kernel, range(2)
    whole = [sides[at] + taps.before[at] + taps.after[at] for at in axes]
    wanted = [(whole[at] - kernel[at]) // taps.stride[at] + 1 for at in axes]
    # the stride along an axis with one output says nothing
    stride = gcd(*(taps.stride[at] for at in axes if wanted[at] > 1)) or 1
    down, across = (taps.stride[at] // stride if wanted[at] > 1 else 1 for at in axes)
    size = (wanted[0] - 1) * down + 1, (wanted[1] - 1) * across + 1
    for side in range(max(kernel), max(kernel) + 2):
        for padding in range(side):
            put = padding - taps.before[0], padding - taps.before[1]
            inside = all(0 <= put[at] <= side - kernel[at] for at in axes)
            room = [sides[at] + 2 * padding - side for at in axes]
            if inside and min(room) >= 0 and all(room[at] // stride + 1 == size[at] for at in axes):
                return SquareForm(side, stride, padding, put, size, (down, across), None)
    side = max(kernel)
    padded = (size[0] - 1) * stride + side, (size[1] - 1) * stride + side
    return SquareForm(side, stride, 0, (0, 0), size, (down, across), padded)


def transposed_form(sides: Sequence[int], size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair) -> Placement:
    """The convolution of stride 1 that gives all stride[0] * stride[1] phases of a transposed one.

    Args:
        sides: (rows, columns) of the map.
        size: of the result.
        kernel: taps without dilation.
        stride: of the transposed convolution.
        padding: of it.
    """
    rows, columns = (-(-kernel[at] // stride[at]) for at in range(2))
    below, beside = ((size[at] - 1 + padding[at]) // stride[at] + 1 - sides[at] for at in range(2))
    return Placement((rows, columns), (1, 1), (rows - 1, columns - 1), (below, beside))
