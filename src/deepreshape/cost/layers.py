"""What a cost model needs to know of a network: its layers, in the order they run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Layer", "LinearLayer", "ReluLayer", "SquareLayer"]


@dataclass(frozen=True)
class LinearLayer:
    """A convolution, or a matrix product as a 1x1 convolution of a 1x1 map.

    Attributes:
        name: path of the module it runs in.
        in_channels, out_channels, kernel, groups: of the convolution; the kernel is (height, width).
        in_size, out_size: (height, width) of the maps, without padding.
        macs: multiply-adds for one input.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    macs: int


@dataclass(frozen=True)
class ReluLayer:
    """One activation layer.

    Attributes:
        name: path of the module it runs in.
        relus: how many ReLUs are kept.
        elements: how many elements the whole map has.
    """

    name: str
    relus: int
    elements: int


@dataclass(frozen=True)
class SquareLayer:
    """One layer of quadratics.

    Attributes:
        name: path of the module it runs in.
        squares: how many there are.
    """

    name: str
    squares: int


Layer = LinearLayer | ReluLayer | SquareLayer
