"""Pools and upsampling.

*Max pools* are exact: max(x, y) = y + max(x - y, 0) along one axis and then along the other. Windows that overlap share
the pairs that they have in common, and a window at an edge compares only what lies inside; so a 3x3 window at stride 2
takes some 6 comparisons an output and not 8. All pairs of a step are one ReLU layer: ceil(log2 k) of them an axis.

*Averages and bilinear upsampling* are means of equally weighted elements, of which some count several times where
windows differ in size or weights are fractions: elements are repeated, which is free, then summed and divided once.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm, prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from deepreshape.private.program.graph import Affine, Flat, Pick, Pool, Stack
from deepreshape.private.program.lowering.activations import ACTIVATIONS, maximum
from deepreshape.private.program.lowering.arithmetic import negated, permuted, reshaped, scaled, whole
from deepreshape.private.program.lowering.trace import Handler, Trace, UnsupportedOperatorError
from deepreshape.private.program.ops import MOST_ELEMENTS

__all__ = ["POOLS", "pairings"]

MOST_REPEATS = 64
"""How often an element may be repeated along one axis for an average."""
Windows = Sequence[Sequence[int]]
"""For each place of a result along an axis, the places that it is taken from."""


def pairings(size: int, windows: Windows) -> list[list[tuple[int, int]]]:
    """The pairs to compare, step by step, until each window has one element left.

    The ``size`` elements are numbered from 0, and the results of each step's pairs follow all elements before them. The
    last entry has, for each window, the one that is left, twice.
    """
    count = size
    steps: list[list[tuple[int, int]]] = []
    left = [list(dict.fromkeys(window)) for window in windows]
    while max(map(len, left)) > 1:
        pairs = dict[tuple[int, int], int]()
        after: list[list[int]] = []
        for window in left:
            kept = [
                pairs.setdefault((one, two), count + len(pairs))
                for one, two in zip(window[::2], window[1::2], strict=False)
            ]
            after.append(kept + (window[-1:] if len(window) % 2 else []))
        steps.append([*pairs])
        count += len(pairs)
        left = after
    return [*steps, [(window[0], window[0]) for window in left]]


def greatest(trace: Trace, path: str, source: str, axis: int, windows: Windows) -> str:
    """The largest element of each window along one axis."""
    shape = trace.shapes[source]
    rest = tuple(side for number, side in enumerate(shape) if number != axis)
    pool = permuted(trace, f"{path}.first", source, (axis, *(n for n in range(len(shape)) if n != axis)))
    *steps, last = pairings(shape[axis], windows)
    for number, pairs in enumerate(steps):
        rows = whole(trace.shapes[pool])
        index = [np.ascontiguousarray(rows[list(places)]) for places in zip(*pairs, strict=True)]
        left, right = (
            trace.append(Pick(trace.unique(f"{path}.step{number}.{side}"), (pool,), places), places.shape)
            for side, places in zip(("left", "right"), index, strict=True)
        )
        larger = maximum(trace, trace.unique(f"{path}.step{number}"), left, right)
        total = trace.shapes[pool][0] + len(pairs)
        pool = trace.append(Stack(trace.unique(f"{path}.all"), (pool, larger)), (total, *rest))
    index = np.moveaxis(whole(trace.shapes[pool])[[place for place, _ in last]], 0, axis)
    return trace.append(Pick(path, (pool,), np.ascontiguousarray(index)), index.shape)


def _inside(size: int, count: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Windows:
    """The places of each window that lie inside of ``size``."""
    starts = [number * stride - padding for number in range(count)]
    return [[s + step * dilation for step in range(kernel) if 0 <= s + step * dilation < size] for s in starts]


def _adaptive(size: int, count: int) -> Windows:
    """Adaptive windows are [floor(i n/k), ceil((i+1) n/k))."""
    return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _largest_over(trace: Trace, node: fx.Node, path: str, windows: Sequence[Windows]) -> None:
    """Bind the largest elements of windows along the last axes, of which what no window reads is left out first."""
    source = trace.source(node.args[0])
    first = len(trace.shapes[source]) - len(windows)
    every: list[Windows] = []
    for number, one in enumerate(windows):
        source, kept = _read(trace, path, source, first + number, one)
        every.append(kept)
    for number, one in enumerate(every):
        name = path if number == len(windows) - 1 else trace.unique(f"{path}.rows")
        source = greatest(trace, name, source, first + number, one)
    trace.bind(node, source)


def _read(trace: Trace, path: str, source: str, axis: int, windows: Windows) -> tuple[str, Windows]:
    """A value without the places along an axis that no window reads, and the windows of what is left."""
    shape, places = trace.shapes[source], sorted({place for window in windows for place in window})
    if len(places) == shape[axis]:
        return source, windows
    index = np.ascontiguousarray(whole(shape).take(places, axis))
    left = {place: number for number, place in enumerate(places)}
    name = trace.append(Pick(trace.unique(f"{path}.read"), (source,), index), index.shape)
    return name, [[left[place] for place in window] for window in windows]


def _sizes(value: Any, axes: int) -> list[int]:
    each = [int(side) for side in cast(Sequence[Any], value)] if isinstance(value, Sequence) else [int(value)]
    return each * axes if len(each) == 1 else each


def _result(node: fx.Node) -> Sequence[int]:
    """Shape of what a node gives, of its first value if it gives several, without the batch axis."""
    value = node.meta["val"]
    return (value if isinstance(value, Tensor) else value[0]).shape[1:]


def _max_pool(trace: Trace, node: fx.Node, path: str) -> None:
    x, kernel, stride, padding, dilation, _ = trace.arguments(node)
    shape = trace.shapes[trace.source(x)]
    axes = len(shape) - 1
    sizes = [_sizes(value, axes) for value in (kernel, stride or kernel, padding, dilation)]
    facts = zip(shape[1:], _result(node)[1:], *sizes, strict=True)
    windows = [_inside(*fact) for fact in facts]
    if not all(window for one in windows for window in one):
        raise UnsupportedOperatorError(
            "a window lies wholly in the padding, so that its maximum is minus infinity", "less dilation or padding"
        )
    _largest_over(trace, node, path, windows)


def _adaptive_max(trace: Trace, node: fx.Node, path: str) -> None:
    shape = trace.shapes[trace.source(node.args[0])]
    sides = zip(shape[1:], _result(node)[1:], strict=True)
    _largest_over(trace, node, path, [_adaptive(size, count) for size, count in sides])


def _amax(trace: Trace, node: fx.Node, path: str) -> None:
    _over_axes(trace, node, path, smaller=False)


def _amin(trace: Trace, node: fx.Node, path: str) -> None:
    _over_axes(trace, node, path, smaller=True)


def _over_axes(trace: Trace, node: fx.Node, path: str, *, smaller: bool) -> None:
    """The largest along whole axes, or the smallest: min(x, y) = -max(-x, -y)."""
    source, keep = trace.source(node.args[0]), _result(node)
    if not keep:
        raise UnsupportedOperatorError("gives one number for each input", "keep an axis")
    axes = _axes(trace, source, node.args[1] if len(node.args) > 1 else [])
    if smaller:
        source = negated(trace, f"{path}.negative", source)
    for axis in axes:
        name = trace.unique(f"{path}.axis{axis}")
        source = greatest(trace, name, source, axis, [range(trace.shapes[source][axis])])
    if smaller:
        source = negated(trace, f"{path}.least", source)
    trace.bind(node, trace.append(Pick(path, (source,), whole(keep)), keep))


def _max(trace: Trace, node: fx.Node, path: str) -> None:
    """The largest along whole axes, or, of two values, the larger ones."""
    (ACTIVATIONS["maximum"] if _of_two(node) else _amax)(trace, node, path)


def _min(trace: Trace, node: fx.Node, path: str) -> None:
    (ACTIVATIONS["minimum"] if _of_two(node) else _amin)(trace, node, path)


def _of_two(node: fx.Node) -> bool:
    return len(node.args) > 1 and isinstance(node.args[1], fx.Node)


def _axes(trace: Trace, source: str, given: Any) -> list[int]:
    """Axes that an operator reduces, without the batch axis in front."""
    total = len(trace.shapes[source]) + 1
    each = cast(Sequence[Any], given) if isinstance(given, Sequence) else [given]
    axes = sorted({int(axis) % total for axis in each})
    axes = axes or [*range(total)]
    if axes[0] == 0:
        raise UnsupportedOperatorError("reduces the axis of the batch", "keep the first axis for the batch")
    return [axis - 1 for axis in axes]


def _avg_pool(trace: Trace, node: fx.Node, path: str) -> None:
    arguments = [*trace.arguments(node), None][:7]
    x, kernel, stride, padding, ceil, counts_padding, divisor = arguments
    source = trace.source(x)
    shape, result = trace.shapes[source], trace.shape(node)
    axes = len(shape) - 1
    sizes = [_sizes(value, axes) for value in (kernel, stride or kernel, padding)]
    if axes == 2 and not (any(sizes[2]) or ceil or divisor):
        _average(trace, node, path, (sizes[0][0], sizes[0][1]), (sizes[1][0], sizes[1][1]))
        return
    rows: list[list[list[tuple[int, Fraction]]]] = []
    for size, count, window, step, pad in zip(shape[1:], result[1:], *sizes, strict=True):
        places = _inside(size, count, window, step, pad)
        starts = [number * step - pad for number in range(count)]
        within = [min(start + window, size + pad) - start for start in starts]
        counted = within if counts_padding else [len(window) for window in places]
        parts = [1] * count if divisor else counted
        rows.append([[(p, Fraction(1, n)) for p in window] for window, n in zip(places, parts, strict=True)])
    _mix(trace, node, path, source, rows, Fraction(1, divisor or 1))


def _average(trace: Trace, node: fx.Node, path: str, window: tuple[int, int], stride: tuple[int, int]) -> None:
    """A sum over windows of a map, then its division."""
    shape = trace.shape(node)
    trace.append(Pool(path, (trace.source(node.args[0]),), window, stride), shape)
    trace.bind(node, scaled(trace, f"{path}.mean", path, 1 / prod(window)))


def _mix(
    trace: Trace,
    node: fx.Node,
    path: str,
    source: str,
    rows: Sequence[Sequence[Sequence[tuple[int, Fraction]]]],
    factor: Fraction = Fraction(1),
) -> None:
    """Along each of the last axes, sums of elements with positive fractions for weights."""
    shape = trace.shapes[source]
    first = len(shape) - len(rows)
    plane = source if len(shape) == 3 else reshaped(trace, f"{path}.map", source, (shape[0], 1, *shape[1:]))
    for number, along in enumerate(rows):
        axis = 3 - len(shape) + first + number
        common = lcm(*(part.denominator for window in along for _, part in window))
        longest = max(int(sum(part * common for _, part in window)) for window in along)
        if longest > MOST_REPEATS or longest * len(along) * prod(trace.shapes[plane]) > MOST_ELEMENTS:
            raise UnsupportedOperatorError(
                f"weights of elements have the common denominator {common}; {MOST_REPEATS} at most can be computed",
                "take windows of one size, a scale of 2 or 4 without align_corners, or the nearest elements",
            )
        places: list[int] = []
        for window in along:
            repeated = [place for place, part in window for _ in range(int(part * common))]
            places += repeated + [-1] * (longest - len(repeated))
        index = np.take(whole(trace.shapes[plane]), np.maximum(places, 0), axis)
        index[(slice(None),) * axis + (np.array(places) < 0,)] = -1
        picked = trace.append(Pick(trace.unique(f"{path}.repeat"), (plane,), index), index.shape)
        window = (longest, 1) if axis == 1 else (1, longest)
        size = [*index.shape]
        size[axis] = len(along)
        plane = trace.append(Pool(trace.unique(f"{path}.sum"), (picked,), window, window), size)
        factor /= common
    result = trace.shape(node)
    name = path if trace.shapes[plane] == result else trace.unique(f"{path}.mean")
    mean = scaled(trace, name, plane, float(factor))
    trace.bind(node, reshaped(trace, path, mean, result))


def _adaptive_avg(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    size, wanted = trace.shapes[source][1:], trace.shape(node)[1:]
    if len(size) == 2 and not any(side % out for side, out in zip(size, wanted, strict=True)):
        window = size[0] // wanted[0], size[1] // wanted[1]
        _average(trace, node, path, window, window)
        return
    windows = [_adaptive(side, count) for side, count in zip(size, wanted, strict=True)]
    _mix(trace, node, path, source, [[[(p, Fraction(1, len(w))) for p in w] for w in axis] for axis in windows])


def _mean(trace: Trace, node: fx.Node, path: str) -> None:
    _total(trace, node, path, mean=True)


def _sum(trace: Trace, node: fx.Node, path: str) -> None:
    _total(trace, node, path, mean=False)


def _total(trace: Trace, node: fx.Node, path: str, *, mean: bool) -> None:
    """The sum or the mean over whole axes."""
    source = trace.source(node.args[0])
    shape, result = trace.shapes[source], trace.shape(node)
    axes = _axes(trace, source, node.args[1] if len(node.args) > 1 and node.args[1] is not None else [])
    if not result:
        raise UnsupportedOperatorError("gives one number for each input", "keep an axis")
    if len(shape) != 3 or axes != [1, 2]:
        kept = [axis for axis in range(len(shape)) if axis not in axes]
        moved = permuted(trace, f"{path}.last", source, (*kept, *axes))
        size = prod(shape[axis] for axis in axes)
        source = reshaped(trace, f"{path}.map", moved, (prod(shape) // size, 1, size))
        shape = trace.shapes[source]
    window = shape[1], shape[2]
    factor = 1 / prod(window) if mean else 1.0
    total = trace.append(Pool(trace.unique(f"{path}.sum"), (source,), window, window), (shape[0], 1, 1))
    if len(result) == 1:
        flat = trace.append(Flat(trace.unique(f"{path}.flat"), (total,)), shape[:1])
        zeros = np.zeros(shape[0])
        trace.bind(node, trace.append(Affine(path, (flat,), zeros + factor, zeros, public=True), result))
    else:
        scale = scaled(trace, f"{path}.mean", total, factor)
        trace.bind(node, trace.append(Pick(path, (scale,), whole(result)), result))


def _linear_upsampling(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    shape = trace.shapes[source]
    rows = [_weights(node, shape, axis) for axis in range(1, len(shape))]
    _mix(trace, node, path, source, rows)


def _weights(node: fx.Node, shape: Sequence[int], axis: int) -> list[list[tuple[int, Fraction]]]:
    """For each place along an axis of the result, what it is summed of: seen from what becomes of single ones."""
    size = shape[axis]
    ones = torch.zeros(1, size, *shape[1:], dtype=torch.float64)
    for place in range(size):
        ones[0, place].select(axis - 1, place).fill_(1)
    given = cast(Any, node.target)(ones, *node.args[1:], **node.kwargs)[0].movedim(axis, 1)
    given = given.reshape(*given.shape[:2], -1)[:, :, 0]
    rows: list[list[tuple[int, Fraction]]] = []
    for column in given.T.tolist():
        parts = [(place, Fraction(part).limit_denominator(MOST_REPEATS)) for place, part in enumerate(column) if part]
        if any(abs(float(part) - column[place]) > 1e-6 or part < 0 for place, part in parts):
            raise UnsupportedOperatorError(
                f"weights of elements such as {column[parts[0][0]]:.6g} are no fractions up to 1/{MOST_REPEATS}",
                "take a scale of 2 or 4 without align_corners, or the nearest elements",
            )
        rows.append([(place, part) for place, part in parts if part])
    return rows


def _finish(trace: Trace, node: fx.Node, path: str) -> None:
    """A softmax at the end is the client's, who learns what it is made of anyway."""
    x, axis, *_ = trace.arguments(node)
    if not trace.is_output(node):
        raise UnsupportedOperatorError(f"{path.rpartition('.')[2]} inside the network cannot be lowered", "a ReLU can")
    source = trace.source(x)
    log = "log" in str(node.target)
    trace.finishing[source] = lambda logits: (torch.log_softmax if log else torch.softmax)(logits, axis)
    trace.bind(node, source)


POOLS: dict[str, Handler] = {
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), _finish),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool1d_with_indices"), _max_pool),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_linear1d"), _linear_upsampling),
    "adaptive_avg_pool1d": _adaptive_avg,
    "adaptive_avg_pool2d": _adaptive_avg,
    "adaptive_max_pool1d": _adaptive_max,
    "adaptive_max_pool2d": _adaptive_max,
    "amax": _amax,
    "amin": _amin,
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "max": _max,
    "mean": _mean,
    "min": _min,
    "sum": _sum,
}
"""By the operator's name in ATen."""
