"""The same network at another base width, so that networks of different shapes have about as many multiply-adds."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt

from deepreshape.cost import LinearLayer
from deepreshape.models import Staged

__all__ = ["TOLERANCE", "multiply_adds", "scaled_to_macs"]

TOLERANCE = 0.15
"""How far off networks of "equal" multiply-adds may be: base widths are whole numbers, and a HybReNet's are small."""


def multiply_adds(architecture: Staged) -> int:
    """Of one image, by arithmetic."""
    return sum(layer.macs for layer in architecture.layers() if isinstance(layer, LinearLayer))


def scaled_to_macs(architecture: Staged, macs: float, tolerance: float = TOLERANCE) -> Staged:
    """The network at the base width that brings its multiply-adds nearest to ``macs``.

    Args:
        architecture: of any family; its ratios of widths stay.
        macs: multiply-adds of one image, above 0.
        tolerance: the largest share that it may be off.

    Raises:
        ValueError: if its widths are given by layer, or no base width comes near enough.
    """
    if not 0 < macs < inf:
        raise ValueError(f"{macs:g} multiply-adds is no budget; give a number above 0")
    if getattr(architecture, "layer_widths", ()):
        raise ValueError(f"{architecture.name} has its widths by layer, which no base width scales")

    def at(base: int) -> Staged:
        return replace(architecture, base=base)

    # multiply-adds grow at least as fast as the base width and at most as its square, so few steps are left
    base = max(1, round(architecture.base * sqrt(macs / multiply_adds(architecture))))
    while multiply_adds(at(base)) < macs:
        base += 1
    while base > 1 and multiply_adds(at(base - 1)) >= macs:
        base -= 1
    nearest = min((at(each) for each in {max(1, base - 1), base}), key=lambda near: abs(multiply_adds(near) - macs))
    if abs(multiply_adds(nearest) - macs) > tolerance * macs:
        raise ValueError(
            f"{architecture.name} has no base width with {macs:,.0f} multiply-adds within "
            f"{tolerance:.0%}; {nearest.name} comes nearest, with {multiply_adds(nearest):,}"
        )
    return nearest
