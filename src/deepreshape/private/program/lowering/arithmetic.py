"""Convolutions, linear layers, norms, sums and products with constants, as layers.

A convolution with another kernel than a square one, with dilation or with uneven padding is computed as a square,
undilated one whose additional weights are zeros; a transposed convolution as one that gives stride^2 times the
channels, whose pixels are then put in their places (Shi et al., arXiv:1609.07009).
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false
# (arguments of operators and arrays of tensors arrive untyped)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from deepreshape.nn.herpn import quadratic
from deepreshape.private.program.graph import Affine, Conv, Dense, Filled, Pick, Quadratic, Stack, Sum
from deepreshape.private.program.lowering.geometry import Placement, square_form, transposed_form
from deepreshape.private.program.lowering.trace import GROUPS, NO_PRODUCT, Handler, Trace, UnsupportedOperatorError

__all__ = ["ARITHMETIC", "expanded", "negated", "reshaped", "scaled"]

Real = NDArray[np.float64]


def whole(shape: Sequence[int]) -> NDArray[np.int32]:
    """Where each element of a value stands."""
    return np.arange(prod(shape), dtype=np.int32).reshape(tuple(shape))


def reshaped(trace: Trace, name: str, source: str, shape: Sequence[int]) -> str:
    """A value in another shape, its elements in the same order; the value itself if it has that shape."""
    if trace.shapes[source] == tuple(shape):
        return source
    return trace.append(Pick(trace.unique(name), (source,), whole(shape)), shape)


def permuted(trace: Trace, name: str, source: str, axes: Sequence[int]) -> str:
    """A value with its axes in another order."""
    index = whole(trace.shapes[source]).transpose(axes)
    return trace.append(Pick(trace.unique(name), (source,), np.ascontiguousarray(index)), index.shape)


def scaled(trace: Trace, name: str, source: str, factor: float, offset: float = 0.0) -> str:
    """The map factor * x + offset, with numbers of the network's code."""
    shape = trace.shapes[source]
    scale, shift = np.full(shape[0], float(factor)), np.full(shape[0], float(offset))
    return trace.append(Affine(trace.unique(name), (source,), scale, shift, public=True), shape)


def negated(trace: Trace, name: str, source: str) -> str:
    """-x."""
    return scaled(trace, name, source, -1.0)


def expanded(trace: Trace, name: str, source: str, shape: Sequence[int]) -> str:
    """A value broadcast to another shape, as torch does."""
    have = trace.shapes[source]
    if have == tuple(shape):
        return source
    index = np.broadcast_to(whole((*[1] * (len(shape) - len(have)), *have)), tuple(shape))
    return trace.append(Pick(trace.unique(name), (source,), np.ascontiguousarray(index)), shape)


def convolve(trace: Trace, path: str, source: str, weight: Real, bias: Real, window: Placement, groups: int) -> str:
    """Any convolution over two axes, with undilated weights (out, in / groups, rows, columns)."""
    form = square_form(trace.shapes[source][1:], window)
    shape = (len(weight), *form.size)
    name = path if form.steps == (1, 1) else trace.unique(f"{path}.finer")
    if form.padded:
        ends = [n - b for n, b in zip(form.padded, window.before, strict=True)]
        source = _window(trace, f"{path}.pad", source, [-b for b in window.before], ends)
    (down, right), (rows, columns) = form.place, window.kernel
    square = np.zeros((*weight.shape[:2], form.side, form.side))
    square[:, :, down : down + rows, right : right + columns] = weight
    trace.append(Conv(name, (source,), square, bias, form.stride, form.padding, groups), shape)
    if form.steps == (1, 1):
        return name
    index = np.ascontiguousarray(whole(shape)[:, :: form.steps[0], :: form.steps[1]])
    return trace.append(Pick(path, (name,), index), index.shape)


