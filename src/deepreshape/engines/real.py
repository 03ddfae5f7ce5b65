"""The integer program as a function of real numbers, and how far apart the two can be.

An engine that keeps its own fixed point and truncates its own products wants the numbers that the integers stand for. A
value's integer v is the real v / 2^fraction, so ``Raise`` and ``Truncate`` do nothing here, and a ``Relu`` only
rectifies. Masks stay what they are in the program: one gather, one ReLU of that many elements, one permutation, so that
no engine pays for a ReLU that was removed.

The arrays may be anything with NumPy's interface; what an engine does in its own way is in :class:`Arithmetic`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.program.integer_linear import windows
from deepreshape.private.program.ops import (
    INPUT,
    Add,
    Concat,
    Conv2d,
    Fill,
    Flatten,
    Gather,
    Linear,
    Op,
    Raise,
    Relu,
    Rescale,
    Sign,
    Square,
    SumPool,
    Truncate,
)
from deepreshape.private.program.program import Program

__all__ = ["Arithmetic", "LinearParameters", "bound", "evaluate_program", "expected", "parameters"]

Real = NDArray[np.float64]


class LinearParameters(NamedTuple):
    """Real weights and bias of one operation, in the program's shapes; arrays of the engine's kind."""

    weight: Any
    bias: Any


class Arithmetic(Protocol):
    """An engine's arrays, and how it multiplies.

    Attributes:
        arrays: a module like NumPy: ``concatenate``, ``maximum``, ``split``, ``where``.
    """

    arrays: Any

    def convolve(self, x: Any, weight: Any, stride: int, padding: int) -> Any:
        """(N, C, H, W) and (K, C, k, k) to (N, K, H', W'), in one group, without a bias."""
        ...

    def multiply(self, x: Any, weight: Any) -> Any:
        """(N, I) and (K, I) to (N, K)."""
        ...


def parameters(program: Program) -> dict[str, LinearParameters]:
    """What the program's weights stand for, float64, by operation name."""
    values: dict[str, LinearParameters] = {}
    for op in program.ops:
        if isinstance(op, Conv2d | Linear | Square | Sign | Fill) and program.weights:
            linear, fraction = program.weights[op.name], program.values[op.name].fraction
            shift = (
                program.values[op.inputs[0]].fraction if isinstance(op, Square | Sign | Fill) else op.weight_fraction
            )
            weight = np.ldexp(linear.weight.astype(np.float64), -shift)
            values[op.name] = LinearParameters(weight, np.ldexp(linear.bias.astype(np.float64), -fraction))
    return values


def evaluate_program(program: Program, x: Any, weights: Mapping[str, LinearParameters], arithmetic: Arithmetic) -> Any:
    """The program's real output for a batch of real inputs.

    Args:
        program: its public part is enough.
        x: (N, *input_shape), of the engine's kind.
        weights: by operation name; see :func:`parameters`.
        arithmetic: the engine's.

    Returns:
        (N, *output shape), of the engine's kind; several outputs are flattened, one behind the other.
    """
    values = {INPUT: x}
    for op in program.ops:
        values[op.name] = _apply(program, op, [values[name] for name in op.inputs], weights, arithmetic)
    outputs = [values[name] for name in program.outputs]
    if len(outputs) == 1:
        return outputs[0]
    return arithmetic.arrays.concatenate([part.reshape(len(part), -1) for part in outputs], 1)


def bound(program: Program, fraction: int) -> Real:
    """How far an engine's output can be from that of the plain integer program, for the worst input and weights.

    Args:
        program: with its weights.
        fraction: the engine's fraction bits. It may lose a unit of its last place in every input, weight, constant and
            bias that it cannot hold, and in every product's truncation.

    Returns:
        For each row of the output (its first axis), float64, one output behind the other. The plain program loses at
        most half a unit of a value's last place where it drops bits, and below two units in a square. Errors grow by
        the sum of absolute weights from layer to layer: a statement about shallow programs, and far above what happens
        in deep ones.

    Raises:
        ProgramError: if this is the public part, which has no weights.
    """
    return _errors(program, fraction, 1)


def expected(program: Program, fraction: int) -> Real:
    """How far an engine's output is to be expected from that of the plain integer program.

    As :func:`bound`, but errors are added as if they were independent: the root of the sum of their squares, each at
    its largest. An estimate, not a bound: several times as much was seen in deep networks.
    """
    return np.sqrt(_errors(program, fraction, 2))


