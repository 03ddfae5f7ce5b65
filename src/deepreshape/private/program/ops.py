"""The integer program: what a network is once it is made of integers, and all that the private runtime runs.

A :class:`Program` is an ordered tuple of operations over Z_{2^l} or Z_p in single-assignment form: every operation
makes one value, and the value bears the operation's name, which is the layer's path in the network. The value
``"input"`` is what the client brings; the last value is the output. Operations, shapes, formats, bit widths and masks
are public; weights and calibrated limits are the server's, kept apart from them in the program itself, so that what is
made of :meth:`Program.public` cannot touch them: its bytes and its digest (``program_bytes.py``) among others.

*Meaning.* A value stands for integer / 2^fraction, images being (channels, height, width). ``Conv2d`` and ``Linear``
multiply exactly, so the fraction grows by that of the weights; ``Relu`` and ``Truncate`` drop ``shift`` bits of it,
rounding towards minus infinity, and ``Raise`` adds them, exactly. ``SumPool`` sums and does not divide: an average's
division belongs into the weights of the next layer. Nothing is ever reduced: a program is right only while every value
fits the modulus, and :meth:`Program.check` says whether it must.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.truncation import Division

Shape = tuple[int, ...]
Integers = NDArray[np.int64]

INPUT = "input"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
LARGEST = 1 << 31
"""No integer of an operation may be larger."""
MOST_ELEMENTS = 1 << 24
"""Of one value: the largest of a ResNet-50 on ImageNet has 2^20."""
MOST_WEIGHTS = 1 << 28
"""Of one layer."""
MOST_AXES = 8
MOST_OPS = 1 << 14
SUM_BITS = 52
"""The largest ``sum_bits``: what ``exact.py`` can add up."""


class ProgramError(ValueError):
    """A program that makes no sense, or cannot be run safely; the text names the layer and what would help."""


class Value(NamedTuple):
    """The public facts of a value: its shape, and how many of its bits stand behind the binary point."""

    shape: Shape
    fraction: int

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Conv2d:
    """(C, H, W) -> (out_channels, H', W') with square kernels and zero padding, as torch's ``Conv2d`` has it.

    Weights are (out_channels, C / groups, kernel, kernel), of absolute value at most 2^weight_bits, and the absolute
    weights of one output channel sum to at most 2^sum_bits; they and the bias (out_channels,) stand in
    :attr:`Program.weights`. The bias has the fraction of the output.
    """

    name: str
    inputs: tuple[str, ...]
    out_channels: int
    kernel: int
    weight_bits: int
    weight_fraction: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    sum_bits: int = SUM_BITS

    def weight_shape(self, source: Value) -> Shape:
        """Shape of the weights for an input like ``source``."""
        return self.out_channels, source.shape[0] // self.groups, self.kernel, self.kernel

    def value(self, *sources: Value) -> Value:
        """The value made from ``sources``.

        Raises:
            ProgramError: if they do not fit.
        """
        source = sources[0]
        _require(self, len(source.shape) == 3, f"wants (channels, height, width), gets {source.shape}")
        _require(self, min(self.out_channels, self.kernel, self.stride, self.groups) >= 1, f"sizes below 1 in {self}")
        channels, *sides = source.shape
        fits = channels % self.groups == 0 and self.out_channels % self.groups == 0
        _require(self, fits, f"{channels} to {self.out_channels} channels do not divide into {self.groups} groups")
        _require(self, 0 <= self.padding < self.kernel, f"padding {self.padding} must be below kernel {self.kernel}")
        padded = [side + 2 * self.padding - self.kernel for side in sides]
        _require(self, min(padded) >= 0, f"kernel {self.kernel} is larger than the padded image {source.shape}")
        size = channels * math.prod(side + 2 * self.padding for side in sides)
        _require(self, size <= MOST_ELEMENTS, f"pads to {size} elements; at most {MOST_ELEMENTS} are supported")
        _check_weight_count(self, source)
        rows, columns = (side // self.stride + 1 for side in padded)
        _check_weight_format(self)
        return Value((self.out_channels, rows, columns), source.fraction + self.weight_fraction)


@dataclass(frozen=True)
class Linear:
    """(I,) -> (out_features,), weights (out_features, I); otherwise as :class:`Conv2d`."""

    name: str
    inputs: tuple[str, ...]
    out_features: int
    weight_bits: int
    weight_fraction: int
    sum_bits: int = SUM_BITS

    def weight_shape(self, source: Value) -> Shape:
        """Shape of the weights for an input like ``source``."""
        return self.out_features, source.shape[0]

    def value(self, *sources: Value) -> Value:
        """As :meth:`Conv2d.value`."""
        source = sources[0]
        _require(self, len(source.shape) == 1, f"wants a flat input, gets {source.shape}; put a Flatten before it")
        _require(self, self.out_features >= 1, f"{self.out_features} outputs")
        _check_weight_count(self, source)
        _check_weight_format(self)
        return Value((self.out_features,), source.fraction + self.weight_fraction)


@dataclass(frozen=True)
class Add:
    """The sum of two or more values of one shape and fraction."""

    name: str
    inputs: tuple[str, ...]

    def value(self, *sources: Value) -> Value:
        """As :meth:`Conv2d.value`."""
        _require(
            self, len(set(sources)) == 1, f"adds values that differ in shape or fraction: {[*map(tuple, sources)]}"
        )
        return sources[0]


@dataclass(frozen=True)
class SumPool:
    """The sum over windows of (C, H, W), without padding; windows that do not fit whole are left out.

    A kernel of (H, W) pools globally.
    """

    name: str
    inputs: tuple[str, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]

    def value(self, *sources: Value) -> Value:
        """As :meth:`Conv2d.value`."""
        source = sources[0]
        _require(self, len(source.shape) == 3, f"wants (channels, height, width), gets {source.shape}")
        _require(self, min(*self.kernel, *self.stride) >= 1, f"sizes below 1 in {self}")
        channels, *sides = source.shape
        room = [side - kernel for side, kernel in zip(sides, self.kernel, strict=True)]
        _require(self, min(room) >= 0, f"a window of {self.kernel} is larger than the image {source.shape}")
        rows, columns = (left // stride + 1 for left, stride in zip(room, self.stride, strict=True))
        return Value((channels, rows, columns), source.fraction)


@dataclass(frozen=True, eq=False)
class Relu:
    """max(x, 0) >> shift where ``mask`` is true, x >> shift elsewhere.

    ``mask`` is bool, of the shape of the value; None is true everywhere. ``low`` and ``high`` say, by calibration,
    which bits of x a sign test may be content with (``sign.Window``): bits from ``high`` up repeat the sign, and those
    below ``low`` hardly matter; 0 and 0 say nothing.
    """

    name: str
    inputs: tuple[str, ...]
    shift: int = 0
    mask: NDArray[np.bool_] | None = None
    low: int = 0
    high: int = 0

    def value(self, *sources: Value) -> Value:
        """As :meth:`Conv2d.value`."""
        source = sources[0]
        if self.mask is not None:
            given = f"{self.mask.dtype} of shape {self.mask.shape}"
            fits = self.mask.dtype == np.bool_ and self.mask.shape == source.shape
            _require(self, fits, f"its mask is {given}; it must be bool of shape {source.shape}")
        window = (self.low, self.high) == (0, 0) or 0 <= self.low <= self.high - 2
        _require(self, window, f"a sign test of the bits from {self.low} up to {self.high}; it needs two bits")
        return _shifted(self, source, self.shift)

    def positions(self, source: Value) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Flat positions that are rectified, and those that are only truncated."""
        if self.mask is None:
            return np.arange(source.size), np.arange(0)
        mask = self.mask.reshape(-1)
        return np.flatnonzero(mask), np.flatnonzero(~mask)

    def count(self, source: Value) -> int:
        """How many elements are rectified."""
        return source.size if self.mask is None else int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Truncate:
    """x >> shift."""

    name: str
    inputs: tuple[str, ...]
    shift: int

    def value(self, *sources: Value) -> Value:
        """As :meth:`Conv2d.value`."""
        return _shifted(self, sources[0], self.shift)


