"""How far a program may be from the real network: bounds for the worst input, value by value."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field
from deepreshape.private.program.graph import Conv, Dense, Filled, PublicAffine, Squared
from deepreshape.private.program.ops import (
    INPUT,
    Add,
    Concat,
    Conv2d,
    Fill,
    Flatten,
    Gather,
    Linear,
    Raise,
    Relu,
    Rescale,
    Sign,
    Square,
    SumPool,
    Truncate,
)
from deepreshape.private.program.program import Program, from_fixed
from deepreshape.private.program.quantization.formats import Formats
from deepreshape.private.program.quantization.plan import QuantizationPlan, Real


def error_bounds(plan: QuantizationPlan, formats: Formats, program: Program) -> tuple[dict[str, Real], dict[str, Real]]:
    """For each channel of each value (or feature): the error that its operation adds, and the error of the value.

    With w, x real and v, y what the integers stand for, |vy - wx| <= |v| |y - x| + |v - w| |x|.
    """
    unit = math.ldexp(1, -formats.rest)
    added = {INPUT: np.full(program.input_shape[0], unit / 2)}
    errors = dict(added)
    for op in program.ops:
        step, source = plan.steps[op.name], op.inputs[0]
        before, value = errors[source], program.values[op.name]
        added_error = 0.0 * before
        match op:
            case Conv2d() | Linear():
                if isinstance(step, Conv | Dense):
                    weights = program.weights[op.name]
                    used = from_fixed(weights.weight, op.weight_fraction)
                    bias = from_fixed(weights.bias, value.fraction)
                    wrong = np.abs(used - step.weight).reshape(len(used), -1).sum(1)
                    most = formats.margin * formats.observed[source]
                    added_error = most * wrong + np.abs(bias - step.bias)
                    before = _through(np.abs(used).reshape(*used.shape[:2], -1).sum(2), before)
            case Rescale():
                if isinstance(step, PublicAffine):
                    used = math.ldexp(op.factor, -op.fraction)
                    most = formats.margin * formats.observed[source]
                    wrong = abs(used - step.factor) * most + abs(math.ldexp(op.offset, -value.fraction) - step.offset)
                    before, added_error = abs(used) * before, np.full(len(before), wrong)
            case Gather():
                before = op.rows(before, program.values[source])
                added_error = 0.0 * before
            case Fill():
                if isinstance(step, Filled):
                    used = from_fixed(program.weights[op.name].weight, value.fraction)
                    before = np.maximum(before, np.abs(used - step.constants))
            case Concat():
                before = np.concatenate([errors[name] for name in op.inputs])
                added_error = 0.0 * before
            case Add():
                before = np.sum([errors[name] for name in op.inputs], axis=0)
            case SumPool():
                before = math.prod(op.kernel) * before
            case Raise():
                pass
            case Flatten():
                before = np.repeat(before, value.size // len(before))
                added_error = 0.0 * before
            case Sign():
                # a value within its error of the threshold may fall on either side
                sure = op.inputs[0] in plan.whole and not before.any()
                before, added_error = 0.0 * before, np.full(len(before), 0.0 if sure else 2.0)
            case Square():
                if isinstance(step, Squared):
                    alone = math.ldexp(1, op.before - program.values[source].fraction)
                    size = formats.margin * formats.observed[source] + np.abs(step.shift)
                    # neither the integers nor the real values exceed the limit
                    most = 2 * formats.margin * formats.observed[op.name]
                    squared = np.minimum(2 * (size + alone) * before + before**2, most)
                    added_error = 2 * size * alone + alone**2 + 2 * unit
                    if op.relus is not None:  # whose errors do not shrink with the size of x
                        added_error = np.maximum(added_error, before + unit / 2 - squared)
                    before = squared
            case Relu() | Truncate():
                if op.shift:
                    # without a circuit two parties round up or down, and one unit beside it over a field
                    truncated = 1.0 + isinstance(program.modulus, Field)
                    added_error = unit * np.where(rectified_rows(op, len(before)), 0.5, truncated)
            case _:
                raise TypeError(f"{op.name}: no error is known for {type(op).__name__}")
        added[op.name], errors[op.name] = added_error, before + added_error
    return added, errors


def rectified_rows(op: Relu | Truncate, rows: int) -> NDArray[np.bool_]:
    """Which rows of a value (along the first axis) have ReLUs only, whose rounding is exact under gc-full."""
    if isinstance(op, Relu) and op.mask is not None:
        return np.asarray(op.mask.reshape(rows, -1).all(1))
    return np.full(rows, isinstance(op, Relu))


def _through(weight: Real, error: Real) -> Real:
    """What a linear layer of absolute weights (out, in / groups) makes of errors (in,)."""
    fan_in = weight.shape[1]
    groups = len(error) // fan_in
    return (weight.reshape(groups, -1, fan_in) * error.reshape(groups, 1, fan_in)).sum(2).reshape(-1)
