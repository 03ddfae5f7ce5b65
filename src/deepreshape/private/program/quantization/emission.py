"""The operations and integers of a program, for planned steps with formats."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from deepreshape.private.arith.bounds import largest_sum
from deepreshape.private.program.graph import (
    Conv,
    Dense,
    Filled,
    Flat,
    Pick,
    Pool,
    PublicAffine,
    Rectify,
    Signed,
    Squared,
    Stack,
    Sum,
    Zero,
)
from deepreshape.private.program.ops import (
    INPUT,
    Add,
    Concat,
    Conv2d,
    Fill,
    Flatten,
    Gather,
    Integers,
    Linear,
    Op,
    Raise,
    Relu,
    Rescale,
    Shape,
    Sign,
    Square,
    SumPool,
    Truncate,
    Weights,
)
from deepreshape.private.program.program import Program, to_fixed
from deepreshape.private.program.quantization.formats import Formats
from deepreshape.private.program.quantization.plan import (
    AnyStep,
    QuantizationPlan,
    RaiseStep,
    ShiftStep,
)

_FAR = 60
"""Thresholds are cut at 2^60, in units of what they are compared with."""


def emit(plan: QuantizationPlan, formats: Formats, shape: Shape, outputs: tuple[str, ...]) -> Program:
    """The program of planned steps.

    Raises:
        ProgramError: if a value does not fit the modulus.
    """
    rest = formats.rest
    resting = dict.fromkeys(plan.ones, 0)
    fractions = {
        name: formats.groups[plan.find(name)] if name in plan.group else resting.get(name, rest) for name in plan.origin
    }
    weights: dict[str, Weights] = {}

    ops: list[Op] = []
    for name, step in plan.steps.items():
        fraction = fractions[name]
        source = step.inputs[0]
        gained = fraction - fractions[source]
        match step:
            case Conv() | Dense():
                weights[name] = Weights(to_fixed(step.weight, gained), to_fixed(step.bias, fraction))
                ops.append(_linear(step, weights[name].weight, gained))
            case Sum():
                ops.append(Add(name, step.inputs))
            case Pool():
                ops.append(SumPool(name, step.inputs, step.kernel, step.stride))
            case Rectify():
                high = formats.limit(source, fractions[source]).bit_length() + 1
                ops.append(Relu(name, step.inputs, -gained, step.mask, 0, max(high, 2)))
            case Squared():
                before, after = formats.shifts(fractions[source])
                weights[name] = Weights(to_fixed(step.shift, fractions[source]), to_fixed(step.constant, fraction))
                ops.append(Square(name, step.inputs, before, after, 0 if step.mask is None else -gained, step.mask))
            case Signed() | Filled():
                op, constants = _by_channel(step, fractions[source])
                weights[name] = Weights(constants, np.zeros_like(constants))
                ops.append(op)
            case _:
                ops.append(_passing(step, gained, fraction))
    bound = formats.limit(INPUT, rest)
    # what signs read that is whole is bounded for every input, and not by calibration
    limits = {op.name: formats.limit(op.name, fractions[op.name]) for op in ops if op.name not in plan.whole}
    program = _with_sign_bits(Program(formats.modulus, shape, rest, bound, tuple(ops), weights, limits, outputs))
    program.check()
    return program


def _by_channel(step: Signed | Filled, fraction: int) -> tuple[Op, Integers]:
    """The operation of a step with a secret number for each channel, of a value of that fraction, and the numbers."""
    if isinstance(step, Signed):
        most = math.ldexp(1, _FAR - fraction)
        return Sign(step.name, step.inputs), to_fixed(np.clip(-step.threshold, -most, most), fraction)
    return Fill(step.name, step.inputs, step.columns), to_fixed(step.constants, fraction)


def _passing(step: AnyStep, gained: int, fraction: int) -> Op:
    """The operation of a step that takes one value or several as they are, or all by one public constant."""
    match step:
        case ShiftStep():
            return Truncate(step.name, step.inputs, -gained)
        case RaiseStep():
            return Raise(step.name, step.inputs, gained)
        case PublicAffine():
            factor, shift = to_fixed(np.array(step.factor), gained), to_fixed(np.array(step.offset), fraction)
            return Rescale(step.name, step.inputs, int(factor), gained, int(shift))
        case Zero():
            places = np.arange(step.keep.size, dtype=np.int32).reshape(step.keep.shape)
            return Gather(step.name, step.inputs, np.where(step.keep, places, np.int32(-1)))
        case Pick():
            return Gather(step.name, step.inputs, step.index)
        case Stack():
            return Concat(step.name, step.inputs)
        case Flat():
            return Flatten(step.name, step.inputs)
        case _:
            raise TypeError(f"{step.name} was placed, and cannot be")


def _with_sign_bits(program: Program) -> Program:
    """The program with the bits that its sign tests need for every input, and those that do by calibration.

    A threshold beyond all values is moved to just beyond them, where it decides the same. Whole numbers, which have no
    fraction bits, have no window by calibration: theirs is proven, and narrow.
    """
    if not program.signs:
        return program
    worst, bounds = replace(program, limits={}).bounds(), program.bounds()
    room, weights = (program.modulus.order - 1) // 2, dict(program.weights)
    ops: list[Op] = []
    for op in program.ops:
        if isinstance(op, Sign):
            source, secret = op.inputs[0], weights[op.name]
            bound = worst[source] if worst[source] <= room else bounds[source]
            weights[op.name] = secret = replace(secret, weight=np.clip(secret.weight, -bound, bound + 1))
            proven, seen = (max(op.reach(most[source], secret).bit_length() + 1, 2) for most in (worst, bounds))
            high = proven if proven <= program.modulus.bits else 0
            seen = min(seen, high or program.modulus.bits) if program.values[source].fraction else 0
            op = replace(op, high=high, calibrated=seen)
        ops.append(op)
    return replace(program, ops=tuple(ops), weights=weights)


def _linear(step: Conv | Dense, weight: Integers, gained: int) -> Op:
    """The operation of a linear layer with these integers."""
    out, (wide, total) = len(weight), _widths(weight)
    if isinstance(step, Dense):
        return Linear(step.name, step.inputs, out, wide, gained, total)
    place = step.stride, step.padding, step.groups
    return Conv2d(step.name, step.inputs, out, weight.shape[2], wide, gained, *place, total, step.columns)


def _widths(weight: Integers) -> tuple[int, int]:
    """The smallest b of at least one for which no absolute weight is above 2^b, and likewise for sums of one output."""
    largest, total = int(np.abs(weight).max()), largest_sum(weight)
    return max((largest - 1).bit_length(), 1), max((total - 1).bit_length(), 1)