@dataclass(frozen=True)
class Raise:
    """A value times 2^shift, with that many more fraction bits: the same number, in a finer format."""

    name: str
    inputs: tuple[str, ...]
    shift: int

    def value(self, *sources: Value) -> Value:
        """As :meth:`Conv2d.value`."""
        _require(self, 0 <= self.shift < 63, f"cannot add {self.shift} fraction bits")
        return Value(sources[0].shape, sources[0].fraction + self.shift)


@dataclass(frozen=True)
class Flatten:
    """The elements in C order, as one axis."""

    name: str
    inputs: tuple[str, ...]

    def value(self, *sources: Value) -> Value:
        """As :meth:`Conv2d.value`."""
        return Value((sources[0].size,), sources[0].fraction)


Op = Conv2d | Linear | Add | SumPool | Relu | Truncate | Raise | Flatten


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """Weights and bias of one linear operation, int64; the server's secret."""

    weight: Integers
    bias: Integers

    @cached_property
    def reach(self) -> int:
        """The largest sum of the absolute weights of one output."""
        return int(np.abs(self.weight.reshape(len(self.weight), -1)).sum(1).max())


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """See the module's docstring.

    Args:
        modulus: where the values live.
        input_shape: of one input, without a batch axis.
        input_fraction: its fraction bits.
        input_bound: the largest absolute value that an input integer may have.
        ops: in the order in which they run.
        weights: by operation name, for every Conv2d and Linear, or none at all: then this is the public part.
        limits: by value name, what calibration promises no absolute value of it exceeds. Without one, :meth:`bounds`
            takes the worst case over all inputs, which grows beyond every modulus in a deep network.

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

    def __post_init__(self) -> None:
        if not self.ops:
            raise ProgramError("a program needs at least one operation")
        values = self.values  # infers every shape and fraction, or says why it cannot
        linear = {op.name: op for op in self.ops if isinstance(op, Conv2d | Linear)}
        for name in [*self.weights, *self.limits]:
            if name not in values:
                raise ProgramError(f"there are weights or limits for {name!r}, which is no value of this program")
        if self.weights and set(self.weights) != set(linear):
            raise ProgramError(f"weights are missing or not wanted for {sorted(set(self.weights) ^ set(linear))}")
        for name, own in self.weights.items():
            op = linear[name]
            shape = op.weight_shape(values[op.inputs[0]])
            fits = own.weight.dtype == own.bias.dtype == np.int64
            fits = fits and own.weight.shape == shape and own.bias.shape == shape[:1]
            given = f"{own.weight.dtype} {own.weight.shape} and {own.bias.dtype} {own.bias.shape}"
            _require(op, fits, f"weights and bias are {given}; they must be int64 {shape} and {shape[:1]}")
            widest = max(int(own.weight.max()), -int(own.weight.min()))
            _require(op, widest <= 1 << op.weight_bits, f"a weight is {widest}, above the 2^{op.weight_bits} declared")
            total = largest_sum(own.weight)
            said = f"absolute weights of one output sum to {total}, above the 2^{op.sum_bits} declared"
            _require(op, total <= 1 << op.sum_bits, said)

    @property
    def output(self) -> str:
        """Name of the value that the client learns."""
        return self.ops[-1].name

    @cached_property
    def values(self) -> dict[str, Value]:
        """Shape and fraction of every value, in order; the input first."""
        if len(self.ops) > MOST_OPS:
            raise ProgramError(f"{len(self.ops)} operations; at most {MOST_OPS} are supported")
        if len(self.input_shape) > MOST_AXES:
            raise ProgramError(f"an input of {len(self.input_shape)} axes; at most {MOST_AXES} are supported")
        source = Value(self.input_shape, self.input_fraction)
        if not self.input_shape or min(self.input_shape) < 1 or self.input_bound < 1:
            raise ProgramError(f"an input of shape {self.input_shape} and bound {self.input_bound} makes no sense")
        if source.size > MOST_ELEMENTS:
            raise ProgramError(f"an input of {source.size} elements; at most {MOST_ELEMENTS} are supported")
        values = {INPUT: source}
        for op in self.ops:
            if not NAME.fullmatch(op.name) or op.name in values:
                raise ProgramError(f"operation name {op.name!r} is used already or no plain dotted path")
            arity = len(op.inputs) >= 2 if isinstance(op, Add) else len(op.inputs) == 1
            _require(op, arity, f"has {len(op.inputs)} inputs")
            for name in op.inputs:
                _require(op, name in values, f"reads {name!r}, which no earlier operation makes")
            value = op.value(*(values[name] for name in op.inputs))
            _require(
                op, value.size <= MOST_ELEMENTS, f"makes {value.size} elements; at most {MOST_ELEMENTS} are supported"
            )
            if isinstance(op, Relu):
                _require(op, op.high <= self.modulus.bits, f"bit {op.high - 1} is none of {self.modulus}")
            if isinstance(op, Relu | Truncate):
                _require(op, op.shift <= self.modulus.bits - 3, f"cannot drop {op.shift} bits of {self.modulus}")
            values[op.name] = value
        return values

    @property
    def relus(self) -> int:
        """ReLUs that are computed; masked-out positions do not count."""
        return sum(op.count(self.values[op.name]) for op in self.ops if isinstance(op, Relu))

    def public(self) -> Program:
        """What the client gets: all but weights and limits."""
        return replace(self, weights={}, limits={})

    def bounds(self) -> dict[str, int]:
        """The largest absolute value of every value, from weights, input bound and limits.

        Raises:
            ProgramError: if this is the public part, which has no weights.
        """
        bounds = {INPUT: self.input_bound}
        for op in self.ops:
            inputs = [bounds[name] for name in op.inputs]
            bounds[op.name] = min(self._worst(op, inputs), self.limits.get(op.name, 1 << 256))
        return bounds

    def _worst(self, op: Op, inputs: list[int]) -> int:
        match op:
            case Conv2d() | Linear():
                if op.name not in self.weights:
                    raise ProgramError(f"{op.name}: bounds come from the weights, which a public program has not")
                own = self.weights[op.name]
                rows = np.abs(own.weight.reshape(len(own.weight), -1)).sum(1)
                return max(int(row) * inputs[0] + abs(int(bias)) for row, bias in zip(rows, own.bias, strict=True))
            case Add():
                return sum(inputs)
            case SumPool():
                return math.prod(op.kernel) * inputs[0]
            case Relu() | Truncate():
                return (inputs[0] >> op.shift) + 1  # floor of a negative value, or one unit of rounding
            case Raise():
                return inputs[0] << op.shift
            case Flatten():
                return inputs[0]

    def check(self, rooms: Mapping[str, int] | None = None) -> None:
        """Refuse to run where a value may not fit.

        Args:
            rooms: for ReLUs by name, the largest absolute value that the way they are computed can take.

        Raises:
            ProgramError: naming the first such layer, how large its values get, and what would help.
        """
        bounds = self.bounds()
        for name, bound in bounds.items():
            self._check_room(name, bound, (self.modulus.order - 1) // 2, "")
        for op in self.ops:
            if isinstance(op, Truncate) or (isinstance(op, Relu) and op.mask is not None and not op.mask.all()):
                source = op.inputs[0]
                room = truncation_room(self.modulus, op.shift)
                self._check_room(source, bounds[source], room, f", which {op.name} truncates without a ReLU")
            if isinstance(op, Relu) and rooms and op.name in rooms:
                self._check_room(op.inputs[0], bounds[op.inputs[0]], rooms[op.name], f", which {op.name} rectifies")

    def _check_room(self, name: str, bound: int, room: int, why: str) -> None:
        if bound > room:
            more = (bound // max(room, 1)).bit_length()
            raise ProgramError(
                f"{name}: values may reach {bound}{why}, and only {room} fits {self.modulus}; "
                f"use {more} more bits, {more} fewer fraction bits, or a limit for this value from calibration"
            )


def largest_sum(weight: NDArray[np.integer]) -> int:
    """The largest sum of the absolute weights of one output."""
    return int(np.abs(weight.reshape(len(weight), -1)).sum(1, dtype=np.int64).max())


def truncation_room(modulus: Ring | Field, shift: int) -> int:
    """The largest absolute value that can be truncated by ``shift`` bits without a circuit; see ``truncate.py``."""
    reach = modulus.order // 4
    return min(reach, Division(modulus, shift, reach).room)


def _require(op: Op, holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProgramError(f"{op.name}: {otherwise}")


def _check_weight_count(op: Conv2d | Linear, source: Value) -> None:
    count = math.prod(op.weight_shape(source))
    _require(op, count <= MOST_WEIGHTS, f"has {count} weights; at most {MOST_WEIGHTS} are supported")


def _check_weight_format(op: Conv2d | Linear) -> None:
    _require(op, 1 <= op.weight_bits <= 30, f"weights of {op.weight_bits} bits; 1 to 30 are supported")
    _require(
        op, 1 <= op.sum_bits <= SUM_BITS, f"weights that sum to 2^{op.sum_bits}; 1 to {SUM_BITS} bits are supported"
    )
    _require(op, 0 <= op.weight_fraction <= 60, f"weights of {op.weight_fraction} fraction bits; use 0 to 60")


def _shifted(op: Relu | Truncate, source: Value, shift: int) -> Value:
    _require(op, 0 <= shift <= source.fraction, f"drops {shift} bits of a value that has {source.fraction} to drop")
    return Value(source.shape, source.fraction - shift)
