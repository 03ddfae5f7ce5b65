"""Fixed point: from layers with real weights and observed ranges to formats, integers, and a bound on the error.

A value is *at rest* when it has the program's common fraction f: the input, and what leaves a ReLU, a square or a
truncation. A linear layer multiplies by weights of g fraction bits and leaves an *accumulator* of f + g bits.
Accumulators that are added to one another have one fraction; what shifts them back to f is the next ReLU or square, or
an explicit truncation where another linear layer follows. A square is taken of f + 1 bits, which are then brought to f.
A value at rest that is added to an accumulator is first raised to its fraction, which is exact, and each party does it
on its own share. Signs have no fraction bits, nor has what convolutions of signs give that are whole numbers
(``one_bit.py``): how many bits these need is proven.

Rounding costs nothing: half a unit is added to the bias of a layer whose channel goes through a ReLU, so that the shift
there, which rounds down, rounds to the nearest. Where two parties truncate without a ReLU, they round up or down at
random already.

Ranges are those seen in calibration times a margin. Worst-case bounds hold for every input, but grow by the largest sum
of absolute weights in each layer and exceed any modulus within some ten layers.

The integers are those of Jacob et al. (CVPR 2018) with powers of two for scales, which is what a shift can undo.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.bounds import largest_sum
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.square import Squaring
from deepreshape.private.arith.truncation import ShareTruncation
from deepreshape.private.program.graph import (
    Conv,
    Dense,
    Filled,
    Flat,
    Layer,
    Pick,
    Pool,
    PublicAffine,
    Quadratic,
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
    ProgramError,
    Raise,
    Relu,
    Rescale,
    Shape,
    Sign,
    Square,
    SumPool,
    Truncate,
    Value,
    Weights,
)
from deepreshape.private.program.program import Program, from_fixed, to_fixed, truncation_room

__all__ = [
    "ACTIVATION_BITS",
    "LEAST_BITS",
    "MARGIN",
    "WEIGHT_BITS",
    "Format",
    "Lowered",
    "quantize",
]

Real = NDArray[np.float64]
Modulus = Ring | Field

ACTIVATION_BITS = 12
"""Bits of the largest activation of a typical layer, where the modulus leaves the choice."""

WEIGHT_BITS = 11
"""Bits of the largest weight of a layer, likewise."""

LEAST_BITS = 5
"""With fewer bits than this in weights or activations a network is refused."""

MARGIN = 2.0
"""How far values may exceed what calibration saw: a factor, so this is one bit."""

_WIDEST = 63
_FINEST = 30
_FAR = 60
"""Thresholds are cut at 2^60, in units of what they are compared with."""


@dataclass(frozen=True)
class Format:
    """What calibration and the choice of formats came to for one value.

    Attributes:
        name: of the value, as in the program.
        fraction: its bits behind the binary point.
        observed: the largest absolute value in calibration, real.
        limit: the largest absolute integer that the formats allow for: observed times margin.
        bits: that a signed integer of this size takes.
        worst: the largest absolute integer over all inputs within the input bound.
        proven: whether ``worst`` fits the modulus, so that no input can overflow here.
        added: bound on the error that this operation alone adds, real, by rounding its weights or its result.
        error: bound on the difference from the real network, real; it holds while no value exceeds its limit, for the
            worst input and weights of the worst signs, so that it grows much faster with depth than real errors do.
    """

    name: str
    fraction: int
    observed: float
    limit: int
    bits: int
    worst: int
    proven: bool
    added: float
    error: float


@dataclass(frozen=True, eq=False)
class Lowered:
    """An integer program and how its formats were found.

    Attributes:
        program: to run.
        margin: the factor between what calibration saw and what fits.
        formats: one for each value, in the program's order.
        error: for each output, a bound on the difference between program and real network, float64 of the output's
            shape; it holds for inputs that stay within the limits and for exact ReLUs (gc-full), and counts the unit
            that a private truncation may lose. ReLUs by their sign may add one unit at rest each.
        facts: what a client needs to send images and read answers, where the calibration set said it.
        losses: a line for each output that is far off on calibration inputs, with the layer in which that arises.
    """

    program: Program
    margin: float
    formats: tuple[Format, ...]
    error: Real
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    losses: tuple[str, ...] = ()

    @property
    def calibrated(self) -> tuple[str, ...]:
        """Values that fit by calibration only, not for every input."""
        return tuple(form.name for form in self.formats if not form.proven)

    def up_to(self, output: str) -> Lowered:
        """The same for one of several outputs alone, whose program has the integers of the whole one.

        Raises:
            ValueError: if that is none of the outputs.
        """
        program, place = self.program.up_to(output), self.program.outputs.index(output)
        sizes = [self.program.values[name].size for name in self.program.outputs]
        error = np.split(self.error.reshape(-1), np.cumsum(sizes)[:-1])[place].reshape(program.values[output].shape)
        formats = tuple(form for form in self.formats if form.name in program.values)
        losses = tuple(line for line in self.losses if line.startswith(f"{output} is "))
        return replace(self, program=program, formats=formats, error=error, losses=losses)

    def __str__(self) -> str:
        widest = max(self.formats, key=lambda form: form.bits)
        text = (
            f"{self.program.modulus}, {self.program.input_fraction} fraction bits; the widest value is {widest.name} "
            f"with {widest.bits} bits at {self.margin:g} times the largest value that calibration saw"
        )
        if not self.calibrated:
            return f"{text}; no input can overflow"
        return (
            f"{text}; {len(self.calibrated)} of {len(self.formats)} values, from {self.calibrated[0]} on, are bounded "
            "by calibration only: an input unlike it may overflow"
        )


def quantize(
    layers: Sequence[Layer],
    shape: Shape,
    ranges: Mapping[str, float],
    *,
    modulus: Modulus | None = None,
    fraction: int | None = None,
    margin: float = MARGIN,
    outputs: Sequence[str] = (),
) -> Lowered:
    """Choose formats and make the program.

    Args:
        layers: in the order in which they run; they read each other's names and ``"input"``.
        shape: of one input.
        ranges: for each layer's name and ``"input"``, the largest absolute value that was seen.
        modulus: where values shall live; by default the narrowest ring that leaves weights and activations
            ``WEIGHT_BITS`` and ``ACTIVATION_BITS``.
        fraction: of values at rest; by default as many bits as weights and activations lose alike.
        margin: how many times larger than in ``ranges`` a value may become.
        outputs: the layers whose values the client learns; the last one unless given.

    Raises:
        ProgramError: if the values do not fit, naming the layer, the bits needed, and what to do.
    """
    if not 1 <= margin < 1 << 20:
        raise ValueError(f"a margin of {margin:g} is not supported; 1 leaves no room, 2 one bit, up to a million")
    if fraction is not None and not 0 <= fraction <= 40:
        raise ValueError(f"{fraction} fraction bits are not supported; use 0 to 40")
    plan = _Plan(layers, len(shape) == 3)
    observed = {name: ranges[origin] for name, origin in plan.origin.items()}
    formats = _choose(plan, observed, modulus, fraction, margin)
    formats = replace(formats, groups={**formats.groups, **dict.fromkeys(plan.whole, 0)})
    program, offsets = _emit(plan, formats, shape, tuple(outputs))
    added, errors = _errors(plan, formats, program, offsets)
    worst = replace(program, limits={}).bounds()
    room = (formats.modulus.order - 1) // 2
    rows = tuple(
        Format(
            name,
            value.fraction,
            observed[name],
            formats.limit(name, value.fraction),
            formats.limit(name, value.fraction).bit_length() + 1,
            worst[name],
            worst[name] <= room,
            float(added[name].max()),
            float(errors[name].max()),
        )
        for name, value in program.values.items()
    )
    bounds = [_spread(errors[name], program.values[name].shape) for name in program.outputs]
    return Lowered(program, margin, rows, program.joined(bounds))


@dataclass(frozen=True)
class _Shift:
    """An accumulator brought back to rest without a ReLU."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class _Raise:
    """A value at rest brought to the fraction of the accumulators it is added to."""

    name: str
    inputs: tuple[str, ...]