def _undilated(weight: Real, dilation: tuple[int, int]) -> Real:
    outs, channels, *kernel = weight.shape
    rows, columns = ((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    wide = np.zeros((outs, channels, rows, columns))
    wide[:, :, :: dilation[0], :: dilation[1]] = weight
    return wide


def _window(trace: Trace, name: str, source: str, starts: Sequence[int], ends: Sequence[int]) -> str:
    """Rows and columns from ``starts`` to below ``ends`` of a map, zeros where they lie outside of it."""
    shape = trace.shapes[source]
    index = whole(shape)
    for axis, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        places = np.arange(start, end)
        inside = (places >= 0) & (places < shape[axis])
        index = np.take(index, np.clip(places, 0, shape[axis] - 1), axis)
        where = [1] * index.ndim
        where[axis] = -1
        index = np.where(inside.reshape(where), index, -1)
    return trace.append(Pick(trace.unique(name), (source,), index.astype(np.int32)), index.shape)


def _sides(value: Any, axes: int) -> tuple[int, ...]:
    each = [int(side) for side in value] if isinstance(value, Sequence) else [int(value)]
    return tuple(each * axes if len(each) == 1 else each)


def _plane(trace: Trace, path: str, source: str) -> tuple[str, int]:
    """A value as a map (C, H, W), one row high if it has one axis beside the channels; and how many axes it had."""
    shape = trace.shapes[source]
    if len(shape) not in (2, 3):
        raise UnsupportedOperatorError(f"a convolution over {len(shape) - 1} axes", "take one over two axes")
    if len(shape) == 2:
        return reshaped(trace, f"{path}.map", source, (shape[0], 1, shape[1])), 1
    return source, 2


def _conv(trace: Trace, node: fx.Node, path: str) -> None:
    x, weight, bias, stride, padding, dilation, groups = trace.arguments(node)
    real, source = trace.constant(weight).numpy(), trace.source(x)
    source, axes = _plane(trace, path, source)
    steps, spread = _sides(stride, axes), _sides(dilation, axes)
    if isinstance(padding, str):
        total = [(k - 1) * d if padding == "same" else 0 for k, d in zip(real.shape[2:], spread, strict=True)]
        pads, uneven = tuple(n // 2 for n in total), (0, 0, *(n % 2 for n in total))[-2:]
        if any(uneven):  # as torch does it: one more row or column at the end, and then as much on both sides
            ends = [side + more for side, more in zip(trace.shapes[source][1:], uneven, strict=True)]
            source = _window(trace, f"{path}.same", source, (0, 0), ends)
    else:
        pads = _sides(padding, axes)
    if axes == 1:
        real, steps, spread = real[:, :, None], (1, *steps), (1, *spread)
        pads = (0, *pads)
    shift = np.zeros(len(real)) if bias is None else trace.constant(bias).numpy()
    real = _undilated(real, cast(tuple[int, int], spread))
    window = Placement(*(cast(tuple[int, int], tuple(pair)) for pair in (real.shape[2:], steps, pads, pads)))
    _give(trace, node, path, axes, lambda name: convolve(trace, name, source, real, shift, window, int(groups)))


def _masked_conv(trace: Trace, node: fx.Node, path: str) -> None:
    """A convolution that leaves pixels out, and the bias in their places."""
    x, weight, bias, mask, (groups, *pairs) = trace.arguments(node)
    columns, source = trace.constant(mask).numpy().astype(np.bool_), trace.source(x)
    steps, before, spread = (cast(tuple[int, int], tuple(pairs[at : at + 2])) for at in (0, 2, 4))
    real = _undilated(trace.constant(weight).numpy(), spread)
    shift = np.zeros(len(real)) if bias is None else trace.constant(bias).numpy()
    window = Placement(cast(tuple[int, int], real.shape[2:]), steps, before, before)
    name = convolve(trace, path, source, real, shift, window, int(groups))
    layer = trace.layers[-1]
    if isinstance(layer, Conv):
        trace.layers[-1] = replace(layer, columns=columns)
        trace.shapes[name] = (len(real), int(np.count_nonzero(columns)))
    else:
        index = np.ascontiguousarray(whole(trace.shapes[name])[:, columns])
        name = trace.append(Pick(trace.unique(f"{path}.pixels"), (name,), index), index.shape)
    filled = Filled(trace.unique(f"{path}.fill"), (name,), shift, columns)
    trace.bind(node, trace.append(filled, (len(real), *columns.shape)))


def _give(trace: Trace, node: fx.Node, path: str, axes: int, make: Any) -> None:
    """Bind a map that ``make`` gives under a name, or the line of it if the network has one axis."""
    name = make(path if axes == 2 else trace.unique(f"{path}.plane"))
    trace.bind(
        node, name if axes == 2 else trace.append(Pick(path, (name,), whole(trace.shape(node))), trace.shape(node))
    )


def _conv_transpose(trace: Trace, node: fx.Node, path: str) -> None:
    x, weight, bias, stride, padding, _, groups, dilation = trace.arguments(node)
    real, source = trace.constant(weight).numpy(), trace.source(x)
    source, axes = _plane(trace, path, source)
    steps, crop, spread = _sides(stride, axes), _sides(padding, axes), _sides(dilation, axes)
    size = trace.shape(node)[1:]
    if axes == 1:
        real, steps, crop, spread, size = real[:, :, None], (1, *steps), (0, *crop), (1, *spread), (1, *size)
    real = _undilated(real, cast(tuple[int, int], spread))
    pairs = size, real.shape[2:], steps, crop
    window = transposed_form(trace.shapes[source][1:], *(cast(tuple[int, int], tuple(pair)) for pair in pairs))
    taps = window.kernel
    # weights (in, out / groups, s j + r): tap j of phase r
    grown = np.zeros((*real.shape[:2], *(t * s for t, s in zip(taps, steps, strict=True))))
    grown[:, :, : real.shape[2], : real.shape[3]] = real
    phases = grown.reshape(groups, -1, real.shape[1], taps[0], steps[0], taps[1], steps[1])
    phases = phases.transpose(0, 2, 4, 6, 1, 3, 5)[..., ::-1, ::-1]
    weights = phases.reshape(groups * real.shape[1] * prod(steps), -1, *taps)
    shift = np.zeros(len(weights)) if bias is None else np.repeat(trace.constant(bias).numpy(), prod(steps))
    plane = convolve(trace, trace.unique(f"{path}.phases"), source, weights, shift, window, int(groups))
    rows, columns = (np.arange(n) + c for n, c in zip(size, crop, strict=True))
    channel = np.arange(groups * real.shape[1])[:, None, None]
    of = (channel * steps[0] + rows[:, None] % steps[0]) * steps[1] + columns % steps[1]
    index = whole(trace.shapes[plane])[of, rows[:, None] // steps[0], columns // steps[1]]
    index = np.ascontiguousarray(index).reshape(trace.shape(node))
    trace.bind(node, trace.append(Pick(path, (plane,), index), index.shape))


def _linear(trace: Trace, node: fx.Node, path: str) -> None:
    x, weight, bias = trace.arguments(node)
    real = trace.constant(weight).numpy()
    shift = np.zeros(len(real)) if bias is None else trace.constant(bias).numpy()
    trace.bind(node, _dense(trace, path, trace.source(x), real, shift))


def _dense(trace: Trace, path: str, source: str, weight: Real, bias: Real) -> str:
    """A linear layer over the last axis: a 1x1 convolution where there are others."""
    shape = trace.shapes[source]
    if len(shape) == 1:
        return trace.append(Dense(path, (source,), weight, bias), (len(weight),))
    first = permuted(trace, f"{path}.channels", source, (len(shape) - 1, *range(len(shape) - 1)))
    sides = shape[:-1] if len(shape) == 3 else (1, prod(shape[:-1]))
    plane = reshaped(trace, f"{path}.map", first, (shape[-1], *sides))
    name = trace.unique(f"{path}.conv")
    trace.append(Conv(name, (plane,), weight[:, :, None, None], bias), (len(weight), *sides))
    index = np.ascontiguousarray(np.moveaxis(whole((len(weight), *shape[:-1])), 0, -1))
    return trace.append(Pick(path, (name,), index), index.shape)


def _matmul(trace: Trace, node: fx.Node, path: str) -> None:
    left, right = cast(Sequence[Any], node.args[:2])
    if trace.is_value(left) and trace.is_value(right):
        raise UnsupportedOperatorError("multiplies two matrices of values", NO_PRODUCT)
    constant = trace.constant(right if trace.is_value(left) else left).numpy()
    if constant.ndim != 2 or not trace.is_value(left):
        raise UnsupportedOperatorError("a product of other matrices than values by weights", "take a linear layer")
    trace.bind(node, _dense(trace, path, trace.source(left), constant.T, np.zeros(constant.shape[1])))


def _addmm(trace: Trace, node: fx.Node, path: str) -> None:
    bias, x, weight, beta, alpha = trace.arguments(node)
    real = float(alpha) * trace.constant(weight).numpy().T
    shift = np.broadcast_to(float(beta) * trace.constant(bias).numpy(), len(real))
    trace.bind(node, _dense(trace, path, trace.source(x), real, np.array(shift)))


def _batch_norm(trace: Trace, node: fx.Node, path: str) -> None:
    *known, _, eps = trace.arguments(node)
    _normalized(trace, node, path, known, eps)


def _instance_norm(trace: Trace, node: fx.Node, path: str) -> None:
    *known, of_input, _, eps, _ = trace.arguments(node)
    if of_input:
        raise UnsupportedOperatorError("an instance norm of its input's own statistics", GROUPS)
    _normalized(trace, node, path, known, eps)


def _normalized(trace: Trace, node: fx.Node, path: str, known: Sequence[Any], eps: Any) -> None:
    """A norm by stored statistics; ``known`` are its input, weight, bias, mean and variance."""
    x, weight, bias, mean, variance = known
    source = trace.source(x)
    spread = trace.constant(variance).numpy() + float(eps)
    if (spread <= 0).any():
        channel = int(spread.argmin())
        raise UnsupportedOperatorError(
            f"the running variance of channel {channel} is {spread[channel] - float(eps):.3g}; variances are positive",
            "load the weights again, or train again",
        )
    size = len(spread)
    scale = (np.ones(size) if weight is None else trace.constant(weight).numpy()) / np.sqrt(spread)
    shift = (np.zeros(size) if bias is None else trace.constant(bias).numpy()) - scale * trace.constant(mean).numpy()
    trace.append(Affine(path, (source,), scale, shift), trace.shapes[source])
    trace.bind(node, path)


def _no_statistics(trace: Trace, node: fx.Node, path: str) -> None:
    raise UnsupportedOperatorError(
        "a batch norm without running statistics depends on the other inputs of its batch",
        "keep track_running_stats",
    )


def _add(trace: Trace, node: fx.Node, path: str) -> None:
    left, right, alpha = trace.arguments(node)
    _plus(trace, node, path, left, right, float(alpha))


def _sub(trace: Trace, node: fx.Node, path: str) -> None:
    left, right, alpha = trace.arguments(node)
    _plus(trace, node, path, left, right, -float(alpha))


def _rsub(trace: Trace, node: fx.Node, path: str) -> None:
    left, right, alpha = trace.arguments(node)
    _plus(trace, node, path, right, left, -float(alpha))


def _plus(trace: Trace, node: fx.Node, path: str, left: Any, right: Any, times: float) -> None:
    """The sum left + times * right, of which one at least is a value."""
    shape = trace.shape(node)
    if trace.is_value(left) and trace.is_value(right):
        first = expanded(trace, f"{path}.left", trace.source(left), shape)
        second = trace.source(right)
        if times != 1:
            second = scaled(trace, f"{path}.times", second, times)
        second = expanded(trace, f"{path}.right", second, shape)
        trace.append(Sum(path, (first, second)), shape)
        trace.bind(node, path)
    elif trace.is_value(left):
        _affine(trace, node, path, trace.source(left), 1.0, times * trace.constant(right), trace.is_public(right))
    else:
        _affine(trace, node, path, trace.source(right), times, trace.constant(left), trace.is_public(left))


def _affine(
    trace: Trace, node: fx.Node, path: str, source: str, factor: float | Tensor, offset: float | Tensor, public: bool
) -> None:
    """The map factor * x + offset, with constants of any shape that broadcasts to that of the result."""
    shape = trace.shape(node)
    source = expanded(trace, f"{path}.wide", source, shape)
    if not shape:
        raise UnsupportedOperatorError("works on one number for each input", "keep an axis")
    pair = [torch.as_tensor(each, dtype=torch.float64) for each in (factor, offset)]
    full = torch.broadcast_tensors(*pair, torch.zeros(1, *shape, dtype=torch.float64))[:2]
    scale, shift = (each.reshape(shape).numpy() for each in full)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise UnsupportedOperatorError("a constant is not finite", "take finite ones")
    varying = [
        axis for axis in range(len(shape)) if any((each != np.take(each, [0], axis)).any() for each in (scale, shift))
    ]
    if varying in ([], [0]):
        times, plus = (each.reshape(shape[0], -1)[:, 0].copy() for each in (scale, shift))
        trace.append(Affine(path, (source,), times, plus, public and not varying), shape)
    elif len(varying) == 1:
        (axis,) = varying
        moved = permuted(trace, f"{path}.first", source, (axis, *(a for a in range(len(shape)) if a != axis)))
        rows = [np.moveaxis(each, axis, 0).reshape(shape[axis], -1)[:, 0].copy() for each in (scale, shift)]
        name = trace.append(Affine(trace.unique(f"{path}.scaled"), (moved,), *rows), trace.shapes[moved])
        index = np.ascontiguousarray(np.moveaxis(whole(trace.shapes[name]), 0, axis))
        trace.append(Pick(path, (name,), index), shape)
    else:
        flat = reshaped(trace, f"{path}.flat", source, (prod(shape),))
        name = trace.append(
            Affine(trace.unique(f"{path}.scaled"), (flat,), scale.ravel(), shift.ravel()), (prod(shape),)
        )
        trace.append(Pick(path, (name,), whole(shape)), shape)
    trace.bind(node, path)


def _mul(trace: Trace, node: fx.Node, path: str) -> None:
    left, right = cast(Sequence[Any], node.args[:2])
    if trace.is_value(left) and trace.is_value(right):
        if left is right:
            _square_of(trace, node, path)
        else:
            _product(trace, node, path, left, right)
        return
    x, constant = (left, right) if trace.is_value(left) else (right, left)
    _affine(trace, node, path, trace.source(x), trace.constant(constant), 0.0, trace.is_public(constant))


def _product(trace: Trace, node: fx.Node, path: str, left: Any, right: Any) -> None:
    """Of two values, a b = ((a + b) / 2)^2 - ((a - b) / 2)^2, both squares at once: one round trip."""
    shape = trace.shape(node)
    if not shape:
        raise UnsupportedOperatorError("multiplies two values that are one number for each input", "keep an axis")
    one, other = (expanded(trace, f"{path}.side", trace.source(each), shape) for each in (left, right))
    less = negated(trace, f"{path}.negative", other)
    terms = [trace.append(Sum(trace.unique(f"{path}.sum"), (one, each)), shape) for each in (other, less)]
    both = (2 * shape[0], *shape[1:])
    stack = trace.append(Stack(trace.unique(f"{path}.both"), tuple(terms)), both)
    halves = scaled(trace, f"{path}.halves", stack, 0.5)
    squares = trace.append(Quadratic(trace.unique(f"{path}.squares"), (halves,), _pure_squares(both[0])), both)
    indices = np.split(whole(both), 2)
    plus, minus = (trace.append(Pick(trace.unique(f"{path}.part"), (squares,), index), shape) for index in indices)
    trace.bind(node, trace.append(Sum(path, (plus, negated(trace, f"{path}.excess", minus))), shape))


def _pure_squares(rows: int) -> Real:
    """The coefficients of x^2 in every row."""
    return np.tile([0.0, 0.0, 1.0], (rows, 1))


def _div(trace: Trace, node: fx.Node, path: str) -> None:
    left, right = cast(Sequence[Any], node.args[:2])
    if trace.is_value(right) or node.kwargs.get("rounding_mode"):
        raise UnsupportedOperatorError("divides by a value of the network, or rounds", "only constants divide")
    _affine(trace, node, path, trace.source(left), 1 / trace.constant(right), 0.0, trace.is_public(right))


def _neg(trace: Trace, node: fx.Node, path: str) -> None:
    trace.bind(node, negated(trace, path, trace.source(node.args[0])))


def _square_of(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    shape = trace.shapes[source]
    trace.bind(node, trace.append(Quadratic(path, (source,), _pure_squares(shape[0])), shape))


def _pow(trace: Trace, node: fx.Node, path: str) -> None:
    if not isinstance(node.args[1], int | float) or node.args[1] != 2:
        raise UnsupportedOperatorError(f"a power of {node.args[1]}", "only squares are computed")
    _square_of(trace, node, path)


def _herpn(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    tensors = [trace.constant(argument) for argument in node.args[1:]]
    trace.append(Quadratic(path, (source,), quadratic(*tensors).numpy()), trace.shapes[source])
    trace.bind(node, path)


def _polynomial_relu(trace: Trace, node: fx.Node, path: str) -> None:
    source = trace.source(node.args[0])
    mask, coefficients = (trace.constant(argument).numpy() for argument in node.args[1:])
    trace.append(Quadratic(path, (source,), coefficients, mask.astype(np.bool_)), trace.shapes[source])
    trace.bind(node, path)


ARITHMETIC: dict[str, Handler] = {
    "_native_batch_norm_legit": _no_statistics,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "add": _add,
    "addmm": _addmm,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "deepreshape.herpn": _herpn,
    "deepreshape.masked_conv2d": _masked_conv,
    "deepreshape.polynomial_relu": _polynomial_relu,
    "div": _div,
    "instance_norm": _instance_norm,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "mul": _mul,
    "neg": _neg,
    "pow": _pow,
    "rsub": _rsub,
    "square": _square_of,
    "sub": _sub,
}
"""By the operator's name in ATen."""
