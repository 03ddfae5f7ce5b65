"""The fraction bits of values at rest and of each group of accumulators, so that all fit a modulus."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.square import Squaring
from deepreshape.private.arith.truncation import ShareTruncation, half_unit
from deepreshape.private.program.graph import Conv, Dense, PublicAffine
from deepreshape.private.program.ops import ProgramError
from deepreshape.private.program.program import truncation_room
from deepreshape.private.program.quantization.plan import QuantizationPlan, magnitude, multiplies

ACTIVATION_BITS = 12
"""Bits of the largest activation of a typical layer, where the modulus leaves the choice."""

WEIGHT_BITS = 11
"""Bits of the largest weight of a layer, likewise."""

LEAST_BITS = 5
"""With fewer bits than this in weights or activations a network is refused."""

_WIDEST = 63
_FINEST = 30


@dataclass(frozen=True)
class Formats:
    """The fraction of values at rest and of each group of accumulators, and what they are to hold."""

    modulus: Ring | Field
    margin: float
    observed: Mapping[str, float]
    rest: int
    groups: Mapping[str, int] = field(default_factory=dict[str, int])

    def limit(self, name: str, fraction: int) -> int:
        """The largest absolute integer that ``name`` may have; four units at rest allow for rounding."""
        slack = 4 << max(fraction - self.rest, 0)
        return math.ceil(self.margin * math.ldexp(self.observed[name], fraction)) + slack

    def most(self, plan: QuantizationPlan, group: str) -> int:
        """The largest fraction at which every accumulator of ``group`` fits; one below the rest's if there is none."""
        members = [name for name in plan.group if plan.find(name) == group]
        fraction = self.rest - 1
        while fraction - self.rest < self.modulus.bits - 3:
            shift = max(fraction + 1 - self.rest, 0)
            room = ShareTruncation(self.modulus, shift).max_input
            room = min(room, (self.modulus.order - 1) // 2 - half_unit(shift))
            if group in plan.shifted:
                room = truncation_room(self.modulus, shift)
            if max(self.limit(name, fraction + 1) + self.tested(plan, name, fraction + 1) for name in members) > room:
                break
            if not all(self.squares(plan, name, fraction + 1) for name in members):
                break
            fraction += 1
        return fraction

    def tested(self, plan: QuantizationPlan, name: str, fraction: int) -> int:
        """What signs of a value add to it before they look at it; no more than it takes to decide them all."""
        largest = math.ldexp(min(plan.thresholds.get(name, 0.0), self.margin * self.observed[name]), fraction)
        return math.ceil(largest) + 1 if name in plan.thresholds else 0

    def shifts(self, fraction: int) -> tuple[int, int]:
        """The bits dropped before and after the square of a value of ``fraction`` bits."""
        root = min(self.rest + 1, fraction)
        return fraction - root, 2 * root - self.rest

    def squares(self, plan: QuantizationPlan, name: str, fraction: int) -> bool:
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
        return self.limit(name, fraction) + math.ceil(math.ldexp(magnitude(step.shift), fraction)) <= squaring.limit

    def overfull(self, plan: QuantizationPlan) -> str | None:
        """A value at rest that does not fit even so."""
        room = truncation_room(self.modulus, 0)
        resting = [name for name in plan.origin if name not in plan.group]
        fits = {name: self.limit(name, self.rest) <= room and self.squares(plan, name, self.rest) for name in resting}
        return next((name for name in resting if not fits[name]), None)


def choose_formats(
    plan: QuantizationPlan,
    observed: Mapping[str, float],
    modulus: Ring | Field | None,
    fraction: int | None,
    margin: float,
) -> Formats:
    """Formats in which everything fits; what a given modulus is too narrow for, weights and activations lose alike."""
    # weights of one group share their fraction, so the one that needs the most bits decides for all
    wanted: dict[str, int] = {}
    for name, step in plan.steps.items():
        if multiplies(step) and name not in plan.whole:
            group = plan.find(name)
            wanted[group] = max(wanted.get(group, 0), _weight_fraction(step))
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

    def lacking(formats: Formats) -> dict[str, int]:
        return {group: rest + bits - formats.most(plan, group) for group, bits in wanted.items()}

    roomy = next(
        (
            formats
            for formats in (Formats(Ring(bits), margin, observed, rest) for bits in range(8, _WIDEST + 1))
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
    formats = Formats(modulus, margin, observed, rest)
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


def _weight_fraction(step: Conv | Dense | PublicAffine) -> int:
    """Fraction bits that the weights of a layer want; a public factor that is as precise with fewer wants these."""
    if not isinstance(step, PublicAffine):
        return _fraction(WEIGHT_BITS, float(np.abs(step.weight).max()))
    usual, most = _fraction(WEIGHT_BITS, abs(step.factor)), math.ldexp(abs(step.factor), -WEIGHT_BITS)
    near = (bits for bits in range(1, usual) if abs(step.factor - _rounded(step.factor, bits)) <= most / 2)
    return next(near, usual)


def _rounded(factor: float, bits: int) -> float:
    return math.ldexp(round(math.ldexp(factor, bits)), -bits)


def _fraction(bits: int, largest: float) -> int:
    """Fraction bits that give a value of size ``largest`` that many bits; none for zero."""
    return max(bits - math.frexp(largest)[1], 0) if largest else 0