_Step = Layer | _Shift | _Raise


class _Plan:
    """Which values are accumulators, which of those share a fraction, and where values are shifted or raised."""

    def __init__(self, layers: Sequence[Layer], image: bool) -> None:
        self.steps: dict[str, _Step] = {}
        self.origin: dict[str, str] = {INPUT: INPUT}
        """The layer whose range a value has: its own, or that of what it was shifted or raised from."""
        self.group: dict[str, str] = {}
        """For each accumulator, a member of those it shares its fraction with; see :meth:`find`."""
        self.image = {INPUT: image}
        self.ones: set[str] = set()
        """Values without fraction bits: signs, and what moves or adds them."""
        self.uses = Counter(name for layer in layers for name in layer.inputs)
        for layer in layers:
            self._place(layer)
        self.shifted = {
            self.find(step.inputs[0])
            for step in self.steps.values()
            if step.inputs[0] in self.group and (isinstance(step, _Shift) or _partly(step))
        }
        """Groups of which a member is shifted without a ReLU, which takes one bit more room."""
        self.whole = {name for name, step in self.steps.items() if self._is_whole(step)}
        """Accumulators of whole numbers, which only signs read."""
        self.thresholds: dict[str, float] = {}
        """By the name of what signs read: the largest absolute threshold."""
        for step in self.steps.values():
            if isinstance(step, Signed):
                self.thresholds[step.inputs[0]] = max(_most(step.threshold), self.thresholds.get(step.inputs[0], 0.0))
        self.squared = {step.inputs[0]: step for step in self.steps.values() if isinstance(step, Squared)}
        """By the name of what is squared; where several squares read it, that of the largest shift."""
        for step in self.steps.values():
            if isinstance(step, Squared) and _most(step.shift) > _most(self.squared[step.inputs[0]].shift):
                self.squared[step.inputs[0]] = step

    def _is_whole(self, step: _Step) -> bool:
        if not isinstance(step, Conv | Dense) or step.inputs[0] not in self.ones:
            return False
        readers = [other for other in self.steps.values() if step.name in other.inputs]
        whole = all(np.array_equal(part, np.rint(part)) for part in (step.weight, step.bias))
        return whole and bool(readers) and all(isinstance(reader, Signed) for reader in readers)

    def find(self, name: str) -> str:
        """The representative of an accumulator's group."""
        while self.group[name] != name:
            name = self.group[name]
        return name

    def _place(self, layer: Layer) -> None:
        inputs = layer.inputs
        match layer:
            case Conv() | Dense():
                inputs = (self._at_rest(inputs[0]),)
            case Pool():
                # a sum over a large window would take bits from the whole group, unless its division is in the weights
                before = self.steps.get(inputs[0])
                if not (isinstance(before, Conv) and self.uses[inputs[0]] == 1):
                    inputs = (self._at_rest(inputs[0]),)
            case Sum():
                inputs = self._alike(layer)
            case Quadratic():
                raise TypeError(f"{layer.name}: quadratics are to be carried as squares first")
            case Pick() | Stack():
                inputs = tuple(self._at_rest(name) for name in inputs)
            case PublicAffine():
                if _multiplies(layer):
                    inputs = (self._at_rest(inputs[0]),)
            case Rectify() | Squared() | Signed() | Zero() | Filled() | Flat():
                pass
        self._append(replace(layer, inputs=inputs), layer.name)
        self.image[layer.name] = self.image[inputs[0]] and not isinstance(layer, Flat)
        if isinstance(layer, Pick):
            self.image[layer.name] = layer.index.ndim == 3
        if _multiplies(layer):
            self.group[layer.name] = layer.name
        elif not isinstance(layer, Rectify | Squared | Signed) and inputs[0] in self.group:
            self.group[layer.name] = self.find(inputs[0])
        moves = isinstance(layer, Zero | Flat | Pick | Pool | Stack | Sum)
        if isinstance(layer, Signed) or (moves and layer.name not in self.group and self.ones.issuperset(inputs)):
            self.ones.add(layer.name)

    def _append(self, step: _Step, origin: str) -> str:
        self.steps[step.name] = step
        self.origin[step.name] = origin
        return step.name

    def _at_rest(self, name: str) -> str:
        if name not in self.group:
            return name
        shifted = f"{name}.truncate"
        if shifted not in self.steps:
            self._append(_Shift(shifted, (name,)), name)
            self.image[shifted] = self.image[name]
        return shifted

    def _alike(self, layer: Sum) -> tuple[str, ...]:
        """The inputs of a sum, brought to one fraction."""
        moving = [name for name in layer.inputs if name in self.group]
        if not moving:
            return layer.inputs if self.ones.issuperset(layer.inputs) else self._raised(layer)
        if not self.image[layer.inputs[0]]:
            return tuple(self._at_rest(name) for name in layer.inputs)
        first = self.find(moving[0])
        for name in moving[1:]:
            self.group[self.find(name)] = first
        inputs: list[str] = []
        for number, name in enumerate(layer.inputs):
            if name not in self.group:
                raised = self._append(_Raise(f"{layer.name}.raise{number}", (name,)), self.origin[name])
                self.image[raised] = True
                self.group[raised] = first
                name = raised
            inputs.append(name)
        return tuple(inputs)

    def _raised(self, layer: Sum) -> tuple[str, ...]:
        """The inputs of a sum of values at rest and of signs, these brought to rest."""
        inputs: list[str] = []
        for number, name in enumerate(layer.inputs):
            if name in self.ones:
                raised = self._append(_Raise(f"{layer.name}.raise{number}", (name,)), self.origin[name])
                self.image[raised] = self.image[name]
                name = raised
            inputs.append(name)
        return tuple(inputs)


