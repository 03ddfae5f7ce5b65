"""What a cost model needs to know of a network: its layers, in the order they run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Layer", "LinearLayer", "ReluLayer", "SignLayer", "SquareLayer", "UnpricedLayer"]


@dataclass(frozen=True)
class LinearLayer:
    """A convolution, or a matrix product as a 1x1 convolution of a 1x1 map.

    Attributes:
        name: path of the module it runs in.
        in_channels, out_channels, kernel, groups: of the convolution; the kernel is (height, width).
        in_size, out_size: (height, width) of the maps, without padding.
        macs: multiply-adds for one input.
        stride, padding, dilation: along (height, width), as torch's convolutions have them.
        transposed: whether it is a transposed convolution.
        left_out: pixels of the result that are not computed, in each channel.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    macs: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    transposed: bool = False
    left_out: int = 0


@dataclass(frozen=True)
class ReluLayer:
    """One activation layer.

    Attributes:
        name: path of the module it runs in.
        relus: how many ReLUs are kept.
        elements: how many elements the map has, constants left out.
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


@dataclass(frozen=True)
class SignLayer:
    """One layer of signs.

    Attributes:
        name: path of the module it runs in.
        signs: how many there are.
    """

    name: str
    signs: int


@dataclass(frozen=True)
class UnpricedLayer:
    """Multiply-adds that no cost model has a price for.

    Attributes:
        name: path of the module they run in.
        operator: what they are, in words.
        macs: multiply-adds for one input.
    """

    name: str
    operator: str
    macs: int


Layer = LinearLayer | ReluLayer | SquareLayer | SignLayer | UnpricedLayer
