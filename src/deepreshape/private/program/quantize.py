"""Fixed point: from layers with real weights and observed ranges to formats, integers, and a bound on the error.

A value is *at rest* when it has the program's common fraction f: the input, and what leaves a ReLU, a square or a
truncation. A linear layer multiplies by weights of g fraction bits and leaves an *accumulator* of f + g bits.
Accumulators that are added to one another have one fraction; what shifts them back to f is the next ReLU or square, or
an explicit truncation where another linear layer follows. A square is taken of f + 1 bits, which are then brought to f.
A value at rest that is added to an accumulator is first raised to its fraction, which is exact, and each party does it
on its own share. Signs have no fraction bits, nor has what convolutions of signs give that are whole numbers
(``one_bit.py``): how many bits these need is proven.

What drops bits rounds to the nearest, which costs nothing. Where two parties do so without a garbled ReLU, they round
up or down at random, and are right on average.

Ranges are those seen in calibration times a margin. Worst-case bounds hold for every input, but grow by the largest sum
of absolute weights in each layer and exceed any modulus within some ten layers.

The integers are those of Jacob et al. (CVPR 2018) with powers of two for scales, which is what a shift can undo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.program.graph import Layer
from deepreshape.private.program.ops import Shape
from deepreshape.private.program.program import Program
from deepreshape.private.program.quantization.emission import emit
from deepreshape.private.program.quantization.error_bounds import error_bounds
from deepreshape.private.program.quantization.formats import choose_formats
from deepreshape.private.program.quantization.plan import QuantizationPlan, Real

MARGIN = 2.0
"""How far values may exceed what calibration saw: a factor, so this is one bit."""


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
            that a private truncation may lose. ReLUs by their sign may each add half a unit at rest, over a field one
            and a half.
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
    modulus: Ring | Field | None = None,
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
    plan = QuantizationPlan(layers, len(shape) == 3)
    observed = {name: ranges[origin] for name, origin in plan.origin.items()}
    formats = choose_formats(plan, observed, modulus, fraction, margin)
    formats = replace(formats, groups={**formats.groups, **dict.fromkeys(plan.whole, 0)})
    program = emit(plan, formats, shape, tuple(outputs))
    added, errors = error_bounds(plan, formats, program)
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


def _spread(rows: Real, shape: Shape) -> Real:
    """A number for each row of a value as one for each of its elements."""
    return np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape)