@dataclass(frozen=True)
class _Formats:
    """The fraction of values at rest and of each group of accumulators, and what they are to hold."""

    modulus: Modulus
    margin: float
    observed: Mapping[str, float]
    rest: int
    groups: Mapping[str, int] = field(default_factory=dict[str, int])

    def limit(self, name: str, fraction: int) -> int:
        """The largest absolute integer that ``name`` may have; four units at rest allow for rounding."""
        slack = 4 << max(fraction - self.rest, 0)
        return math.ceil(self.margin * math.ldexp(self.observed[name], fraction)) + slack

    def most(self, plan: _Plan, group: str) -> int:
        """The largest fraction at which every accumulator of ``group`` fits; one below the rest's if there is none."""
        members = [name for name in plan.group if plan.find(name) == group]
        fraction = self.rest - 1
        while fraction - self.rest < self.modulus.bits - 3:
            shift = max(fraction + 1 - self.rest, 0)
            room = ShareTruncation(self.modulus, shift).max_input
            if group in plan.shifted:
                room = truncation_room(self.modulus, shift)
            if max(self.limit(name, fraction + 1) + self.tested(plan, name, fraction + 1) for name in members) > room:
                break
            if not all(self.squares(plan, name, fraction + 1) for name in members):
                break
            fraction += 1
        return fraction

    def tested(self, plan: _Plan, name: str, fraction: int) -> int:
        """What signs of a value add to it before they look at it; no more than it takes to decide them all."""
        largest = math.ldexp(min(plan.thresholds.get(name, 0.0), self.margin * self.observed[name]), fraction)
        return math.ceil(largest) + 1 if name in plan.thresholds else 0

    def shifts(self, fraction: int) -> tuple[int, int]:
        """The bits dropped before and after the square of a value of ``fraction`` bits."""
        root = min(self.rest + 1, fraction)
        return fraction - root, 2 * root - self.rest

    def squares(self, plan: _Plan, name: str, fraction: int) -> bool:
        """Whether squares of a value of that fraction, if it is squared, come out right."""
        step = plan.squared.get(name)
        if step is None:
            return True
        if isinstance(self.modulus, Field):
            raise ProgramError(
                f"{step.name}: squares are computed over a ring, not over {self.modulus}; use Ring(bits)"
            )
        try:
            squaring = Squaring(self.modulus, *self.shifts(fraction))
        except ValueError:
            return False
        return self.limit(name, fraction) + math.ceil(math.ldexp(_most(step.shift), fraction)) <= squaring.limit

    def overfull(self, plan: _Plan) -> str | None:
        """A value at rest that does not fit even so."""
        room = truncation_room(self.modulus, 0)
        resting = [name for name in plan.origin if name not in plan.group]
        fits = {name: self.limit(name, self.rest) <= room and self.squares(plan, name, self.rest) for name in resting}
        return next((name for name in resting if not fits[name]), None)