def _errors(program: Program, fraction: int, power: int) -> Real:
    """The sum of all errors to this power, by row of the output, each times what it is multiplied with on the way."""
    unit = 2.0**-fraction
    sizes = {name: np.ldexp(float(most), -program.values[name].fraction) for name, most in program.bounds().items()}
    weights = parameters(program)
    errors = {INPUT: np.full(program.input_shape[0], unit**power * (program.input_fraction > fraction))}
    for op in program.ops:
        error, value = errors[op.inputs[0]], program.values[op.name]
        match op:
            case Conv2d() | Linear():
                groups = op.groups if isinstance(op, Conv2d) else 1
                weight = np.abs(weights[op.name].weight)
                weight = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
                lost = unit * (op.weight_fraction > fraction)
                spread = (((weight + lost) ** power).sum(3) * error.reshape(groups, 1, -1)).sum(2).reshape(-1)
                held = (lost * sizes[op.inputs[0]]) ** power * weight[0, 0].size
                errors[op.name] = spread + held + unit**power * (1 + (value.fraction > fraction))
            case Add():
                errors[op.name] = reduce(add, (errors[name] for name in op.inputs))
            case SumPool():
                errors[op.name] = error * op.kernel[0] * op.kernel[1]
            case Rescale():
                lost = unit * (op.fraction > fraction)
                factor = abs(np.ldexp(float(op.factor), -op.fraction))
                multiplied = (factor + lost) ** power * error + (lost * sizes[op.inputs[0]]) ** power
                errors[op.name] = multiplied + unit**power * (1 + (value.fraction > fraction))
            case Square():
                root = program.values[op.inputs[0]].fraction - op.before
                moved = sizes[op.inputs[0]] + float(np.abs(weights[op.name].weight).max())
                off = error + 2.0 ** -(root * power) + unit**power
                errors[op.name] = (2 * moved) ** power * off + off**2 + 2.0 ** -(value.fraction * power)
                errors[op.name] = errors[op.name] + unit**power * (1 + (value.fraction > fraction))
                if op.relus is not None:  # whose errors do not shrink with the size of x
                    errors[op.name] = np.maximum(errors[op.name], error + 2.0 ** -((value.fraction + 1) * power))
            case Sign():  # a value near its threshold may fall on either side
                errors[op.name] = np.full(len(error), 2.0**power)
            case Relu() | Truncate():
                errors[op.name] = error + (2.0 ** -((value.fraction + 1) * power) if op.shift else 0.0)
            case Concat():
                errors[op.name] = np.concatenate([errors[name] for name in op.inputs])
            case Fill():
                errors[op.name] = np.maximum(error, unit**power * (value.fraction > fraction))
            case Gather():
                errors[op.name] = op.rows(error, program.values[op.inputs[0]])
            case Flatten():
                errors[op.name] = error.repeat(value.size // len(error))
            case _:
                errors[op.name] = error
    return np.concatenate([errors[name] for name in program.outputs])


def _apply(
    program: Program, op: Op, inputs: list[Any], weights: Mapping[str, LinearParameters], arithmetic: Arithmetic
) -> Any:
    x, arrays = inputs[0], arithmetic.arrays
    match op:
        case Conv2d():
            linear = weights[op.name]
            pairs = zip(arrays.split(x, op.groups, 1), arrays.split(linear.weight, op.groups), strict=True)
            parts = [arithmetic.convolve(part, weight, op.stride, op.padding) for part, weight in pairs]
            whole = arrays.concatenate(parts, 1)
            if op.mask is None:
                return whole + linear.bias[:, None, None]
            pixels = whole.reshape(len(x), op.out_channels, -1)[:, :, np.flatnonzero(op.mask)]
            return pixels + linear.bias[:, None]
        case Linear():
            linear = weights[op.name]
            return arithmetic.multiply(x, linear.weight) + linear.bias
        case Add():
            return reduce(add, inputs)
        case SumPool():
            return reduce(
                add, (x[:, :, rows, columns] for rows, columns in windows(op.kernel, op.stride, *x.shape[2:]))
            )
        case Raise() | Truncate():
            return x
        case Rescale():
            offset = np.ldexp(float(op.offset), -program.values[op.name].fraction)
            return x * np.ldexp(float(op.factor), -op.fraction) + offset
        case Flatten():
            return x.reshape(len(x), -1)
        case Concat():
            return arrays.concatenate(inputs, 1)
        case Gather():
            chosen = x.reshape(len(x), -1)[:, np.maximum(op.index, 0)]
            return chosen * (op.index >= 0) if (op.index < 0).any() else chosen
        case Fill():
            places = np.where(op.mask, np.cumsum(op.mask).reshape(op.mask.shape) - 1, 0)
            constants = weights[op.name].weight[:, None, None]
            return x[:, :, places] * op.mask + constants * ~op.mask
        case Sign():
            threshold = weights[op.name].weight.reshape(-1, *[1] * (x.ndim - 2))
            return arrays.where(x + threshold > 0, 1.0, -1.0)
        case Square():
            shift, constant = (part.reshape(-1, *[1] * (x.ndim - 2)) for part in weights[op.name])
            root = x + shift
            square = root * root + constant
            return square if op.mask is None else arrays.where(op.mask, arrays.maximum(x, 0), square)
        case Relu():
            rectified, others = op.positions(program.values[op.name])
            if not len(others):
                return arrays.maximum(x, 0)
            flat = x.reshape(len(x), -1)
            halves = [arrays.maximum(flat[:, rectified], 0), flat[:, others]]
            order = np.argsort(np.concatenate([rectified, others]))
            return arrays.concatenate(halves, 1)[:, order].reshape(x.shape)
        case _:
            raise TypeError(f"{op.name}: {type(op).__name__} has no meaning in real numbers here")
