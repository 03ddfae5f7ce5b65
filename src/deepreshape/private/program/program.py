"""The integer program: what a network is once it is made of integers, and all that the private runtime runs.

A :class:`Program` is an ordered tuple of operations (``ops``) over Z_{2^l} or Z_p in single-assignment form: every
operation makes one value, and the value bears the operation's name, which is the layer's path in the network. The value
``"input"`` is what the client brings. Operations, shapes, formats, bit widths and masks are public; weights and
calibrated limits are the server's, kept apart from them in the program itself, so that what is made of
:meth:`Program.public` cannot touch them: its bytes and its digest (``encoding.py``) among others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.bounds import largest_sum
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.truncation import ShareTruncation
from deepreshape.private.program.ops import (
    INPUT,
    MOST_ELEMENTS,
    Integers,
    Op,
    ProgramError,
    Relu,
    Secret,
    Shape,
    Sign,
    Square,
    Truncate,
    Value,
    Weighted,
    Weights,
)

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
MOST_AXES = 8
MOST_OPS = 1 << 14


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """See the module's docstring.

    Args:
        modulus: where the values live.
        input_shape: of one input, without a batch axis.
        input_fraction: its fraction bits.
        input_bound: the largest absolute value that an input integer may have.
        ops: in the order in which they run.
        weights: by operation name, for every ``Secret`` one, or none at all: then this is the public part.
        limits: by value name, what calibration promises no absolute value of it exceeds. Without one, :meth:`bounds`
            takes the worst case over all inputs, which grows beyond every modulus in a deep network.
        outputs: names of the values that the client learns, none twice; the last value unless given.

    Raises:
        ProgramError: if it makes no sense, naming the layer.
    """

    modulus: Ring | Field
    input_shape: Shape
    input_fraction: int
    input_bound: int
    ops: tuple[Op, ...]
    weights: Mapping[str, Weights] = field(default_factory=dict[str, Weights])
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ops:
            raise ProgramError("a program needs at least one operation")
        values = self.values  # infers every shape and fraction, or says why it cannot
        if not self.outputs:
            object.__setattr__(self, "outputs", (self.ops[-1].name,))
        if len(set(self.outputs)) < len(self.outputs) or not set(self.outputs) <= set(values):
            raise ProgramError(f"outputs {list(self.outputs)} must be values of this program, none of them twice")
        secret = {op.name: op for op in self.ops if isinstance(op, Secret)}
        for name in [*self.weights, *self.limits]:
            if name not in values:
                raise ProgramError(f"there are weights or limits for {name!r}, which is no value of this program")
        if self.weights and set(self.weights) != set(secret):
            raise ProgramError(f"weights are missing or not wanted for {sorted(set(self.weights) ^ set(secret))}")
        for name, weights in self.weights.items():
            _check_weights(secret[name], weights, values[secret[name].inputs[0]])

    @cached_property
    def values(self) -> dict[str, Value]:
        """Shape and fraction of every value, in order; the input first."""
        values = {INPUT: Value(self.input_shape, self.input_fraction)}
        refuse_large(self.input_shape, len(self.ops))
        if not self.input_shape or min(self.input_shape) < 1 or self.input_bound < 1:
            raise ProgramError(f"an input of shape {self.input_shape} and bound {self.input_bound} makes no sense")
        for op in self.ops:
            values[op.name] = value_of(op, values, self.modulus)
        return values

    @cached_property
    def nonlinear(self) -> tuple[str, ...]:
        """The operations with ReLUs or signs that run, in order: those whose protocol can be chosen."""
        values = self.values
        rectified = {op.name: op.relus if isinstance(op, Square) else op for op in self.ops}
        return tuple(
            name
            for name, op in rectified.items()
            if isinstance(op, Sign) or (isinstance(op, Relu) and op.count(values[name]))
        )

    @property
    def relus(self) -> int:
        """ReLUs that are computed; masked-out positions do not count."""
        rectified = [op.relus if isinstance(op, Square) else op for op in self.ops]
        return sum(op.count(self.values[op.name]) for op in rectified if isinstance(op, Relu))

    @property
    def signs(self) -> int:
        """Signs that are computed."""
        return sum(self.values[op.name].size for op in self.ops if isinstance(op, Sign))

    @property
    def squares(self) -> int:
        """Squares that are computed."""
        return sum(op.positions(self.values[op.name]).size for op in self.ops if isinstance(op, Square))

    @property
    def output_size(self) -> int:
        """Elements of all outputs."""
        return sum(self.values[name].size for name in self.outputs)

    def public(self) -> Program:
        """What the client gets: all but weights and limits."""
        return replace(self, weights={}, limits={})

    def up_to(self, output: str) -> Program:
        """The program that gives one of the outputs alone: the operations that it depends on, as they are.

        Raises:
            ValueError: if that is none of the outputs.
        """
        if output not in self.outputs:
            raise ValueError(f"{output!r} is no output of the program, which gives {', '.join(self.outputs)}")
        needed, kept = {output}, list[Op]()
        for op in reversed(self.ops):
            if op.name in needed:
                needed.update(op.inputs)
                kept.append(op)
        weights = {name: value for name, value in self.weights.items() if name in needed}
        limits = {name: value for name, value in self.limits.items() if name in needed}
        return replace(self, ops=tuple(reversed(kept)), weights=weights, limits=limits, outputs=(output,))

    def encode(self, images: NDArray[np.floating]) -> Integers:
        """Real inputs, as the network gets them, as the program's: (..., *input_shape), int64.

        Raises:
            ValueError: if they have another shape, or one is not finite.
        """
        if images.shape[-len(self.input_shape) :] != self.input_shape:
            raise ValueError(f"inputs of shape {images.shape} do not fit the program, which takes {self.input_shape}")
        return to_fixed(images, self.input_fraction)

    def decode(self, results: Integers) -> tuple[NDArray[np.float64], ...]:
        """The real outputs that :meth:`joined` results stand for: an array (..., *shape) for each of ``outputs``."""
        values = [self.values[name] for name in self.outputs]
        if len(values) == 1:
            return (from_fixed(results, values[0].fraction),)
        ends = np.cumsum([value.size for value in values])[:-1]
        parts = zip(np.split(results, ends, axis=-1), values, strict=True)
        return tuple(from_fixed(part.reshape(*part.shape[:-1], *v.shape), v.fraction) for part, v in parts)

    def joined(self, results: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The integers of all outputs, (..., *shape) each, as one array; several are flattened first."""
        if len(results) == 1:
            return results[0]
        shapes = [self.values[name].shape for name in self.outputs]
        flat = [part.reshape(*part.shape[: part.ndim - len(s)], -1) for part, s in zip(results, shapes, strict=True)]
        return np.concatenate(flat, -1)

    def bounds(self) -> dict[str, int]:
        """The largest absolute value of every value, from weights, input bound and limits.

        Raises:
            ProgramError: if this is the public part, which has no weights.
        """
        bounds = {INPUT: self.input_bound}
        for op in self.ops:
            worst = op.worst([bounds[name] for name in op.inputs], self.weights.get(op.name))
            bounds[op.name] = min(worst, self.limits.get(op.name, 1 << 256))
        return bounds

    def check(self, rooms: Mapping[str, int] | None = None) -> None:
        """Refuse to run where a value may not fit.

        Args:
            rooms: by operation, the largest absolute value that the way it is computed can take.

        Raises:
            ProgramError: naming the first such layer, how large its values get, and what would help.
        """
        bounds = self.bounds()
        for name, bound in bounds.items():
            self._check_room(name, bound, (self.modulus.order - 1) // 2, "")
        for op in self.ops:
            source = op.inputs[0]
            if isinstance(op, Relu | Truncate) and op.truncated(self.values[source]).size:
                room = truncation_room(self.modulus, op.shift)
                self._check_room(source, bounds[source], room, f", which {op.name} truncates without a ReLU")
            reach = op.reach(bounds[source], self.weights.get(op.name))
            if isinstance(op, Square):
                limit = op.squaring(self.modulus).limit
                self._check_room(source, reach, limit, f", which {op.name} squares")
            if rooms and op.name in rooms:
                self._check_room(source, reach, rooms[op.name], f", which {op.name} takes")

    def _check_room(self, name: str, bound: int, room: int, why: str) -> None:
        if bound > room:
            more = (bound // max(room, 1)).bit_length()
            raise ProgramError(
                f"{name}: values may reach {bound}{why}, and only {room} fits {self.modulus}; "
                f"use {more} more bits, {more} fewer fraction bits, or a limit for this value from calibration"
            )


def value_of(op: Op, values: Mapping[str, Value], modulus: Ring | Field) -> Value:
    """The value that ``op`` makes from earlier ``values``.

    Raises:
        ProgramError: if it does not fit them.
    """
    if not NAME.fullmatch(op.name) or op.name in values:
        raise ProgramError(f"operation name {op.name!r} is used already or no plain dotted path")
    op.require(len(op.inputs) >= 2 if op.several else len(op.inputs) == 1, f"has {len(op.inputs)} inputs")
    for name in op.inputs:
        op.require(name in values, f"reads {name!r}, which no earlier operation makes")
    value = op.value(*(values[name] for name in op.inputs))
    fits = value.size <= MOST_ELEMENTS
    op.require(fits, f"makes {value.size} elements; at most {MOST_ELEMENTS} are supported")
    if isinstance(op, Relu):
        op.require(op.high <= modulus.bits, f"bit {op.high - 1} is none of {modulus}")
    if isinstance(op, Square):
        op.squaring(modulus)
    if isinstance(op, Sign):
        most = max(op.high, op.calibrated)
        op.require(most <= modulus.bits, f"bit {most - 1} is none of {modulus}")
    if isinstance(op, Relu | Truncate):
        op.require(op.shift <= modulus.bits - 3, f"cannot drop {op.shift} bits of {modulus}")
    return value


def to_fixed(values: NDArray[np.floating], fraction: int) -> Integers:
    """Real values to the nearest int64 multiples of 2^-fraction.

    Raises:
        ValueError: if one is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite; check the normalisation of the input")
    return np.rint(np.ldexp(values.astype(np.float64), fraction)).astype(np.int64)


def from_fixed(values: Integers, fraction: int) -> NDArray[np.float64]:
    """The float64 values that int64 multiples of 2^-fraction stand for."""
    return np.ldexp(values.astype(np.float64), -fraction)


def truncation_room(modulus: Ring | Field, shift: int) -> int:
    """The largest absolute value that can be truncated by ``shift`` bits without a circuit; see ``truncate.py``."""
    reach = modulus.order // 4
    return min(reach, ShareTruncation(modulus, shift, reach).max_input)


def _check_weights(op: Secret, weights: Weights, source: Value) -> None:
    shape = op.weight_shape(source)
    fits = weights.weight.dtype == weights.bias.dtype == np.int64
    fits = fits and weights.weight.shape == shape and weights.bias.shape == shape[:1]
    given = f"{weights.weight.dtype} {weights.weight.shape} and {weights.bias.dtype} {weights.bias.shape}"
    op.require(fits, f"weights and bias are {given}; they must be int64 {shape} and {shape[:1]}")
    if not isinstance(op, Weighted):
        return
    weight_bits, sum_bits = op.widths()
    widest = max(int(weights.weight.max()), -int(weights.weight.min()))
    op.require(widest <= 1 << weight_bits, f"a weight is {widest}, above the 2^{weight_bits} declared")
    total = largest_sum(weights.weight)
    declared = f"absolute weights of one output sum to {total}, above the 2^{sum_bits} declared"
    op.require(total <= 1 << sum_bits, declared)


def refuse_large(input_shape: Shape, ops: int) -> None:
    """Raise a ProgramError if a program is larger than any that makes sense, before anything is made of it."""
    if ops > MOST_OPS:
        raise ProgramError(f"{ops} operations; at most {MOST_OPS} are supported")
    if len(input_shape) > MOST_AXES:
        raise ProgramError(f"an input of {len(input_shape)} axes; at most {MOST_AXES} are supported")
    if (size := math.prod(input_shape)) > MOST_ELEMENTS:
        raise ProgramError(f"an input of {size} elements; at most {MOST_ELEMENTS} are supported")