def _choose(
    plan: _Plan, observed: Mapping[str, float], modulus: Modulus | None, fraction: int | None, margin: float
) -> _Formats:
    """Formats in which everything fits; what a given modulus is too narrow for, weights and activations lose alike."""
    # weights of one group share their fraction, so the one that needs the most bits decides for all
    wanted: dict[str, int] = {}
    for name, step in plan.steps.items():
        if _multiplies(step) and name not in plan.whole:
            most = abs(step.factor) if isinstance(step, PublicAffine) else float(np.abs(step.weight).max())
            group = plan.find(name)
            wanted[group] = max(wanted.get(group, 0), _fraction(WEIGHT_BITS, most))
    if not any(isinstance(step, Conv | Dense) for step in plan.steps.values()):
        raise ProgramError("the network has no convolution and no linear layer; there is nothing private to run")
    active = sorted(observed[name] for name in plan.origin if name not in plan.group and observed[name])
    ideal = _fraction(ACTIVATION_BITS, active[len(active) // 2]) if active else 0
    rest = ideal if fraction is None else fraction
    if rest > ideal:  # who asks for finer activations wants finer weights too
        wanted = {group: min(bits + rest - ideal, _FINEST) for group, bits in wanted.items()}
    for name, step in plan.steps.items():
        if isinstance(step, Conv | Dense) and step.inputs[0] in plan.ones and name not in plan.whole:
            # weights of signs have all the fraction bits of what they make
            room = _FINEST - rest - math.frexp(float(np.abs(step.weight).max()))[1]
            wanted[plan.find(name)] = max(min(wanted[plan.find(name)], room), 0)

    def lacking(formats: _Formats) -> dict[str, int]:
        return {group: rest + bits - formats.most(plan, group) for group, bits in wanted.items()}

    roomy = next(
        (
            formats
            for formats in (_Formats(Ring(bits), margin, observed, rest) for bits in range(8, _WIDEST + 1))
            if max(lacking(formats).values()) <= 0 and formats.overfull(plan) is None
        ),
        None,
    )
    advice = f"use Ring({roomy.modulus.bits})" if roomy else f"no ring up to {_WIDEST} bits is enough"
    if modulus is None:
        if roomy is None:
            name = max(observed, key=lambda name: observed[name])
            raise ProgramError(
                f"{name}: values reach {observed[name]:.3g} and {rest} fraction bits; {advice}; use fewer fraction bits"
            )
        return replace(roomy, groups={group: rest + bits for group, bits in wanted.items()})
    formats = _Formats(modulus, margin, observed, rest)
    short = max(lacking(formats).values())
    if fraction is None and short > 0:
        formats = replace(formats, rest=max(rest - short // 2, 0))
    kept = {group: min(bits, formats.most(plan, group) - formats.rest) for group, bits in wanted.items()}
    culprit, lost = max(((group, wanted[group] - bits) for group, bits in kept.items()), key=lambda pair: pair[1])
    few = fraction is None and rest - formats.rest > ACTIVATION_BITS - LEAST_BITS
    full = formats.overfull(plan)
    if few or full or lost > WEIGHT_BITS - LEAST_BITS or min(kept.values()) < 0:
        members = [name for name in plan.group if plan.find(name) == culprit]
        name = full or max(members, key=lambda name: observed[name])
        left = f"{max(formats.rest, 0)} fraction bits to activations and {max(min(kept.values()), 0)} to weights"
        raise ProgramError(
            f"{name}: values reach {observed[name]:.3g}, times a margin of {margin:g}; {modulus} leaves {left}, "
            f"which is too few; {advice}, or a smaller margin"
        )
    return replace(formats, groups={group: formats.rest + bits for group, bits in kept.items()})


def _emit(
    plan: _Plan, formats: _Formats, shape: Shape, outputs: tuple[str, ...]
) -> tuple[Program, dict[str, Integers]]:
    """The program, and by how much each channel of its values is too large on purpose, for the sake of rounding."""
    rest = formats.rest
    resting = dict.fromkeys(plan.ones, 0)
    fractions = {
        name: formats.groups[plan.find(name)] if name in plan.group else resting.get(name, rest) for name in plan.origin
    }
    readers: dict[str, list[_Step]] = {}
    for step in plan.steps.values():
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
    offsets: dict[str, Integers] = {INPUT: np.zeros(shape[0], np.int64)}
    values = {INPUT: Value(shape, rest)}
    weights: dict[str, Weights] = {}

    def nudge(name: str, amount: Integers) -> bool:
        """Add ``amount`` to the channels of a value through the bias of a layer before it, if only it would notice."""
        step = plan.steps[name]
        match step:
            case Conv() | Dense():
                bias = weights[name].bias
                np.add(bias, amount, out=bias)
            case Pool():
                size = math.prod(step.kernel)
                if (amount % size).any() or len(readers[step.inputs[0]]) > 1:
                    return False
                if not nudge(step.inputs[0], amount // size):
                    return False
            case Sum():
                if not any(len(readers[source]) == 1 and nudge(source, amount) for source in step.inputs):
                    return False
            case _:
                return False
        offsets[name] = offsets[name] + amount
        return True

    ops: list[Op] = []
    for name, step in plan.steps.items():
        fraction = fractions[name]
        source = step.inputs[0]
        gained = fraction - fractions[source]
        offset = np.zeros(0, np.int64)
        match step:
            case Conv() | Dense():
                weights[name] = _integers(step, gained, fraction)
                ops.append(_linear(step, weights[name].weight, gained))
            case Sum():
                ops.append(Add(name, step.inputs))
                offset = np.sum([offsets[source] for source in step.inputs], axis=0)
            case Pool():
                ops.append(SumPool(name, step.inputs, step.kernel, step.stride))
                offset = math.prod(step.kernel) * offsets[source]
            case Rectify():
                high = formats.limit(source, fractions[source]).bit_length() + 1
                ops.append(Relu(name, step.inputs, -gained, step.mask, 0, max(high, 2)))
            case Squared():
                before, after = formats.shifts(fractions[source])
                weights[name] = Weights(to_fixed(step.shift, fractions[source]), to_fixed(step.constant, fraction))
                ops.append(Square(name, step.inputs, before, after, 0 if step.mask is None else -gained, step.mask))
            case Signed() | Filled():
                op, constants = _by_channel(step, fractions[source], offsets[source])
                weights[name] = Weights(constants, np.zeros_like(constants))
                ops.append(op)
                offset = _passed(step, offsets[source], gained, values[source].shape)
            case _:
                ops.append(_passing(step, gained, fraction))
                offset = _passed(step, offsets[source], gained, values[source].shape)
        values[name] = ops[-1].value(*(values[before] for before in step.inputs))
        offsets[name] = offset if offset.size else np.zeros(values[name].shape[0], np.int64)
        whole = _whole(readers.get(name, []), len(offsets[name]))
        if fraction > rest and whole.any() and not offsets[name].any():
            nudge(name, whole.astype(np.int64) << (fraction - rest - 1))
    bound = formats.limit(INPUT, rest)
    # what signs read that is whole is bounded for every input, and not by calibration
    limits = {op.name: formats.limit(op.name, fractions[op.name]) for op in ops if op.name not in plan.whole}
    program = _tested(Program(formats.modulus, shape, rest, bound, tuple(ops), weights, limits, outputs))
    program.check()
    return program, offsets


def _by_channel(step: Signed | Filled, fraction: int, offset: Integers) -> tuple[Op, Integers]:
    """The operation of a step with a secret number for each channel, of a value of that fraction, and the numbers."""
    if isinstance(step, Signed):
        most = math.ldexp(1, _FAR - fraction)
        return Sign(step.name, step.inputs), to_fixed(np.clip(-step.threshold, -most, most), fraction) - offset
    return Fill(step.name, step.inputs, step.columns), to_fixed(step.constants, fraction) + offset


def _passing(step: _Step, gained: int, fraction: int) -> Op:
    """The operation of a step that takes one value or several as they are, or all by one public constant."""
    match step:
        case _Shift():
            return Truncate(step.name, step.inputs, -gained)
        case _Raise():
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


def _passed(step: _Step, offset: Integers, gained: int, source: Shape) -> Integers:
    """What a value is too large by on purpose behind such a step; empty where it is not."""
    match step:
        case PublicAffine() if not gained:
            return int(step.factor) * offset
        case Zero() | Filled():
            return offset
        case Flat():
            return np.repeat(offset, math.prod(source[1:]))
        case _:
            return np.zeros(0, np.int64)


def _tested(program: Program) -> Program:
    """The program with the bits that its sign tests need, for every input.

    A threshold beyond all values is moved to just beyond them, where it decides the same.
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
            high = max(op.reach(worst[source], secret).bit_length() + 1, 2)
            op = replace(op, high=high if high <= program.modulus.bits else 0)
        ops.append(op)
    return replace(program, ops=tuple(ops), weights=weights)


def _linear(step: Conv | Dense, weight: Integers, gained: int) -> Op:
    """The operation of a linear layer with these integers."""
    out, (wide, total) = len(weight), _widths(weight)
    if isinstance(step, Dense):
        return Linear(step.name, step.inputs, out, wide, gained, total)
    place = step.stride, step.padding, step.groups
    return Conv2d(step.name, step.inputs, out, weight.shape[2], wide, gained, *place, total, step.columns)


def _integers(step: Conv | Dense, gained: int, fraction: int) -> Weights:
    return Weights(to_fixed(step.weight, gained), to_fixed(step.bias, fraction))


def _widths(weight: Integers) -> tuple[int, int]:
    """The smallest b of at least one for which no absolute weight is above 2^b, and likewise for sums of one output."""
    largest, total = int(np.abs(weight).max()), largest_sum(weight)
    return max((largest - 1).bit_length(), 1), max((total - 1).bit_length(), 1)


def _errors(
    plan: _Plan, formats: _Formats, program: Program, offsets: Mapping[str, Integers]
) -> tuple[dict[str, Real], dict[str, Real]]:
    """For each channel of each value (or feature): the error that its operation adds, and the error of the value.

    With w, x real and v, y what the integers stand for, |vy - wx| <= |v| |y - x| + |v - w| |x|. What a value is too
    large on purpose is no error until it is shifted or leaves the program.
    """
    unit = math.ldexp(1, -formats.rest)
    added = {INPUT: np.full(program.input_shape[0], unit / 2)}
    errors = dict(added)
    for op in program.ops:
        step, source = plan.steps[op.name], op.inputs[0]
        before, value = errors[source], program.values[op.name]
        own = 0.0 * before
        match op:
            case Conv2d() | Linear():
                if isinstance(step, Conv | Dense):
                    weights = program.weights[op.name]
                    used = from_fixed(weights.weight, op.weight_fraction)
                    bias = from_fixed(weights.bias - offsets[op.name], value.fraction)
                    wrong = np.abs(used - step.weight).reshape(len(used), -1).sum(1)
                    most = formats.margin * formats.observed[source]
                    own = most * wrong + np.abs(bias - step.bias)
                    before = _through(np.abs(used).reshape(*used.shape[:2], -1).sum(2), before)
            case Rescale():
                if isinstance(step, PublicAffine):
                    used = math.ldexp(op.factor, -op.fraction)
                    most = formats.margin * formats.observed[source]
                    wrong = abs(used - step.factor) * most + abs(math.ldexp(op.offset, -value.fraction) - step.offset)
                    before, own = abs(used) * before, np.full(len(before), wrong)
            case Gather():
                before = op.rows(before, program.values[source])
                own = 0.0 * before
            case Fill():
                if isinstance(step, Filled):
                    used = from_fixed(program.weights[op.name].weight - offsets[op.name], value.fraction)
                    before = np.maximum(before, np.abs(used - step.constants))
            case Concat():
                before = np.concatenate([errors[name] for name in op.inputs])
                own = 0.0 * before
            case Add():
                before = np.sum([errors[name] for name in op.inputs], axis=0)
            case SumPool():
                before = math.prod(op.kernel) * before
            case Raise():
                pass
            case Flatten():
                before = np.repeat(before, value.size // len(before))
                own = 0.0 * before
            case Sign():
                # a value within its error of the threshold may fall on either side
                sure = op.inputs[0] in plan.whole and not before.any()
                before, own = 0.0 * before, np.full(len(before), 0.0 if sure else 2.0)
            case Square():
                if isinstance(step, Squared):
                    nudged = np.abs(from_fixed(offsets[source], program.values[source].fraction))
                    alone = nudged + math.ldexp(1, op.before - program.values[source].fraction)
                    size = formats.margin * formats.observed[source] + np.abs(step.shift)
                    # neither the integers nor the real values exceed the limit
                    most = 2 * formats.margin * formats.observed[op.name]
                    before = np.minimum(2 * (size + alone) * before + before**2, most)
                    own = 2 * size * alone + alone**2 + 2 * unit
            case Relu() | Truncate():
                if op.shift:
                    raised = np.abs(from_fixed(offsets[source], op.shift))
                    # without a circuit two parties round up or down, and one unit beside it over a field
                    most = 1 + raised + isinstance(program.modulus, Field)
                    own = unit * np.where(_whole([step], len(before)), np.maximum(raised, 1 - raised), most)
            case _:
                raise TypeError(f"{op.name}: no error is known for {type(op).__name__}")
        added[op.name], errors[op.name] = own, before + own
    at_end = {o: errors[o] + np.abs(from_fixed(offsets[o], program.values[o].fraction)) for o in program.outputs}
    return added, errors | at_end


def _through(weight: Real, error: Real) -> Real:
    """What a linear layer of absolute weights (out, in / groups) makes of errors (in,)."""
    fan_in = weight.shape[1]
    groups = len(error) // fan_in
    return (weight.reshape(groups, -1, fan_in) * error.reshape(groups, 1, fan_in)).sum(2).reshape(-1)


def _fraction(bits: int, largest: float) -> int:
    """Fraction bits that give a value of size ``largest`` that many bits; none for zero."""
    return max(bits - math.frexp(largest)[1], 0) if largest else 0


def _most(values: Real) -> float:
    return float(np.abs(values).max())


def _multiplies(step: _Step) -> TypeGuard[Conv | Dense | PublicAffine]:
    """Whether a layer gives its value more fraction bits."""
    return isinstance(step, Conv | Dense) or (isinstance(step, PublicAffine) and abs(step.factor) != 1)


def _spread(rows: Real, shape: Shape) -> Real:
    """A number for each row of a value as one for each of its elements."""
    return np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape)


def _partly(step: _Step) -> bool:
    return isinstance(step, Rectify) and step.mask is not None and not step.mask.all()


def _whole(readers: Sequence[_Step], channels: int) -> NDArray[np.bool_]:
    """Which channels of a value are shifted by ReLUs only, and by one at least."""
    shifting = [step for step in readers if isinstance(step, Rectify | Squared | _Shift)]
    whole = np.full(channels, bool(shifting))
    for step in shifting:
        if isinstance(step, Squared | _Shift):
            whole[:] = False
        elif step.mask is not None:
            whole &= step.mask.reshape(channels, -1).all(1)
    return whole
