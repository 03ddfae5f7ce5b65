"""Activations that are sums of ReLUs, squares and linear maps: exact, and a comparison for each ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from deepreshape.private.program.graph import Affine, Quadratic, Rectify, Signed, Sum, Zero
from deepreshape.private.program.lowering.arithmetic import expanded, negated, scaled
from deepreshape.private.program.lowering.trace import SUBSTITUTE, Handler, Trace, UnsupportedOperatorError

__all__ = ["ACTIVATIONS", "maximum"]


def rectified(trace: Trace, name: str, source: str) -> str:
    """max(x, 0)."""
    return trace.append(Rectify(trace.unique(name), (source,)), trace.shapes[source])


def summed(trace: Trace, name: str, *sources: str) -> str:
    """The sum of values of one shape."""
    return trace.append(Sum(trace.unique(name), sources), trace.shapes[sources[0]])


def maximum(trace: Trace, path: str, left: str, right: str) -> str:
    """max(x, y) = y + max(x - y, 0)."""
    less = negated(trace, f"{path}.negative", right)
    difference = summed(trace, f"{path}.difference", left, less)
    return summed(trace, path, rectified(trace, f"{path}.relu", difference), right)


def clamped(trace: Trace, path: str, source: str, low: float | None, high: float | None) -> str:
    """min(max(x, low), high): max(x, low) = low + max(x - low, 0), and less of what is above ``high``."""
    if low is None and high is None:
        return source
    if low is not None and high is not None and low > high:
        raise UnsupportedOperatorError(f"clamps to {low:g} at least and {high:g} at most", "exchange them")
    if low is None:
        above = rectified(trace, f"{path}.above", scaled(trace, f"{path}.less", source, 1.0, -float(high or 0)))
        return summed(trace, path, source, negated(trace, f"{path}.excess", above))
    if high is None:
        if not low:
            return rectified(trace, path, source)
        shifted = scaled(trace, f"{path}.shift", source, 1.0, -low)
        return scaled(trace, path, rectified(trace, f"{path}.relu", shifted), 1.0, low)
    shifted = scaled(trace, f"{path}.shift", source, 1.0, -low) if low else source
    below = rectified(trace, f"{path}.relu", shifted)
    above = rectified(trace, f"{path}.above", scaled(trace, f"{path}.less", source, 1.0, -high))
    total = summed(trace, f"{path}.sum" if low else path, below, negated(trace, f"{path}.excess", above))
    return scaled(trace, path, total, 1.0, low) if low else total


def _number(trace: Trace, value: Any) -> float | None:
    """A bound that is a number; None if there is none."""
    if value is None:
        return None
    constant = trace.constant(value)
    if constant.numel() != 1:
        raise UnsupportedOperatorError("clamps to bounds that differ by element", "clamp to numbers")
    bound = float(constant)
    return bound if np.isfinite(bound) else None


def _relu(trace: Trace, node: fx.Node, path: str) -> None:
    trace.bind(node, rectified(trace, path, trace.source(node.args[0])))


def _masked_relu(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    mask = trace.constant(node.args[1]).numpy().astype(np.bool_)
    if not mask.any():
        trace.bind(node, source)
        return
    layer = Rectify(path, (source,), None if mask.all() else mask)
    trace.bind(node, trace.append(layer, trace.shapes[source]))


def _zeroed(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    keep = trace.constant(node.args[1]).numpy().astype(np.bool_)
    trace.bind(node, trace.append(Zero(path, (source,), keep), trace.shapes[source]))


def _known_relu(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    shape, known = trace.shapes[source], trace.constant(node.args[1]).numpy().astype(np.bool_)
    if not known.any():
        trace.bind(node, source)
        return
    trace.bind(node, trace.append(Rectify(path, (source,), np.broadcast_to(known, shape).copy()), shape))


def _sign(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    threshold = trace.constant(node.args[1]).numpy()
    trace.bind(node, trace.append(Signed(path, (source,), threshold), trace.shapes[source]))


def _clamp(trace: Trace, node: fx.Node, path: str) -> None:
    x, *bounds = trace.arguments(node)
    low, high = (_number(trace, bound) for bound in [*bounds, None][:2])
    trace.bind(node, clamped(trace, path, trace.source(x), low, high))


def _clamp_max(trace: Trace, node: fx.Node, path: str) -> None:
    x, high = trace.arguments(node)
    trace.bind(node, clamped(trace, path, trace.source(x), None, _number(trace, high)))


def _relu6(trace: Trace, node: fx.Node, path: str) -> None:
    trace.bind(node, clamped(trace, path, trace.source(node.args[0]), 0.0, 6.0))


def _threshold(trace: Trace, node: fx.Node, path: str) -> None:
    x, threshold, value = trace.arguments(node)
    if threshold != value:
        raise UnsupportedOperatorError(f"gives {value} below {threshold}, which is a jump", SUBSTITUTE)
    trace.bind(node, clamped(trace, path, trace.source(x), float(threshold), None))


def _hard_sigmoid(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    shifted = scaled(trace, f"{path}.shift", source, 1.0, 3.0)
    trace.bind(node, scaled(trace, path, clamped(trace, f"{path}.clamp", shifted, 0.0, 6.0), 1 / 6))


def _hard_swish(trace: Trace, node: fx.Node, path: str) -> None:
    """Of x, x relu6(x + 3) / 6 = (s - 3/2)^2 / 6 - 3/8 + max(x - 3, 0), with s = max(x + 3, 0) - max(x - 3, 0).

    A public factor makes it the square of (s - 3/2) / sqrt(6), so that no layer has to carry 1/6.
    """
    source = trace.source(node.args[0])
    above = rectified(trace, f"{path}.above", scaled(trace, f"{path}.less", source, 1.0, -3.0))
    below = rectified(trace, f"{path}.relu", scaled(trace, f"{path}.shift", source, 1.0, 3.0))
    inside = summed(trace, f"{path}.inside", below, negated(trace, f"{path}.excess", above))
    shape, factor = trace.shapes[source], 6**-0.5
    root = scaled(trace, f"{path}.root", inside, factor, -1.5 * factor)
    square = Quadratic(trace.unique(f"{path}.square"), (root,), np.tile([-3 / 8, 0.0, 1.0], (shape[0], 1)))
    trace.bind(node, summed(trace, path, trace.append(square, shape), above))


def _leaky(trace: Trace, node: fx.Node, path: str) -> None:
    """The sum a x + (1 - a) max(x, 0)."""
    x, slope = trace.arguments(node)
    source = trace.source(x)
    positive = scaled(trace, f"{path}.positive", rectified(trace, f"{path}.relu", source), 1 - float(slope))
    trace.bind(node, summed(trace, path, scaled(trace, f"{path}.slope", source, float(slope)), positive))


def _prelu(trace: Trace, node: fx.Node, path: str) -> None:
    """As a leaky ReLU, with slopes that are weights."""
    x, weight = trace.arguments(node)
    source = trace.source(x)
    shape = trace.shapes[source]
    slopes = np.broadcast_to(trace.constant(weight).numpy(), shape[:1]).copy()
    zeros = np.zeros(len(slopes))
    relu = rectified(trace, f"{path}.relu", source)
    negative = trace.append(Affine(trace.unique(f"{path}.slope"), (source,), slopes, zeros), shape)
    positive = trace.append(Affine(trace.unique(f"{path}.positive"), (relu,), 1 - slopes, zeros), shape)
    trace.bind(node, summed(trace, path, negative, positive))


def _abs(trace: Trace, node: fx.Node, path: str) -> None:
    """2 max(x, 0) - x."""
    source = trace.source(node.args[0])
    relu = rectified(trace, f"{path}.relu", source)
    trace.bind(node, summed(trace, path, relu, relu, negated(trace, f"{path}.negative", source)))


def _maximum(trace: Trace, node: fx.Node, path: str) -> None:
    _larger(trace, node, path, smaller=False)


def _minimum(trace: Trace, node: fx.Node, path: str) -> None:
    _larger(trace, node, path, smaller=True)


def _larger(trace: Trace, node: fx.Node, path: str, *, smaller: bool) -> None:
    left, right = node.args[:2]
    if trace.is_value(left) and trace.is_value(right):
        shape = trace.shape(node)
        sides = [expanded(trace, f"{path}.side", trace.source(side), shape) for side in (left, right)]
        if smaller:  # min(x, y) = y - max(y - x, 0)
            less = negated(trace, f"{path}.negative", sides[0])
            relu = rectified(trace, f"{path}.relu", summed(trace, f"{path}.difference", sides[1], less))
            trace.bind(node, summed(trace, path, sides[1], negated(trace, f"{path}.excess", relu)))
        else:
            trace.bind(node, maximum(trace, path, *sides))
        return
    x, bound = (left, right) if trace.is_value(left) else (right, left)
    limits = (None, _number(trace, bound)) if smaller else (_number(trace, bound), None)
    trace.bind(node, clamped(trace, path, trace.source(x), *limits))


ACTIVATIONS: dict[str, Handler] = {
    "_prelu_kernel": _prelu,
    "abs": _abs,
    "clamp": _clamp,
    "clamp_max": _clamp_max,
    "clamp_min": _clamp,
    "clip": _clamp,
    "deepreshape.known_relu": _known_relu,
    "deepreshape.masked_relu": _masked_relu,
    "deepreshape.sign": _sign,
    "deepreshape.zeroed": _zeroed,
    "hardsigmoid": _hard_sigmoid,
    "hardswish": _hard_swish,
    "hardtanh": _clamp,
    "leaky_relu": _leaky,
    "maximum": _maximum,
    "minimum": _minimum,
    "prelu": _prelu,
    "relu": _relu,
    "relu6": _relu6,
    "threshold": _threshold,
}
"""By the operator's name in ATen."""
